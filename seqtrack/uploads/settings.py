"""The uploader's settings and its target, read once from the environment.

Never holds the token: the child process reads it again for each request, so that it can be replaced while we run.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import UserError

# What users set. Everything else has a default that suits the Hub; tests set it through UPLOAD_TUNING, a JSON object.
_VARIABLES = ("min_commit_interval_s", "grace_s", "lag_limit_s")
KINDS = ("folder", "huggingface")


class UploadSettings(BaseModel):
    """Seconds and MiB as the names say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_commit_interval_s: float = 30.0
    grace_s: float = 60.0
    lag_limit_s: float = 3600.0
    batch_mb: float = 1024.0
    poll_s: float = 2.0
    settle_s: float = 5.0  # how long a file without a manifest must stay unchanged
    start_grace_s: float = 60.0  # shortest life of a watching uploader, so that training can begin
    patience_s: float = 120.0  # time without progress after which `upload --once` gives up
    deadline_s: float = 180.0  # of a batch, extended by its bytes
    read_timeout_s: float = 45.0
    request_tries: int = 3
    backoff_s: float = 2.0
    slow_retry_s: float = 60.0  # after a failure that a person must fix
    tries_per_file: int = 3  # failures that name one file, after which the others go without it


class TargetSettings(BaseModel):
    """Which kind of target, and where."""

    model_config = ConfigDict(frozen=True)

    kind: str
    place: str
    endpoint: str | None = None
    private: bool = True

    @property
    def label(self) -> str:
        """For a log line, and to tell one target's state file from another's."""
        return f"{self.kind} {self.place}" + f" at {self.endpoint}" * (self.endpoint is not None)


def read_settings(environ: Mapping[str, str]) -> UploadSettings:
    """The variables of users, over those of UPLOAD_TUNING.

    Raises:
        UserError: one is malformed.
    """
    try:
        tuning = UploadSettings.model_validate_json(environ.get("UPLOAD_TUNING") or "{}")
    except ValidationError as error:
        raise UserError(f"UPLOAD_TUNING: {error}", code="upload.tuning") from None
    ours = read_environment(environ)
    given = [name for name in _VARIABLES if ours.given(f"UPLOAD_{name}")]
    return tuning.model_copy(update={name: getattr(ours, f"upload_{name}") for name in given})


def choose_target(environment: Environment) -> TargetSettings | None:
    """Where files go: UPLOAD_TARGET if set, else HF_REPO, else nowhere (None).

    Raises:
        UserError: an unknown kind of target, or a folder that overlaps with the output folder.
    """
    if environment.target is None:
        return None
    kind, _, place = (environment.upload_target or f"huggingface:{environment.hf_repo}").partition(":")
    if kind not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(f"UPLOAD_TARGET: unknown target {kind!r:.80}; known: {known}", code="upload.unknown_target")
    if kind == "folder":
        here, there = (Path(os.path.realpath(folder)) for folder in (environment.output_dir, place))
        if here == there or here in there.parents or there in here.parents:  # each upload would be a new file to upload
            text = f"UPLOAD_TARGET: {place} overlaps with OUTPUT_DIR {environment.output_dir}; name a folder outside"
            raise UserError(text, code="upload.overlap")
    endpoint = None if kind == "folder" else environment.hf_endpoint
    return TargetSettings(kind=kind, place=place, endpoint=endpoint, private=environment.hf_private)


def require_target(environment: Environment) -> TargetSettings:
    """The target.

    Raises:
        UserError: none is set.
    """
    target = choose_target(environment)
    if target is None:
        text = "HF_REPO is not set; set it to owner/name (or UPLOAD_TARGET to folder:/place)"
        raise UserError(text, code="upload.no_target")
    return target

"""The sidecar's own settings: where to, how often, how long, read once from the environment.

Never holds the token: the child reads it again at each try, so that it can be exchanged while we run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from seqtrack.config.environment import Environment, read_variable
from seqtrack.uploads.targets import target_kind


@dataclass(frozen=True)
class UploadSettings:
    """Every field is the variable UPLOAD_<FIELD>; seconds, MiB and KiB/s as the names say."""

    min_commit_interval_s: float = 30.0
    batch_mb: float = 1024.0
    poll_s: float = 2.0
    settle_s: float = 5.0
    log_interval_s: float = 600.0
    start_grace_s: float = 60.0
    grace_s: float = 60.0
    patience_s: float = 120.0
    deadline_s: float = 180.0
    least_rate_kb_s: float = 50.0
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 45.0
    request_tries: int = 3
    backoff_s: float = 2.0
    backoff_cap_s: float = 600.0
    slow_retry_s: float = 300.0
    commit_limit_wait_s: float = 3600.0
    tries_before_apart: int = 3
    lag_limit_s: float = 3600.0
    heartbeat_s: float = 60.0


@dataclass(frozen=True)
class TargetSettings:
    """Which target, by its name in the registry, and where; `key` tells one target's journal from another's."""

    kind: str
    place: str
    endpoint: str | None = None
    private: bool = True

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.endpoint or ''}:{self.place}"

    @property
    def shown(self) -> str:
        """For a log line."""
        return f"{self.endpoint}/{self.place}" if self.endpoint else f"{self.kind} {self.place}"


def read_settings(environ: Mapping[str, str]) -> UploadSettings:
    """All UPLOAD_ variables.

    Raises:
        UserError: one is malformed.
    """
    values: dict[str, Any] = {}
    for item in fields(UploadSettings):
        values[item.name] = read_variable(environ, f"UPLOAD_{item.name.upper()}")
    return UploadSettings(**values)


def choose_target(environment: Environment) -> TargetSettings | None:
    """Where files go: UPLOAD_TARGET if set, else HF_REPO, else nowhere (None).

    Raises:
        UserError: UPLOAD_TARGET names a kind that does not exist.
    """
    # Paths are put behind it with a slash of their own, and a server need not know "//api".
    endpoint = environment.hf_endpoint.rstrip("/") if environment.hf_endpoint else None
    if environment.upload_target is not None:
        kind, _, place = environment.upload_target.partition(":")
        return TargetSettings(target_kind(kind), place, endpoint, environment.hf_private)
    if environment.hf_repo is not None:
        return TargetSettings("huggingface", environment.hf_repo, endpoint, environment.hf_private)
    return None

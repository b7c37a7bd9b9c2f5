"""Settings, the interface of a target, and the messages that the loop and a target's process exchange.

A target takes files in batches and lists what it holds. It has no state file, no retries and no pacing; it raises, and
`hub.classify` interprets that. Nothing here holds the token, which a target's process reads again each time.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from seqtrack.config.environment import Environment, is_repository, read_environment
from seqtrack.errors import UserError
from seqtrack.run_dir import CHECKPOINTS, PHASES

ForPerson = Literal["account", "repository", "setup", "other_run", "overlap"]
Kind = Literal[ForPerson, "network", "timeout", "xet", "changed", "rate", "refused"]
# retry: soon. wait: as long as the server asks. person: seldom, until it is fixed. quarantine: go without the file.
Action = Literal["retry", "wait", "person", "quarantine"]
_ACTIONS: dict[str, Action] = {**dict.fromkeys(get_args(ForPerson), "person"), "rate": "wait", "refused": "quarantine"}
_SECRET = re.compile(r"(hf_|Bearer )[A-Za-z0-9_\-]{6,}|([?&](X-Amz-)?[Ss]ignature=)[^&\s'\"]+")
# Above this a target lists no git digest of the bytes themselves, and none is computed.
_GIT_SHA1_LIMIT = 32 * 1024 * 1024

# What users set. Everything else has a default that suits the Hub; tests set it through UPLOAD_TUNING, a JSON object.
_VARIABLES = ("min_commit_interval_s", "grace_s", "lag_limit_s")

# (size, mtime_ns, ctime_ns). No inode: some file systems give a file another one at each look.
Stamp = tuple[int, int, int]


class FileError(Exception):
    """A file that cannot be sent as it is; `path` names it."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


class ChangedError(FileError):
    """A file is not, or no longer, the one that was hashed: look again."""

    code = "upload.changed"


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UploadSettings(_Message):
    """Seconds and MiB as the names say."""

    min_commit_interval_s: float = 30.0
    grace_s: float = 60.0
    lag_limit_s: float = 3600.0
    batch_mb: float = 1024.0
    poll_s: float = 2.0
    settle_s: float = 5.0  # how long a file without a manifest must stay unchanged
    start_grace_s: float = 60.0  # without a change, before a watching uploader ends: training may begin, or compare
    patience_s: float = 120.0  # time without progress after which `upload --once` gives up
    deadline_s: float = 180.0  # of a batch, extended by its bytes
    read_timeout_s: float = 45.0
    xet_stall_s: float = 20.0  # after which a transfer over Xet that does not move is given up
    request_tries: int = 3
    backoff_s: float = 2.0
    slow_retry_s: float = 60.0  # after a failure that a person must fix
    tries_per_file: int = 3  # failures that name one file, after which the others go without it


class TargetSettings(_Message):
    """Kind of target, and where; `prefix` of each path is "" or ends with a slash. None may be in `output_dir`."""

    kind: str
    place: str
    prefix: str = ""
    endpoint: str | None = None
    private: bool = True
    output_dir: Path | None = None

    @property
    def label(self) -> str:
        """For a log line, and to tell one target's state file from another's."""
        inside = f", folder {self.prefix}" if self.prefix else ""
        return f"{self.kind} {self.place}{inside}" + (f" at {self.endpoint}" if self.endpoint is not None else "")


class Fault(_Message):
    """Why an order failed: one sentence for a person, the seconds that the target asked to wait, the file it named."""

    kind: Kind
    line: str
    wait_s: float = 0.0
    path: str | None = None

    @property
    def action(self) -> Action:
        return _ACTIONS.get(self.kind, "retry")


class Digests(_Message):
    """Size in bytes, and digests; a target lists one of the two."""

    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def equals(self, listed: "Digests | None") -> bool:
        """Whether what a target lists has this size and digest."""
        if listed is None or listed.size != self.size:
            return False
        if listed.sha256 is not None:
            return listed.sha256 == self.sha256
        return listed.git_sha1 is not None and listed.git_sha1 == self.git_sha1


class Staged(Digests):
    """A file to upload: path in the repo, where its bytes are, what they are, and the stamp when they were read."""

    path: str
    source: str
    stamp: Stamp


class Order(_Message):
    """What a target's process is to do, in this order; what is empty is left out."""

    prepare: Literal["make", "check"] | None = None  # check account and place; "make" creates the place
    look: tuple[str, ...] | Literal["all"] = ()  # list these paths
    files: tuple[Staged, ...] = ()  # put what is missing of these in one commit, and list them again
    markers: dict[str, str] = {}  # by path, whose files they are: put with them, unless the target has another's
    message: str = ""
    fetch: tuple[str, ...] = ()  # download these paths into `folder`
    folder: str = ""
    revision: str | None = None  # of `look` and `fetch`; the newest by default


class Call(_Message):
    """Everything that a target's process needs; `parent` is the process that it lives with."""

    target: TargetSettings
    settings: UploadSettings
    order: Order
    parent: int
    nice: int = 0
    use_xet: bool = True


class Reply(BaseModel):
    """What became of an order: as much as was done, and `fault` if that is not all."""

    account: str = ""  # account and place, after `prepare`
    revision: str | None = None  # the commit that `remotes` was listed at
    remotes: dict[str, Digests] | None = None  # what `look` found, by path
    commit: str | None = None  # the new one
    verified: list[str] = []  # those of `files` that the target lists as they are here
    places: dict[str, str] = {}  # of the files that were fetched, by path
    num_stored: int = 0  # objects that the storage took, also of an order that failed
    fault: Fault | None = None


class Target(Protocol):
    """A place for files. Every method may raise."""

    def prepare(self, *, make: bool) -> str:
        """Check account and place, and name them; create the place, or else check that we may write to it."""

    def head(self) -> str | None:
        """Name of the newest commit, for `put`; None where the target has no commits."""

    def look(self, paths: Sequence[str] | None, revision: str | None = None) -> dict[str, Digests]:
        """What is held under these paths, others are left out; None for everything."""

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> str:
        """Make files visible together in a new commit, a manifest never before its checkpoint. If staged bytes were
        altered meanwhile (ChangedError), or `parent` is not the head, nothing is made visible."""

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        """Download one file to a place of its own below `folder`; the caller checks its bytes."""


def missing(files: Iterable[Staged], remotes: Mapping[str, Digests]) -> list[Staged]:
    """Those that a target does not hold as they are here."""
    return [item for item in files if not item.equals(remotes.get(item.path))]


def scrub(text: str, token: str | None = None) -> str:
    """Text on one line without tokens and signatures, fit for a log."""
    text = text.replace(token, "***") if token else text
    return " ".join(_SECRET.sub(lambda found: (found[1] or found[2] or "") + "***", text).split())[:600]


def safe_path(path: str) -> str:
    """The path itself; a UserError if it is absolute or empty, or has `..`, a backslash, a NUL or an empty part."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or path != "/".join(parts):
        raise UserError(f"the name {path!r:.200} does not stay inside its folder; refused", code="upload.unsafe_path")
    return path


def stamp_of(path: Path) -> Stamp:
    """The ctime is in it, since a writer can set the mtime back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def stage(path: str, source: Path) -> Staged:
    """Hash a file in pieces, so that memory stays small; a ChangedError if it was written to meanwhile."""
    stamp = stamp_of(source)
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % stamp[0], usedforsecurity=False)
    is_small = stamp[0] <= _GIT_SHA1_LIMIT
    with source.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            if is_small:
                git.update(piece)
    if stamp_of(source) != stamp:
        raise ChangedError(path, "changed while it was read")
    digests = {"sha256": sha256.hexdigest(), "git_sha1": git.hexdigest() if is_small else None}
    return Staged(path=path, source=str(source.absolute()), size=stamp[0], stamp=stamp, **digests)


def require_unchanged(files: Iterable[Staged]) -> None:
    """A ChangedError for the first file whose bytes are no longer those hashed; reads again what has a new stamp."""
    for staged in files:
        place = Path(staged.source)
        with contextlib.suppress(FileNotFoundError):
            if stamp_of(place) == staged.stamp or stage(staged.path, place).sha256 == staged.sha256:
                continue
        raise ChangedError(staged.path, "changed while it was uploaded")


def read_settings(environ: Mapping[str, str]) -> UploadSettings:
    """The variables of users, over those of UPLOAD_TUNING; a UserError if one is malformed."""
    try:
        tuning = UploadSettings.model_validate_json(environ.get("UPLOAD_TUNING") or "{}")
    except ValidationError as error:
        raise UserError(f"UPLOAD_TUNING: {error}", code="upload.tuning") from None
    ours = read_environment(environ)
    given = {name: getattr(ours, f"upload_{name}") for name in _VARIABLES if ours.given(f"UPLOAD_{name}")}
    return tuning.model_copy(update=given)


def choose_target(environment: Environment) -> TargetSettings:
    """UPLOAD_TARGET if set, else HF_REPO. A UserError if neither is, for an unknown kind or an output folder in it."""
    if environment.target is None:
        raise UserError("set HF_REPO to owner/name, or UPLOAD_TARGET to folder:/place", code="upload.no_target")
    prefix = f"{environment.hf_prefix}/" if environment.hf_prefix else ""
    kind, _, place = (environment.upload_target or f"huggingface:{environment.hf_repo}").partition(":")
    if kind == "folder":
        there, root = Path(os.path.realpath(Path(place, prefix))), environment.output_dir
        for source in (root, *(root / phase / name for phase in PHASES for name in ("", CHECKPOINTS))):
            here = Path(os.path.realpath(source))  # a run's folder may be a link to another disk
            if here == there or here in there.parents or there in here.parents:  # each upload would be a new file
                text = f"UPLOAD_TARGET: {there} overlaps with {source} of OUTPUT_DIR; name a folder outside"
                raise UserError(text, code="upload.overlap")
        return TargetSettings(kind=kind, place=place, prefix=prefix, output_dir=root.absolute())
    if kind != "huggingface":
        raise UserError(f"UPLOAD_TARGET: {kind!r:.80} is neither folder nor huggingface", code="upload.unknown_target")
    if not is_repository(place):  # not shown: an address may have a password
        text = f"UPLOAD_TARGET: what follows {kind}: is no repo, expected owner/name or datasets/owner/name"
        raise UserError(text, code="variable.invalid_value")
    where = TargetSettings(kind=kind, place=place, prefix=prefix, private=environment.hf_private)
    return where.model_copy(update={"endpoint": environment.hf_endpoint})

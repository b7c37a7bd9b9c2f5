"""The interface of a target, and the messages that the loop and a target's process exchange.

A target is a place that takes files in batches and lists what it holds. It has no state file, no retries and no pacing;
it raises, and `errors.classify` interprets that. What it holds is asked before and after each batch, never assumed: a
reply can be lost. Nothing here knows the Hub's client.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict

from seqtrack.errors import UserError
from seqtrack.uploads.settings import TargetSettings

Kind = Literal["network", "timeout", "xet", "changed", "rate", "account", "repository", "setup", "refused"]
# retry: soon, with back-off. wait: as long as the server asks. person: seldom, until somebody fixes it. quarantine: if
# it is one file's, the others go without it.
Action = Literal["retry", "wait", "person", "quarantine"]
_ACTIONS: dict[str, Action] = {
    **dict.fromkeys(("account", "repository", "setup"), "person"),
    "rate": "wait",
    "refused": "quarantine",
}
_SECRET = re.compile(r"(hf_|Bearer )[A-Za-z0-9_\-]{6,}|([?&](X-Amz-)?[Ss]ignature=)[^&\s'\"]+")
# Above this a target lists no git digest of the bytes themselves, and none is computed.
GIT_SHA1_LIMIT = 32 * 1024 * 1024

# (size, mtime_ns, ctime_ns, inode)
Stamp = tuple[int, int, int, int]


class FileError(Exception):
    """A file that cannot be sent as it is; `path` names it."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


class ChangedError(FileError):
    """A file is not, or no longer, the one that was hashed: look again."""


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fault(_Message):
    """Why an order failed: one sentence for a person, the seconds that the target asked to wait, the file it named."""

    kind: Kind
    line: str
    wait_s: float = 0.0
    path: str | None = None

    @property
    def action(self) -> Action:
        return _ACTIONS.get(self.kind, "retry")


class Staged(_Message):
    """A file to upload: path in the repo, where its bytes are, what they are, and the stamp when they were read."""

    path: str
    source: str
    size: int
    sha256: str
    git_sha1: str | None
    stamp: Stamp


class Remote(_Message):
    """What a target lists for a file: size in bytes, and one of the two digests."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def holds(self, size: int, sha256: str, git_sha1: str | None) -> bool:
        """Whether the target's file has this size and digest."""
        if self.sha256 is not None:
            return (self.size, self.sha256) == (size, sha256)
        return self.git_sha1 is not None and (self.size, self.git_sha1) == (size, git_sha1)


class Order(_Message):
    """What a target's process is to do, in this order; what is empty is left out."""

    prepare: Literal["make", "check"] | None = None  # check account and place; "make" creates the place
    look: tuple[str, ...] | Literal["all"] = ()  # list these paths
    files: tuple[Staged, ...] = ()  # put what is missing of these in one commit, and list them again
    message: str = ""
    fetch: str | None = None  # download this path into `folder`
    folder: str = ""
    revision: str | None = None  # of `look` and `fetch`; the newest by default


class Bounds(_Message):
    """Limits of every request and the priority of the process; `tries` is how often a request may be sent."""

    connect_s: float = 10.0
    read_s: float = 45.0
    tries: int = 3
    nice: int = 0
    use_xet: bool = True


class Call(_Message):
    """Everything that a target's process needs."""

    target: TargetSettings
    bounds: Bounds
    order: Order
    parent: int  # the process that it lives with


class Reply(BaseModel):
    """What became of an order: as much as was done, and `fault` if that is not all."""

    account: str = ""  # account and place, after `prepare`
    revision: str | None = None  # the commit that `remotes` was listed at
    remotes: list[Remote] | None = None  # what `look` found
    commit: str | None = None  # the new one
    verified: list[str] = []  # those of `files` that the target lists as they are here
    place: str = ""  # of the file that was fetched
    fault: Fault | None = None


class Target(Protocol):
    """A place for files. Every method may raise."""

    def prepare(self, *, make: bool) -> str:
        """Check account and place, and name them; create the place, or else check that we may write to it."""

    def head(self) -> str | None:
        """Name of the newest commit, for `put`; None where the target has no commits."""

    def look(self, paths: Sequence[str] | None, revision: str | None = None) -> dict[str, Remote]:
        """What is held under these paths, others are left out; None for everything."""

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> str:
        """Make files visible together in a new commit, a manifest never before its checkpoint.

        Raises:
            ChangedError: staged bytes were altered meanwhile; nothing was made visible, as if `parent` is not the head.
        """

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        """Download one file into `folder`; the caller checks its bytes."""


def missing(files: Iterable[Staged], remotes: Mapping[str, Remote]) -> list[Staged]:
    """Those that a target does not hold as they are here."""
    return [
        item
        for item in files
        if item.path not in remotes or not remotes[item.path].holds(item.size, item.sha256, item.git_sha1)
    ]


def scrub(text: str, token: str | None = None) -> str:
    """Text on one line without tokens and signatures, fit for a log."""
    text = text.replace(token, "***") if token else text
    return " ".join(_SECRET.sub(lambda found: (found[1] or found[2] or "") + "***", text).split())[:600]


def safe_path(path: str) -> str:
    """The path itself, if it stays inside the folder it is joined to.

    Raises:
        UserError: absolute, empty, with `..`, a backslash, a NUL or an empty part: a foreign name must never choose
            where we write.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or path != "/".join(parts):
        raise UserError(f"the name {path!r:.200} does not stay inside its folder; refused", code="upload.unsafe_path")
    return path


def stamp_of(path: Path) -> Stamp:
    """The ctime is in it, since a writer can set the mtime back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def stage(path: str, source: Path) -> Staged:
    """Hash a file. Read once, in pieces of 1 MiB, so that the uploader's memory stays small.

    Raises:
        ChangedError: it was written to meanwhile.
    """
    stamp = stamp_of(source)
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % stamp[0], usedforsecurity=False)
    is_small = stamp[0] <= GIT_SHA1_LIMIT
    with source.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            if is_small:
                git.update(piece)
    if stamp_of(source) != stamp:
        raise ChangedError(path, "changed while it was read")
    return Staged(
        path=path, source=str(source.absolute()), size=stamp[0], sha256=sha256.hexdigest(),
        git_sha1=git.hexdigest() if is_small else None, stamp=stamp,
    )  # fmt: skip


def require_unchanged(files: Sequence[Staged]) -> None:
    """Check that staged bytes are still those that were hashed; only a changed stamp costs a second reading.

    Raises:
        ChangedError: for the first file that has other bytes, or none.
    """
    for staged in files:
        place = Path(staged.source)
        try:
            same = stamp_of(place) == staged.stamp or stage(staged.path, place).sha256 == staged.sha256
        except FileNotFoundError:
            same = False
        if not same:
            raise ChangedError(staged.path, "changed while it was uploaded")

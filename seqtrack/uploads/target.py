"""What a target is: a place that takes files by batch and says truly what it holds.

The surface is as small as the uploader's needs: `prepare` once, `look` before and after, `put` a batch, `fetch` for
the way back. `look` is apart from `put` because a reply can be lost: what a target holds is asked, never assumed. A
target knows nothing of journals, retries or pacing; it raises, and `errors.classify` says what that means.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from seqtrack.errors import UserError

# Above this a target lists no git digest of the bytes themselves, and none is computed.
GIT_SHA1_LIMIT = 32 * 1024 * 1024


class ChangedError(Exception):
    """A staged file is no longer the one that was hashed; nothing was made visible."""

    def __init__(self, path: str) -> None:
        self.path = path
        super().__init__(f"{path} changed while it was sent")


@dataclass(frozen=True)
class Staged:
    """A private copy of a file, hashed by us: path in the repo, where its bytes are, and what they are.

    `stamp` is (size, mtime_ns, ctime_ns) of the staged bytes when they were hashed: a writer that goes round the
    rename rule shows in it.
    """

    path: str
    source: str
    size: int
    sha256: str
    git_sha1: str | None
    stamp: tuple[int, int, int]


@dataclass(frozen=True)
class Remote:
    """What a target lists of a file: size in bytes, and one of the two digests."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def holds(self, staged: Staged) -> bool:
        """Whether the target's file is ours, by its size and a digest."""
        if self.size != staged.size:
            return False
        if self.sha256 is not None:
            return self.sha256 == staged.sha256
        return self.git_sha1 is not None and self.git_sha1 == staged.git_sha1


@dataclass(frozen=True)
class Account:
    """Who we are there, and where the files go, for a person to read."""

    name: str
    place: str


@dataclass(frozen=True)
class Receipt:
    """What `put` did: the new state's name, and the files that are in it."""

    commit: str
    paths: tuple[str, ...]


class Target(Protocol):
    """A place for files. Every method may raise; `errors.classify` names the reason."""

    def prepare(self, *, make: bool = True) -> Account:
        """Check who we are and that the place is there. Safe to repeat.

        Args:
            make: make the place if it is not there; without, check instead that we may write to it.
        """
        ...

    def head(self) -> str | None:
        """Name of the newest state, to be handed to `put`; None where the target has no such thing."""
        ...

    def look(self, paths: Sequence[str], revision: str | None = None) -> dict[str, Remote]:
        """What is held under these paths; those not held are left out."""
        ...

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> Receipt:
        """Make files visible together, a manifest never before its checkpoint; none if `parent` is no longer the head.

        Returns:
            what was made visible; a target may leave files out that do not fit into one commit.

        Raises:
            ChangedError: staged bytes were altered meanwhile; nothing was made visible.
        """
        ...

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        """Bring one file into `folder`; its bytes are for the caller to check."""
        ...

    def list(self, revision: str | None = None) -> list[Remote]:
        """Everything held."""
        ...


OpenTarget = Callable[[dict[str, Any]], Target]


def safe_path(path: str) -> str:
    """The path itself, if it stays inside the folder it is joined to.

    Raises:
        UserError: absolute, empty, with `..`, a backslash, a NUL or an empty part: a name from elsewhere must never
            choose where we write.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or ".." in parts or path != "/".join(parts):
        raise UserError(f"the name {path!r:.200} does not stay inside its folder; refused")
    return path


def git_digest(path: Path, size: int) -> str | None:
    """The name git gives these bytes, as the Hub lists small files; None for files too large to be listed so."""
    if size > GIT_SHA1_LIMIT:
        return None
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def require_unchanged(files: Sequence[Staged]) -> None:
    """Check that staged bytes are still those that were hashed.

    Only a changed stamp costs a second reading: a rename or a removal of the original touches the stamp of a hard
    link, too, and changes no byte.

    Raises:
        ChangedError: for the first file that is another one now.
    """
    for staged in files:
        place = Path(staged.source)
        try:
            if stamp_of(place) != staged.stamp and digest_of(place) != staged.sha256:
                raise ChangedError(staged.path)
        except FileNotFoundError as error:
            raise ChangedError(staged.path) from error


def stamp_of(path: Path) -> tuple[int, int, int]:
    """(size, mtime_ns, ctime_ns): ctime too, since a writer can set the mtime back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def digest_of(path: Path) -> str:
    """Hex sha256 in pieces of 1 MiB, so that the sidecar's memory stays small."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

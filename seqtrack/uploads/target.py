"""The interface of a target: a place that takes files in batches and lists what it holds.

A target has no state file, no retries and no pacing; it raises, and `errors.classify` interprets that. What a
target holds is asked before and after each batch, never assumed: a reply can be lost.
"""

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol, cast

from seqtrack.errors import UserError

# Modules are named, not imported: the Hub's client must not be loaded into the watching process.
TARGETS: dict[str, tuple[str, str]] = {
    "huggingface": ("seqtrack.uploads.hub", "open_hub"),
    "folder": ("seqtrack.uploads.folder", "open_folder"),
}

# Above this a target lists no git digest of the bytes themselves, and none is computed.
GIT_SHA1_LIMIT = 32 * 1024 * 1024

Stamp = tuple[int, int, int, int]


class FileError(Exception):
    """Trouble with one file; `path` names it."""

    def __init__(self, path: str, message: str) -> None:
        self.path = path
        super().__init__(f"{path}: {message}")


class ChangedError(FileError):
    """A staged file is no longer the one that was hashed; nothing was made visible."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "changed while it was uploaded")


class MismatchError(FileError):
    """The target lists other bytes than those that were uploaded."""


class IgnoredError(FileError):
    """The target leaves this file out of the repo."""


@dataclass(frozen=True)
class Staged:
    """A file to upload: path in the repo, where its bytes are, and what they are.

    `stamp` is the file's stamp when it was hashed: a writer that changes bytes in place shows in it.
    """

    path: str
    source: str
    size: int
    sha256: str
    git_sha1: str | None
    stamp: Stamp


@dataclass(frozen=True)
class Remote:
    """What a target lists for a file: size in bytes, and one of the two digests."""

    path: str
    size: int
    sha256: str | None = None
    git_sha1: str | None = None

    def holds(self, size: int, sha256: str, git_sha1: str | None) -> bool:
        """Whether the target's file has this size and digest."""
        if self.size != size:
            return False
        if self.sha256 is not None:
            return self.sha256 == sha256
        return self.git_sha1 is not None and self.git_sha1 == git_sha1


@dataclass(frozen=True)
class Account:
    """The account's name and the place of the files, for a person to read."""

    name: str
    place: str


@dataclass(frozen=True)
class Receipt:
    """What `put` did: the new commit, and the files that are in it."""

    commit: str
    paths: tuple[str, ...]


class Target(Protocol):
    """A place for files. Every method may raise."""

    def prepare(self, *, make: bool = True) -> Account:
        """Check account and place. Safe to repeat.

        Args:
            make: create the place if it does not exist; without, check instead that we may write to it.
        """
        ...

    def head(self) -> str | None:
        """Name of the newest commit, for `put`; None where the target has no commits."""
        ...

    def look(self, paths: Sequence[str], revision: str | None = None) -> dict[str, Remote]:
        """What is held under these paths; others are left out."""
        ...

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> Receipt:
        """Make files visible together, a manifest never before its checkpoint; none if `parent` is no longer the head.

        Returns:
            what was made visible; a target may leave out files that do not fit into one commit.

        Raises:
            ChangedError: staged bytes were altered meanwhile; nothing was made visible.
        """
        ...

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        """Download one file into `folder`; the caller checks its bytes."""
        ...

    def list(self, revision: str | None = None) -> list[Remote]:
        """Everything held."""
        ...


def target_kind(name: str) -> str:
    """The name itself, if it is one of the registry.

    Raises:
        UserError: it is not.
    """
    if name not in TARGETS:
        known = ", ".join(sorted(TARGETS))
        raise UserError(f"UPLOAD_TARGET: unknown target {name!r:.80}; known: {known}", code="upload.unknown_target")
    return name


def open_target(settings: dict[str, Any]) -> Target:
    """Open the target that `settings["kind"]` names."""
    module, function = TARGETS[target_kind(settings["kind"])]
    return cast(Callable[[dict[str, Any]], Target], getattr(importlib.import_module(module), function))(settings)


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


def require_unchanged(files: Sequence[Staged]) -> None:
    """Check that staged bytes are still those that were hashed; only a changed stamp costs a second reading.

    Raises:
        ChangedError: for the first file that has other bytes, or none.
    """
    for staged in files:
        place = Path(staged.source)
        try:
            if stamp_of(place) != staged.stamp and digest_of(place) != staged.sha256:
                raise ChangedError(staged.path)
        except FileNotFoundError as error:
            raise ChangedError(staged.path) from error


def stamp_of(path: Path) -> Stamp:
    """(size, mtime_ns, ctime_ns, inode): ctime too, since a writer can set the mtime back."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def digest_of(path: Path) -> str:
    """Hex sha256, read in pieces of 1 MiB, so that the uploader's memory stays small."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def git_digest(path: Path, size: int) -> str | None:
    """The name git gives these bytes, as the Hub lists small files; None for files too large to be listed so."""
    if size > GIT_SHA1_LIMIT:
        return None
    digest = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

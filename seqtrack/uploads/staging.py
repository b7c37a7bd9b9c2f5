"""Private copies to upload from, hashed by us: nobody else's write can reach what is being sent.

A file that has its final name for good (a checkpoint) is hard-linked, which costs nothing; one that may grow or be
written over is copied. A link shares its bytes with the original, so its stamp is looked at again before anything
becomes visible (`target.require_unchanged`).
"""

import contextlib
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from seqtrack.uploads.scan import FileInfo, UploadUnit, stat_key
from seqtrack.uploads.target import ChangedError, Staged, digest_of, git_digest, stamp_of

logger = logging.getLogger(__name__)

_COPY_LIMIT = 64 * 1024 * 1024  # a larger file that is no checkpoint is linked, too: a copy could fill the disk


class DamagedError(Exception):
    """A checkpoint's bytes are not those its manifest promises."""


@dataclass
class Copy:
    """A staged file and the file it came from; `key` is the original's stat key that the digest was taken at."""

    staged: Staged
    found: FileInfo
    key: str


class Staging:
    """The folder of private copies; emptied at start, since what lies there belongs to a process that died.

    Args:
        root: the output folder.
        folder: where copies go, on the same file system if links are to be possible.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._count = 0
        shutil.rmtree(folder, ignore_errors=True)

    def take(self, unit: UploadUnit) -> list[Copy]:
        """Stage and hash the files of a unit, all or none.

        Raises:
            ChangedError: a file is no longer the one that was found; look again later.
            DamagedError: the bytes are not what the manifest promises.
            OSError: no space, no right, file gone.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        copies: list[Copy] = []
        try:
            for index, found in enumerate(unit.files):
                immutable = unit.is_checkpoint and index == 0
                if immutable and unit.promised is not None and found.size != unit.promised[0]:
                    raise DamagedError(f"{found.path} has {found.size} bytes; its manifest says {unit.promised[0]}")
                copy = self._take_one(found, link=immutable or found.size > _COPY_LIMIT)
                copies.append(copy)
                if immutable and unit.promised is not None and copy.staged.sha256 != unit.promised[1]:
                    raise DamagedError(f"{found.path} has another sha256 than its manifest says")
        except (ChangedError, DamagedError, OSError):
            self.release(copies)
            raise
        return copies

    def _take_one(self, found: FileInfo, *, link: bool) -> Copy:
        source = self._root / found.path
        self._count += 1
        place = self._folder / f"{self._count:06d}"
        linked = link and _try_link(source, place)
        try:
            if not linked:
                with source.open("rb") as reader, place.open("wb") as writer:
                    _copy_bytes(reader.fileno(), writer.fileno(), found.size)
                if not found.grows and stat_key(source.stat()) != found.key:
                    raise ChangedError(found.path)
            stamp = stamp_of(place)
            sha256 = digest_of(place)
            if stamp_of(place) != stamp or stamp[0] != found.size or (linked and stamp[1] != found.mtime_ns):
                raise ChangedError(found.path)
            # Linking moved the ctime; a copy leaves the original as it was found.
            key = stat_key(place.stat()) if linked else found.key
            staged = Staged(found.path, str(place), stamp[0], sha256, git_digest(place, stamp[0]), stamp)
        except (OSError, ChangedError):
            place.unlink(missing_ok=True)
            raise
        return Copy(staged, found, key)

    def release(self, copies: list[Copy]) -> None:
        """Give the copies back, and keep each `key` valid over the ctime that removing a link moves."""
        for copy in copies:
            place, source = Path(copy.staged.source), self._root / copy.found.path
            with contextlib.suppress(FileNotFoundError):
                untouched = stamp_of(place) == copy.staged.stamp
                place.unlink()
                if untouched and stat_key(source.stat()).rsplit("-", 1)[1] == copy.key.rsplit("-", 1)[1]:
                    copy.key = copy.key if not _was_linked(copy) else stat_key(source.stat())


def _was_linked(copy: Copy) -> bool:
    return copy.key != copy.found.key


def _try_link(source: Path, place: Path) -> bool:
    """Link a file; False where that cannot be done (another file system, no right) and a copy must do."""
    if source.is_symlink():
        return False
    try:
        os.link(source, place)
    except FileNotFoundError:
        raise
    except OSError as error:
        logger.debug("%s cannot be linked (%s); it is copied", source, error)
        return False
    return True


def _copy_bytes(reader: int, writer: int, size: int) -> None:
    """The first `size` bytes: what is added to a log meanwhile belongs to the next copy."""
    left = size
    while left:
        piece = os.read(reader, min(left, 1 << 20))
        if not piece:
            return
        view = memoryview(piece)
        while view:
            view = view[os.write(writer, view) :]
        left -= len(piece)

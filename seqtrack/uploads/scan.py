"""What there is to upload: one walk of the output folder, and which files belong together.

Knows the trainer's contract (immutable names, temporary names, the manifest written after its checkpoint) and nothing
of targets or clocks.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_json_object
from seqtrack.run_dir import CHECKPOINTS
from seqtrack.uploads.target import Stamp

_TEMPORARY = (".tmp", ".partial", ".incomplete", ".lock", ".swp", "~")
_SKIPPED_FOLDERS = ("superseded", "__pycache__")
_SKIPPED_NAMES = (".", "SEQTRACK_step")
_CHECKPOINT_SUFFIX = ".safetensors"
_LOG_SUFFIXES = (".log", ".jsonl", ".csv")


@dataclass(frozen=True)
class FileInfo:
    """A file as the walk found it: its path in the repo, and its stamp."""

    path: str
    stamp: Stamp

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stamp[0]

    @property
    def grows(self) -> bool:
        """Whether a part of it is worth uploading: a log, to which lines are only added."""
        name = self.path.rsplit("/", 1)[-1]
        return name.endswith(_LOG_SUFFIXES) or name.startswith("events.out.tfevents")


@dataclass(frozen=True)
class UploadUnit:
    """Files that may only be seen together: a checkpoint with its manifest, or one file.

    `expected` is the (bytes, sha256) of the checkpoint by its manifest; the checkpoint is the first of the files.
    """

    files: tuple[FileInfo, ...]
    expected: tuple[int, str] | None = None

    @property
    def path(self) -> str:
        """Of the first file, which names the unit."""
        return self.files[0].path

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint with its manifest."""
        return self.expected is not None

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(found.size for found in self.files)


@dataclass(frozen=True)
class Scan:
    """One walk: what can be uploaded, and what cannot.

    `problems` maps a path to one line (a damaged manifest, an unreadable file). A checkpoint without a manifest and a
    manifest without its checkpoint are left out.
    """

    units: tuple[UploadUnit, ...]
    problems: dict[str, str]


def scan(root: Path) -> Scan:
    """Walk `root`. A folder that does not exist yet holds nothing."""
    problems: dict[str, str] = {}
    found = {item.path: item for item in _walk(root, "", problems)}
    units: list[UploadUnit] = []
    for path, item in found.items():
        suffix = PurePosixPath(path).suffix
        half = PurePosixPath(path).parent.name == CHECKPOINTS
        stem = path.removesuffix(suffix)
        manifest, checkpoint = found.get(stem + ".json"), found.get(stem + _CHECKPOINT_SUFFIX)
        if suffix == _CHECKPOINT_SUFFIX and manifest is not None:
            try:
                units.append(UploadUnit((item, manifest), _expected(root / manifest.path)))
            except (DamagedFileError, FileNotFoundError) as error:
                problems[manifest.path] = str(error)
        elif suffix == ".json" and checkpoint is not None:
            continue  # goes with its checkpoint
        elif not (half and suffix in (_CHECKPOINT_SUFFIX, ".json")):
            units.append(UploadUnit((item,)))
    return Scan(tuple(units), problems)


def _expected(manifest: Path) -> tuple[int, str]:
    values = read_json_object(manifest)
    size, digest = values.get("bytes"), values.get("sha256")
    if not isinstance(size, int) or not isinstance(digest, str) or len(digest) != 64:
        raise DamagedFileError(f"{manifest} has no bytes and sha256; it is no manifest")
    return size, digest


def _walk(root: Path, prefix: str, problems: dict[str, str]) -> Iterator[FileInfo]:
    try:
        entries = sorted(os.scandir(root / prefix), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        problems[prefix or "."] = f"{root / prefix} cannot be listed ({error.strerror})"
        return
    for entry in entries:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        if entry.name.startswith(_SKIPPED_NAMES) or entry.name.endswith(_TEMPORARY):
            continue
        try:
            entry.name.encode()
            if entry.is_symlink() and not _stays_inside(root, Path(entry.path)):
                continue
            if entry.is_dir():
                if entry.name not in _SKIPPED_FOLDERS and not entry.is_symlink():
                    yield from _walk(root, path, problems)
            elif entry.is_file():
                status = entry.stat()
                if not os.access(entry.path, os.R_OK):
                    raise PermissionError(13, "no permission to read it")
                yield FileInfo(path, (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        except FileNotFoundError:
            continue  # removed since the listing
        except UnicodeEncodeError:
            problems[repr(path)] = f"the name {path!r} is not UTF-8; rename the file"
        except OSError as error:
            problems[path] = f"{entry.path} cannot be read ({error.strerror})"


def _stays_inside(root: Path, link: Path) -> bool:
    """Whether a link points to something in the folder: another would publish files that nobody meant to."""
    target, inside = Path(os.path.realpath(link)), Path(os.path.realpath(root))
    hidden = any(part.startswith(".") for part in target.parts[len(inside.parts) :])
    return inside in target.parents and not hidden

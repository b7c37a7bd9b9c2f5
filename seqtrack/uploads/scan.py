"""What there is to send: one walk of the output folder, and which files belong together.

Knows the trainer's contract (immutable names, temporary names, the manifest written after its checkpoint) and nothing
of targets. Follows no rule that needs a clock: whether a file is still is judged by who calls twice.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_json_object

_TEMPORARY = (".tmp", ".partial", ".incomplete", ".lock", ".swp", "~")
_SKIPPED_FOLDERS = ("superseded", "__pycache__")
_STEP_CHECKPOINT = "SEQTRACK_step"
_CHECKPOINT_FOLDER = "checkpoints"
_CONTAINER = ".safetensors"
_LOG_SUFFIXES = (".log", ".jsonl", ".csv")


@dataclass(frozen=True)
class FileInfo:
    """A file as the walk met it: its path in the repo, its stat key, size and mtime."""

    path: str
    key: str
    size: int
    mtime_ns: int

    @property
    def grows(self) -> bool:
        """Whether a part of it is worth sending: a log, to which lines are only added."""
        name = self.path.rsplit("/", 1)[-1]
        return name.endswith(_LOG_SUFFIXES) or name.startswith("events.out.tfevents")


@dataclass(frozen=True)
class UploadUnit:
    """Files that may only be seen together: a checkpoint with its manifest, or one file.

    `promised` is (bytes, sha256) that a manifest says of the checkpoint, the first of the files.
    """

    files: tuple[FileInfo, ...]
    promised: tuple[int, str] | None = None

    @property
    def is_checkpoint(self) -> bool:
        return self.promised is not None

    @property
    def size(self) -> int:
        return sum(found.size for found in self.files)

    @property
    def key(self) -> str:
        """Changes when any of the files does."""
        return "|".join(found.key for found in self.files)


@dataclass(frozen=True)
class Survey:
    """One walk: what can be sent, and what is in the way.

    `problems` maps a path to one line (a damaged manifest, an unreadable file); `waiting` are checkpoints without a
    manifest and manifests without their checkpoint, which are nothing yet.
    """

    units: tuple[UploadUnit, ...]
    problems: dict[str, str]
    waiting: tuple[str, ...]


def stat_key(status: os.stat_result) -> str:
    """Size, mtime, ctime and inode: a writer can set the mtime back, but not the ctime."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def scan(root: Path) -> Survey:
    """Walk `root`. A folder that is not there yet holds nothing."""
    problems: dict[str, str] = {}
    found = {item.path: item for item in _walk(root, "", problems)}
    units: list[UploadUnit] = []
    waiting: list[str] = []
    taken: set[str] = set()
    for path, item in found.items():
        if not path.endswith(_CONTAINER):
            continue
        manifest = found.get(path[: -len(_CONTAINER)] + ".json")
        if manifest is None:
            if _in_checkpoints(path):
                waiting.append(path)
                taken.add(path)
            continue
        taken |= {path, manifest.path}
        try:
            units.append(UploadUnit((item, manifest), _promise(root / manifest.path)))
        except (DamagedFileError, FileNotFoundError) as error:
            problems[manifest.path] = str(error)
    for path, item in found.items():
        if path in taken:
            continue
        if _in_checkpoints(path) and path.endswith(".json"):
            waiting.append(path)
        else:
            units.append(UploadUnit((item,)))
    return Survey(tuple(units), problems, tuple(waiting))


def _in_checkpoints(path: str) -> bool:
    parts = path.split("/")
    return len(parts) > 1 and parts[-2] == _CHECKPOINT_FOLDER


def _promise(manifest: Path) -> tuple[int, str]:
    values = read_json_object(manifest)
    size, digest = values.get("bytes"), values.get("sha256")
    if not isinstance(size, int) or not isinstance(digest, str) or len(digest) != 64:
        raise DamagedFileError(f"{manifest} says no bytes and sha256; it is no manifest")
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
        if _is_skipped(entry.name):
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
                    raise PermissionError(13, "no right to read it")
                yield FileInfo(path, stat_key(status), status.st_size, status.st_mtime_ns)
        except FileNotFoundError:
            continue  # went between the listing and the look
        except UnicodeEncodeError:
            problems[repr(path)] = f"the name {path!r} is not UTF-8; rename the file"
        except OSError as error:
            problems[path] = f"{entry.path} cannot be read ({error.strerror})"


def _is_skipped(name: str) -> bool:
    return name.startswith((".", _STEP_CHECKPOINT)) or name.endswith(_TEMPORARY)


def _stays_inside(root: Path, link: Path) -> bool:
    """Whether a link points to something in the folder: another would send files that nobody meant to publish."""
    target, inside = Path(os.path.realpath(link)), Path(os.path.realpath(root))
    hidden = any(part.startswith(".") for part in target.parts[len(inside.parts) :])
    return inside in target.parents and not hidden

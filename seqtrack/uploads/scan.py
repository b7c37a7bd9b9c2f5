"""What there is to upload: one walk of the output folder, and which files belong together.

Knows the trainer's contract (immutable names, temporary names, the manifest written after its checkpoint) and nothing
of targets or clocks.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from seqtrack.checkpoints.safetensors_io import DamagedFileError
from seqtrack.checkpoints.side_files import read_manifest
from seqtrack.run_dir import CHECKPOINTS, PHASES, SUPERSEDED
from seqtrack.uploads.target import Staged, Stamp, stamp_of

_TEMPORARY = (".tmp", ".partial", ".incomplete", ".lock", ".swp", "~")
_SKIPPED_NAMES = (".", "SEQTRACK_step")
_LOG_SUFFIXES = (".log", ".jsonl", ".csv")
NEVER = float("-inf")
UnitState = Literal["verified", "ready", "growing", "settling", "quarantined"]


@dataclass
class UploadUnit:
    """Files that may only be seen together: a checkpoint with its manifest, or one file; and what became of them."""

    files: dict[str, Stamp]  # by path in the repo, the checkpoint first
    expected: tuple[int, str] | None = None  # bytes and sha256 of a checkpoint by its manifest
    state: UnitState = "settling"
    since: float = 0.0  # when it was found with these stamps
    waiting_since: float = 0.0  # the same, of the oldest stamps that are not uploaded yet
    sent_at: float = NEVER  # when it was last verified on the target
    attempts: int = 0  # failures that named it
    retry_at: float = NEVER  # until then it is quarantined, because of `problem`
    problem: str = ""
    staged: list[Staged] = field(default_factory=list)  # its files, hashed

    def __post_init__(self) -> None:
        self.path = next(iter(self.files))  # of the first file, which names the unit
        self.size = sum(stamp[0] for stamp in self.files.values())
        self.is_checkpoint = self.expected is not None
        name = PurePosixPath(self.path).name  # a log, of which a part is worth uploading:
        self.grows = name.endswith(_LOG_SUFFIXES) or name.startswith("events.out.tfevents")


def scan(root: Path) -> tuple[list[UploadUnit], dict[str, str]]:
    """What can be uploaded, and by path why others cannot. Half a pair is left out, unless it is a thin manifest."""
    problems: dict[str, str] = {}
    found = dict(_walk(root, "", problems))
    units: list[UploadUnit] = []
    for path, stamp in found.items():
        suffix, is_half = PurePosixPath(path).suffix, PurePosixPath(path).parent.name == CHECKPOINTS
        checkpoint = path.removesuffix(suffix) + ".safetensors"
        if not is_half or suffix not in (".safetensors", ".json"):
            units.append(UploadUnit({path: stamp}))
        elif suffix == ".json":  # a checkpoint goes with its manifest
            try:
                manifest = read_manifest(root / path)
            except (DamagedFileError, FileNotFoundError) as error:
                problems[path] = str(error)
                continue
            if checkpoint in found:
                both = {checkpoint: found[checkpoint], path: stamp}
                units.append(UploadUnit(both, (manifest.bytes, manifest.sha256)))
            elif manifest.kind == "thin":
                units.append(UploadUnit({path: stamp}))
    return units, problems


def _walk(root: Path, prefix: str, problems: dict[str, str]) -> Iterator[tuple[str, Stamp]]:
    try:
        entries = sorted(os.scandir(root / prefix), key=lambda entry: entry.name)
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            problems[prefix or "."] = f"{root / prefix} cannot be listed ({error.strerror})"
        return
    for entry in entries:
        path = f"{prefix}/{entry.name}" if prefix else entry.name
        # A run's folder may be on another disk; any other link that leaves could publish what nobody meant to.
        is_ours = path in PHASES or (prefix in PHASES and entry.name == CHECKPOINTS)
        is_skipped = entry.name.startswith(_SKIPPED_NAMES) or entry.name.endswith(_TEMPORARY)
        if is_skipped or (entry.is_symlink() and not is_ours and not _stays_inside(root, entry.path)):
            continue
        try:
            is_folder, stamp = entry.is_dir(), stamp_of(Path(entry.path))
        except OSError:
            continue  # removed since the listing, or a link to nowhere
        if path.encode(errors="replace").decode() != path:
            problems[ascii(path)] = "the name is not UTF-8; rename it"
        elif is_folder:
            if entry.name != SUPERSEDED and (is_ours or not entry.is_symlink()):
                yield from _walk(root, path, problems)
        elif entry.is_file():
            if os.access(entry.path, os.R_OK):
                yield path, stamp
            else:
                problems[path] = f"{entry.path} cannot be read; change its permissions"


def _stays_inside(root: Path, link: str) -> bool:
    target, inside = Path(os.path.realpath(link)), Path(os.path.realpath(root))
    return inside in target.parents and not any(part.startswith(".") for part in target.parts[len(inside.parts) :])

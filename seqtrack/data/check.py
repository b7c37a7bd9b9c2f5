"""`seqtrack data check`: counts what is in a data folder and finds every problem, changing nothing."""

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqtrack.data.annotations import attempt, class_of
from seqtrack.data.decode import FrameFile, check_frames
from seqtrack.data.frames import FrameFolder, scan_frames
from seqtrack.data.lasot import SPLITS, Layout, check_classes
from seqtrack.data.sequence import Sequence, read_sequence
from seqtrack.errors import Problem, UserError

_MAX_SHOWN_PER_SEQUENCE = 20


@dataclass
class Row:
    """One class in one split.

    Attributes:
        sequences, sequences_expected: found on the disk, and named by the split.
        frames_expected: rows of the annotation files.
        frames_found: frame files.
        boxes: rows whose box has an area.
        absent: rows with the target occluded or out of view.
        bytes_: of all frame files.
    """

    class_name: str
    split: str
    sequences: int = 0
    sequences_expected: int = 0
    frames_expected: int = 0
    frames_found: int = 0
    boxes: int = 0
    absent: int = 0
    bytes_: int = 0


@dataclass
class Report:
    """Result of a check.

    Attributes:
        rows: by class and split.
        problems: training refuses this, or must not be trusted with it.
        notes: worth knowing, and no obstacle to training.
        decoded: number of frames that were decoded.
    """

    root: str
    rows: list[Row] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decoded: int = 0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "ok": not self.problems}


def check_layout(
    layout: Layout,
    *,
    classes: tuple[str, ...] = (),
    decode: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Report:
    """Examine the classes of a layout.

    Args:
        classes: empty for all.
        decode: read every pixel of every frame.
        progress: called with the name of each sequence that has been examined.

    Raises:
        UserError: a class does not exist.
    """
    unknown = check_classes(classes, layout)
    if unknown:
        raise UserError(unknown)
    report = Report(str(layout.root), problems=list(layout.problems))
    chosen = [name for name in (classes or layout.classes) if name in layout.classes]
    firsts: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    in_a_split: set[str] = set()
    for class_name in chosen:
        for split in SPLITS:
            names = layout.names(split, [class_name])
            in_a_split.update(names)
            row = Row(class_name, split, sequences_expected=len(names))
            here = [name for name in names if name in layout.folders]
            for name in here:
                _check_sequence(layout.folders[name], row, report, decode=decode)
                first = _first_frame(layout.folders[name] / "img")
                if first is not None:
                    firsts[split][name] = first
                progress(name)
            if len(here) < len(names):
                gone = ", ".join(name for name in names if name not in layout.folders)
                report.notes.append(f"{class_name}: {split} sequences that are missing: {gone}")
            report.rows.append(row)
    report.problems += _leaks(firsts)
    stray = [name for name in layout.folders if class_of(name) in chosen and name not in in_a_split]
    if stray:
        report.notes.append(f"in no list, and never used: {', '.join(stray)}")
    return report


def _check_sequence(folder: Path, row: Row, report: Report, *, decode: bool) -> None:
    problems: list[Problem] = []
    sequence = attempt(problems, read_sequence, folder, row.class_name)
    report.problems += problems
    # Problems of the folder of frames have been reported with the sequence.
    frames = attempt([], scan_frames, folder / "img") or FrameFolder([], [], False, [])
    row.sequences += 1
    row.frames_found += len(frames.paths)
    row.bytes_ += sum(frames.sizes)
    row.frames_expected += sequence.num_frames if sequence else _count_rows(folder / "groundtruth.txt")
    if frames.left_out:
        shown = f"{len(frames.left_out)} entries in img are not frames, such as {frames.left_out[0]!a}"
        report.notes.append(f"{folder.name}: {shown}")
    if sequence is not None:
        row.boxes += int((sequence.boxes_xywh[:, 2:] > 0).all(axis=1).sum())
        row.absent += int(sequence.absent.sum())
        if sequence.missing.any():
            numbers = (np.flatnonzero(sequence.missing) + 1).tolist()
            shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
            report.problems.append(f"{folder}: {len(numbers)} frame files are missing, and not sampled: {shown}")
    if decode:
        report.decoded += len(frames.paths)
        report.problems += _shorten(_decode_all(folder, frames.paths, sequence), folder.name)
    else:
        report.problems += _shorten([str(one) for one in check_frames(frames.paths)], folder.name)


def _shorten(problems: list[str], name: str) -> list[str]:
    more = len(problems) - _MAX_SHOWN_PER_SEQUENCE
    return problems if more <= 0 else [*problems[:_MAX_SHOWN_PER_SEQUENCE], f"{name}: {more} more such frames"]


def _count_rows(path: Path) -> int:
    try:
        return len(path.read_bytes().splitlines())
    except OSError:
        return 0


def _first_frame(folder: Path) -> str | None:
    """Digest of the first frame; sequences that begin with the same image are the same video."""
    try:
        data = (folder / "00000001.jpg").read_bytes()
    except OSError:
        return None
    return hashlib.sha256(data).hexdigest() if data else None


def _leaks(firsts: dict[str, dict[str, str]]) -> list[str]:
    by_digest = {digest: name for name, digest in firsts["train"].items()}
    return [
        f"leak: test sequence {name} begins with the same image as training sequence {by_digest[digest]}"
        for name, digest in firsts["test"].items()
        if digest in by_digest and by_digest[digest] != name
    ]


def _decode_all(folder: Path, paths: list[Path], sequence: Sequence | None) -> list[str]:
    """Decode every frame; one problem for each that is damaged, of another size, or whose box lies outside it."""
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = list(pool.map(_decode_one, paths))
    problems = [problem for problem, _ in results if problem]
    sizes = {size for _, size in results if size is not None}
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes))
        problems.append(f"{folder / 'img'}: frames of {len(sizes)} sizes: {shown}")
    if sequence is not None and len(sizes) == 1:
        problems += _boxes_outside(folder, sequence, next(iter(sizes)))
    return problems


def _decode_one(path: Path) -> tuple[str, tuple[int, int] | None]:
    try:
        file = FrameFile(path)
        file.whole()
    except UserError as error:
        return error.problems[0], None
    return "", (file.width, file.height)


def _boxes_outside(folder: Path, sequence: Sequence, size: tuple[int, int]) -> Iterable[str]:
    x, y, w, h = sequence.boxes_xywh.T
    outside = (x >= size[0]) | (y >= size[1]) | (x + w <= 0) | (y + h <= 0)
    for row in np.flatnonzero((w > 0) & (h > 0) & ~sequence.absent & outside):
        yield (
            f"{folder / 'groundtruth.txt'}, line {row + 1}: the box lies completely outside the "
            f"{size[0]}x{size[1]} frame, although the target is marked as visible"
        )

"""`seqtrack data check`: counts what is in a data folder and finds every problem, changing nothing."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqtrack.data.annotations import attempt, class_of, first_problems
from seqtrack.data.decode import FrameFile, check_frames, scan_frames
from seqtrack.data.lasot import SPLITS, Layout
from seqtrack.data.sequence import Sequence, read_sequence
from seqtrack.errors import Problem, UserError


@dataclass
class Row:
    """One class in one split: sequences on the disk and in the split's list, annotated frames, frame files and
    their bytes, rows whose box has an area, and rows with the target occluded or out of view."""

    class_name: str
    split: str
    sequences: int
    sequences_expected: int
    frames_expected: int = 0
    frames_found: int = 0
    boxes: int = 0
    absent: int = 0
    bytes_: int = 0


@dataclass
class Report:
    """Result of a check: training refuses, or must not be trusted with, `problems`; `notes` are no obstacle."""

    root: str
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decoded: int = 0


def check_layout(layout: Layout, *, classes: tuple[str, ...] = (), decode: bool = False) -> Report:
    """Examine the classes of a layout.

    Args:
        classes: empty for all.
        decode: read every pixel of every frame.

    Raises:
        UserError: a class does not exist.
    """
    if unknown := layout.check_classes(classes):
        raise UserError(unknown)
    report = Report(str(layout.root), problems=list(layout.problems))
    unused = {name for name in layout.folders if not classes or class_of(name) in classes}
    for class_name in classes or layout.classes:
        for split in SPLITS:
            names = [name for name in layout.lists[split] if class_of(name) == class_name]
            here = [name for name in names if name in layout.folders]
            report.rows.append(Row(class_name, split, len(here), len(names)))
            for name in here:
                report.problems += _check_sequence(layout.folders[name], report, decode=decode)
            if gone := [name for name in names if name not in layout.folders]:
                report.notes.append(f"{class_name}: {split} sequences that are missing: {', '.join(gone)}")
            unused.difference_update(names)
    if unused:
        report.notes.append(f"in no list, and never used: {', '.join(sorted(unused))}")
    return report


def _check_sequence(folder: Path, report: Report, *, decode: bool) -> list[Problem]:
    """The first problems of a sequence; counts are added to the report's last row."""
    row, problems = report.rows[-1], list[Problem]()
    sequence = attempt(problems, read_sequence, folder, row.class_name)
    frames = attempt([], scan_frames, folder / "img")  # its problems are among the sequence's
    paths = frames.paths if frames else []
    if frames:
        row.frames_found += len(paths)
        row.bytes_ += sum(frames.sizes)
        if frames.left_out:
            left_out = f"{len(frames.left_out)} entries in img are not frames: {frames.left_out}"
            report.notes.append(f"{folder.name}: {left_out}")
    if sequence is not None:
        row.frames_expected += sequence.num_frames
        row.boxes += int((sequence.boxes_xywh[:, 2:] > 0).all(axis=1).sum())
        row.absent += int(sequence.absent.sum())
        if missing := (np.flatnonzero(sequence.missing) + 1).tolist():
            text = f"{folder}: {len(missing)} frame files are missing, and not sampled: {missing}"
            problems.append(Problem(text, "data.frame_count"))
    if decode:
        report.decoded += len(paths)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            problems += filter(None, pool.map(lambda path: _decode(path, sequence), paths))
    else:
        problems += check_frames(paths)
    return first_problems(problems)


def _decode(path: Path, sequence: Sequence | None) -> Problem | None:
    """What is wrong with a frame: it is damaged, or the box of a visible target lies outside it."""
    try:
        file = FrameFile(path)
        file.whole()
    except UserError as error:
        return error.problems[0]
    row = int(path.stem) - 1 if sequence is not None else 0
    if sequence is not None and sequence.visible[row]:
        x, y, w, h = sequence.boxes_xywh[row]
        if not (x < file.width and y < file.height and x + w > 0 and y + h > 0):
            size = f"{file.width} x {file.height}"
            return Problem(
                f"{path}: the frame of {size} pixels does not hold the box of the visible target", "data.box"
            )
    return None

"""Other trackers' result files, found, checked and named, so that they are next to ours in a table.

Knows folders of `<sequence>.txt`, archives of a whole test set, and what the field's evaluators refuse; scoring is
done elsewhere. The toolkit scores whatever it finds by repeating the last good box. Rows of size 0 are how trackers
write "lost", and are scored so here as well; NaN and negative sizes are refused as pytracking does, because they are
signs of a broken run, unless the toolkit's repair is asked for by name.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqtrack.annotation_files import read_box_archive, read_boxes
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.annotations import Annotation
from seqtrack.evaluation.metrics import Array, is_box

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResultSet:
    """One tracker's boxes: sequence name to (M, 4) xywh, M at least the annotated frames; and what was remarked."""

    name: str
    source: Path
    boxes: dict[str, Array]
    notes: tuple[str, ...]


def read_results(place: Path, annotations: Sequence[Annotation], *, repair: str = "strict") -> list[ResultSet]:
    """Read the trackers that `place` holds, for the annotated sequences.

    Args:
        place: an `.npz` archive (one tracker), a folder with `<sequence>.txt` (one tracker), or a folder of such
            folders or archives (one tracker each).
        repair: "strict" refuses NaN, infinite and negative sizes; "official" repeats the last good box for them too.

    Raises:
        UserError: nothing to read, a sequence without boxes, fewer boxes than frames, refused rows: all of them.
    """
    sets: list[ResultSet] = []
    problems: list[Problem] = []
    for source in _trackers(place, annotations):
        try:
            sets.append(_read_one(source, annotations, repair=repair))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    return sets


def _trackers(place: Path, annotations: Sequence[Annotation]) -> list[Path]:
    names = {one.name for one in annotations}

    def is_tracker(path: Path) -> bool:
        if path.is_file():
            return path.suffix == ".npz" and path.name.startswith("results")
        return any(file.stem in names for file in path.glob("*.txt"))

    if place.is_file() or (place.is_dir() and is_tracker(place)):
        return [place]
    found = sorted(path for path in place.iterdir() if is_tracker(path)) if place.is_dir() else []
    if not found:
        raise UserError(
            f"{place}: no results found for the {len(names)} sequences; expected <sequence>.txt in it, folders with "
            "<sequence>.txt, or .npz archives named results*.npz",
            "results.none",
        )
    return found


def _read_one(source: Path, annotations: Sequence[Annotation], *, repair: str) -> ResultSet:
    archive = read_box_archive(source) if source.is_file() else None
    boxes: dict[str, Array] = {}
    problems: list[Problem] = []
    notes: list[str] = []
    for one in annotations:
        place = f"{source}[{one.name}]" if archive is not None else str(source / f"{one.name}.txt")
        try:
            if archive is not None:
                if one.name not in archive:
                    raise UserError(f"{place}: this archive holds no boxes of the sequence", "results.sequence")
                rows = archive[one.name]
            else:
                rows = read_boxes(source / f"{one.name}.txt", allow_not_finite=True)
            boxes[one.name] = rows
            found_problems, found_notes = check_rows(place, rows, one.num_frames, repair=repair)
        except UserError as error:
            problems += error.problems
            continue
        problems += found_problems
        notes += found_notes
    if problems:
        raise UserError(problems)
    for note in notes:
        logger.warning("%s", note)
    name = source.stem.removeprefix("results_") if source.is_file() else source.name
    return ResultSet(name, source, boxes, tuple(notes))


def check_rows(place: str, rows: Array, num_frames: int, *, repair: str) -> tuple[list[Problem], list[str]]:
    """What is wrong with one sequence's boxes and what is worth remarking.

    Returns:
        (problems that forbid scoring, notes on what the protocol does with the rest).
    """
    problems: list[Problem] = []
    notes: list[str] = []
    if len(rows) < num_frames:
        text = f"{place}: {len(rows)} boxes, but the sequence has {num_frames} annotated frames"
        problems.append(Problem(text, "results.count"))
    elif len(rows) > num_frames:
        notes.append(f"{place}: {len(rows)} boxes for {num_frames} frames; the last {len(rows) - num_frames} are cut")
    rows = rows[:num_frames]
    not_finite = ~np.isfinite(rows).all(axis=1)
    negative = ~not_finite & (rows[:, 2:] < 0).any(axis=1)
    repeated = ~is_box(rows)
    repeated[:1] = False  # frame 1 is set to the annotation, whatever is there
    for what, where in (("a number that is not finite", not_finite), ("a negative width or height", negative)):
        if repair != "official" and where.any():
            lines = np.flatnonzero(where) + 1
            text = (
                f"{place}:{lines[0]}: {what} ({len(lines)} such rows); correct the file, or score it as LaSOT's "
                "toolkit does, with the last good box in their place: --repair official"
            )
            problems.append(Problem(text, "results.row"))
            repeated &= ~where
    if repeated.any():
        lines = np.flatnonzero(repeated) + 1
        notes.append(f"{place}:{lines[0]}: {len(lines)} rows are no boxes; the last good box is repeated there")
    return problems, notes

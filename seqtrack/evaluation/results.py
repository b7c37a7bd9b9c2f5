"""Trackers and their scores: our checkpoints, baselines, and other trackers' result files.

The toolkit scores any result file by repeating the last good box. Rows of size 0 are how trackers write "lost", and are
scored that way here as well; NaN and negative sizes are refused as in pytracking, because they are signs of a broken
run, unless the toolkit's repair is asked for. Needs no torch.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from seqtrack.checkpoints.side_files import EvaluatedTracker, Scalar
from seqtrack.data.annotations import Annotation, Boxes, attempt, read_archive, read_boxes
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.metrics import TOOLKIT, Convention, is_box, mean_scores, score

logger = logging.getLogger(__name__)

A = TypeVar("A", bound=Annotation)


@dataclass(frozen=True)
class Tracks:
    """Output of a tracker for one sequence.

    Attributes:
        boxes_xywh: (N, 4) pixels; the first is the annotation that the tracker was given.
        seconds: time of the tracker for the N - 1 frames after the first, without reading frames and cropping search
            regions. Of a step that tracked several sequences at once, each frame has an equal share. 0 if not measured.
    """

    boxes_xywh: Boxes
    seconds: float = 0.0


@dataclass(frozen=True)
class TrackerResult:
    """A tracker's record for the tables, and its boxes by sequence."""

    record: EvaluatedTracker
    tracks: Mapping[str, Tracks]


def score_tracker(
    name: str,
    kind: str,
    tracks: Mapping[str, Tracks],
    annotations: Iterable[Annotation],
    *,
    convention: Convention = TOOLKIT,
    epoch: int | None = None,
    source: Mapping[str, Scalar] | None = None,
    notes: Iterable[str] = (),
) -> TrackerResult:
    """Score a tracker's boxes.

    Args:
        name: as tables show it, such as "epoch 3" or "SiamRPN++".
        kind: "checkpoint", "untrained", "still" (static-box baseline) or "results" (another tracker's files).
        epoch: of a checkpoint.
        source: where it comes from (file, digests, settings), as JSON values.
        notes: remarks made while reading result files.
    """
    scores, classes = {}, dict[str, list[str]]()
    for one in annotations:
        boxes = tracks[one.name].boxes_xywh
        scores[one.name] = score(boxes, one.boxes_xywh, ~one.absent, convention=convention)
        classes.setdefault(one.class_name, []).append(one.name)

    def measured(names: Sequence[str]) -> dict[str, float | None]:
        seconds = sum(tracks[name].seconds for name in names)
        frames = sum(len(tracks[name].boxes_xywh) - 1 for name in names)
        timed = seconds > 0 and frames > 0
        speed = {"fps": frames / seconds if timed else None, "ms_a_frame": 1000 * seconds / frames if timed else None}
        return {**mean_scores([scores[name] for name in names]).metrics(), **speed}

    mean = mean_scores(list(scores.values()))
    record = EvaluatedTracker(
        name=name,
        kind=kind,
        epoch=epoch,
        source=dict(source or {}),
        notes=list(notes),
        mean=measured(list(scores)),
        classes={name: measured(members) for name, members in classes.items()},
        sequences={name: measured([name]) for name in scores},
        curves={name: getattr(mean, name).tolist() for name in ("success", "precision", "norm_precision")},
    )
    return TrackerResult(record, tracks)


def static_box_result(annotations: Sequence[Annotation], *, convention: Convention = TOOLKIT) -> TrackerResult:
    """The baseline that repeats the first box in every frame."""
    tracks = {one.name: Tracks(np.repeat(one.boxes_xywh[:1], one.num_frames, axis=0)) for one in annotations}
    return score_tracker("static box", "still", tracks, annotations, convention=convention)


def choose(annotations: Sequence[A], *, classes: Iterable[str] = (), names: Iterable[str] = ()) -> list[A]:
    """The annotations of the given classes and sequences; all of them where nothing is given.

    Raises:
        UserError: a class or a sequence that does not exist here.
    """
    classes, names = set(classes), set(names)
    known = {one.class_name for one in annotations}
    there = ", ".join(sorted(known))
    problems = [
        Problem(f"class {name!r} has no sequence here; there are: {there}", "annotations.class")
        for name in sorted(classes - known)
    ]
    problems += [
        Problem(f"sequence {name!r} is not among the {len(annotations)} here", "annotations.sequence")
        for name in sorted(names - {one.name for one in annotations})
    ]
    if problems:
        raise UserError(problems)
    return [one for one in annotations if one.class_name in (classes or known) and (not names or one.name in names)]


def read_results(
    places: Iterable[Path],
    annotations: Sequence[Annotation],
    *,
    repair: str = "strict",
    convention: Convention = TOOLKIT,
) -> list[TrackerResult]:
    """Read and score other trackers' boxes for the annotated sequences.

    Args:
        places: each an `.npz` archive (one tracker), a folder with `<sequence>.txt` (one tracker), or a folder of such
            folders or archives (one tracker each). Trackers of the same name are distinguished by their parent folder.
        repair: "strict" refuses NaN, infinite and negative sizes; "official" repeats the last good box for them too.

    Raises:
        UserError: nothing to read, a sequence without boxes, fewer boxes than frames, or refused rows: all of them.
    """
    sources = [source for place in places for source in _find_trackers(place, annotations)]
    names = [one.stem.removeprefix("results_") if one.is_file() else one.name for one in sources]
    results: list[TrackerResult] = []
    problems: list[Problem] = []
    for source, name in zip(sources, names, strict=True):
        notes: list[str] = []
        tracks = _read_tracker(source, annotations, repair, problems, notes)
        if problems:
            continue
        for note in notes:
            logger.warning("%s", note)
        full = name if names.count(name) == 1 else f"{source.parent.name}/{name}"
        options = {"results": source.name}
        results.append(
            score_tracker(full, "results", tracks, annotations, convention=convention, source=options, notes=notes)
        )
    if problems:
        raise UserError(problems)
    return results


def _find_trackers(place: Path, annotations: Sequence[Annotation]) -> list[Path]:
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


def _read_tracker(
    source: Path, annotations: Sequence[Annotation], repair: str, problems: list[Problem], notes: list[str]
) -> dict[str, Tracks]:
    """A tracker's boxes; appends what forbids scoring them, and notes on how the protocol treats the rest."""
    archive = attempt(problems, read_archive, source) if source.is_file() else None
    if source.is_file() and archive is None:
        return {}
    tracks: dict[str, Tracks] = {}
    for one in annotations:
        if archive is None:
            place = f"{source / one.name}.txt"
            rows = attempt(problems, lambda path: read_boxes(path, allow_not_finite=True), Path(place))
        else:
            place = f"{source}[{one.name}]"
            rows = archive[one.name].boxes_xywh if one.name in archive else None
            if rows is None:
                problems.append(Problem(f"{place}: this archive holds no boxes of the sequence", "results.sequence"))
        if rows is not None:
            tracks[one.name] = Tracks(rows)
            _check_rows(place, rows, one.num_frames, repair, problems, notes)
    return tracks


def _check_rows(
    place: str, rows: Boxes, num_frames: int, repair: str, problems: list[Problem], notes: list[str]
) -> None:
    if len(rows) < num_frames:
        text = f"{place}: {len(rows)} boxes, but the sequence has {num_frames} annotated frames"
        problems.append(Problem(text, "results.count"))
    elif len(rows) > num_frames:
        notes.append(f"{place}: {len(rows)} boxes for {num_frames} frames; the last {len(rows) - num_frames} are cut")
    rows = rows[:num_frames]
    broken = ~np.isfinite(rows).all(axis=1) | (rows[:, 2:] < 0).any(axis=1)
    repeated = ~is_box(rows)
    repeated[:1] = False  # frame 1 is set to the annotation in any case
    if repair != "official" and broken.any():
        lines = np.flatnonzero(broken) + 1
        text = (
            f"{place}:{lines[0]}: a box with a number that is not finite, or a negative size ({len(lines)} such rows); "
            "correct the file, or score it as LaSOT's toolkit does, with the last good box instead: --repair official"
        )
        problems.append(Problem(text, "results.row"))
    elif repeated.any():
        lines = np.flatnonzero(repeated) + 1
        notes.append(f"{place}:{lines[0]}: {len(lines)} rows are not boxes; the last good box is repeated there")

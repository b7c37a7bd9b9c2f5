"""Trackers and their scores: our checkpoints, baselines, and other trackers' result files.

The toolkit scores any result file by repeating the last good box. Rows of size 0 are how trackers write "lost", and are
scored that way here as well; NaN and negative sizes are refused as in pytracking, because they are signs of a broken
run, unless the toolkit's repair is asked for. Needs no torch.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from seqtrack.data.annotations import Annotation, Boxes, read_box_archive, read_boxes
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.metrics import TOOLKIT, Convention, Scores, is_box, mean_scores, score

logger = logging.getLogger(__name__)


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
    """One tracker with its boxes scored.

    Attributes:
        name: as tables show it, such as "epoch 3" or "SiamRPN++".
        kind: "checkpoint", "untrained", "still" (static-box baseline) or "results" (another tracker's files).
        epoch: of a checkpoint, else None.
        source: where it comes from (file, digests, settings), as JSON values.
        scores, tracks: by sequence.
        notes: remarks made while reading result files.
    """

    name: str
    kind: str
    epoch: int | None
    source: dict[str, Any]
    scores: dict[str, Scores]
    tracks: dict[str, Tracks]
    notes: tuple[str, ...] = ()

    def timing(self, names: Iterable[str]) -> dict[str, float | None]:
        """`fps` and `ms_a_frame` over these sequences, None where no time was measured."""
        tracks = [self.tracks[name] for name in names]
        seconds = sum(one.seconds for one in tracks)
        frames = sum(len(one.boxes_xywh) - 1 for one in tracks)
        if seconds <= 0 or frames <= 0:
            return {"fps": None, "ms_a_frame": None}
        return {"fps": frames / seconds, "ms_a_frame": 1000 * seconds / frames}

    def mean(self, names: Iterable[str]) -> Scores:
        """Mean scores over these sequences."""
        return mean_scores([self.scores[name] for name in names])


@dataclass(frozen=True)
class Evaluation:
    """All trackers over the same sequences, with the conditions.

    Attributes:
        annotations, results: in the order of tables.
        conditions: data set, split, device, precision and the like, as JSON values.
    """

    annotations: Sequence[Annotation]
    results: Sequence[TrackerResult]
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.annotations]

    @property
    def classes(self) -> dict[str, list[str]]:
        """Names of sequences by class."""
        found: dict[str, list[str]] = {}
        for one in self.annotations:
            found.setdefault(one.class_name, []).append(one.name)
        return found

    @property
    def epochs(self) -> list[TrackerResult]:
        return [one for one in self.results if one.kind == "checkpoint"]

    def metrics(self, result: TrackerResult, names: Iterable[str]) -> dict[str, float | None]:
        """All metrics of a tracker over some of the sequences, percent, with `fps` and `ms_a_frame`."""
        chosen = list(names)
        return {**result.mean(chosen).metrics(), **result.timing(chosen)}


def score_tracks(
    tracks: dict[str, Tracks], annotations: Iterable[Annotation], *, convention: Convention = TOOLKIT
) -> dict[str, Scores]:
    """Scores by sequence, in the annotations' order."""
    return {
        one.name: score(tracks[one.name].boxes_xywh, one.boxes_xywh, ~one.absent, convention=convention)
        for one in annotations
    }


def static_box_result(annotations: Sequence[Annotation], *, convention: Convention = TOOLKIT) -> TrackerResult:
    """The baseline that repeats the first box in every frame."""
    tracks = {one.name: Tracks(np.repeat(one.boxes_xywh[:1], one.num_frames, axis=0)) for one in annotations}
    scores = score_tracks(tracks, annotations, convention=convention)
    return TrackerResult("static box", "still", None, {}, scores, tracks)


def choose(
    annotations: Sequence[Annotation], *, classes: Iterable[str] = (), names: Iterable[str] = ()
) -> list[Annotation]:
    """The annotations of the given classes and sequences; all of them where nothing is given.

    Raises:
        UserError: a class or a sequence that does not exist here.
    """
    wanted_classes, wanted_names = set(classes), set(names)
    known_classes, known_names = {one.class_name for one in annotations}, {one.name for one in annotations}
    there = ", ".join(sorted(known_classes))
    problems = [
        Problem(f"class {name!r} has no sequence here; there are: {there}", "annotations.class")
        for name in sorted(wanted_classes - known_classes)
    ]
    problems += [
        Problem(f"sequence {name!r} is not among the {len(known_names)} here", "annotations.sequence")
        for name in sorted(wanted_names - known_names)
    ]
    if problems:
        raise UserError(problems)
    return [
        one
        for one in annotations
        if (not wanted_classes or one.class_name in wanted_classes) and (not wanted_names or one.name in wanted_names)
    ]


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
    results: list[tuple[Path, TrackerResult]] = []
    problems: list[Problem] = []
    for source in [one for place in places for one in _find_trackers(place, annotations)]:
        try:
            results.append((source, _read_tracker(source, annotations, repair, convention)))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    names = [one.name for _, one in results]
    return [
        one if names.count(one.name) == 1 else replace(one, name=f"{source.parent.name}/{one.name}")
        for source, one in results
    ]


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
    source: Path, annotations: Sequence[Annotation], repair: str, convention: Convention
) -> TrackerResult:
    archive = read_box_archive(source) if source.is_file() else None
    tracks: dict[str, Tracks] = {}
    problems: list[Problem] = []
    notes: list[str] = []
    for one in annotations:
        try:
            if archive is None:
                place = str(source / f"{one.name}.txt")
                rows = read_boxes(source / f"{one.name}.txt", allow_not_finite=True)
            else:
                place = f"{source}[{one.name}]"
                if one.name not in archive:
                    raise UserError(f"{place}: this archive holds no boxes of the sequence", "results.sequence")
                rows = archive[one.name]
        except UserError as error:
            problems += error.problems
            continue
        tracks[one.name] = Tracks(rows)
        _check_rows(place, rows, one.num_frames, repair, problems, notes)
    if problems:
        raise UserError(problems)
    for note in notes:
        logger.warning("%s", note)
    name = source.stem.removeprefix("results_") if source.is_file() else source.name
    scores = score_tracks(tracks, annotations, convention=convention)
    return TrackerResult(name, "results", None, {"results": source.name}, scores, tracks, tuple(notes))


def _check_rows(
    place: str, rows: Boxes, num_frames: int, repair: str, problems: list[Problem], notes: list[str]
) -> None:
    """Append the problems that forbid scoring one sequence, and notes on how the protocol treats the rest."""
    if len(rows) < num_frames:
        text = f"{place}: {len(rows)} boxes, but the sequence has {num_frames} annotated frames"
        problems.append(Problem(text, "results.count"))
    elif len(rows) > num_frames:
        notes.append(f"{place}: {len(rows)} boxes for {num_frames} frames; the last {len(rows) - num_frames} are cut")
    rows = rows[:num_frames]
    not_finite = ~np.isfinite(rows).all(axis=1)
    negative = ~not_finite & (rows[:, 2:] < 0).any(axis=1)
    repeated = ~is_box(rows)
    repeated[:1] = False  # frame 1 is set to the annotation in any case
    for what, where in (("a number that is not finite", not_finite), ("a negative width or height", negative)):
        if repair != "official" and where.any():
            lines = np.flatnonzero(where) + 1
            text = (
                f"{place}:{lines[0]}: {what} ({len(lines)} such rows); correct the file, or score it as LaSOT's "
                "toolkit does, with the last good box instead: --repair official"
            )
            problems.append(Problem(text, "results.row"))
            repeated &= ~where
    if repeated.any():
        lines = np.flatnonzero(repeated) + 1
        notes.append(f"{place}:{lines[0]}: {len(lines)} rows are not boxes; the last good box is repeated there")

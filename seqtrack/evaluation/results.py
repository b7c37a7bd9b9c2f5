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
        seconds: for the N - 1 frames after the first, without reading them; 0 if not measured. Of a step that tracked
            several sequences at once, each frame has an equal share.
        times_s: (N,) seconds of each frame, the first that of its start; empty if not measured.
    """

    boxes_xywh: Boxes
    seconds: float = 0.0
    times_s: tuple[float, ...] = ()


def make_tracks(boxes_xywh: Boxes, times_s: Sequence[float]) -> Tracks:
    """Boxes (N, 4) with the seconds of each frame."""
    return Tracks(boxes_xywh, sum(times_s[1:]), tuple(times_s))


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
    notes: Sequence[str] = (),
) -> TrackerResult:
    """Score a tracker's boxes.

    Args:
        name: as tables show it, such as "epoch 3" or "SiamRPN++".
        kind: "checkpoint", "untrained", "still" (static-box baseline) or "results" (another tracker's files).
        source, notes: where it comes from, and remarks made while reading result files.
    """
    scores, classes = {}, dict[str, list[str]]()
    for one in annotations:
        boxes = tracks[one.name].boxes_xywh
        scores[one.name] = score(boxes, one.boxes_xywh, ~one.absent, convention=convention)
        classes.setdefault(one.class_name, []).append(one.name)

    def measured(names: Sequence[str]) -> dict[str, float | None]:
        seconds = sum(tracks[name].seconds for name in names)
        frames = sum(len(tracks[name].boxes_xywh) - 1 for name in names)
        fps = frames / seconds if seconds > 0 and frames > 0 else None
        speed = {"fps": fps, "ms_a_frame": 1000 / fps if fps else None}
        return {**mean_scores([scores[name] for name in names]).metrics(), **speed}

    mean = mean_scores(list(scores.values()))
    record = EvaluatedTracker(
        name=name,
        kind=kind,
        epoch=epoch,
        source=dict(source or {}),
        notes=[*notes],
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
    classes, names, here = set(classes), set(names), {one.name for one in annotations}
    known = {one.class_name for one in annotations}
    problems = [Problem(f"no class {one!r} in {sorted(known)}", "annotations.class") for one in sorted(classes - known)]
    text = f"is not among the {len(here)} sequences"
    problems += [Problem(f"{one!r} {text}", "annotations.sequence") for one in sorted(names - here)]
    if problems:
        raise UserError(problems)
    return [one for one in annotations if one.class_name in (classes or known) and one.name in (names or here)]


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
    sources = [source for place in places for source in _find_trackers(place, {one.name for one in annotations})]
    names = [one.stem.removeprefix("results_") if one.is_file() else one.name for one in sources]
    results, problems = list[TrackerResult](), list[Problem]()
    for source, name in zip(sources, names, strict=True):
        archive = attempt(problems, read_archive, source) if source.is_file() else None
        if source.is_file() and archive is None:
            continue
        notes: list[str] = []
        read = [attempt(problems, _read_rows, source, archive, one, repair, notes) for one in annotations]
        for note in notes:
            logger.warning("%s", note)
        if not problems:
            tracks = {one.name: Tracks(rows) for one, rows in zip(annotations, read, strict=True) if rows is not None}
            full, origin = name if names.count(name) == 1 else f"{source.parent.name}/{name}", {"results": source.name}
            results.append(
                score_tracker(full, "results", tracks, annotations, convention=convention, source=origin, notes=notes)
            )
    if problems:
        raise UserError(problems)
    return results


def _find_trackers(place: Path, names: set[str]) -> list[Path]:
    if place.is_file():
        return [place]
    for paths in ([place], sorted(place.glob("*"))):
        if found := [
            one for one in paths if one.match("results*.npz") or names & {file.stem for file in one.glob("*.txt")}
        ]:
            return found
    text = f"{place}: no results of the {len(names)} sequences; expected <sequence>.txt in it, or folders with them"
    raise UserError(f"{text}, or .npz archives named results*.npz", "results.none")


def _read_rows(
    source: Path, archive: Mapping[str, Annotation] | None, one: Annotation, repair: str, notes: list[str]
) -> Boxes:
    """A tracker's boxes of one sequence; appends notes on how the protocol treats some of them."""
    place = f"{source / one.name}.txt" if archive is None else f"{source}[{one.name}]"
    if archive is not None and one.name not in archive:
        raise UserError(f"{place}: this archive holds no boxes of the sequence", "results.sequence")
    rows = read_boxes(Path(place), allow_not_finite=True) if archive is None else archive[one.name].boxes_xywh
    used, extra = rows[: one.num_frames], len(rows) - one.num_frames
    if extra < 0:
        raise UserError(f"{place}: {len(rows)} boxes, but the sequence has {one.num_frames} frames", "results.count")
    if extra:
        notes.append(f"{place}: {len(rows)} boxes for {one.num_frames} frames; the last {extra} are cut")
    broken = np.flatnonzero(~np.isfinite(used).all(axis=1) | (used[:, 2:] < 0).any(axis=1)) + 1
    if len(broken) and repair != "official":
        raise UserError(
            f"{place}:{broken[0]}: found a number that is not finite or a negative size, {len(broken)} such rows; "
            "correct the file, or score it as LaSOT's toolkit does, with the last good box instead: --repair official",
            "results.row",
        )
    repeated = np.flatnonzero(~is_box(used[1:])) + 2  # frame 1 is set to the annotation in any case
    if len(repeated):
        notes.append(f"{place}:{repeated[0]}: {len(repeated)} rows are no boxes; the last good box is repeated there")
    return rows

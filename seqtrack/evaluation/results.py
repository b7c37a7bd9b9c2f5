"""Trackers and their scores: our checkpoints, baselines, and other trackers' result files.

The toolkit scores any result file by repeating the last good box. Rows of size 0 are how trackers write "lost", and are
scored that way here as well; NaN and negative sizes are refused as in pytracking, because they are signs of a broken
run, unless the toolkit's repair is asked for. Result files are found under the names in use: with the authors' prefix,
with another separator or case, in a folder for each sequence, or below folders of tracker, configuration and data set.
Needs no torch.
"""

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
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
        boxes_xywh: (N, 4) pixels, or fewer rows of a result file that is too short; the first is the annotation that
            the tracker was given.
        times_s: N seconds, one for each frame, without reading it, the first that of its start; empty if not
            measured. Of a step that tracked several sequences at once, each frame has an equal share.
    """

    boxes_xywh: Boxes
    times_s: Sequence[float] = ()

    @property
    def seconds(self) -> float:
        """Of the N - 1 frames after the first; 0 if not measured."""
        return sum(self.times_s[1:])


@dataclass(frozen=True)
class TrackerResult:
    """A tracker's record for the tables, and its boxes by sequence."""

    record: EvaluatedTracker
    tracks: Mapping[str, Tracks]


@dataclass(frozen=True)
class Protocol:
    """What scores are made of besides boxes: the convention, the sequences of each attribute, the measures of a server.

    Attributes:
        official: from runs of boxes by sequence to the numbers of the data set's own measure, by name.
    """

    convention: Convention = TOOLKIT
    attributes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    official: Callable[[Sequence[Mapping[str, Boxes]]], dict[str, float]] = lambda runs: {}


@dataclass(frozen=True)
class Naming:
    """How result files may be named.

    Attributes:
        prefix: before a sequence's name; `aliases`: other names of sequences; `folders`: names of the data set.
        fills: a result that is too short is scored with zero boxes at its end, as in the Python evaluators.
    """

    prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    fills: bool = False


def score_tracker(
    name: str,
    kind: str,
    tracks: Mapping[str, Tracks],
    annotations: Iterable[Annotation],
    *,
    protocol: Protocol = Protocol(),
    more_runs: Sequence[Mapping[str, Tracks]] = (),
    epoch: int | None = None,
    source: Mapping[str, Scalar] | None = None,
    notes: Sequence[str] = (),
) -> TrackerResult:
    """Score a tracker's boxes.

    Args:
        name: as tables show it, such as "epoch 3" or "SiamRPN++".
        kind: "checkpoint", "onnx" (an exported one), "untrained", "static_box" (the baseline), "oracle" (ceiling) or
            "results" (another tracker's files).
        more_runs: of a tracker with random numbers; a sequence's scores are their means.
        source, notes: where it comes from, and remarks made while reading result files.
    """
    scores, classes, runs = {}, dict[str, list[str]](), [tracks, *more_runs]
    for one in annotations:
        of_runs = [
            score(run[one.name].boxes_xywh, one.boxes_xywh, ~one.absent, convention=protocol.convention) for run in runs
        ]
        scores[one.name] = mean_scores(of_runs) if more_runs else of_runs[0]
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
        attributes={name: measured(members) for name, members in protocol.attributes.items()},
        official=protocol.official([{one: run[one].boxes_xywh for one in scores} for run in runs]),
        sequences={name: measured([name]) for name in scores},
        curves={name: getattr(mean, name).tolist() for name in ("success", "precision", "norm_precision")},
    )
    return TrackerResult(record, tracks)


def static_box_result(annotations: Sequence[Annotation], protocol: Protocol = Protocol()) -> TrackerResult:
    """The baseline that repeats the first box in every frame."""
    tracks = {one.name: Tracks(np.repeat(one.boxes_xywh[:1], one.num_frames, axis=0)) for one in annotations}
    return score_tracker("static box", "static_box", tracks, annotations, protocol=protocol)


def oracle_crop_result(
    annotations: Sequence[Annotation], protocol: Protocol = Protocol(), *, factor: float = 4.0
) -> TrackerResult:
    """The ceiling of every tracker with a search region of `factor` times the box: it knows the annotation, but only
    what of it lies in the region around its own last box, which it keeps where that is nothing."""
    tracks = {one.name: Tracks(_oracle(one, factor)) for one in annotations}
    return score_tracker("oracle crop", "oracle", tracks, annotations, protocol=protocol)


def _oracle(one: Annotation, factor: float) -> Boxes:
    rows = one.boxes_xywh.tolist()
    x, y, w, h = rows[0]
    found = [rows[0]]
    for hidden, (left, top, width, height) in zip(one.absent[1:].tolist(), rows[1:], strict=True):
        half = math.ceil(math.sqrt(max(w * h, 1.0)) * factor) / 2
        x1, x2 = max(left, x + w / 2 - half), min(left + width, x + w / 2 + half)
        y1, y2 = max(top, y + h / 2 - half), min(top + height, y + h / 2 + half)
        if not hidden and x2 > x1 and y2 > y1 and width > 0:  # no NaN is above 0
            x, y, w, h = x1, y1, x2 - x1, y2 - y1
        found.append([x, y, w, h])
    return np.array(found, dtype=np.float64)


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
    protocol: Protocol = Protocol(),
    naming: Naming = Naming(),
    merge_runs: bool = False,
) -> list[TrackerResult]:
    """Read and score other trackers' boxes for the annotated sequences.

    Args:
        places: each an `.npz` archive (one tracker), a folder with `<sequence>.txt` or `<sequence>/<sequence>_001.txt`
            (one tracker), or a folder of such folders or archives (one tracker each). Trackers of the same name are
            distinguished by their parent folder.
        repair: "strict" refuses NaN, infinite and negative sizes; "official" repeats the last good box for them too.
        merge_runs: trackers whose names end in _000, _001, ... are runs of one.

    Raises:
        UserError: nothing to read, a sequence without boxes, fewer boxes than frames, or refused rows: all of them.
    """
    sequences = [one.name for one in annotations]
    sources = [source for place in places for source in find_trackers(place, sequences, naming)]
    names = [_tracker_name(one, naming) for one in sources]
    runs, problems = dict[str, list[dict[str, Tracks]]](), list[Problem]()
    notes, origins = dict[str, list[str]](), dict[str, str]()
    for source, name in zip(sources, names, strict=True):
        full = name if names.count(name) == 1 else f"{_tracker_place(source, naming).parent.name}/{name}"
        full = re.sub("_[0-9]{3}$", "", full) if merge_runs else full
        read = attempt(problems, read_tracker, source, annotations, naming, repair, notes.setdefault(full, []))
        runs.setdefault(full, []).extend([{k: Tracks(rows) for k, rows in run.items()} for run in read or ()])
        origins.setdefault(full, source.name)
    for note in (one for some in notes.values() for one in some):
        logger.warning("%s", note)
    if problems:
        raise UserError(problems)
    return [
        score_tracker(
            name, "results", first, annotations, protocol=protocol, more_runs=more, source={"results": origins[name]},
            notes=notes[name] + ([f"the mean of {1 + len(more)} runs"] if more else []),
        )
        for name, (first, *more) in runs.items()
    ]  # fmt: skip


def _tracker_place(source: Path, naming: Naming) -> Path:
    return source.parent if source.is_dir() and source.name.lower() in naming.folders else source


def _tracker_name(source: Path, naming: Naming) -> str:
    place = _tracker_place(source, naming)
    return place.stem.removeprefix("results_") if source.is_file() else place.name


def find_trackers(place: Path, names: Sequence[str], naming: Naming = Naming()) -> list[Path]:
    """Archives and folders with results of these sequences: the place, or those of the first level below that has any.

    Raises:
        UserError: there are none.
    """
    if place.is_file():
        return [place]
    level = [place]
    for _ in range(4):  # results/<tracker>/<configuration>/<data set>
        if found := [one for one in level if one.match("results*.npz") or result_files(one, names, naming)]:
            here = [one for one in found if one.name.lower() in naming.folders]  # not those of other data sets
            return here or found
        level = [one for folder in level if folder.is_dir() for one in sorted(folder.glob("*"))]
    text = f"{place}: no results of the {len(names)} sequences; expected <sequence>.txt in it, or folders with them"
    raise UserError(f"{text}, or .npz archives named results*.npz", "results.none")


def result_files(folder: Path, names: Sequence[str], naming: Naming) -> dict[str, list[Path]]:
    """The files of each sequence that has any, one for each run."""

    def loose(name: str) -> str:
        return re.sub("[-. ]", "_", name.lower())

    entries = {path.name: path for path in folder.glob("*")} if folder.is_dir() else {}
    similar: dict[str, list[Path]] = {}
    for name, path in entries.items():
        if name.endswith(".txt"):
            similar.setdefault(loose(path.stem), []).append(path)
    found, exact = dict[str, list[Path]](), set(names)  # another sequence's own file is no other spelling
    for name in names:
        spellings = [one for one in dict.fromkeys((name, naming.prefix + name, naming.aliases.get(name))) if one]
        for one in spellings:
            runs = sorted(entries[one].glob(f"{one}_[0-9][0-9][0-9].txt")) if one in entries else []
            if runs := [entries[f"{one}.txt"]] if f"{one}.txt" in entries else runs:
                found.setdefault(name, runs)
        close = [path for one in spellings for path in similar.get(loose(one), ()) if path.stem not in exact]
        if name not in found and len(close) == 1:
            found[name] = close
    return found


def read_tracker(
    source: Path, annotations: Sequence[Annotation], naming: Naming, repair: str, notes: list[str]
) -> list[dict[str, Boxes]]:
    """A tracker's runs: boxes by sequence. Appends notes on how the protocol treats some of them.

    Raises:
        UserError: as `read_results`.
    """
    archive = read_archive(source) if source.is_file() else None
    files = result_files(source, [one.name for one in annotations], naming) if archive is None else {}
    problems, runs = list[Problem](), list[dict[str, Boxes]]()
    for one in annotations:
        if archive is not None and one.name not in archive:
            text = f"{source}[{one.name}]: this archive holds no boxes of the sequence"
            problems.append(Problem(text, "results.sequence"))
            continue
        for run, path in enumerate(files.get(one.name, [source / f"{one.name}.txt"])):
            place = str(path) if archive is None else f"{source}[{one.name}]"
            rows = archive[one.name].boxes_xywh if archive is not None else None
            if rows is None:
                rows = attempt(problems, partial(read_boxes, allow_not_finite=True), path)
            checked = attempt(problems, _check_rows, place, rows, one, naming, repair, notes)
            runs += [{} for _ in range(run + 1 - len(runs))]
            if checked is not None:
                runs[run][one.name] = checked
    if not problems and any(len(run) < len(annotations) for run in runs):
        fewer = next(one.name for one in annotations if any(one.name not in run for run in runs))
        problems.append(Problem(f"{source}: {len(runs)} runs, but {fewer} has fewer", "results.runs"))
    if problems:
        raise UserError(problems)
    return runs


def _check_rows(
    place: str, rows: Boxes | None, one: Annotation, naming: Naming, repair: str, notes: list[str]
) -> Boxes | None:
    if rows is None:
        return None
    used, extra = rows[: one.num_frames], len(rows) - one.num_frames
    if extra < 0 and not naming.fills:
        raise UserError(f"{place}: {len(rows)} boxes, but the sequence has {one.num_frames} frames", "results.count")
    if extra:
        what = f"the last {extra} are cut" if extra > 0 else f"the last {-extra} frames have zero boxes"
        notes.append(f"{place}: {len(rows)} boxes for {one.num_frames} frames; {what}")
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
    return used

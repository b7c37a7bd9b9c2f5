"""What a test set adds to the one-pass evaluation: rules of counting, attributes, and the measures of GOT-10k's and
TrackingNet's servers.

Knows the texts next to an annotation and NumPy arrays of boxes; nothing of trackers and tables.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from seqtrack.data import files
from seqtrack.data.annotations import Annotation, Boxes, Flags, attempt, read_labels, read_text_file
from seqtrack.data.sequence import Sequence as VideoSequence
from seqtrack.data.test_sets import ATTRIBUTE_NAMES, TEST_SETS, Place, find_places
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.metrics import CONVENTIONS, MATLAB, TOOLKIT, Convention, iou_xywh
from seqtrack.evaluation.results import Naming, Protocol

_RESOLUTION = re.compile(r"^resolution:[ \t]*\(([0-9]+), ?([0-9]+)\)", re.MULTILINE)
Runs = Sequence[Mapping[str, Boxes]]


def default_convention(key: str | None) -> str:
    """LaSOT's toolkit for LaSOT, the authors' evaluator for the other test sets."""
    return "authors" if key in TEST_SETS else "toolkit"


def convention_of(key: str | None, chosen: str | None) -> Convention:
    """The convention of this name, or the default one, as it is for a data set."""
    found = CONVENTIONS[chosen or default_convention(key)]
    if key not in TEST_SETS:
        return found
    if found is TOOLKIT:
        return MATLAB
    return found._replace(invalid_center=TEST_SETS[key].invalid_center, absent_norm=TEST_SETS[key].absent_norm)


def naming_of(key: str | None) -> Naming:
    """How result files of a data set may be named."""
    if key not in TEST_SETS:
        return Naming()
    row = TEST_SETS[key]
    return Naming(row.prefix, row.aliases, frozenset({key.lower(), *(one.lower() for one in row.roots)}), fills=True)


def protocol_of(
    key: str | None,
    annotations: Sequence[Annotation],
    *,
    chosen: str | None = None,
    data_dir: Path | None = None,
    attributes: Path | None = None,
) -> Protocol:
    """Everything that scores of a data set's sequences are made of.

    Args:
        chosen: name of a convention.
        data_dir: where the set's annotation is, for the texts next to it; None for annotations from elsewhere.
        attributes: where flags are, if not next to the annotation: see `read_attributes`.

    Raises:
        UserError: every problem with the texts.
    """
    here = {one.name for one in annotations}
    row = TEST_SETS.get(key or "")
    places = [one for one in find_places(key, data_dir) if one.name in here] if key and row and data_dir else []
    if key == "GOT10K_TRAIN_FULL":  # whose texts are next to its frames
        videos = (one for one in annotations if isinstance(one, VideoSequence))
        places = [Place(one.name, one.folder / "groundtruth.txt", one.name, one.folder.parent) for one in videos]
    of_names: Mapping[str, Sequence[str]] = {}
    if attributes is not None:
        of_names = read_attributes(attributes, ATTRIBUTE_NAMES.get(key or "", ()), here)
    elif row and row.attributes:
        flags = {one.name: found[0] for one in places if (found := one.find(row.attributes))}
        of_names = _flags(flags, ATTRIBUTE_NAMES[key or ""])
    official: Callable[[Runs], dict[str, float]] = Protocol().official
    if key in ("GOT10K_VAL", "GOT10K_LTRVAL", "GOT10K_TRAIN_FULL"):
        official = partial(got10k_measure, annotations=annotations, limits=_got10k_limits(places, annotations))
    elif key == "TRACKINGNET":
        official = partial(trackingnet_measure, annotations=annotations)
    return Protocol(convention_of(key, chosen), of_names, official)


def read_attributes(place: Path, names: Sequence[str], sequences: Iterable[str]) -> dict[str, list[str]]:
    """Sequences by attribute, of those that at least two sequences have.

    Args:
        place: a folder with `<sequence>.txt` or `<sequence>_attribute.txt`, a 0 or 1 for each of `names` (or a single
            0 for none); a text file with lines such as `Basketball: IV, OCC`; or an `.npz` with `names`, `attributes`
            (S, K) and `attribute_names`.

    Raises:
        UserError: unreadable, or of another format.
    """
    sequences = sorted(sequences)
    if place.suffix == ".npz":
        try:
            with np.load(place, allow_pickle=False) as stored:
                flags, names = stored["attributes"] != 0, stored["attribute_names"].tolist()
                rows = dict(zip(stored["names"].tolist(), flags.reshape(len(stored["names"]), len(names)), strict=True))
        except Exception as error:  # zipfile and NumPy document none for damaged bytes
            expected = "an .npz with names (S,), attributes (S, K), attribute_names (K,)"
            raise UserError(f"{place}: found {error!s:.200}, expected {expected}", "file.archive") from error
        given = {name: [a for a, has in zip(names, rows[name], strict=True) if has] for name in rows}
        return _grouped(place, given, sequences, names)
    if place.is_file():
        lines = (re.split(r"[:,;\s]+", line.strip(" ,;\t")) for line in read_text_file(place).split("\n"))
        pairs = [(name, attributes) for name, *attributes in lines if name]
        given = dict(pairs)
        if len(given) < len(pairs):
            raise UserError(f"{place}: a sequence is listed twice", "file.duplicate")
        known = set(names) or {one for attributes in given.values() for one in attributes}
        if unknown := sorted({one for attributes in given.values() for one in attributes} - known):
            expected = f"expected some of {', '.join(sorted(known))}"
            raise UserError(f"{place}: found {', '.join(unknown[:5])}, {expected}", "file.row")
        return _grouped(place, given, sequences, names)
    texts = {}
    for name in sequences:
        for path in (place / f"{name}.txt", place / f"{name}_attribute.txt"):
            if path.is_file():
                texts[name] = path
    if not texts or not names:
        text = f"{place}: no flags of these sequences; expected <sequence>.txt, and a data set with named attributes"
        raise UserError(text, "file.missing")
    return _flags(texts, names)


def _flags(texts: Mapping[str, Path], names: Sequence[str]) -> dict[str, list[str]]:
    """Sequences by attribute, from a file of flags for each sequence."""
    problems, given = list[Problem](), {}
    for name, path in texts.items():
        flags = attempt(problems, read_labels, path, 1)
        if flags is not None and len(flags) not in (1, len(names)):
            text = f"{path}: found {len(flags)} flags, expected {len(names)}: {', '.join(names)}"
            problems.append(Problem(text, "file.count"))
        elif flags is not None:  # two sequences of TC128 have a single 0
            given[name] = [one for one, flag in zip(names, flags, strict=False) if flag]
    if problems:
        raise UserError(problems)
    return _by_attribute(given, list(texts), names)


def _grouped(
    place: Path, given: Mapping[str, Iterable[str]], sequences: Sequence[str], order: Sequence[str]
) -> dict[str, list[str]]:
    if given.keys().isdisjoint(sequences):
        listed, expected = ", ".join(list(given)[:3]), ", ".join(sequences[:3])
        raise UserError(f"{place}: found attributes of {listed or 'nothing'}, expected of {expected}", "file.missing")
    return _by_attribute(given, sequences, order)


def _by_attribute(
    given: Mapping[str, Iterable[str]], sequences: Sequence[str], order: Sequence[str]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in order}
    for name in sequences:
        for attribute in dict.fromkeys(given.get(name, ())):
            found.setdefault(attribute, []).append(name)
    return {attribute: members for attribute, members in found.items() if len(members) > 1}


def _got10k_limits(
    places: Iterable[Place], annotations: Sequence[Annotation]
) -> dict[str, tuple[Flags | None, tuple[float, float] | None]]:
    """By sequence: frames of which something is visible, and the width and height of the image, as far as known."""
    limits: dict[str, tuple[Flags | None, tuple[float, float] | None]] = {}
    frames = {one.name: one.num_frames for one in annotations}
    for one in places:
        cover, meta = one.boxes.with_name("cover.label"), one.boxes.with_name("meta_info.ini")
        size = _RESOLUTION.search(read_text_file(meta)) if files.exists(meta) else None
        visible = read_labels(cover, 8) > 0 if files.exists(cover) else None
        if visible is not None and len(visible) < frames[one.name]:
            raise UserError(f"{cover}: found {len(visible)} entries, expected {frames[one.name]}", "file.count")
        limits[one.name] = (
            visible,
            (float(size.group(1)), float(size.group(2))) if size else None,
        )
    return limits


def got10k_measure(
    runs: Runs,
    annotations: Sequence[Annotation],
    limits: Mapping[str, tuple[Flags | None, tuple[float, float] | None]],
) -> dict[str, float]:
    """GOT-10k's AO, SR50 and SR75, percent, of all frames of all sequences and runs together, as its toolkit computes
    them: frame 1 and hidden frames are left out, boxes are cut to the image, frames without a row have a zero box."""
    overlaps = []
    for one in annotations:
        cover, size = limits.get(one.name, (None, None))
        counted = np.ones(one.num_frames, dtype=bool) if cover is None else cover[: one.num_frames]
        for run in runs:
            rows, boxes = run[one.name][: one.num_frames], np.zeros((one.num_frames, 4))
            boxes[: len(rows)] = rows
            overlaps.append(iou_xywh(_inside(boxes, size), _inside(one.boxes_xywh, size))[1:][counted[1:]])
    every = np.concatenate(overlaps)
    if not every.size:
        return {}
    means = {"AO": every.mean(), "SR50": (every > 0.5).mean(), "SR75": (every > 0.75).mean()}
    return {name: float(value * 100) for name, value in means.items()}


def _inside(boxes_xywh: Boxes, size: tuple[float, float] | None) -> Boxes:
    if size is None:
        return boxes_xywh
    corner = np.clip(boxes_xywh[:, :2], 0, size)
    return np.hstack((corner, np.clip(boxes_xywh[:, 2:], 0, np.array(size) - corner)))


def trackingnet_measure(runs: Runs, annotations: Sequence[Annotation]) -> dict[str, float]:
    """The server's coverage, success, precision and normalised precision, percent: the share of all frames with a box,
    and areas below curves of boxes in whole pixels, means over sequences and runs. Empty without more than first boxes.
    """
    known = [one for one in annotations if np.isfinite(one.boxes_xywh).all() and one.num_frames > 1]
    if not known:
        return {}
    found = [_trackingnet(run[one.name], one.boxes_xywh) for one in known for run in runs]
    covered = sum(frames for frames, _ in found) / sum(one.num_frames * len(runs) for one in known)
    scores = [covered, *np.mean([curves for _, curves in found], axis=0).tolist()]
    names = ("coverage", "success", "precision", "normalised precision")
    return {name: value * 100 for name, value in zip(names, scores, strict=True)}


def _trackingnet(predicted_xywh: Boxes, annotated_xywh: Boxes) -> tuple[int, list[float]]:
    """Frames with a box, and the three areas."""
    truth, boxes = np.rint(annotated_xywh), np.full(annotated_xywh.shape, np.nan)
    rows = np.rint(predicted_xywh[: len(truth)])
    boxes[: len(rows)] = rows
    boxes[0] = truth[0]
    centers = boxes[:, :2] + boxes[:, 2:] / 2, truth[:, :2] + truth[:, 2:] / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.linalg.norm(centers[0] - centers[1], axis=1)
        relative = np.linalg.norm((centers[0] - centers[1]) / truth[:, 2:], axis=1)
        overlap = np.where(np.isnan(boxes).any(axis=1), np.nan, iou_xywh(boxes, truth))
    steps, scores = np.linspace(0, 1, 21), list[float]()
    for values, thresholds, kind in (
        (overlap, steps, "over"),
        (distance, steps * 50, "in"),
        (relative, steps / 2, "in"),
    ):
        passed = values[:, None] >= thresholds if kind == "over" else values[:, None] <= thresholds
        curve = passed.mean(axis=0)
        scores.append(float((curve[1:] + curve[:-1]).mean() / 2))
    return int((boxes.sum(axis=1) > 0).sum()), scores

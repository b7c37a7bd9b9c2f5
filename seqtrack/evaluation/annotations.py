"""What a tracker is judged by: the annotated boxes of a sequence and where its target can be seen.

Knows three ways to keep annotations without their frames (an `.npz` of a whole test set, the toolkit's `annos` folder,
LaSOT's own layout) and makes the same from sequences of a data source. Knows nothing of trackers or scores.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from seqtrack.annotation_files import attempt, read_archive, read_box_archive, read_boxes_and_absence, read_flags
from seqtrack.data.lasot import class_of, sequence_order
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.metrics import Array, Mask


class AnnotatedSequence(Protocol):
    """The part of a data source's sequence that evaluation needs; `absent` is LaSOT's: occluded or out of view."""

    @property
    def name(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def boxes_xywh(self) -> Array: ...
    @property
    def absent(self) -> Mask: ...


@dataclass(frozen=True)
class Annotation:
    """One sequence: `boxes_xywh` (N, 4) float64 pixels as in the file, `visible` (N,) not absent in LaSOT's sense."""

    name: str
    class_name: str
    boxes_xywh: Array
    visible: Mask

    @property
    def num_frames(self) -> int:
        return len(self.boxes_xywh)


def from_sequences(sequences: Iterable[AnnotatedSequence]) -> list[Annotation]:
    """Annotations of a data source's sequences, in their order."""
    return [
        Annotation(one.name, one.class_name, np.asarray(one.boxes_xywh, dtype=np.float64), ~np.asarray(one.absent))
        for one in sequences
    ]


def read_annotations(place: Path) -> list[Annotation]:
    """Annotations kept without their frames.

    Args:
        place: an `.npz` with names, offsets, boxes, absent (bits) and n; a folder `annos` with `<sequence>.txt` and
            `absent/<sequence>.txt`, or the folder above it; or LaSOT's layout, classes as folders or not.

    Raises:
        UserError: nothing of the kind there, or what is wrong in which file, all at once.
    """
    if place.is_file():
        return _from_archive(place)
    for folder in (place, place / "annos"):
        if (folder / "absent").is_dir():
            return _from_toolkit_folder(folder)
    found = {path.parent for path in (*place.glob("*/groundtruth.txt"), *place.glob("*/*/groundtruth.txt"))}
    if not found:
        raise UserError(
            f"{place}: no annotations found; expected an .npz file, a folder annos with absent/ in it, "
            "or folders with groundtruth.txt",
            "annotations.none",
        )
    return _collect(sorted(found, key=lambda folder: (sequence_order(folder.name), folder)), _from_sequence_folder)


def choose(
    annotations: Sequence[Annotation], *, classes: Iterable[str] = (), names: Iterable[str] = ()
) -> list[Annotation]:
    """The annotations of the wanted classes and sequences, all of them where nothing is named.

    Raises:
        UserError: a class or a sequence that is not there, with those that are.
    """
    wanted_classes, wanted_names = list(classes), list(names)
    there = {one.class_name for one in annotations}
    problems = [
        Problem(f"class {name!r} has no sequence here; there are: {', '.join(sorted(there))}", "annotations.class")
        for name in wanted_classes
        if name not in there
    ]
    known = {one.name for one in annotations}
    problems += [
        Problem(f"sequence {name!r} is not among the {len(known)} here", "annotations.sequence")
        for name in wanted_names
        if name not in known
    ]
    if problems:
        raise UserError(problems)
    return [
        one
        for one in annotations
        if (not wanted_classes or one.class_name in wanted_classes) and (not wanted_names or one.name in wanted_names)
    ]


def _from_archive(path: Path) -> list[Annotation]:
    boxes = read_box_archive(path)
    stored = read_archive(path, {"absent": "u", "n": "iu"})
    total = sum(len(one) for one in boxes.values())
    bits = stored["absent"]
    if (
        stored["n"].shape != ()
        or int(stored["n"]) != total
        or bits.dtype != np.uint8
        or bits.shape != (-(-total // 8),)
    ):
        raise UserError(f"{path}: n and absent must be of {total} frames, as boxes is", "file.archive")
    absent = np.unpackbits(bits)[:total].astype(bool)
    if not all(np.isfinite(one).all() for one in boxes.values()):
        raise UserError(f"{path}: an annotation must be four finite numbers", "file.archive")
    annotations: list[Annotation] = []
    begin = 0
    for name, one in boxes.items():
        annotations.append(Annotation(name, class_of(name), one, ~absent[begin : begin + len(one)]))
        begin += len(one)
    return annotations


def _from_toolkit_folder(folder: Path) -> list[Annotation]:
    paths = sorted(folder.glob("*.txt"), key=lambda path: sequence_order(path.stem))
    if not paths:
        raise UserError(f"{folder}: holds no <sequence>.txt", "annotations.none")
    return _collect(paths, lambda path: _annotation(path.stem, path, (folder / "absent" / path.name,)))


def _from_sequence_folder(folder: Path) -> Annotation:
    flags = folder / "full_occlusion.txt", folder / "out_of_view.txt"
    return _annotation(folder.name, folder / "groundtruth.txt", flags)


def _annotation(name: str, boxes_file: Path, flag_files: Sequence[Path]) -> Annotation:
    problems: list[Problem] = []
    boxes, absent = read_boxes_and_absence(boxes_file, dict.fromkeys(flag_files, read_flags), problems)
    if problems or boxes is None:
        raise UserError(problems)
    return Annotation(name, class_of(name), boxes, ~absent)


def _collect(paths: Iterable[Path], read: Callable[[Path], Annotation]) -> list[Annotation]:
    problems: list[Problem] = []
    found = [attempt(problems, read, path) for path in paths]
    if problems:
        raise UserError(problems)
    return [one for one in found if one is not None]

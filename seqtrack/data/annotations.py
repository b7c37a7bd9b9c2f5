"""What the folder of one sequence says: boxes, frames without the target, and the frame files that belong to the rows.

Knows which boxes can be trained on and how rows and frame files belong together. How the files are spelt is
`annotation_files`' affair. It fixes nothing: what can be read in two ways is refused, because a box that was guessed
is a box the model learns. Must not know of splits, classes or pixels.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.annotation_files import Boxes, Flags, attempt, read_boxes, read_boxes_and_absence, read_flags
from seqtrack.data.frames import scan_frames
from seqtrack.data.sequence import Sequence, visible_frames
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

# No image is larger; a number beyond it is damage, and would overflow the crop arithmetic later.
LARGEST_COORDINATE = 100_000.0

# Rows of the official annotations with a negative size. They are published as they are, so they count as frames
# without a box; a negative size anywhere else is damage. (sequence, line): the row's text.
KNOWN_NEGATIVE_ROWS = {
    ("person-7", 2111): "2,2,-1,-1",
    ("pool-14", 146): "1,1,-1,-1",
    ("tank-17", 627): "1125,730,155,-10",
    ("lion-5", None): "1,1,-1,-1",
    ("tiger-6", None): "613,731,247,-11",
}
_SHOWN = 20


@dataclass(frozen=True)
class Annotation:
    """One sequence: boxes (N, 4) float64, absent (N,) bool, frame files' sizes (N,) int64, -1 for a missing one."""

    boxes_xywh: Boxes
    absent: NDArray[np.bool_]
    frame_bytes: NDArray[np.int64]

    @property
    def missing(self) -> NDArray[np.bool_]:
        """(N,) bool: the frame has no file."""
        return self.frame_bytes < 0


def make_sequence(name: str, class_name: str, frames: Path, annotation: Annotation) -> Sequence:
    """The sequence that training samples from; frames without a file are logged."""
    missing = annotation.missing
    if missing.any():
        numbers = ", ".join(map(str, np.flatnonzero(missing) + 1))
        _log.warning("%s: %d frame files are missing, and not sampled: %s", frames, missing.sum(), numbers)
    return Sequence(
        name=name,
        class_name=class_name,
        folder=frames,
        boxes_xywh=annotation.boxes_xywh,
        visible=visible_frames(annotation.boxes_xywh, annotation.absent, missing),
        absent=annotation.absent,
        missing=missing,
        frame_bytes=annotation.frame_bytes,
    )


def read_annotation(folder: Path) -> Annotation:
    """Read one sequence folder of LaSOT's layout.

    Raises:
        UserError: every problem found, each with its file and, where there is one, line and entry.
    """
    flag_files = dict.fromkeys((folder / "full_occlusion.txt", folder / "out_of_view.txt"), read_flags)
    return read_sequence_folder(folder, folder / "img", flag_files)


def read_sequence_folder(folder: Path, images: Path, flag_files: Mapping[Path, Callable[[Path], Flags]]) -> Annotation:
    """Read `groundtruth.txt`, files that say where the target is absent, and the folder of frames.

    Args:
        flag_files: each with the function that reads it as (N,) bool, true where the target is absent.

    Raises:
        UserError: as `read_annotation`.
    """
    problems: list[Problem] = []
    read = functools.partial(_read_trainable_boxes, sequence=folder.name)
    boxes, absent = read_boxes_and_absence(folder / "groundtruth.txt", flag_files, problems, read)
    sizes = attempt(problems, _frame_sizes, images, None if boxes is None else len(boxes))
    if problems or boxes is None or sizes is None:
        raise UserError(problems)
    return Annotation(boxes, absent, sizes)


def _read_trainable_boxes(path: Path, sequence: str) -> Boxes:
    boxes = read_boxes(path)
    found: list[Problem] = []
    for row in np.flatnonzero((np.abs(boxes) > LARGEST_COORDINATE).any(axis=1)):
        found.append(Problem(f"{path}, line {row + 1}: {_shown(boxes[row])} is beyond any image", "data.box"))
    for row in np.flatnonzero((boxes[:, 2:] < 0).any(axis=1)):
        text = _shown(boxes[row])
        if text not in (KNOWN_NEGATIVE_ROWS.get((sequence, int(row) + 1)), KNOWN_NEGATIVE_ROWS.get((sequence, None))):
            found.append(Problem(f"{path}, line {row + 1}: {text} has a negative width or height", "data.box"))
    if len(found) > _SHOWN:
        found[_SHOWN:] = [Problem(f"{path}: {len(found) - _SHOWN} more rows like these", "data.box")]
    if found:
        raise UserError(found)
    return boxes


def _shown(box: NDArray[np.float64]) -> str:
    return ",".join(f"{value:g}" for value in box)


def _frame_sizes(folder: Path, rows: int | None) -> NDArray[np.int64]:
    """Sizes of the files of frames 1..rows, (N,) int64, -1 where there is none.

    A gap inside the sequence is a missing file, and the frame is left out of sampling. A last frame that is not the
    last row means that boxes and frames do not belong together, and nobody can say which box is whose.
    """
    frames = scan_frames(folder)
    if not frames.is_numbered:
        raise UserError(f"{folder}: holds no frame named like 00000001.jpg", "data.no_frames")
    if rows is None:
        return np.zeros(0, dtype=np.int64)
    numbers = np.array([int(path.stem) for path in frames.paths])
    if numbers[-1] != rows or numbers[0] < 1:
        raise UserError(
            f"{folder}: groundtruth.txt has {rows} rows, but the frames are numbered {numbers[0]} to {numbers[-1]} "
            f"({len(numbers)} files); rows and frames must be the same in number",
            "data.frame_count",
        )
    sizes = np.full(rows, -1, dtype=np.int64)
    sizes[numbers - 1] = frames.sizes
    return sizes

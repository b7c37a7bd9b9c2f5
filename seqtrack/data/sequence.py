"""One annotated video: boxes that can be trained on, and the frame files that belong to them.

Nothing is repaired: what can be read in two ways is refused, because a guessed box is a box the model learns. Knows no
split, class list or pixel.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.annotations import (
    Annotation,
    Boxes,
    Flags,
    attempt,
    read_boxes,
    read_boxes_and_absence,
    read_flags,
)  # fmt: skip
from seqtrack.data.frames import scan_frames
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

# No image is larger; a number beyond it is damage, and would overflow the crop arithmetic later.
LARGEST_COORDINATE = 100_000.0
# Rows of the official annotations with a negative size. They are published as they are, so they count as frames
# without a box; a negative size anywhere else is damage. (sequence, line): text of the row.
KNOWN_NEGATIVE_ROWS = {
    ("person-7", 2111): "2,2,-1,-1",
    ("pool-14", 146): "1,1,-1,-1",
    ("tank-17", 627): "1125,730,155,-10",
    ("lion-5", None): "1,1,-1,-1",
    ("tiger-6", None): "613,731,247,-11",
}
_MAX_SHOWN = 20


@dataclass(frozen=True, eq=False)
class Sequence(Annotation):
    """An annotated video with its frames.

    Attributes:
        folder: of the frame files 00000001.jpg, 00000002.jpg, ...
        frame_bytes: (N,) int64, size of each frame file, -1 for a missing one.
    """

    folder: Path
    frame_bytes: NDArray[np.int64]

    @cached_property
    def missing(self) -> Flags:
        """(N,) bool: the frame file does not exist."""
        return self.frame_bytes < 0

    @cached_property
    def visible(self) -> Flags:
        """(N,) bool: may be sampled. The target is in view, its box has an area, and the frame file exists."""
        return ~self.absent & ~self.missing & (self.boxes_xywh[:, 2:] > 0).all(axis=1)

    def frame_path(self, index: int) -> Path:
        """File of a frame, counted from 0."""
        return self.folder / f"{index + 1:08d}.jpg"


def read_sequence(
    folder: Path,
    class_name: str,
    *,
    images: Path | None = None,
    flag_files: Mapping[Path, Callable[[Path], Flags]] | None = None,
) -> Sequence:
    """Read one sequence folder.

    Args:
        images: folder of the frames, `folder/img` as in LaSOT by default.
        flag_files: files that tell where the target is absent, each with the function that reads it as (N,) bool;
            LaSOT's two by default.

    Raises:
        UserError: every problem, each with its file and, where there is one, line and entry.
    """
    images = images or folder / "img"
    if flag_files is None:
        flag_files = dict.fromkeys((folder / "full_occlusion.txt", folder / "out_of_view.txt"), read_flags)
    problems: list[Problem] = []
    read = functools.partial(_read_trainable_boxes, sequence=folder.name)
    boxes, absent = read_boxes_and_absence(folder / "groundtruth.txt", flag_files, problems, read)
    sizes = attempt(problems, _frame_sizes, images, None if boxes is None else len(boxes))
    if problems or boxes is None or sizes is None:
        raise UserError(problems)
    return Sequence(folder.name, class_name, boxes, absent, images, sizes)


def log_missing_frames(sequence: Sequence) -> None:
    """Log the frames of a sequence that have no file."""
    if sequence.missing.any():
        numbers = ", ".join(map(str, np.flatnonzero(sequence.missing) + 1))
        count = int(sequence.missing.sum())
        _log.warning("%s: %d frame files are missing, and not sampled: %s", sequence.folder, count, numbers)


def _read_trainable_boxes(path: Path, sequence: str) -> Boxes:
    boxes = read_boxes(path)
    problems: list[Problem] = []
    for row in np.flatnonzero((np.abs(boxes) > LARGEST_COORDINATE).any(axis=1) | (boxes[:, 2:] < 0).any(axis=1)):
        text = ",".join(f"{value:g}" for value in boxes[row])
        known = KNOWN_NEGATIVE_ROWS.get((sequence, int(row) + 1)), KNOWN_NEGATIVE_ROWS.get((sequence, None))
        if np.abs(boxes[row]).max() > LARGEST_COORDINATE:
            problems.append(Problem(f"{path}, line {row + 1}: {text} is beyond any image", "data.box"))
        elif text not in known:
            problems.append(Problem(f"{path}, line {row + 1}: {text} has a negative width or height", "data.box"))
    if len(problems) > _MAX_SHOWN:
        problems[_MAX_SHOWN:] = [Problem(f"{path}: {len(problems) - _MAX_SHOWN} more such rows", "data.box")]
    if problems:
        raise UserError(problems)
    return boxes


def _frame_sizes(folder: Path, num_rows: int | None) -> NDArray[np.int64]:
    """Sizes of the files of frames 1..num_rows, (N,) int64, -1 where there is none.

    A gap inside the sequence is a missing file, and the frame is left out of sampling. A last frame that is not the
    last row means that boxes and frames do not belong together, and nobody can say which box is whose.
    """
    frames = scan_frames(folder)
    if not frames.is_numbered:
        raise UserError(f"{folder}: holds no frame named like 00000001.jpg", "data.no_frames")
    if num_rows is None:
        return np.zeros(0, dtype=np.int64)
    numbers = np.array([int(path.stem) for path in frames.paths])
    if numbers[-1] != num_rows or numbers[0] < 1:
        raise UserError(
            f"{folder}: groundtruth.txt has {num_rows} rows, but the frames are numbered {numbers[0]} to {numbers[-1]} "
            f"({len(numbers)} files); rows and frames must be the same in number",
            "data.frame_count",
        )
    sizes = np.full(num_rows, -1, dtype=np.int64)
    sizes[numbers - 1] = frames.sizes
    return sizes

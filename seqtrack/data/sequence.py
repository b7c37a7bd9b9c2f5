"""One annotated video: boxes that can be trained on, and the frame files that belong to them.

Nothing is repaired: what can be read in two ways is refused, because a guessed box is a box the model learns. Knows no
split, class list or pixel.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.annotations import FLAG_FILES, Annotation, Boxes, Flags, attempt, read_boxes_and_absence, read_flags
from seqtrack.data.frames import scan_frames
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

# No image is larger; a number beyond it is damage, and would overflow the crop arithmetic later.
LARGEST_COORDINATE = 100_000.0
# Rows of the official annotations with a negative size count as frames without a box; elsewhere they are damage.
_KNOWN_NEGATIVE_ROWS = {
    ("person-7", "2,2,-1,-1"), ("pool-14", "1,1,-1,-1"), ("tank-17", "1125,730,155,-10"), ("lion-5", "1,1,-1,-1"),
    ("tiger-6", "613,731,247,-11"),
}  # fmt: skip


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
    images: str = "img",
    flag_files: Mapping[str, Callable[[Path], Flags]] | None = None,
) -> Sequence:
    """Read one sequence folder; frames without a file are logged.

    Args:
        images: the folder of frames in it.
        flag_files: names of the files that tell where the target is absent, each with the function that reads it as
            (N,) bool; LaSOT's two by default.

    Raises:
        UserError: every problem, each with its file and, where there is one, line and entry.
    """
    problems: list[Problem] = []
    flags = {folder / name: read for name, read in (flag_files or dict.fromkeys(FLAG_FILES, read_flags)).items()}
    boxes, absent = read_boxes_and_absence(folder / "groundtruth.txt", flags, problems)
    if boxes is None:
        raise UserError(problems)
    problems += _unusable_rows(folder, boxes)
    sizes = attempt(problems, _frame_sizes, folder / images, len(boxes))
    if problems or sizes is None:
        raise UserError(problems)
    if (sizes < 0).any():
        numbers = (np.flatnonzero(sizes < 0) + 1).tolist()
        _log.warning("%s: %d frame files are missing, and not sampled: %s", folder, len(numbers), numbers)
    return Sequence(folder.name, class_name, boxes, absent, folder / images, sizes)


def _unusable_rows(folder: Path, boxes: Boxes) -> list[Problem]:
    problems = []
    for row in np.flatnonzero((np.abs(boxes) > LARGEST_COORDINATE).any(axis=1) | (boxes[:, 2:] < 0).any(axis=1)):
        text = ",".join(f"{value:g}" for value in boxes[row])
        if (folder.name, text) not in _KNOWN_NEGATIVE_ROWS:
            expected = f"a size of at least 0 and no number above {LARGEST_COORDINATE:g}"
            where = f"{folder / 'groundtruth.txt'}, line {row + 1}"
            problems.append(Problem(f"{where}: found {text}, expected {expected}", "data.box"))
    return problems[:20]


def _frame_sizes(folder: Path, num_rows: int) -> NDArray[np.int64]:
    """Sizes of the files of frames 1..num_rows, (N,) int64, -1 where there is none.

    A gap inside the sequence is a missing file, and the frame is left out of sampling. A last frame that is not the
    last row means that boxes and frames do not belong together, and nobody can say which box is whose.
    """
    frames = scan_frames(folder)
    if not frames.is_numbered:
        raise UserError(f"{folder}: holds no frame named like 00000001.jpg", "data.no_frames")
    numbers = np.array([int(path.stem) for path in frames.paths])
    if numbers[-1] != num_rows or numbers[0] < 1:
        found = f"found frames {numbers[0]} to {numbers[-1]} ({len(numbers)} files)"
        text = f"{folder}: {found}, expected 1 to {num_rows}, as groundtruth.txt has rows"
        raise UserError(text, "data.frame_count")
    sizes = np.full(num_rows, -1, dtype=np.int64)
    sizes[numbers - 1] = frames.sizes
    return sizes

"""One annotated video: boxes that can be trained on, and the frame files that belong to them.

Nothing is repaired: what can be read in two ways is refused, because a guessed box is a box the model learns. Knows no
split, class list or pixel.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.annotations import FLAG_FILES, Annotation, Flags, attempt, first_problems, read_boxes_and_absence
from seqtrack.data.decode import Numbered, scan_frames
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
    """An annotated video: the folder of its frames, (N,) int64 the size of each, -1 for a missing one, and the file
    name of a frame by its index from 0."""

    folder: Path
    frame_bytes: NDArray[np.int64]
    frame_name: Callable[[int], str] = field(default_factory=Numbered)

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
        return self.folder / self.frame_name(index)


def read_sequence(
    folder: Path, class_name: str, images: str = "img", flag_files: Mapping[str, tuple[int, int]] = FLAG_FILES
) -> Sequence:
    """Read one sequence folder with `groundtruth.txt`; arguments and errors as `read_video`."""
    flags = {folder / name: how for name, how in flag_files.items()}
    return read_video(folder.name, class_name, folder / "groundtruth.txt", flags, folder / images, Numbered())


def read_video(
    name: str,
    class_name: str,
    rows_file: Path,
    flag_files: Mapping[Path, tuple[int, int]],
    images_folder: Path,
    frame_name: Numbered,
) -> Sequence:
    """Read one annotated video; frames without a file are logged.

    A gap inside the sequence is a missing file, and the frame is left out of sampling. A last frame that is not the
    last row means that boxes and frames do not belong together, and nobody can say which box is whose.

    Args:
        flag_files: the files that tell where the target is absent, as in `FLAG_FILES`.

    Raises:
        UserError: every problem, each with its file and, where there is one, line and entry.
    """
    boxes, absent = read_boxes_and_absence(rows_file, flag_files)
    problems: list[Problem] = []
    for row in np.flatnonzero((np.abs(boxes) > LARGEST_COORDINATE).any(axis=1) | (boxes[:, 2:] < 0).any(axis=1)):
        text = ",".join(f"{value:g}" for value in boxes[row])
        if (name, text) not in _KNOWN_NEGATIVE_ROWS:
            expected = f"a size of at least 0 and no number above {LARGEST_COORDINATE:g}"
            problems.append(Problem(f"{rows_file}, line {row + 1}: found {text}, expected {expected}", "data.box"))
    problems = first_problems(problems)
    sizes = np.full(len(boxes), -1, dtype=np.int64)
    first, last = frame_name.first, frame_name.first + len(boxes) - 1
    if frames := attempt(problems, scan_frames, images_folder, frame_name):
        numbers = np.array([int(path.stem) for path in frames.paths])
        if numbers[-1] != last or numbers[0] < first:
            found = f"found frames {numbers[0]} to {numbers[-1]} ({len(numbers)} files)"
            text = f"{images_folder}: {found}, expected {first} to {last}, as {rows_file.name} has rows"
            problems.append(Problem(text, "data.frame_count"))
        else:
            sizes[numbers - first] = frames.sizes
    if problems:
        raise UserError(problems)
    if missing := (np.flatnonzero(sizes < 0) + first).tolist():
        _log.warning("%s: %d frame files are missing, and not sampled: %s", images_folder, len(missing), missing)
    return Sequence(name, class_name, boxes, absent, images_folder, sizes, frame_name)

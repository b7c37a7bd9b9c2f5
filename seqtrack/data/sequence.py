"""One annotated video: what every data set is turned into, and all that sampling needs to know of it.

Knows arrays and how its frame files are named. It must not know where annotations came from, nor read an image.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Sequence:
    """An annotated video.

    Attributes:
        name: unique in its source, such as "person-1".
        class_name: "person".
        folder: where the frame files are.
        boxes_xywh: (N, 4) float64, pixels, top-left corner and size, exactly as the annotation file says.
        visible: (N,) bool, may be sampled: the target is in view, its box has an area, its frame file exists.
        absent: (N,) bool, fully occluded or out of view, as annotated.
        missing: (N,) bool, the frame file does not exist.
        frame_bytes: (N,) int64, sizes of the frame files, -1 for a missing one; None where nobody looked.
        frame_pattern: file name of a frame by its number, `str.format` with the number.
        first_frame_number: number of frame 0.
    """

    name: str
    class_name: str
    folder: Path
    boxes_xywh: NDArray[np.float64]
    visible: NDArray[np.bool_]
    absent: NDArray[np.bool_]
    missing: NDArray[np.bool_]
    frame_pattern: str = "{:08d}.jpg"
    first_frame_number: int = 1
    frame_bytes: NDArray[np.int64] | None = None

    @property
    def num_frames(self) -> int:
        """Annotated frames, those with a missing file included."""
        return len(self.boxes_xywh)

    @property
    def has_box(self) -> NDArray[np.bool_]:
        """(N,) bool: a frame that can be cropped, whether the target is in view or hidden behind something."""
        return (self.boxes_xywh[:, 2] > 0) & (self.boxes_xywh[:, 3] > 0) & ~self.missing

    def frame_path(self, index: int) -> Path:
        """File of a frame, counted from 0."""
        return self.folder / self.frame_pattern.format(index + self.first_frame_number)


def visible_frames(
    boxes_xywh: NDArray[np.float64], absent: NDArray[np.bool_], missing: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """(N,) bool: neither occluded nor out of view, width and height above zero, and a frame file to read."""
    return ~absent & ~missing & (boxes_xywh[:, 2] > 0) & (boxes_xywh[:, 3] > 0)

"""Reading one frame file: pixels of a region, and the refusal of anything that is not a whole JPEG.

Knows JPEG. It must not know why the region is wanted. A decoder that fills what is missing with grey would train the
model on grey, so a file that breaks off is an error here.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.errors import UserError

Image = NDArray[np.uint8]
_MAX_SIDE = 20_000


@dataclass(frozen=True)
class Patch:
    """Part of a frame: `pixels_bgr` (h, w, 3) uint8 whose first pixel stands at (left, top) of the frame."""

    pixels_bgr: Image
    left: int
    top: int
    frame_width: int
    frame_height: int


class FrameFile:
    """A frame file, read whole but not yet decoded.

    Raises:
        UserError: it cannot be read, is no JPEG, or breaks off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._data = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        self.width, self.height = self._check()

    def _fail(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what} ({len(self._data)} bytes); replace the file or download it again")

    def _check(self) -> tuple[int, int]:
        data = self._data
        if not data:
            raise self._fail("is empty")
        if data[:3] != b"\xff\xd8\xff":
            raise self._fail("is not a JPEG")
        if b"\xff\xd9" not in data[-1024:]:
            raise self._fail("is a truncated JPEG: its end is missing")
        return _frame_size(data) or self._raise("is a JPEG without a readable header")

    def _raise(self, what: str) -> tuple[int, int]:
        raise self._fail(what)

    def whole(self) -> Patch:
        """All of the frame."""
        pixels = cv2.imdecode(np.frombuffer(self._data, dtype=np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise self._fail("cannot be decoded")
        height, width = pixels.shape[:2]
        return Patch(np.asarray(pixels, dtype=np.uint8), 0, 0, width, height)

    def region(self, left: int, top: int, right: int, bottom: int) -> Patch:
        """At least the pixels [left, right) x [top, bottom) of the frame."""
        return self.whole()


def _frame_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the first start-of-frame segment, or None."""
    at = 2
    while at + 9 < len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (width, height) if 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE else None
        if marker == 0xDA:
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None

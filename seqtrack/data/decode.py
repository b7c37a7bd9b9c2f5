"""Reading one frame file: pixels of a region, and the refusal of anything that is not a whole JPEG.

Knows a JPEG file's outer form. It must not know why the region is wanted. A decoder that fills what is missing with
grey would train the model on grey, so a file that breaks off is an error here.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.jpeg import JpegError, decode_region
from seqtrack.errors import UserError

Image = NDArray[np.uint8]

# A header may claim any size; a frame above this many pixels is refused before memory is asked for.
LARGEST_FRAME_PX = 100_000_000
_LARGEST_FILE_BYTES = 256 * 1024 * 1024
# Some cameras pad a file after its end marker; more than this is not padding.
_PADDING_BYTES = 1024
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\xd9"
_ORIENTATION_TAG = 0x0112
_COLOURS = {1: "grey", 3: "colour"}


@dataclass(frozen=True)
class Patch:
    """Part of a frame: `pixels_bgr` (h, w, 3) uint8 whose first pixel stands at (left, top) of the frame."""

    pixels_bgr: Image
    left: int
    top: int


class FrameFile:
    """A frame file, read whole but not yet decoded.

    Attributes:
        width, height: pixels.
        num_bytes: size of the file.

    Raises:
        UserError: it cannot be read, is no JPEG of 8 bits in grey or colour, or breaks off.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                # Asked with a limit the system sets memory of that size aside, so the limit is on the size it states.
                self._data = file.readall() if os.fstat(file.fileno()).st_size <= _LARGEST_FILE_BYTES else b"\0"
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        self.num_bytes = len(self._data)
        self.width, self.height = self._check()

    def _error(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what} ({self.num_bytes} bytes); replace this frame or download it again")

    def _check(self) -> tuple[int, int]:
        data = self._data
        if not data:
            raise self._error("is empty")
        if not data.startswith(_START_OF_IMAGE):
            raise self._error("is not a JPEG")
        if _END_OF_IMAGE not in data[-_PADDING_BYTES:]:
            raise self._error("is a truncated JPEG: its end is missing")
        header = read_header(data)
        if header is None:
            raise self._error("is a JPEG without a frame header")
        width, height, colours, bits = header
        if bits != 8 or colours not in _COLOURS:
            raise self._error(
                f"is a JPEG of {colours} colour planes and {bits} bits; expected 1 or 3 planes and 8 bits"
            )
        if not 0 < width * height <= LARGEST_FRAME_PX:
            raise self._error(f"claims to be {width} x {height} pixels")
        return width, height

    @property
    def orientation(self) -> int:
        """What a camera noted about how it was held: 1 is upright, and what a file without a note has."""
        return read_orientation(self._data)

    def region(self, left: int, top: int, right: int, bottom: int) -> Patch:
        """At least the pixels [left, right) x [top, bottom); none when the region is empty.

        Raises:
            UserError: the file is damaged.
        """
        if left >= right or top >= bottom:
            return Patch(np.zeros((0, 0, 3), dtype=np.uint8), left, top)
        try:
            pixels, x, y = decode_region(
                self._data, width=self.width, height=self.height, left=left, top=top, right=right, bottom=bottom
            )
        except JpegError as error:
            raise self._error(f"is a damaged JPEG ({error})") from error
        return Patch(pixels, x, y)

    def whole(self) -> Image:
        """All pixels (height, width, 3) uint8 BGR, as stored."""
        return self.region(0, 0, self.width, self.height).pixels_bgr


def check_end(path: Path) -> str | None:
    """What is wrong with a frame file as far as its first and last bytes tell, or None. Costs microseconds."""
    try:
        # The plain system calls: this is done for every frame of a data set before training begins.
        handle = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            first, last = os.pread(handle, 3, 0), os.pread(handle, _PADDING_BYTES, max(0, size - _PADDING_BYTES))
        finally:
            os.close(handle)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    if first != _START_OF_IMAGE:
        return f"{path}: is not a JPEG ({size} bytes)" if size else f"{path}: is empty"
    if _END_OF_IMAGE not in last:
        return f"{path}: is a truncated JPEG: its end is missing ({size} bytes)"
    return None


def read_header(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, number of colour planes and bits a sample from the first frame header, or None."""
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return width, height, data[at + 9], data[at + 4]
        elif marker == 0xDA:
            return None
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def read_orientation(data: bytes) -> int:
    """The Exif orientation, 1 where there is none or where the note cannot be read."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        if data[at + 1] == 0xE1 and segment.startswith(b"Exif\0\0"):
            return _orientation_in_tiff(segment[6:])
        at += 2 + length
    return 1


def _orientation_in_tiff(tiff: bytes) -> int:
    order: Literal["little", "big"] = "little" if tiff[:2] == b"II" else "big"
    start = int.from_bytes(tiff[4:8], order)
    for entry in range(int.from_bytes(tiff[start : start + 2], order)):
        field = tiff[start + 2 + 12 * entry : start + 14 + 12 * entry]
        if len(field) == 12 and int.from_bytes(field[:2], order) == _ORIENTATION_TAG:
            value = int.from_bytes(field[8:10], order)
            return value if 1 <= value <= 8 else 1
    return 1

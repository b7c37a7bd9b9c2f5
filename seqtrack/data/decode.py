"""Reading frame files: the pixels of a region or a whole frame, and the refusal of anything but an intact JPEG.

Most decoders fill missing data with grey, which would train the model on grey, so a truncated file is an error here.
Pixels are rotated by the Exif orientation, as OpenCV's `imread` does, with which the authors read frames.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from seqtrack.data import Image
from seqtrack.data.frames import JPEG_SUFFIXES
from seqtrack.data.jpeg import JpegError, decode_region
from seqtrack.errors import Problem, UserError

# A header may claim any size; a frame above this many pixels is refused before memory is allocated.
LARGEST_FRAME_PX = 100_000_000
_MAX_FILE_BYTES = 256 * 1024 * 1024
# Some cameras pad a file after its end marker; more than this is not padding.
_PADDING_BYTES = 1024
_START_OF_IMAGE, _END_OF_IMAGE = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_THREADS = 8  # opening files waits for the disk or the network more than it computes
_CHUNK = 256
_ORIENTATION_TAG = 0x0112
# Stored pixels to shown pixels, by Exif orientation.
_ROTATIONS: dict[int, Callable[[Image], Image]] = {
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: image.transpose(1, 0, 2)[:, ::-1],
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: image.transpose(1, 0, 2)[::-1],
}
# The first frame header of a file without large metadata is in these first bytes.
_HEAD_BYTES = 4096


@dataclass(frozen=True)
class Patch:
    """Part of a frame: `pixels_bgr` (h, w, 3), whose first pixel is at (left, top) of the frame."""

    pixels_bgr: Image
    left: int
    top: int


class FrameFile:
    """A frame file, read whole but not yet decoded.

    Attributes:
        width, height: pixels, of the frame as shown.
        num_bytes: size of the file.

    Raises:
        UserError: it cannot be read, is not an 8-bit JPEG in grey or colour, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb", buffering=0) as file:
                self.num_bytes = os.fstat(file.fileno()).st_size
                self._data = file.readall() if self.num_bytes <= _MAX_FILE_BYTES else b""
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})", "data.frame") from error
        try:
            self._stored = _frame_size(self._data, self._data[-_PADDING_BYTES:], self.num_bytes)
        except JpegError as error:
            raise self._error(str(error)) from error
        self._orientation = read_orientation(self._data)
        self.width, self.height = self._stored[::-1] if self._orientation >= 5 else self._stored

    def _error(self, what: str) -> UserError:
        text = f"{self.path}: {what} ({self.num_bytes} bytes); replace this frame or download it again"
        return UserError(text, "data.frame")

    def region(self, left: int, top: int, right: int, bottom: int) -> Patch:
        """At least the pixels [left, right) x [top, bottom); none when the region is empty.

        Raises:
            UserError: the file is damaged.
        """
        if left >= right or top >= bottom:
            return Patch(np.zeros((0, 0, 3), dtype=np.uint8), left, top)
        width, height = self._stored
        rotate = _ROTATIONS.get(self._orientation)
        if rotate is not None:  # none of the benchmarks has such frames: decoded whole
            left, top, right, bottom = 0, 0, width, height
        try:
            patch = decode_region(
                self._data, width=width, height=height, left=left, top=top, right=right, bottom=bottom
            )
        except JpegError as error:
            raise self._error(f"is a damaged JPEG ({error})") from error
        return Patch(*patch) if rotate is None else Patch(np.ascontiguousarray(rotate(patch[0])), 0, 0)

    def whole(self) -> Image:
        """All pixels (height, width, 3) BGR."""
        return self.region(0, 0, self.width, self.height).pixels_bgr


def read_image(path: Path) -> Image:
    """(H, W, 3) BGR of one image file, rotated by its Exif orientation.

    Raises:
        UserError: unreadable, damaged, or a JPEG that training would refuse as well.
    """
    if path.suffix.lower() in JPEG_SUFFIXES:
        return FrameFile(path).whole()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "data.frame") from error
    image = None
    if data and (not data.startswith(_PNG_START) or _PNG_END in data):
        # Not imread: it cannot open names outside the locale's alphabet on every system.
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path}: cannot be read as an image ({len(data)} bytes)", "data.frame")
    return np.asarray(image, dtype=np.uint8)


def check_frames(paths: Iterable[Path]) -> list[Problem]:
    """Problems of frame files as far as their headers and ends show them, in the order of the paths.

    Costs tens of microseconds per file: it is done for all frames before training begins.
    """
    ordered = [os.fspath(path) for path in paths]
    chunks = [ordered[at : at + _CHUNK] for at in range(0, len(ordered), _CHUNK)]

    def check(chunk: list[str]) -> list[Problem]:
        found = ((path, _frame_problem(path)) for path in chunk)
        return [Problem(f"{path}: {problem}", "data.frame") for path, problem in found if problem is not None]

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(chain.from_iterable(pool.map(check, chunks)))


def _frame_problem(path: str) -> str | None:
    try:
        # Plain system calls: this is done for every frame of a data set before training begins.
        handle = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(handle).st_size
            head = os.pread(handle, _HEAD_BYTES, 0)
            tail = os.pread(handle, _PADDING_BYTES, max(0, size - _PADDING_BYTES))
            if size > _HEAD_BYTES and head.startswith(_START_OF_IMAGE) and read_header(head) is None:
                head = os.pread(handle, min(size, _MAX_FILE_BYTES), 0)
        finally:
            os.close(handle)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    try:
        _frame_size(head, tail, size)
    except JpegError as error:
        return f"{error} ({size} bytes)"
    return None


def _frame_size(head: bytes, tail: bytes, size: int) -> tuple[int, int]:
    """Width and height of the stored pixels, from a file's beginning up to its frame header and its last bytes.

    Raises:
        JpegError: it is not a usable JPEG.
    """
    if size > _MAX_FILE_BYTES:
        raise JpegError("is too large for a frame")
    if not head:
        raise JpegError("is empty")
    if not head.startswith(_START_OF_IMAGE):
        raise JpegError("is not a JPEG")
    if _END_OF_IMAGE not in tail:
        raise JpegError(f"is a truncated JPEG, or has other data appended: no end in the last {_PADDING_BYTES} bytes")
    header = read_header(head)
    if header is None:
        raise JpegError("is a JPEG without a frame header")
    width, height, colours, bits = header
    if bits != 8 or colours not in (1, 3):
        raise JpegError(f"is a JPEG of {colours} colour planes and {bits} bits; expected 1 or 3 planes and 8 bits")
    if not 0 < width * height <= LARGEST_FRAME_PX:
        raise JpegError(f"claims to be {width} x {height} pixels")
    return width, height


def read_header(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, number of colour planes and bits per sample from the first frame header, or None."""
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
    """The Exif orientation, 1 where there is none or it cannot be read."""
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

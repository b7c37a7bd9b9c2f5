"""Reading frame files: the pixels of a region or a whole frame, and the refusal of anything but an intact JPEG.

Most decoders fill missing data with grey, which would train the model on grey, so a truncated file is an error here.
Pixels are rotated by the Exif orientation, as OpenCV's `imread` does, with which the authors read frames.
"""

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from seqtrack.data import Image
from seqtrack.data.frames import JPEG_SUFFIXES
from seqtrack.data.jpeg import JpegError, decode_region
from seqtrack.errors import Problem, UserError

# A header may claim any size; a frame above this many pixels is refused before memory is allocated.
_LARGEST_FRAME_PX = 100_000_000
_MAX_FILE_BYTES = 256 * 1024 * 1024
# Some cameras pad a file after its end marker; more than this is not padding.
_PADDING_BYTES = 1024
_HEAD_BYTES = 4096  # hold the first frame header of a file without large metadata
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
# An Exif block whose entry 0x0112, the orientation, is not 1, in either byte order.
_ROTATED = re.compile(
    rb"Exif\0\0.*?(?:\x01\x12\0\x03\0{3}\x01\0[\x02-\x08]|\x12\x01\x03\0\x01\0{3}[\x02-\x08]\0)", re.S
)
_THREADS, _CHUNK = 8, 256  # opening files waits for the disk or the network more than it computes


class FrameFile:
    """A frame file, read whole but not yet decoded.

    Attributes:
        width, height: pixels, of the frame as shown.

    Raises:
        UserError: it cannot be read, is not an 8-bit JPEG in grey or colour, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _read(path)
        try:
            self.width, self.height = _frame_size(self._data, self._data[-_PADDING_BYTES:], len(self._data))
        except JpegError as error:
            raise self._error(str(error)) from error
        self._rotated: Image | None = None
        if _ROTATED.search(self._data, 0, _HEAD_BYTES):  # no benchmark has such frames: decoded whole by OpenCV
            self.whole()  # OpenCV would not report damage
            self._rotated = _imdecode(self._data)
            assert self._rotated is not None
            self.height, self.width = self._rotated.shape[:2]

    def _error(self, what: str) -> UserError:
        text = f"{self.path}: {what} ({len(self._data)} bytes); replace this frame or download it again"
        return UserError(text, "data.frame")

    def region(self, left: int, top: int, right: int, bottom: int) -> tuple[Image, int, int]:
        """At least the pixels [left, right) x [top, bottom), (h, w, 3) BGR, and the position of the first: left, top.

        Raises:
            UserError: the file is damaged.
        """
        if left >= right or top >= bottom:
            return np.zeros((0, 0, 3), dtype=np.uint8), left, top
        if self._rotated is not None:
            return self._rotated, 0, 0
        try:
            return decode_region(self._data, (self.width, self.height), (left, top, right, bottom))
        except JpegError as error:
            raise self._error(f"is a damaged JPEG ({error})") from error

    def whole(self) -> Image:
        """All pixels (height, width, 3) BGR."""
        return self.region(0, 0, self.width, self.height)[0]


def read_image(path: Path) -> Image:
    """(H, W, 3) BGR of one image file, rotated by its Exif orientation.

    Raises:
        UserError: unreadable, damaged, or a JPEG that training would refuse as well.
    """
    if path.suffix.lower() in JPEG_SUFFIXES:
        return FrameFile(path).whole()
    data = _read(path)
    is_whole = data and (not data.startswith(_PNG_START) or _PNG_END in data)
    image = _imdecode(data) if is_whole else None
    if image is None:
        raise UserError(f"{path}: cannot be read as an image ({len(data)} bytes)", "data.frame")
    return image


def check_frames(paths: Iterable[Path]) -> list[Problem]:
    """Problems of frame files as far as their headers and ends show them, in the order of the paths.

    Costs tens of microseconds per file: it is done for all frames before training begins.
    """
    names = [os.fspath(path) for path in paths]

    def check(start: int) -> list[Problem]:
        found = ((name, _frame_problem(name)) for name in names[start : start + _CHUNK])
        return [Problem(f"{name}: {problem}", "data.frame") for name, problem in found if problem is not None]

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(chain.from_iterable(pool.map(check, range(0, len(names), _CHUNK))))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb", buffering=0) as file:
            return file.readall() if os.fstat(file.fileno()).st_size <= _MAX_FILE_BYTES else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "data.frame") from error


def _imdecode(data: bytes) -> Image | None:
    image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    return None if image is None else np.asarray(image, dtype=np.uint8)


def _frame_problem(path: str) -> str | None:
    size = 0
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half of the time is the making of a Path
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            file.seek(max(0, size - _PADDING_BYTES))
            tail = file.read(_PADDING_BYTES)
            if size > _HEAD_BYTES and read_header(head) is None:
                file.seek(0)
                head = file.read(_MAX_FILE_BYTES)
            _frame_size(head, tail, size)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except JpegError as error:
        return f"{error} ({size} bytes)"
    return None


def _frame_size(head: bytes, tail: bytes, size: int) -> tuple[int, int]:
    """Width and height of the stored pixels, from a file's beginning up to its frame header and its last bytes.

    Raises:
        JpegError: it is not a usable JPEG.
    """
    header = read_header(head)
    if not 0 < size <= _MAX_FILE_BYTES:
        raise JpegError("is empty or too large for a frame")
    if header is None:
        raise JpegError("is not a JPEG, or one without a frame header")
    if b"\xff\xd9" not in tail:
        raise JpegError(f"is a truncated JPEG, or has other data appended: no end in the last {_PADDING_BYTES} bytes")
    width, height, colours, bits = header
    if bits != 8 or colours not in (1, 3):
        raise JpegError(f"is a JPEG of {colours} colour planes and {bits} bits; expected 1 or 3 planes and 8 bits")
    if not 0 < width * height <= _LARGEST_FRAME_PX:
        raise JpegError(f"claims to be {width} x {height} pixels")
    return width, height


def read_header(data: bytes) -> tuple[int, int, int, int] | None:
    """Width, height, number of colour planes and bits per sample from the first frame header, or None."""
    at = 2 if data.startswith(b"\xff\xd8\xff") else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF and (marker := data[at + 1]) != 0xDA:
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return width, height, data[at + 9], data[at + 4]
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None

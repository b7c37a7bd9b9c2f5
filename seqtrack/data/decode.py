"""Frames: which files of a folder they are, in which order, and the pixels of a region or a whole one.

Training, evaluation, `data check` and `track` all list and decode frames here, so the same folder is the same video for
all of them.

Most decoders fill missing data with grey, which would train the model on grey, so a truncated file is an error here.
Pixels are rotated by the Exif orientation, as OpenCV's `imread` does, with which the authors read frames. A region is
decoded with libjpeg-turbo's C interface, for which the wheel `turbojpeg` is used: its Python side cannot do it. Within
the region the pixels are exactly those of a whole decode, because it is widened by more than the interpolation of the
chroma planes reaches.
"""

import ctypes
import functools
import importlib.metadata
import logging
import os
import re
import struct
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from seqtrack.data import Image, files
from seqtrack.data.annotations import first_problems
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

JPEG_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".tif", ".tiff", ".webp")
_OF_FILE_MANAGERS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})
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
_FRAME_OR_SCAN = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xda]")  # marker of a header
_THREADS, _CHUNK = 8, 256  # opening files waits for the disk or the network more than it computes
_TJINIT_DECOMPRESS, _TJPF_BGR = 1, 1
# A region must begin at a block of the chroma planes; 32 px is a multiple of every block's width. The margin is more
# than the interpolation of subsampled chroma reaches, which is 2 px.
_BLOCK_PX, _MARGIN_PX = 32, 16


@dataclass(frozen=True)
class FrameFolder:
    """The frames of a folder in order, the sizes of their files in bytes, and the names of other entries, hidden files
    excepted."""

    paths: list[Path]
    sizes: list[int]
    left_out: list[str]


def is_hidden(name: str) -> bool:
    """Files that operating systems create: `._*` and `.DS_Store` of macOS, `Thumbs.db` of Windows."""
    return name.startswith(".") or name.lower() in _OF_FILE_MANAGERS


@dataclass(frozen=True)
class Numbered:
    """File names of numbered frames, from `first` on; an object with these two fields can be sent to a worker."""

    pattern: str = "{:08d}.jpg"
    first: int = 1

    def __call__(self, index: int) -> str:
        return self.pattern.format(self.first + index)

    def matches(self, name: str) -> bool:
        """Whether a frame may have this name."""
        number = name.partition(".")[0]
        return number.isdecimal() and self.pattern.format(int(number)) == name


def scan_frames(folder: Path, numbered: Numbered | None = None) -> FrameFolder:
    """Find the frames of a folder without opening them.

    If any is named 00000001.jpg as in the data sets, other images in the folder are not frames.

    Args:
        numbered: how frames must be named.

    Raises:
        UserError: the folder cannot be read, holds no (numbered) image, or an entry with the name of a frame is not a
            file.
    """
    try:
        found = files.list_folder(folder)
    except FileNotFoundError:
        found = {}  # as an empty one
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})", "data.frame") from error
    found = {name: size for name, size in found.items() if not is_hidden(name)}
    images = {name: size for name, size in found.items() if name.lower().endswith(IMAGE_SUFFIXES)}
    sizes = {name: size for name, size in images.items() if size is not None}
    if wrong := sorted(set(images) - set(sizes)):
        raise UserError(f"{folder / wrong[0]}: is not a file, but has the name of a frame", "data.frame")
    names = sorted(filter((numbered or Numbered()).matches, sizes), key=lambda name: int(name.partition(".")[0]))
    names = names or ([] if numbered else sorted(sizes, key=_natural_order))
    if not names:
        example = (numbered or Numbered())(0)
        expected = f"expected a folder with frames such as {example} ({', '.join(IMAGE_SUFFIXES)})"
        raise UserError(f"{folder}: holds no images, or does not exist; {expected}", "data.no_frames")
    left_out = sorted(set(found) - set(images)) + sorted(set(sizes) - set(names))
    return FrameFolder([folder / name for name in names], [sizes[name] for name in names], left_out)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]


def list_video_frames(folder: Path) -> list[Path]:
    """The frames of a folder that is tracked as a video; entries left out and missing numbers are logged.

    Raises:
        UserError: as `scan_frames`.
    """
    found = scan_frames(folder)
    if found.left_out:
        _log.warning("%s: %d files are not frames: %s", folder, len(found.left_out), ", ".join(found.left_out))
    numbers = {int(path.stem) for path in found.paths if Numbered().matches(path.name)}
    if 0 < max(numbers, default=-1) - min(numbers, default=0) + 1 - len(numbers) < len(numbers):  # else times
        gone = sorted({*range(min(numbers), max(numbers))} - numbers)
        shown = ", ".join(map(str, gone[:20])) + (", ..." if len(gone) > 20 else "")
        _log.warning("%s: %d frame files are missing: %s", folder, len(gone), shown)
    return found.paths


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


@functools.cache
def _library() -> ctypes.CDLL:
    files = importlib.metadata.files("turbojpeg") or []
    library = ctypes.CDLL(str(next(file.locate() for file in files if file.name.startswith("libturbojpeg"))))
    handle, data, size, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
    library.tj3Init.restype = handle
    library.tj3Destroy.argtypes = [handle]
    library.tj3GetErrorStr.restype, library.tj3GetErrorStr.argtypes = data, [handle]
    library.tj3DecompressHeader.argtypes = [handle, data, size]
    library.tj3SetCroppingRegion.argtypes = [handle, _Region]
    library.tj3Decompress8.argtypes = [handle, data, size, handle, integer, integer]
    return library


class FrameFile:
    """A frame file, read whole but not yet decoded; `width` and `height` in pixels are those of the frame as shown.

    Raises:
        UserError: it cannot be read, is not an 8-bit JPEG in grey or colour, or is truncated.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _read(path)
        try:
            self.width, self.height = _frame_size(self._data, self._data[-_PADDING_BYTES:], len(self._data))
        except ValueError as error:
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
        library, data = _library(), self._data
        x, y = max(0, left - _MARGIN_PX) // _BLOCK_PX * _BLOCK_PX, max(0, top - _MARGIN_PX)
        w = min(self.width, -(-(right + _MARGIN_PX) // _BLOCK_PX) * _BLOCK_PX) - x
        h = min(self.height, bottom + _MARGIN_PX) - y
        pixels = np.empty((h, w, 3), dtype=np.uint8)
        # Of each frame a new one: a decoder keeps the tables of the last, which the next frame may lack or fail on.
        handle = library.tj3Init(_TJINIT_DECOMPRESS)
        try:
            done = (
                library.tj3DecompressHeader(handle, data, len(data)) == 0
                and library.tj3SetCroppingRegion(handle, _Region(x, y, w, h)) == 0
                and library.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 0, _TJPF_BGR) == 0
            )
            # A warning counts as failure: it means that data is missing or damaged and was replaced by grey.
            if not done:
                reason = library.tj3GetErrorStr(handle).decode("ascii", errors="replace")
                raise self._error(f"is a damaged JPEG ({reason})")
        finally:
            library.tj3Destroy(handle)
        return pixels, x, y

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
    """Problems of frame files as far as their headers and ends show them, in the order of the paths; the first 1000.

    Costs tens of microseconds per file: it is done for all frames before training begins.
    """
    names = [os.fspath(path) for path in paths]

    def check(start: int) -> list[Problem]:
        return [problem for name in names[start : start + _CHUNK] if (problem := _frame_problem(name)) is not None]

    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(check, range(0, len(names), _CHUNK))
        return first_problems([problem for some in found for problem in some], 1000)


def _frame_problem(path: str) -> Problem | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - half of the time is the making of a Path
            head, size = file.read(_HEAD_BYTES), os.fstat(file.fileno()).st_size
            if not path.lower().endswith(JPEG_SUFFIXES):  # of TNL2K; only decoding would tell more
                return None if head else Problem(f"{path}: is an empty file", "data.frame")
            file.seek(max(0, size - _PADDING_BYTES))
            _frame_size(head, file.read(_PADDING_BYTES), size)
    except (OSError, ValueError):
        try:
            FrameFile(Path(path))  # its header may come later, or it is in an LMDB
        except UserError as error:
            return error.problems[0]
    return None


def _read(path: Path) -> bytes:
    try:
        if files.SUFFIX in os.fspath(path):
            return files.read_bytes(path)
        with path.open("rb", buffering=0) as file:
            return file.readall() if os.fstat(file.fileno()).st_size <= _MAX_FILE_BYTES else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "data.frame") from error


def _imdecode(data: bytes) -> Image | None:
    try:
        image = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that claims more pixels than OpenCV allows
        return None
    return None if image is None else np.asarray(image, dtype=np.uint8)


def _frame_size(head: bytes, tail: bytes, size: int) -> tuple[int, int]:
    """Width and height of the stored pixels, from a file's beginning up to its first frame header and its last bytes.

    Raises:
        ValueError: it is not a usable JPEG.
    """
    if not 0 < size <= _MAX_FILE_BYTES:
        raise ValueError("is empty or too large for a frame")
    at = 2 if head.startswith(b"\xff\xd8\xff") else len(head)
    while head[at : at + 1] == b"\xff" and not _FRAME_OR_SCAN.match(head, at):
        at += 1 if head[at + 1 : at + 2] == b"\xff" else 2 + int.from_bytes(head[at + 2 : at + 4], "big")
    if head[at : at + 1] != b"\xff" or at + 10 > len(head) or head[at + 1] == 0xDA:
        raise ValueError("is not a JPEG, or one without a frame header")
    if b"\xff\xd9" not in tail:
        raise ValueError(f"is a truncated JPEG, or has other data appended: no end in the last {_PADDING_BYTES} bytes")
    bits, height, width, colours = struct.unpack(">BHHB", head[at + 4 : at + 10])
    if bits != 8 or colours not in (1, 3):
        raise ValueError(f"is a JPEG of {colours} colour planes and {bits} bits; expected 1 or 3 planes and 8 bits")
    if not 0 < width * height <= _LARGEST_FRAME_PX:
        raise ValueError(f"claims to be {width} x {height} pixels")
    return width, height

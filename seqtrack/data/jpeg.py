"""JPEG decoding of a region with libjpeg-turbo's C interface.

The wheel `turbojpeg` is used only for the library in it: its Python side cannot decode a region. Within the region the
pixels are exactly those of a whole decode, because the region is widened by more than the interpolation of the chroma
planes reaches. Where the library cannot be loaded, OpenCV decodes the whole frame to the same pixels, more slowly.
"""

import ctypes
import functools
import importlib.metadata
import logging
import threading

import cv2
import numpy as np

from seqtrack.data import Image

_log = logging.getLogger(__name__)

_TJINIT_DECOMPRESS, _TJPF_BGR = 1, 1
# A region must begin at a block of the chroma planes; 32 px is a multiple of every block's width. The margin is more
# than the interpolation of subsampled chroma reaches, which is 2 px.
_BLOCK_PX, _MARGIN_PX = 32, 16


class JpegError(ValueError):
    """The data cannot be decoded without guessing."""


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The library with its functions declared, or None where it is not installed."""
    try:
        files = importlib.metadata.files("turbojpeg") or []
        path = next(file.locate() for file in files if file.name.startswith("libturbojpeg") and ".so" in file.name)
        library = ctypes.CDLL(str(path))
        handle, size, integer, data = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p
        for name, result, arguments in (
            ("tj3Init", handle, [integer]),
            ("tj3DecompressHeader", integer, [handle, data, size]),
            ("tj3SetCroppingRegion", integer, [handle, _Region]),
            ("tj3Decompress8", integer, [handle, data, size, handle, integer, integer]),
            ("tj3GetErrorStr", data, [handle]),
        ):
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (importlib.metadata.PackageNotFoundError, StopIteration, OSError, AttributeError) as error:
        _log.warning("libjpeg-turbo cannot be loaded (%s); frames are decoded whole, which is slower", error)
        return None
    return library


# A decompressor serves one thread at a time.
_of_thread = threading.local()


def _decompressor(library: ctypes.CDLL) -> int:
    handle: int | None = getattr(_of_thread, "handle", None)
    if handle is None:
        handle = library.tj3Init(_TJINIT_DECOMPRESS)
        if not handle:
            raise MemoryError("libjpeg-turbo has no memory for a decompressor")
        _of_thread.handle = handle
    return handle


def decode_region(
    data: bytes, *, width: int, height: int, left: int, top: int, right: int, bottom: int
) -> tuple[Image, int, int]:
    """Decode at least the pixels [left, right) x [top, bottom).

    Args:
        data: a whole JPEG file with 8 bits per sample, grey or in three colours.
        width, height: of the frame, from its header.

    Returns:
        pixels (h, w, 3) uint8 BGR as stored (an Exif orientation is not applied), and the position of the first one in
        the frame: left, top.

    Raises:
        JpegError: the data breaks off, is damaged, or is of a kind that cannot be decoded.
    """
    library = _library()
    if library is None:
        return _decode_whole(data), 0, 0
    x = max(0, left - _MARGIN_PX) // _BLOCK_PX * _BLOCK_PX
    y = max(0, top - _MARGIN_PX)
    right = min(width, -(-(right + _MARGIN_PX) // _BLOCK_PX) * _BLOCK_PX)
    bottom = min(height, bottom + _MARGIN_PX)
    handle = _decompressor(library)
    pixels = np.empty((bottom - y, right - x, 3), dtype=np.uint8)
    done = (
        library.tj3DecompressHeader(handle, data, len(data)) == 0
        and library.tj3SetCroppingRegion(handle, _Region(x, y, right - x, bottom - y)) == 0
        and library.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 0, _TJPF_BGR) == 0
    )
    # A warning counts as failure: it means that data is missing or damaged and was replaced by grey.
    if not done:
        message: bytes = library.tj3GetErrorStr(handle)
        raise JpegError(message.decode("ascii", errors="replace"))
    return pixels, x, y


def _decode_whole(data: bytes) -> Image:
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flags)
    if pixels is None:
        raise JpegError("not decodable")
    return np.asarray(pixels, dtype=np.uint8)

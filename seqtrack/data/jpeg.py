"""JPEG decoding of a region with libjpeg-turbo's C interface.

The wheel `turbojpeg` is used only for the library in it: its Python side cannot decode a region. Within the region the
pixels are exactly those of a whole decode, because the region is widened by more than the interpolation of the chroma
planes reaches.
"""

import ctypes
import functools
import importlib.metadata
import threading

import numpy as np

from seqtrack.data import Image

_TJINIT_DECOMPRESS, _TJPF_BGR = 1, 1
# A region must begin at a block of the chroma planes; 32 px is a multiple of every block's width. The margin is more
# than the interpolation of subsampled chroma reaches, which is 2 px.
_BLOCK_PX, _MARGIN_PX = 32, 16
_of_thread = threading.local()  # a decompressor serves one thread at a time


class JpegError(ValueError):
    """The data cannot be decoded without guessing."""


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("x", "y", "w", "h")]


@functools.cache
def _library() -> ctypes.CDLL:
    files = importlib.metadata.files("turbojpeg") or []
    library = ctypes.CDLL(str(next(file.locate() for file in files if file.name.startswith("libturbojpeg"))))
    handle, data, size, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
    library.tj3Init.restype = handle
    library.tj3GetErrorStr.restype, library.tj3GetErrorStr.argtypes = data, [handle]
    library.tj3DecompressHeader.argtypes = [handle, data, size]
    library.tj3SetCroppingRegion.argtypes = [handle, _Region]
    library.tj3Decompress8.argtypes = [handle, data, size, handle, integer, integer]
    return library


def decode_region(data: bytes, size: tuple[int, int], region: tuple[int, int, int, int]) -> tuple[Image, int, int]:
    """Decode at least a region.

    Args:
        data: a whole JPEG file with 8 bits per sample, grey or in three colours.
        size: width and height of the frame, from its header.
        region: left, top, right, bottom; right and bottom are excluded.

    Returns:
        pixels (h, w, 3) uint8 BGR as stored (an Exif orientation is not applied), and the position of the first one in
        the frame: left, top.

    Raises:
        JpegError: the data breaks off, is damaged, or is of a kind that cannot be decoded.
    """
    left, top, right, bottom = region
    library = _library()
    handle = _of_thread.handle = getattr(_of_thread, "handle", None) or library.tj3Init(_TJINIT_DECOMPRESS)
    x = max(0, left - _MARGIN_PX) // _BLOCK_PX * _BLOCK_PX
    y = max(0, top - _MARGIN_PX)
    w = min(size[0], -(-(right + _MARGIN_PX) // _BLOCK_PX) * _BLOCK_PX) - x
    h = min(size[1], bottom + _MARGIN_PX) - y
    pixels = np.empty((h, w, 3), dtype=np.uint8)
    done = (
        library.tj3DecompressHeader(handle, data, len(data)) == 0
        and library.tj3SetCroppingRegion(handle, _Region(x, y, w, h)) == 0
        and library.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 0, _TJPF_BGR) == 0
    )
    # A warning counts as failure: it means that data is missing or damaged and was replaced by grey.
    if not done:
        raise JpegError(library.tj3GetErrorStr(handle).decode("ascii", errors="replace"))
    return pixels, x, y

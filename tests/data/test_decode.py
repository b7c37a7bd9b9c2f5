"""Decoding a region gives the pixels of a whole decode."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.makers import jpeg
from seqtrack.data.decode import read_header
from seqtrack.data.jpeg import decode_region

# Chroma subsampling 4:2:0, 4:2:2, 4:4:4, 4:4:0, 4:1:1.
_SUBSAMPLING = (0x221111, 0x211111, 0x111111, 0x121111, 0x411111)
_WIDTH, _HEIGHT = 203, 149


def _noise(seed: int) -> np.ndarray:
    """Colours that change from pixel to pixel, so that the interpolation of chroma shows."""
    return np.random.default_rng(seed).integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)


_KINDS = {
    f"subsampling {value:06x}": jpeg(_noise(i), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, value)
    for i, value in enumerate(_SUBSAMPLING)
}
_KINDS["progressive"] = jpeg(_noise(10), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
_KINDS["restart markers"] = jpeg(_noise(11), cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
_KINDS["grey"] = jpeg(_noise(12)[..., :1])


def _whole(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert pixels is not None
    return pixels


def _assert_region(data: bytes, whole: np.ndarray, left: int, top: int, right: int, bottom: int) -> None:
    height, width = whole.shape[:2]
    pixels, x, y = decode_region(data, (width, height), (left, top, right, bottom))
    assert 0 <= x <= left and 0 <= y <= top
    np.testing.assert_array_equal(pixels[top - y : bottom - y, left - x : right - x], whole[top:bottom, left:right])


@pytest.mark.parametrize("kind", _KINDS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_region_has_the_pixels_of_a_whole_decode(kind: str, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, _WIDTH - 1)), data.draw(st.integers(0, _HEIGHT - 1))
    right, bottom = data.draw(st.integers(left + 1, _WIDTH)), data.draw(st.integers(top + 1, _HEIGHT))
    _assert_region(_KINDS[kind], _whole(_KINDS[kind]), left, top, right, bottom)


def test_regions_of_real_frames_have_the_pixels_of_a_whole_decode(test_data: Path) -> None:
    rng = np.random.default_rng(5)
    frames = sorted((test_data / "lasot_mini").glob("*/*/img/00000001.jpg"))
    assert len(frames) == 14
    for path in frames:
        whole = _whole(path.read_bytes())
        for _ in range(5):
            left, right = np.sort(rng.choice(whole.shape[1] + 1, 2, replace=False)).tolist()
            top, bottom = np.sort(rng.choice(whole.shape[0] + 1, 2, replace=False)).tolist()
            _assert_region(path.read_bytes(), whole, left, top, right, bottom)


def test_a_region_without_its_margin_would_differ() -> None:
    """The control of the tests above: at the edge of the decoded area the colours differ."""
    data = _KINDS["subsampling 221111"]
    pixels, x, y = decode_region(data, (_WIDTH, _HEIGHT), (80, 60, 120, 90))
    whole = _whole(data)[y : y + pixels.shape[0], x : x + pixels.shape[1]]
    assert pixels.shape[0] < _HEIGHT and pixels.shape[1] < _WIDTH
    assert (pixels != whole).any()


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_reading_a_header_terminates_on_any_bytes(data: bytes) -> None:
    read_header(b"\xff\xd8\xff" + data)

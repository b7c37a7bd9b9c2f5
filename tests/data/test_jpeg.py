"""Decoding a region gives the pixels of a whole decode, and a file that is not whole is never decoded."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.makers import jpeg, picture
from seqtrack.data import jpeg as module
from seqtrack.data.decode import FrameFile, read_header, read_orientation
from seqtrack.data.jpeg import decode_region
from seqtrack.errors import UserError

# Samplings of the colour planes: 4:2:0, 4:2:2, 4:4:4, 4:4:0, 4:1:1.
_SAMPLINGS = (0x221111, 0x211111, 0x111111, 0x121111, 0x411111)
_WIDTH, _HEIGHT = 203, 149


def _noisy(seed: int, width: int = _WIDTH, height: int = _HEIGHT) -> np.ndarray:
    """Colours that change from pixel to pixel, so that the interpolation of colour planes shows."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _kinds() -> dict[str, bytes]:
    kinds = {
        f"sampling {value:06x}": jpeg(_noisy(i), cv2.IMWRITE_JPEG_SAMPLING_FACTOR, value)
        for i, value in enumerate(_SAMPLINGS)
    }
    kinds["progressive"] = jpeg(_noisy(10), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    kinds["restart markers"] = jpeg(_noisy(11), cv2.IMWRITE_JPEG_RST_INTERVAL, 3)
    kinds["grey"] = jpeg(_noisy(12)[..., :1])
    return kinds


_KINDS = _kinds()


def _whole(data: bytes) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    assert pixels is not None
    return pixels


def _assert_region(data: bytes, whole: np.ndarray, left: int, top: int, right: int, bottom: int) -> None:
    height, width = whole.shape[:2]
    pixels, x, y = decode_region(data, width=width, height=height, left=left, top=top, right=right, bottom=bottom)
    assert 0 <= x <= left and 0 <= y <= top, "the region is covered"
    inside = pixels[top - y : bottom - y, left - x : right - x]
    np.testing.assert_array_equal(inside, whole[top:bottom, left:right])


@pytest.mark.parametrize("kind", _KINDS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_region_has_the_pixels_of_a_whole_decode(kind: str, data: st.DataObject) -> None:
    left = data.draw(st.integers(0, _WIDTH - 1))
    top = data.draw(st.integers(0, _HEIGHT - 1))
    right = data.draw(st.integers(left + 1, _WIDTH))
    bottom = data.draw(st.integers(top + 1, _HEIGHT))
    _assert_region(_KINDS[kind], _whole(_KINDS[kind]), left, top, right, bottom)


def test_regions_of_real_frames_have_the_pixels_of_a_whole_decode(test_data: Path) -> None:
    rng = np.random.default_rng(5)
    frames = sorted((test_data / "lasot_mini").glob("*/*/img/00000001.jpg"))
    assert len(frames) == 14
    for path in frames:
        data = path.read_bytes()
        whole = _whole(data)
        height, width = whole.shape[:2]
        for _ in range(12):
            left, right = np.sort(rng.choice(width + 1, 2, replace=False))
            top, bottom = np.sort(rng.choice(height + 1, 2, replace=False))
            _assert_region(data, whole, int(left), int(top), int(right), int(bottom))


def test_a_region_without_its_margin_would_differ() -> None:
    """The control of the tests above: at the very edge of what was decoded the colours are others."""
    data = _KINDS["sampling 221111"]
    pixels, x, y = decode_region(data, width=_WIDTH, height=_HEIGHT, left=80, top=60, right=120, bottom=90)
    whole = _whole(data)[y : y + pixels.shape[0], x : x + pixels.shape[1]]
    assert pixels.shape[0] < _HEIGHT and pixels.shape[1] < _WIDTH, "only a part was decoded"
    assert (pixels != whole).any(), "the margin is there for a reason"


def test_without_the_library_opencv_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = {
        kind: decode_region(data, width=_WIDTH, height=_HEIGHT, left=0, top=0, right=_WIDTH, bottom=_HEIGHT)
        for kind, data in _KINDS.items()
    }
    module._library.cache_clear()
    monkeypatch.setattr("importlib.metadata.files", lambda name: [])
    try:
        assert module._library() is None
        for kind, data in _KINDS.items():
            slow, x, y = decode_region(data, width=_WIDTH, height=_HEIGHT, left=9, top=9, right=40, bottom=40)
            assert (x, y) == (0, 0)
            np.testing.assert_array_equal(slow, fast[kind][0])
    finally:
        monkeypatch.undo()
        module._library.cache_clear()
    assert module._library() is not None, "the wheel of the lock file carries the library"


def _file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "00000001.jpg"
    path.write_bytes(data)
    return path


def test_a_whole_frame_is_read_with_its_size(tmp_path: Path) -> None:
    image = picture(3)
    file = FrameFile(_file(tmp_path, jpeg(image)))
    assert (file.width, file.height) == (96, 72)
    assert np.abs(file.whole().astype(int) - image).mean() < 6


@pytest.mark.parametrize("part", [0.1, 0.3, 0.5, 0.9, 0.99])
def test_a_truncated_jpeg_is_refused_by_name_wherever_it_breaks_off(tmp_path: Path, part: float) -> None:
    data = jpeg(_noisy(1))
    path = _file(tmp_path, data[: int(len(data) * part)])
    with pytest.raises(UserError, match=r"00000001\.jpg: .*truncated"):
        FrameFile(path)


def test_opencv_would_have_filled_a_cut_frame_with_grey() -> None:
    """Why the library is told to stop at a warning."""
    data = jpeg(_noisy(1))
    filled = cv2.imdecode(np.frombuffer(data[: len(data) // 2] + data[-2:], np.uint8), cv2.IMREAD_COLOR)
    assert filled is not None and (filled[-20:] == filled[-1, -1]).all()


def test_a_frame_cut_inside_but_with_its_end_marker_is_refused_when_decoded(tmp_path: Path) -> None:
    data = jpeg(_noisy(1))
    file = FrameFile(_file(tmp_path, data[: len(data) // 2] + data[-2:]))
    with pytest.raises(UserError, match="damaged JPEG"):
        file.whole()


def test_damage_in_the_middle_is_refused_when_decoded(tmp_path: Path) -> None:
    data = bytearray(jpeg(_noisy(2)))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff\xd0" * 20
    file = FrameFile(_file(tmp_path, bytes(data)))
    with pytest.raises(UserError, match="damaged JPEG"):
        file.whole()


def test_padding_after_the_end_is_allowed_and_other_bytes_are_not_an_end(tmp_path: Path) -> None:
    data = jpeg(picture(1))
    assert FrameFile(_file(tmp_path, data + b"\0" * 100)).whole().shape == (72, 96, 3)
    with pytest.raises(UserError, match="truncated"):
        FrameFile(_file(tmp_path, data + b"\0" * 5000))


def _cmyk() -> bytes:
    """A frame header that claims four colour planes; nothing after it is looked at."""
    data = bytearray(jpeg(picture(1)))
    at = data.index(b"\xff\xc0")
    data[at + 9] = 4
    return bytes(data)


def _sixteen_bits() -> bytes:
    data = bytearray(jpeg(picture(1)))
    data[data.index(b"\xff\xc0") + 4] = 16
    return bytes(data)


def _huge() -> bytes:
    data = bytearray(jpeg(picture(1)))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"\0", "is not a JPEG"),
        (cv2.imencode(".png", picture(1))[1].tobytes(), "is not a JPEG"),
        (b"\xff\xd8\xff\xd9", "without a frame header"),
        (b"\xff\xd8\xff\xe0\xff\xff\xff\xd9", "without a frame header"),
        (_cmyk(), "4 colour planes"),
        (_sixteen_bits(), "16 bits"),
        (_huge(), "claims to be 65000 x 65000"),
    ],
    ids=["empty", "one byte", "png", "no header", "header cut", "cmyk", "16 bits", "huge"],
)
def test_what_is_no_frame_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(UserError, match=says):
        FrameFile(_file(tmp_path, data))


def test_a_missing_file_and_a_folder_are_errors_that_name_the_path(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jpg", tmp_path):
        with pytest.raises(UserError, match=path.name):
            FrameFile(path)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_reading_a_header_ends_on_any_bytes(data: bytes) -> None:
    read_header(b"\xff\xd8" + data)
    read_orientation(b"\xff\xd8" + data)
    read_orientation(b"\xff\xd8\xff\xe1\x00\xff" + b"Exif\0\0" + data)

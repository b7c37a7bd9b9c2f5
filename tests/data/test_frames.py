"""One reader of frames: the same files, the same order and the same pixels for every command, whole or a region."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.makers import cmyk, huge, jpeg, picture, refused, with_header, with_orientation, write_sequence
from seqtrack.data.check import check_layout
from seqtrack.data.decode import FrameFile, check_frames, list_video_frames, read_image, scan_frames
from seqtrack.data.lasot import find_layout, open_lasot
from seqtrack.data.sources import describe, open_source
from seqtrack.tracking.video import open_frames

HIDDEN = ("._00000001.jpg", ".00000002.jpg", ".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini")

# Found in a header or at the end of a file, or only by decoding: damage inside.
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "png": lambda data: cv2.imencode(".png", picture(1))[1].tobytes(),
    "appended": lambda data: data + b"x" * 5000,
    "cmyk": cmyk,
    "16 bits": lambda data: with_header(data, 4, b"\x10"),
    "no height": lambda data: with_header(data, 5, b"\0\0"),
    "huge": huge,
    "lfs": lambda data: b"version https://git-lfs.github.com/spec/v1\n",
    "no header": lambda data: b"\xff\xd8\xff\xd9",
    "header cut": lambda data: b"\xff\xd8\xff\xe0\xff\xff\xff\xd9",
    "cut inside": lambda data: data[: len(data) // 2] + data[-2:],
    "zeros inside": lambda data: data[: len(data) // 2] + b"\0" * 400 + data[len(data) // 2 + 400 :],
    "markers inside": lambda data: data[: len(data) // 2] + b"\xff\xd0" * 20 + data[len(data) // 2 + 40 :],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_sequence(tmp_path / "data" / "book" / "book-1")
    return tmp_path / "data"


def test_hidden_files_change_nothing_for_any_reader(root: Path) -> None:
    folder = root / "book" / "book-1"
    described = describe([open_source("lasot", root, classes=(), split="train")])
    tracked = [frame.tobytes() for frame in open_frames(str(folder)).frames()]
    for name in HIDDEN:
        (folder / "img" / name).write_bytes(b"\0\5\x16\7")
    (root / "._book").write_bytes(b"\0\5\x16\7")
    assert describe([open_source("lasot", root, classes=(), split="train")]) == described
    assert [frame.tobytes() for frame in open_frames(str(folder)).frames()] == tracked
    report = check_layout(find_layout(root), decode=True)
    assert report.problems == [] and report.decoded == 24 and scan_frames(folder / "img").left_out == []


def test_only_numbered_frames_are_the_video_if_there_are_any(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = root / "book" / "book-1" / "img"
    (images / "cover.jpg").write_bytes(jpeg(picture(5)))
    (images / "1.png").write_bytes(cv2.imencode(".png", picture(5))[1].tobytes())
    (images / "00000005.jpg").unlink()
    found = scan_frames(images)
    assert [path.name for path in found.paths] == [f"{n:08d}.jpg" for n in range(1, 25) if n != 5]
    assert found.left_out == ["1.png", "cover.jpg"]
    (sequence,) = open_lasot(root, classes=(), split="train")
    drawable = [sequence.frame_path(int(i)) for i in np.flatnonzero(~sequence.missing)]
    assert drawable == found.paths == list(open_frames(str(images)).paths)
    assert found.sizes == [path.stat().st_size for path in drawable] == np.delete(sequence.frame_bytes, 4).tolist()
    logged = [record.args for record in caplog.records]
    assert (images, 2, "1.png, cover.jpg") in logged and (images, 1, "5") in logged


def test_frames_named_by_nanoseconds_are_not_a_numbering_with_gaps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{1403636579763555584 + 50_000_000 * index}.jpg" for index in range(3)]
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_video_frames(tmp_path)] == names and caplog.records == []


def test_other_names_come_in_natural_order_and_a_place_without_frames_is_refused(tmp_path: Path) -> None:
    for name in ("f10.png", "f9.PNG", "f2.jpeg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in list_video_frames(tmp_path)] == ["f2.jpeg", "f9.PNG", "f10.png"]
    (tmp_path / "empty").mkdir()
    places = {"gone": "data.no_frames", "empty": "data.no_frames", "notes.txt": "data.frame"}
    for name, code in places.items():
        assert refused(scan_frames, tmp_path / name)[0].code == code


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_frame_is_refused_by_every_reader(root: Path, kind: str) -> None:
    path = root / "book" / "book-1" / "img" / "00000007.jpg"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    for read in (
        lambda: FrameFile(path).whole(),
        lambda: read_image(path),
        lambda: list(open_frames(str(path.parent)).frames()),
    ):
        assert refused(read)[0].code == "data.frame" and str(path) in refused(read)[0]
    (problem,) = check_layout(find_layout(root), decode=True).problems
    assert str(path) in problem
    assert [problem.code for problem in check_frames([path])] == ["data.frame"] * ("inside" not in kind)


def test_no_frame_changes_how_the_next_one_is_read(tmp_path: Path) -> None:
    good, other, damaged, bare = (tmp_path / f"{name}.jpg" for name in ("good", "other", "damaged", "bare"))
    data = jpeg(picture(1))
    good.write_bytes(data)
    other.write_bytes(_noise(2, cv2.IMWRITE_JPEG_OPTIMIZE, 1))
    pixels = read_image(good)
    tables = data.index(b"\xff\xc4")
    for place in range(tables + 4, tables + 24):  # a table's number, and how many codes of each length it has
        damaged.write_bytes(data[:place] + b"\xfe" + data[place + 1 :])
        assert refused(read_image, damaged) and (read_image(good) == pixels).all()
    # A frame without tables of its own must not be read by those of another.
    starts = [tables]
    while data[starts[-1] : starts[-1] + 2] == b"\xff\xc4":
        starts.append(starts[-1] + 2 + int.from_bytes(data[starts[-1] + 2 : starts[-1] + 4], "big"))
    bare.write_bytes(data[:tables] + data[starts[-1] :])
    read_image(good)
    first = read_image(bare).tobytes()
    read_image(other)
    assert read_image(bare).tobytes() == first


@pytest.mark.parametrize("name", ["a.png", "a.bmp"])
def test_an_image_that_claims_more_pixels_than_can_be_is_refused(name: str, tmp_path: Path) -> None:
    data = bytearray(cv2.imencode(Path(name).suffix, picture(1))[1].tobytes())
    if name == "a.png":
        data[16:24] = struct.pack(">II", 100_000, 100_000)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        data[18:26] = struct.pack("<II", 2**31 - 1, 2**31 - 1)
    (tmp_path / name).write_bytes(data)
    assert refused(read_image, tmp_path / name)[0].code == "data.frame"


def test_headers_are_found_behind_large_metadata_and_padding_is_allowed(tmp_path: Path) -> None:
    plain = jpeg(picture(1))
    metadata = b"".join(b"\xff\xe2\xff\xf0" + b"x" * 0xFFEE for _ in range(3))
    (tmp_path / "good.jpg").write_bytes(plain[:2] + metadata + plain[2:] + b"\0" * 100)
    (tmp_path / "bad.jpg").write_bytes(plain[:2] + metadata + cmyk(plain)[2:])
    gone = [tmp_path / f"{number:04d}.jpg" for number in range(900)]
    found = check_frames([tmp_path / "good.jpg", *gone, tmp_path / "bad.jpg"])
    assert [one.split(":")[0] for one in found] == [str(path) for path in (*gone, tmp_path / "bad.jpg")]
    assert FrameFile(tmp_path / "good.jpg").whole().shape == (72, 96, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_rotated_as_by_opencvs_reader_which_the_authors_use(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "00000001.jpg"
    for order in "><":
        path.write_bytes(with_orientation(jpeg(picture(3, 120, 72)), orientation, order))
        expected = cv2.imread(str(path), cv2.IMREAD_COLOR)
        file = FrameFile(path)
        assert expected is not None
        assert (file.height, file.width) == expected.shape[:2] == ((120, 72) if orientation > 4 else (72, 120))
        np.testing.assert_array_equal(file.whole(), expected)
        np.testing.assert_array_equal(read_image(path), expected)
        (frame,) = open_frames(str(tmp_path)).frames()
        np.testing.assert_array_equal(frame[:, :, ::-1], expected)
        pixels, left, top = file.region(20, 5, 50, 30)
        np.testing.assert_array_equal(pixels[5 - top : 30 - top, 20 - left : 50 - left], expected[5:30, 20:50])


# --- regions

_WIDTH, _HEIGHT = 203, 149


def _noise(seed: int, *options: int, channels: int = 3) -> bytes:
    """Colours that change from pixel to pixel, so that the interpolation of chroma shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8)
    return jpeg(pixels[..., :channels], *options)


_SUBSAMPLING = {"4:2:0": 0x221111, "4:2:2": 0x211111, "4:4:4": 0x111111, "4:4:0": 0x121111, "4:1:1": 0x411111}
_KINDS = {
    **{name: _noise(1, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, value) for name, value in _SUBSAMPLING.items()},
    "progressive": _noise(10, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "restart markers": _noise(11, cv2.IMWRITE_JPEG_RST_INTERVAL, 3),
    "grey": _noise(12, channels=1),
}


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("noise")
    for kind, data in _KINDS.items():
        (folder / f"{kind}.jpg").write_bytes(data)
    return folder


@pytest.mark.parametrize("kind", _KINDS)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_region_has_the_pixels_of_a_whole_decode(kind: str, noise: Path, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, _WIDTH - 1)), data.draw(st.integers(0, _HEIGHT - 1))
    right, bottom = data.draw(st.integers(left + 1, _WIDTH)), data.draw(st.integers(top + 1, _HEIGHT))
    whole = np.asarray(cv2.imread(str(noise / f"{kind}.jpg"), cv2.IMREAD_COLOR))
    pixels, x, y = FrameFile(noise / f"{kind}.jpg").region(left, top, right, bottom)
    assert 0 <= x <= left and 0 <= y <= top
    np.testing.assert_array_equal(pixels[top - y : bottom - y, left - x : right - x], whole[top:bottom, left:right])

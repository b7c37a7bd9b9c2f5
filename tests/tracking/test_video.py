"""Reading and writing videos, and every source that cannot be read."""

import logging
import resource
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.errors import UserError
from seqtrack.tracking.video import open_frames, video_writer


def write_video(path: Path, frames: list[np.ndarray], fps: float = 12.0) -> Path:
    with video_writer(path, fps=fps, size=(frames[0].shape[1], frames[0].shape[0])) as write:
        for frame in frames:
            write(frame)
    return path


def patch(path: Path, box: bytes, offset: int, *values: int) -> None:
    """Overwrite 32-bit numbers of an mp4's or avi's box, counted from the end of its name."""
    data = bytearray(path.read_bytes())
    order = ">" if path.suffix == ".mp4" else "<"
    struct.pack_into(f"{order}{len(values)}i", data, data.rindex(box) + 4 + offset, *values)
    path.write_bytes(data)


def asymmetric() -> np.ndarray:
    """96x128 RGB: red top left, blue bottom right, green between."""
    frame = np.zeros((96, 128, 3), dtype=np.uint8)
    frame[:, :, 1] = 120
    frame[:24, :32] = (230, 0, 0)
    frame[72:, 96:] = (0, 0, 230)
    return frame


@pytest.mark.parametrize(
    ("matrix", "quarters"), [((1, 0, 0, 1), 0), ((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)]
)
def test_a_video_is_read_as_players_show_it(tmp_path: Path, matrix: tuple[int, ...], quarters: int) -> None:
    """A phone stores what its sensor saw, and its orientation."""
    path = write_video(tmp_path / "in.mp4", [asymmetric()] * 2)
    a, b, c, d = (value * 65536 for value in matrix)
    patch(path, b"tkhd", 40, a, b, 0, c, d, 0)
    for frame in open_frames(str(path)).frames():
        shown = np.rot90(asymmetric(), quarters)
        assert frame.shape == shown.shape
        assert np.abs(frame.astype(int) - shown).mean() < 12


@pytest.mark.parametrize("announced", [10, 300])
def test_the_number_of_frames_in_a_header_is_not_trusted(
    tmp_path: Path, frames: list[np.ndarray], announced: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "in.avi", frames * 3)
    patch(path, b"avih", 4 + 16, announced)
    patch(path, b"strh", 4 + 32, announced)
    source = open_frames(str(path))
    assert source.count == announced
    assert len(list(source.frames())) == 30
    logged = [record.args for record in caplog.records if record.levelno == logging.WARNING]
    assert logged == ([(str(path), 30, 300)] if announced == 300 else [])


def test_a_file_or_folder_whose_name_is_a_number_is_no_camera(
    tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "in.mp4", frames).rename(tmp_path / "007")
    monkeypatch.chdir(tmp_path)
    source = open_frames("007")
    assert (source.kind, source.count, source.fps, len(list(source.frames()))) == ("video", 10, 12.0, 10)
    assert open_frames("007", fps=5).fps == 5
    for name in ("2024-01-01T10:00:00.mp4", "http:.mp4", "-x %03d ü.mp4"):
        Path("007").rename(name)
        assert (open_frames(name).kind, len(list(open_frames(name).frames()))) == ("video", 10)
        Path(name).rename("007")
    Path("12").mkdir()
    cv2.imwrite("12/1.png", frames[0])
    assert open_frames("12").kind == "folder"


def test_a_folder_gives_its_images_in_rgb_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    images = tmp_path / "person-1" / "img"  # LaSOT's layout
    images.mkdir(parents=True)
    for index in (10, 2, 1):
        cv2.imwrite(str(images / f"frame{index}.png"), np.full((20, 30, 3), (0, 0, 10 * index), dtype=np.uint8))
    (images / "notes.txt").write_text("no image")
    source = open_frames(str(images.parent))
    assert (source.kind, source.name, source.count, source.fps) == ("folder", "person-1", 3, 30.0)
    assert [frame[0, 0].tolist() for frame in source.frames()] == [[10, 0, 0], [20, 0, 0], [100, 0, 0]]
    cv2.imwrite(str(images / "frame11.png"), np.zeros((50, 60, 3), dtype=np.uint8))
    with pytest.raises(UserError, match=r"frame11\.png.*60x50.*30x20") as error:
        list(open_frames(str(images)).frames())
    assert error.value.code == "video.frame_size"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("none.mp4", "video.no_source"), ("text.mp4", "video.not_a_video"), ("empty.mp4", "video.not_a_video"),
        ("cut.mp4", "moov atom not"), ("97", "video.camera"), ("/dev/video97", "video.camera"),
        ("²", "video.no_source"), ("-1", "video.no_source"), ("99999", "video.no_source"),
    ],
)  # fmt: skip
def test_an_unreadable_source_is_refused_with_what_opencv_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.mp4").write_text("this is no video")
    Path("empty.mp4").touch()
    patch(write_video(Path("cut.mp4"), [asymmetric()]), b"moov", -4, 0)
    with pytest.raises(UserError) as error:
        open_frames(place)
    assert expected in error.value.problems[0].line and place.removeprefix("/dev/video") in str(error.value)


@pytest.mark.parametrize(
    ("name", "codec", "fps"),
    [
        ("out.mp4", "vp09", 12.0), ("out.avi", "MJPG", 12.0), ("out.mp4", "vp09", 66.667), ("out.mp4", "vp09", 239.847),
        ("out.mp4", "vp09", 30000 / 1001), ("out.mp4", "vp09", 1000.0), ("out.avi", "MJPG", 0.01),
    ],
)  # fmt: skip
def test_the_video_plays_with_every_frame_at_its_rate(
    tmp_path: Path, frames: list[np.ndarray], name: str, codec: str, fps: float
) -> None:
    path = tmp_path / name
    path.write_text("an older file of the name stays until the new one is complete")
    with video_writer(path, fps=fps, size=(131, 97)) as write:
        for frame in frames[:4]:
            write(np.pad(frame, ((0, 1), (0, 3), (0, 0))))
        assert path.read_bytes().startswith(b"an older")
    source = open_frames(str(path))
    found = list(source.frames())
    assert source.fps == pytest.approx(fps, rel=1e-4) and len(found) == 4
    assert found[3].shape == (96, 130, 3), "an odd size is cropped to an even one"
    assert np.abs(found[3][:, :128].astype(int) - frames[3]).mean() < 25
    assert codec.encode() in path.read_bytes() and list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_no_file(tmp_path: Path, frames: list[np.ndarray]) -> None:
    with pytest.raises(RuntimeError), video_writer(tmp_path / "out.mp4", fps=10, size=(128, 96)) as write:
        write(frames[0])
        raise RuntimeError
    for name, fps, code in (("missing/out.mp4", 10.0, "video.output"), ("out.mp4", 0.0, "video.codec")):
        with pytest.raises(UserError) as error:
            write_video(tmp_path / name, frames, fps)
        assert error.value.code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.avi"])
def test_a_failed_write_is_reported_and_leaves_no_file(tmp_path: Path, name: str) -> None:
    """OpenCV does not report failed writes, and the header of such an AVI states all twelve frames."""
    noise = np.random.default_rng(0).integers(0, 255, (12, 120, 160, 3), dtype=np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limits[1]))
    try:
        with pytest.raises(UserError) as error:
            write_video(tmp_path / name, list(noise))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert error.value.code == "video.incomplete_video"
    assert list(tmp_path.iterdir()) == []

"""Reading and writing videos, and every source that cannot be read."""

import logging
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.errors import UserError
from seqtrack.tracking import video
from seqtrack.tracking.video import (
    CODECS,
    COLOUR_RGB,
    VideoWriter,
    ask_for_box,
    draw_box,
    nearest_rate,
    open_frames,
)

ROOT = Path(__file__).resolve().parents[2]


def write_video(path: Path, frames: list[np.ndarray], fps: float = 12.0) -> Path:
    with VideoWriter(path, fps=fps, size=(frames[0].shape[1], frames[0].shape[0])) as video:
        for frame in frames:
            video.write(frame)
    return path


def count_frames(path: Path) -> int:
    capture, count = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), 0
    while capture.read()[0]:
        count += 1
    return count


def patch(path: Path, box: bytes, offset: int, *values: int) -> None:
    """Overwrite 32-bit numbers of an mp4's or avi's box, counted from the end of its name."""
    data = bytearray(path.read_bytes())
    order = ">" if path.suffix == ".mp4" else "<"
    struct.pack_into(f"{order}{len(values)}i", data, data.rindex(box) + 4 + offset, *values)
    path.write_bytes(data)


def give_durations(path: Path, durations: list[tuple[int, int]]) -> None:
    """Make the frame rate of an mp4 of ours vary: (frames, ticks per frame)."""
    data = path.read_bytes()
    start = data.rindex(b"stts") - 4
    size = struct.unpack_from(">I", data, start)[0]
    table = b"".join(struct.pack(">II", *one) for one in durations)
    new = struct.pack(">I4sII", 16 + len(table), b"stts", 0, len(durations)) + table
    changed = bytearray(data[:start] + new + data[start + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = changed.rindex(name) - 4
        struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + len(new) - size)
    path.write_bytes(changed)
    ticks = sum(count * each for count, each in durations)
    for name, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20), (b"elst", 8)):
        patch(path, name, offset, ticks)


def asymmetric() -> np.ndarray:
    """96x128 RGB: red top left, blue bottom right, green between."""
    frame = np.zeros((96, 128, 3), dtype=np.uint8)
    frame[:, :, 1] = 120
    frame[:24, :32] = (230, 0, 0)
    frame[72:, 96:] = (0, 0, 230)
    return frame


class TestReading:
    @pytest.mark.parametrize(
        ("matrix", "quarters"),
        [
            ((1, 0, 0, 1), 0),
            ((0, 1, -1, 0), -1),
            ((-1, 0, 0, -1), 2),
            ((0, -1, 1, 0), 1),
        ],
    )
    def test_a_video_is_read_as_players_show_it(self, tmp_path: Path, matrix: tuple[int, ...], quarters: int) -> None:
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
        self, tmp_path: Path, frames: list[np.ndarray], announced: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = write_video(tmp_path / "in.avi", frames * 3)
        patch(path, b"avih", 4 + 16, announced)
        patch(path, b"strh", 4 + 32, announced)
        source = open_frames(str(path))
        assert source.count == announced
        assert len(list(source.frames())) == 30
        logged = [record.args for record in caplog.records if record.levelno == logging.WARNING]
        assert logged == ([(str(path), 30, 300)] if announced == 300 else [])

    @pytest.mark.parametrize(
        ("durations", "mean"),
        [
            ([(10, 1000)], 30.0),
            ([(5, 500), (5, 2000)], 9 * 30 / (2.5 + 8)),
            ([(1, 9000), (9, 1000)], 9 * 30 / (9 + 8)),
        ],
    )
    def test_a_variable_frame_rate_gives_every_frame_and_its_mean(
        self, tmp_path: Path, frames: list[np.ndarray], durations: list[tuple[int, int]], mean: float
    ) -> None:
        path = write_video(tmp_path / "in.mp4", frames, fps=30.0)
        for name in (b"mvhd", b"mdhd"):
            patch(path, name, 12, 30_000)
        give_durations(path, durations)
        source = open_frames(str(path))
        assert len(list(source.frames())) == 10
        assert source.mean_fps == pytest.approx(mean, rel=1e-3)

    @pytest.mark.parametrize("name", ["12", "0", "007"])
    def test_a_file_or_folder_whose_name_is_a_number_is_no_camera(
        self, tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        write_video(tmp_path / "in.mp4", frames).rename(tmp_path / name)
        monkeypatch.chdir(tmp_path)
        source = open_frames(name)
        assert (source.kind, len(list(source.frames()))) == ("video", 10)
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "1.png"), frames[0])
        assert open_frames(name).kind == "folder"

    def test_a_folder_gives_its_images_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for index in (10, 2, 1):
            cv2.imwrite(str(tmp_path / f"frame{index}.png"), np.full((20, 30, 3), 10 * index, dtype=np.uint8))
        (tmp_path / "notes.txt").write_text("no image")
        source = open_frames(str(tmp_path))
        assert (source.kind, source.count, source.fps) == ("folder", 3, 30.0)
        assert [int(frame[0, 0, 0]) for frame in source.frames()] == [10, 20, 100]

    def test_frames_are_rgb_and_lasots_layout_is_a_folder_too(self, tmp_path: Path) -> None:
        image = np.zeros((20, 30, 3), dtype=np.uint8)
        image[:, :, 2] = 200  # red, in OpenCV's order
        (tmp_path / "person-1" / "img").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "person-1" / "img" / "a.png"), image)
        source = open_frames(str(tmp_path / "person-1"))
        (frame,) = source.frames()
        assert frame[0, 0].tolist() == [200, 0, 0] and source.count == 1 and source.name == "person-1"

    def test_a_video_gives_its_frames_and_rate(self, tmp_path: Path, frames: list[np.ndarray]) -> None:
        source = open_frames(str(write_video(tmp_path / "in.mp4", frames)))
        assert (source.kind, source.count, source.fps) == ("video", 10, 12.0)
        found = list(source.frames())
        assert len(found) == 10 and found[0].shape == (96, 128, 3)
        assert np.abs(found[3].astype(int) - frames[3]).mean() < 25
        assert open_frames(str(tmp_path / "in.mp4"), fps=5).fps == 5

    @pytest.mark.parametrize(
        ("make", "code"),
        [
            (lambda path: None, "track.no_source"),
            (lambda path: path.write_text("this is no video"), "track.not_a_video"),
            (lambda path: path.write_bytes(b""), "track.not_a_video"),
            (lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(500)), "track.not_a_video"),
        ],
    )
    def test_an_unreadable_source_is_refused(self, tmp_path: Path, make: object, code: str) -> None:
        make(tmp_path / "source.mp4")  # type: ignore[operator]
        with pytest.raises(UserError) as error:
            open_frames(str(tmp_path / "source.mp4"))
        assert error.value.code == code and "source.mp4" in str(error.value)

    def test_ffmpegs_message_is_in_the_error(self, tmp_path: Path, frames: list[np.ndarray]) -> None:
        path = write_video(tmp_path / "in.mp4", frames)
        path.write_bytes(path.read_bytes().replace(b"moov", b"none"))
        with pytest.raises(UserError) as error:
            open_frames(str(path))
        assert error.value.code == "track.not_a_video" and "moov atom not found" in str(error.value)

    def test_a_refused_codec_is_reported_with_ffmpegs_message(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MPEG-4 allows no time base beyond 16 bits."""
        monkeypatch.setitem(CODECS, ".avi", "mp4v")
        monkeypatch.setattr(video, "FOLDER_FPS", 66.667)
        with pytest.raises(UserError) as error:
            VideoWriter(tmp_path / "out.avi", fps=66.667, size=(128, 96))
        assert error.value.code == "track.codec" and "65535" in str(error.value)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("place", ["97", "/dev/video97"])
    def test_a_camera_that_is_not_there_is_refused(self, place: str) -> None:
        with pytest.raises(UserError) as error:
            open_frames(place)
        assert error.value.code == "track.camera" and "97" in str(error.value)

    @pytest.mark.parametrize("place", ["²", "-1", "/dev/videoone", "99999"])
    def test_the_name_of_no_camera_is_refused(self, place: str) -> None:
        with pytest.raises(UserError) as error:
            open_frames(place)
        assert error.value.code == "track.no_source"

    def test_an_image_of_another_size_names_its_file(self, video_folder: Path) -> None:
        cv2.imwrite(str(video_folder / "00000004.jpg"), np.zeros((50, 60, 3), dtype=np.uint8))
        with pytest.raises(UserError, match=r"00000004\.jpg.*60x50.*128x96") as error:
            list(open_frames(str(video_folder)).frames())
        assert error.value.code == "track.frame_size"


class TestWriting:
    @pytest.mark.parametrize(("name", "codec"), [("out.mp4", "vp09"), ("out.avi", "MJPG")])
    def test_the_video_plays_with_every_frame(
        self, tmp_path: Path, frames: list[np.ndarray], name: str, codec: str
    ) -> None:
        path = write_video(tmp_path / name, frames)
        assert open_frames(str(path)).fps == 12.0 and count_frames(path) == 10
        assert codec.encode() in path.read_bytes()

    @pytest.mark.parametrize(
        ("fps", "rate"),
        [
            (239.847, None),
            (30000 / 1001, Fraction(30000, 1001)),
            (1000.0, Fraction(1000)),
            (1 / 60, Fraction(1, 60)),
            (0.001, Fraction(1, 1000)),
            (7.4996, None),
        ],
    )
    def test_any_rate_is_written_as_the_nearest_fraction_of_16_bits(
        self, tmp_path: Path, frames: list[np.ndarray], fps: float, rate: Fraction | None
    ) -> None:
        path = write_video(tmp_path / "out.mp4", frames[:3], fps=fps)
        source = open_frames(str(path))
        assert source.fps == pytest.approx(fps, rel=1e-6)
        data = path.read_bytes()
        (ticks,) = struct.unpack_from(">I", data, data.rindex(b"mdhd") + 16)
        (each,) = struct.unpack_from(">I", data, data.rindex(b"stts") + 16)
        assert max(ticks, each) <= 65535 and Fraction(ticks, each) == nearest_rate(fps)
        assert rate is None or Fraction(ticks, each) == rate
        for name, offset in ((b"mdhd", 20), (b"mvhd", 20), (b"tkhd", 24), (b"elst", 12)):
            assert struct.unpack_from(">I", data, data.rindex(name) + offset) == (3 * each,)
        assert len(list(source.frames())) == 3 and source.mean_fps == source.fps

    def test_the_duration_of_a_very_long_video_fits_its_field(self) -> None:
        assert nearest_rate(1 / 59.9, 1_000_000).denominator * 1_000_000 < 2**32

    def test_the_rate_may_change_while_writing(self, tmp_path: Path, frames: list[np.ndarray]) -> None:
        with VideoWriter(tmp_path / "out.mp4", fps=30, size=(128, 96)) as video:
            video.write(frames[0])
            video.fps = 17.5
            video.write(frames[1])
        assert open_frames(str(tmp_path / "out.mp4")).fps == 17.5

    def test_a_single_frame_of_odd_size_is_cropped_to_an_even_one(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "out.mp4", [np.zeros((97, 131, 3), dtype=np.uint8)])
        assert count_frames(path) == 1
        capture = cv2.VideoCapture(str(path))
        assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (130, 96)

    def test_an_error_leaves_no_file(self, tmp_path: Path, frames: list[np.ndarray]) -> None:
        with (
            pytest.raises(RuntimeError, match="during writing"),
            VideoWriter(tmp_path / "out.mp4", fps=10, size=(128, 96)) as video,
        ):
            video.write(frames[0])
            raise RuntimeError("during writing")
        assert list(tmp_path.iterdir()) == []

    def test_an_older_file_of_the_name_stays_until_the_new_one_is_complete(
        self, tmp_path: Path, frames: list[np.ndarray]
    ) -> None:
        (tmp_path / "out.mp4").write_text("older")
        with VideoWriter(tmp_path / "out.mp4", fps=10, size=(128, 96)) as video:
            video.write(frames[0])
            assert (tmp_path / "out.mp4").read_text() == "older"
        assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"

    @pytest.mark.parametrize("name", ["out.mp4", "out.avi"])
    def test_a_failed_write_is_reported_and_leaves_no_file(self, tmp_path: Path, name: str) -> None:
        """OpenCV does not report failed writes: only reading the file back shows them."""
        script = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from seqtrack.errors import UserError
from seqtrack.tracking.video import VideoWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
noise = np.random.default_rng(0)
try:
    with VideoWriter(Path(sys.argv[1]), fps=10, size=(160, 120)) as video:
        for _ in range(40):
            video.write(noise.integers(0, 255, (120, 160, 3), dtype=np.uint8))
except UserError as error:
    print(error.code, error)
"""
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.stdout.startswith("track.incomplete_video"), done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_folder_is_refused_with_the_systems_message(self, tmp_path: Path) -> None:
        with pytest.raises(UserError) as error:
            VideoWriter(tmp_path / "missing" / "out.mp4", fps=10, size=(128, 96))
        assert error.value.code == "track.output" and os.strerror(2) in str(error.value)


class TestDrawing:
    def test_the_box_is_drawn_on_a_copy(self, frames: list[np.ndarray]) -> None:
        before = frames[0].copy()
        drawn = draw_box(frames[0], (40, 40, 30, 20), "score 1.0/40")
        assert (frames[0] == before).all() and drawn.shape == frames[0].shape
        assert drawn[40, 55].tolist() == list(COLOUR_RGB) and drawn[50, 40].tolist() == list(COLOUR_RGB)
        assert (drawn[50, 55] == before[50, 55]).all()

    @pytest.mark.parametrize("box", [(-20, -20, 30, 30), (120, 90, 30, 30), (0, 0, 128, 96), (500, 500, 5, 5)])
    def test_a_box_over_the_edge_is_clipped(self, frames: list[np.ndarray], box: tuple[float, ...]) -> None:
        assert draw_box(frames[0], box, "score 39.9/40  123.4 FPS").shape == frames[0].shape


def test_without_a_display_no_window_is_opened(frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert ask_for_box(frames[0]) is None


def test_an_opencv_without_windows_opens_none_either(frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    if "GUI:                           NONE" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV has windows")
    monkeypatch.setenv("DISPLAY", ":99")
    assert ask_for_box(frames[0]) is None

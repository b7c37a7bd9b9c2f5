"""Frames in, an mp4 out, and every source that is none."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.errors import UserError
from seqtrack.tracking.draw import COLOUR_RGB, draw_box
from seqtrack.tracking.video import Mp4Writer, ask_for_box, open_frames


def write_video(path: Path, frames: list[np.ndarray], fps: float = 12.0) -> Path:
    with Mp4Writer(path, fps=fps, size=(frames[0].shape[1], frames[0].shape[0])) as video:
        for frame in frames:
            video.write(frame)
    return path


class TestReading:
    def test_a_folder_gives_its_images_in_the_order_of_their_numbers(self, tmp_path: Path) -> None:
        for index in (10, 2, 1):
            cv2.imwrite(str(tmp_path / f"frame{index}.png"), np.full((20, 30, 3), 10 * index, dtype=np.uint8))
        (tmp_path / "notes.txt").write_text("no image")
        source = open_frames(str(tmp_path))
        assert (source.kind, source.count, source.fps) == ("folder", 3, 30.0)
        assert [int(frame[0, 0, 0]) for frame in source.frames()] == [10, 20, 100]

    def test_lasots_layout_is_a_folder_too(self, tmp_path: Path, video_folder: Path) -> None:
        (tmp_path / "person-1").mkdir()
        video_folder.rename(tmp_path / "person-1" / "img")
        source = open_frames(str(tmp_path / "person-1"))
        assert source.count == 10 and source.name == "person-1"

    def test_frames_are_rgb(self, tmp_path: Path) -> None:
        image = np.zeros((20, 30, 3), dtype=np.uint8)
        image[:, :, 2] = 200  # red, as OpenCV stores it
        cv2.imwrite(str(tmp_path / "a.png"), image)
        (frame,) = open_frames(str(tmp_path)).frames()
        assert frame[0, 0].tolist() == [200, 0, 0]

    def test_a_video_gives_its_frames_and_says_how_fast(self, tmp_path: Path, frames: list[np.ndarray]) -> None:
        source = open_frames(str(write_video(tmp_path / "in.mp4", frames)))
        assert (source.kind, source.count, source.fps) == ("video", 10, 12.0)
        found = list(source.frames())
        assert len(found) == 10 and found[0].shape == (96, 128, 3)
        assert np.abs(found[3].astype(int) - frames[3]).mean() < 25
        assert open_frames(str(tmp_path / "in.mp4"), fps=5).fps == 5

    def test_a_video_that_is_cut_off_gives_what_it_has_and_says_so(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        noise = [np.random.default_rng(i).integers(0, 255, (96, 128, 3), dtype=np.uint8) for i in range(30)]
        path = tmp_path / "in.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 96))
        for frame in noise:
            writer.write(frame)
        writer.release()
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])
        source = open_frames(str(path))
        assert 0 < len(list(source.frames())) < 30
        if source.count == 30:  # the announced number survives in some containers only
            assert "cut off" in caplog.text

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda path: None, "no such video"),
            (lambda path: path.mkdir(), "no images"),
            (lambda path: path.write_text("this is no video"), "cannot be read as a video"),
            (lambda path: path.write_bytes(b""), "cannot be read as a video"),
        ],
    )
    def test_what_is_no_source_is_refused(self, tmp_path: Path, make: object, said: str) -> None:
        make(tmp_path / "source.mp4")  # type: ignore[operator]
        with pytest.raises(UserError, match=said):
            open_frames(str(tmp_path / "source.mp4"))

    def test_a_camera_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(UserError, match="camera 97"):
            open_frames("97")

    def test_a_broken_image_names_its_file(self, video_folder: Path) -> None:
        (video_folder / "00000004.jpg").write_text("no image")
        with pytest.raises(UserError, match=r"00000004\.jpg"):
            list(open_frames(str(video_folder)).frames())

    def test_an_image_of_another_size_names_its_file(self, video_folder: Path) -> None:
        cv2.imwrite(str(video_folder / "00000004.jpg"), np.zeros((50, 60, 3), dtype=np.uint8))
        with pytest.raises(UserError, match=r"00000004\.jpg.*60x50.*128x96"):
            list(open_frames(str(video_folder)).frames())


class TestWriting:
    def test_the_video_plays_with_every_frame(self, tmp_path: Path, frames: list[np.ndarray]) -> None:
        capture = cv2.VideoCapture(str(write_video(tmp_path / "out.mp4", frames)))
        count = 0
        while capture.read()[0]:
            count += 1
        assert count == 10 and capture.get(cv2.CAP_PROP_FPS) == 12.0

    def test_an_odd_size_is_cut_to_an_even_one(self, tmp_path: Path) -> None:
        path = write_video(tmp_path / "out.mp4", [np.zeros((97, 131, 3), dtype=np.uint8)] * 3)
        capture = cv2.VideoCapture(str(path))
        assert (capture.get(cv2.CAP_PROP_FRAME_WIDTH), capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) == (130, 96)

    def test_an_error_on_the_way_leaves_nothing(self, tmp_path: Path, frames: list[np.ndarray]) -> None:
        with (
            pytest.raises(RuntimeError, match="on the way"),
            Mp4Writer(tmp_path / "out.mp4", fps=10, size=(128, 96)) as video,
        ):
            video.write(frames[0])
            raise RuntimeError("on the way")
        assert list(tmp_path.iterdir()) == []

    def test_an_older_file_of_the_name_stays_until_the_new_one_is_whole(
        self, tmp_path: Path, frames: list[np.ndarray]
    ) -> None:
        (tmp_path / "out.mp4").write_text("older")
        with Mp4Writer(tmp_path / "out.mp4", fps=10, size=(128, 96)) as video:
            video.write(frames[0])
            assert (tmp_path / "out.mp4").read_text() == "older"
        assert (tmp_path / "out.mp4").read_bytes()[4:8] == b"ftyp"

    def test_a_disk_that_is_full_is_told_and_leaves_nothing(self, tmp_path: Path) -> None:
        """OpenCV says nothing when a write fails: only reading the file back shows it."""
        import subprocess
        import sys

        script = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from seqtrack.errors import UserError
from seqtrack.tracking.video import Mp4Writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
noise = np.random.default_rng(0)
try:
    with Mp4Writer(Path(sys.argv[1]), fps=10, size=(320, 240)) as video:
        for _ in range(40):
            video.write(noise.integers(0, 255, (240, 320, 3), dtype=np.uint8))
except UserError as error:
    print(error)
"""
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "out.mp4")],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "40 frames were written" in done.stdout and "disk full" in done.stdout, done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_a_place_that_is_no_folder_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="cannot be written"):
            Mp4Writer(tmp_path / "missing" / "out.mp4", fps=10, size=(128, 96))


class TestDrawing:
    def test_the_box_is_drawn_where_it_is_and_the_image_left_alone(self, frames: list[np.ndarray]) -> None:
        before = frames[0].copy()
        drawn = draw_box(frames[0], (40, 40, 30, 20), "score 1.0/40")
        assert (frames[0] == before).all() and drawn.shape == frames[0].shape
        assert drawn[40, 55].tolist() == list(COLOUR_RGB) and drawn[50, 40].tolist() == list(COLOUR_RGB)
        assert (drawn[50, 55] == before[50, 55]).all(), "the inside stays visible"

    @pytest.mark.parametrize("box", [(-20, -20, 30, 30), (120, 90, 30, 30), (0, 0, 128, 96), (500, 500, 5, 5)])
    def test_a_box_over_the_edge_is_cut(self, frames: list[np.ndarray], box: tuple[float, ...]) -> None:
        assert draw_box(frames[0], box, "score 39.9/40  123.4 FPS").shape == frames[0].shape


def test_without_a_display_the_mouse_is_not_asked(frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert ask_for_box(frames[0]) is None


def test_an_opencv_without_windows_does_not_ask_either(
    frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "GUI:                           NONE" not in cv2.getBuildInformation():
        pytest.skip("this OpenCV has windows")
    monkeypatch.setenv("DISPLAY", ":99")
    assert ask_for_box(frames[0]) is None

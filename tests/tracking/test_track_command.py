"""`seqtrack track`: a source and a box in, a video and a box file out."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from runs import save_epoch

from seqtrack.cli import main
from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.data.annotations import read_boxes
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracking.video import FrameSource, open_frames

from .conftest import FIRST_BOX

BOX = ",".join(f"{value:g}" for value in FIRST_BOX)
ROOT = Path(__file__).resolve().parents[2]
Track = Callable[..., int]


@pytest.fixture
def output(tmp_path: Path, model: SeqTrack, config: Config) -> Path:
    save_epoch(tmp_path / "output", 4, model, config)
    return tmp_path / "output"


@pytest.fixture
def track(output: Path, monkeypatch: pytest.MonkeyPatch) -> Track:
    for name in ("PHASE", "DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUTPUT_DIR", str(output))
    return lambda *arguments: main(["track", *map(str, arguments)])


def frames_of(video: Path) -> int:
    return sum(1 for _ in open_frames(str(video)).frames())


def test_a_folder_becomes_an_annotated_video_and_a_box_file(
    track: Track, output: Path, video_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(video_folder, "--box", BOX) == 0
    video, boxes = output / "tracks" / "frames.mp4", output / "tracks" / "frames.txt"
    assert capsys.readouterr().out.split() == [str(video), str(boxes)]
    assert frames_of(video) == 10
    record = json.loads(boxes.with_suffix(".json").read_text())
    assert (record["precision"], record["frames"], record["fps"]) == ("fp32", 10, 30.0)
    assert record["box_xywh"] == list(FIRST_BOX) and record["checkpoint"]["epoch"] == 4
    assert read_boxes(boxes).shape == (10, 4) and read_boxes(boxes)[0].tolist() == list(FIRST_BOX)
    again = output / "new" / "again.avi"
    arguments = ["--frames", 6, "--fps", 66.667, "--precision", "bf16", "--checkpoint", 4]
    assert track(video, "--box", BOX, "-o", again, *arguments) == 0
    assert frames_of(again) == 6 and len(read_boxes(again.with_suffix(".txt"))) == 6
    assert open_frames(str(again)).fps == pytest.approx(66.667, rel=1e-4)
    assert json.loads(again.with_suffix(".json").read_text())["precision"] == "bf16"


def test_values_may_begin_with_a_minus_sign(
    track: Track, video_folder: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(output)
    assert track(video_folder, "--box", "-8,-8.5,24,24", "--frames", 2, "--no-video", "-o", "-1.mp4") == 0
    assert sorted(path.name for path in output.glob("-*")) == ["-1.json", "-1.txt"]
    assert read_boxes(output / "-1.txt")[0].tolist() == [-8, -8.5, 24, 24]


def test_the_clip_that_comes_with_the_project_can_be_tracked(track: Track, output: Path) -> None:
    clip = ROOT / "tests" / "assets" / "cc0_clip" / "person" / "person-1"
    assert track(clip, "--box", "266,53,32,46", "--frames", 2) == 0
    first = cv2.VideoCapture(str(output / "tracks" / "person-1.mp4")).read()[1]
    original = cv2.imread(str(clip / "img" / "00000001.jpg"))
    changed = np.abs(first.astype(int) - original).max(axis=2) > 80
    assert changed[45:105, 260:305].any() and not changed[200:, :].any(), "the box is drawn at its place"


WRONG = {
    "--box 500,10,20,20": "track.box", "--box 1,2,3": "track.option", "--box 1,2,1_0,nan": "track.option",
    f"--box {BOX} --checkpoint 9": "checkpoint.no_epoch", f"--box {BOX} --phase 2": "checkpoint.none",
    f"--box {BOX} --checkpoint 2": "checkpoint.no_config", f"--box {BOX} --checkpoint 3": "weights.other_model",
    "": "track.option", f"--box {BOX} -o out.mkv": "video.output", f"--box {BOX} -o /proc/none/out.mp4": "video.output",
    f"--box {BOX} --fps nan": "track.option",
    f"--box {BOX} --precision fp16 --device cpu": "tracking.precision_on_cpu",
}  # fmt: skip


def test_wrong_use_ends_with_exit_code_2(
    track: Track, output: Path, video_folder: Path, model: SeqTrack, capsys: pytest.CaptureFixture[str]
) -> None:
    save_epoch(output, 2, model, None)
    save_epoch(output, 3, model, load_config("demo", overrides=[("MODEL.DECODER.DIM_FEEDFORWARD", "64")]))
    for arguments, code in WRONG.items():
        assert track(video_folder, *arguments.split()) == 2
        assert f"error [{code}]" in capsys.readouterr().err, arguments
        assert not list(output.glob("tracks/*"))
    for name in ("a.txt", "b.json"):
        (output / name).mkdir(parents=True)
        assert track(video_folder, "--box", BOX, "--no-video", "-o", str(output / name[0]) + ".mp4") == 2
        assert "error [video.output]" in capsys.readouterr().err


def test_a_file_that_is_read_is_never_replaced(
    track: Track, output: Path, video_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = tmp_path / "same.mp4"
    assert track(video_folder, "--box", BOX, "-o", video) == 0
    default = output / "tracks" / "same.mp4"
    for folder in (default.parent, tmp_path / "x"):
        folder.mkdir()
    default.symlink_to(video)
    (tmp_path / "hard.mp4").hardlink_to(video)
    text, record = (Path(shutil.copy(video, tmp_path / f"side{suffix}")) for suffix in (".txt", ".json"))
    manifest = output / "phase_1" / "checkpoints" / "SEQTRACK_ep0004.json"
    used = {path: path.read_bytes() for path in (video, default, text, record, manifest)}
    for source, target in (
        (video, ["-o", video]), (video, ["-o", tmp_path / "x" / ".." / "same.mp4"]), (video, ["-o", default]),
        (video, ["-o", tmp_path / "hard.mp4"]), (video, []), (default, []), (default, ["-o", video]),
        (text, ["-o", tmp_path / "side.mp4"]), (record, ["-o", tmp_path / "side.avi"]),
        (record, ["-o", tmp_path / "side.avi", "--no-video"]), (video_folder, ["-o", manifest.with_suffix(".mp4")]),
    ):  # fmt: skip
        capsys.readouterr()
        assert track(source, "--box", BOX, *target) == 2, (source, target)
        assert "error [video.output]" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in used} == used and default.is_symlink()
    assert track(video, "--box", BOX, "-o", video, "--no-video") == 0, "which does not write the video"
    assert video.read_bytes() == used[video]


def test_a_stop_on_request_keeps_the_frames_tracked_so_far(
    track: Track, output: Path, video_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FrameSource._read

    def signalled(source: FrameSource) -> Iterator[tuple[str, np.ndarray]]:
        for number, frame in enumerate(read(source), start=1):
            if number == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            yield frame

    with monkeypatch.context() as patch:
        patch.setattr(FrameSource, "_read", signalled)
        assert track(video_folder, "--box", BOX) == 75
    assert len(read_boxes(output / "tracks" / "frames.txt")) == frames_of(output / "tracks" / "frames.mp4") == 6

"""`seqtrack track` from the outside: a source and a box in, a video and a box file out."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from seqtrack.checkpoints.store import epoch_name, write_checkpoint
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.cli import main
from seqtrack.config.loader import dump_config, load_config
from seqtrack.config.schema import Config
from seqtrack.evaluation.boxfiles import read_boxes
from seqtrack.model.seqtrack import SeqTrack

from .conftest import FIRST_BOX

BOX = ",".join(f"{value:g}" for value in FIRST_BOX)
ROOT = Path(__file__).resolve().parents[2]


def save(output: Path, epoch: int, model: SeqTrack, config: Config | None) -> None:
    """A checkpoint of phase 1 as training leaves it, with its configuration or without."""
    folder = output / "phase_1" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "kind": "epoch", "epoch": epoch, "step": 40, "sample": 0, "loss": None, "iou": None, "parent_sha256": None,
        "config_digest": None, "data_digest": None, "created": "2026-01-01T00:00:00Z",
        "config": None if config is None else yaml.safe_load(dump_config(config)),
    }  # fmt: skip
    tensors = {f"model/{name}": tensor_bytes(value) for name, value in model.state_dict().items()}
    write_checkpoint(folder / epoch_name(epoch), tensors, {}, describe=described)


@pytest.fixture
def output(tmp_path: Path, model: SeqTrack, config: Config) -> Path:
    save(tmp_path / "output", 4, model, config)
    return tmp_path / "output"


@pytest.fixture
def track(output: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "PHASE", "DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OUTPUT_DIR", str(output))
    yield lambda *arguments: main(["track", *map(str, arguments)])


def frames_of(video: Path) -> int:
    capture, count = cv2.VideoCapture(str(video)), 0
    while capture.read()[0]:
        count += 1
    return count


def test_a_folder_becomes_an_annotated_video_and_a_box_file(
    track: Callable[..., int], output: Path, video_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert track(video_folder, "--box", BOX) == 0
    video, boxes = output / "tracks" / "frames.mp4", output / "tracks" / "frames.txt"
    assert capsys.readouterr().out.split() == [str(video), str(boxes)]
    assert frames_of(video) == 10
    found = read_boxes(boxes)
    assert found.shape == (10, 4) and found[0].tolist() == list(FIRST_BOX)


def test_a_video_that_was_written_can_be_tracked_again_by_another_name(
    track: Callable[..., int], output: Path, video_folder: Path, tmp_path: Path
) -> None:
    assert track(video_folder, "--box", BOX) == 0
    target = tmp_path / "new" / "again.mp4"
    arguments = ["--box", BOX, "--frames", 6, "-o", target, "--precision", "bf16", "--checkpoint", 4]
    assert track(output / "tracks" / "frames.mp4", *arguments) == 0
    assert frames_of(target) == 6 and len(read_boxes(target.with_suffix(".txt"))) == 6


def test_boxes_alone_on_request(track: Callable[..., int], output: Path, video_folder: Path) -> None:
    assert track(video_folder, "--box", BOX, "--no-video") == 0
    assert [path.name for path in (output / "tracks").iterdir()] == ["frames.txt"]


def test_the_clip_that_comes_with_the_project_can_be_tracked(track: Callable[..., int], output: Path) -> None:
    clip = ROOT / "tests" / "assets" / "cc0_clip" / "person" / "person-1"
    assert track(clip, "--box", "266,53,32,46", "--frames", 5) == 0
    capture = cv2.VideoCapture(str(output / "tracks" / "person-1.mp4"))
    there, first = capture.read()
    assert there and first.shape == (360, 640, 3)
    original = cv2.imread(str(clip / "img" / "00000001.jpg"))
    changed = np.abs(first.astype(int) - original).max(axis=2) > 80
    assert changed[45:105, 260:305].any() and not changed[200:, :].any(), "the box is drawn where it was given"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--box", "500,10,20,20"], "outside the image of 128x96"),
        (["--box", "10,10,0,20"], "no area"),
        (["--box", "1,2,3"], "expected four numbers"),
        (["--box", "a,b,c,d"], "expected four numbers"),
        ([], "--box is missing"),
        (["--box", BOX, "--checkpoint", "9"], "no checkpoint of epoch 9; there are: 4"),
        (["--box", BOX, "--checkpoint", "all", "--phase", "2"], "holds no epoch's checkpoint"),
        (["--box", BOX, "-o", "out.avi"], "must end in .mp4"),
        (["--box", BOX, "--frames", "0"], "--frames must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_told_with_exit_code_2(
    track: Callable[..., int],
    output: Path,
    video_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    assert track(video_folder, *arguments) == 2
    assert said in capsys.readouterr().err
    assert not list(output.glob("tracks/*")), "nothing is left behind"


def test_without_its_own_a_checkpoint_takes_the_configuration_beside_it_and_there_must_be_one(
    track: Callable[..., int],
    output: Path,
    video_folder: Path,
    model: SeqTrack,
    config: Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save(output, 5, model, None)
    assert track(video_folder, "--box", BOX, "--checkpoint", "5") == 2
    assert "holds no configuration and there is no" in capsys.readouterr().err
    (output / "phase_1" / "config.yaml").write_text(dump_config(config))
    assert track(video_folder, "--box", BOX, "--checkpoint", "5") == 0


def test_weights_of_another_size_than_the_configuration_says_are_refused(
    track: Callable[..., int], output: Path, video_folder: Path, model: SeqTrack, capsys: pytest.CaptureFixture[str]
) -> None:
    save(output, 6, model, load_config("demo", overrides=[("MODEL.DECODER.DIM_FEEDFORWARD", "64")]))
    assert track(video_folder, "--box", BOX, "--checkpoint", "6") == 2
    assert "its weights do not fit its configuration" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [("empty", "no images"), ("video.mp4", "cannot be read as a video")])
def test_a_source_that_is_none_is_told_with_exit_code_2(
    track: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "video.mp4").write_text("no video")
    assert track(tmp_path / name, "--box", BOX) == 2
    assert said in capsys.readouterr().err


def test_an_image_that_breaks_in_the_middle_leaves_no_video(
    track: Callable[..., int], output: Path, video_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (video_folder / "00000006.jpg").write_text("no image")
    assert track(video_folder, "--box", BOX) == 2
    assert "00000006.jpg" in capsys.readouterr().err
    assert not list((output / "tracks").iterdir())


def test_a_stop_on_request_keeps_what_was_tracked(output: Path, tmp_path: Path, frames: list[np.ndarray]) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    for index in range(3000):
        (folder / f"{index:05d}.jpg").write_bytes(cv2.imencode(".jpg", frames[index % 10])[1].tobytes())
    process = subprocess.Popen(
        [sys.executable, "-m", "seqtrack", "track", str(folder), "--box", BOX],
        env={**os.environ, "OUTPUT_DIR": str(output)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        part = list(output.glob("tracks/.*.tmp.mp4"))
        if part and part[0].stat().st_size > 0:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 75, told
    kept = len(read_boxes(output / "tracks" / "long.txt"))
    assert 1 <= kept < 3000 and f"after {kept} frames" in told
    assert frames_of(output / "tracks" / "long.mp4") == kept

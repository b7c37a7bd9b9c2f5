"""`from seqtrack import Tracker`: the boxes of the `track` command, from a file or from the Hub."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import ROOT, save_epoch
from uploads.harness import REPO, environ, hub, inline, once
from uploads.hub_server import Hub

from seqtrack import Tracker
from seqtrack.cli import main
from seqtrack.config.schema import Config
from seqtrack.data.annotations import read_boxes
from seqtrack.errors import UserError
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracking.load import select_checkpoints
from seqtrack.tracking.video import open_frames

from .conftest import FIRST_BOX

__all__ = ["hub", "inline"]
CHECKPOINT = "phase_1/checkpoints/SEQTRACK_ep0004.safetensors"


@pytest.fixture
def output(tmp_path: Path, model: SeqTrack, config: Config) -> Path:
    save_epoch(tmp_path / "output", 4, model, config)
    return tmp_path / "output"


def boxes_of(tracker: Tracker, images: list[np.ndarray]) -> list[tuple[float, ...]]:
    tracker.start(images[0], FIRST_BOX)
    return [FIRST_BOX, *(tracker.track(image) for image in images[1:])]


def test_the_boxes_are_those_of_the_command(output: Path, video_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTPUT_DIR", str(output))
    box = ",".join(map(str, FIRST_BOX))
    assert main(["track", str(video_folder), "--box", box, "--no-video", "--device", "cpu"]) == 0
    monkeypatch.chdir(output)
    tracker, images = Tracker.load(CHECKPOINT, device="cpu"), list(open_frames(str(video_folder)).frames())
    found = boxes_of(tracker, images)
    np.testing.assert_allclose(found, read_boxes(output / "tracks" / "frames.txt"), atol=1e-4, rtol=0)
    assert len({*found}) > 2 and tracker.score is not None and 0 < tracker.score <= 40
    assert boxes_of(tracker, images) == found, "start begins again"


@pytest.mark.usefixtures("inline")
def test_a_checkpoint_of_the_hub_is_downloaded_once(
    hub: Hub, output: Path, tmp_path: Path, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert once(hub, output) == 0
    for name, value in environ(hub, output).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_REPO", "other/repository")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tracker = Tracker.load(f"hf://{REPO}/{CHECKPOINT}", device="cpu")
    assert (tmp_path / "cache" / "seqtrack" / REPO / CHECKPOINT).read_bytes() == (output / CHECKPOINT).read_bytes()
    hub.stop()
    again = Tracker.load(f"hf://{REPO}/{CHECKPOINT}", device="cpu")
    assert boxes_of(again, frames) == boxes_of(tracker, frames)
    (named,) = select_checkpoints(output / "phase_1", [f"hf://{REPO}/{CHECKPOINT}"])  # as every --checkpoint does
    assert named.path.is_relative_to(tmp_path / "cache")


def test_what_is_wrong_is_refused_with_a_code(output: Path, frames: list[np.ndarray]) -> None:
    tracker, image = Tracker.load(output / CHECKPOINT, device="cpu"), frames[0]
    for code, call in {
        "track.not_started": lambda: tracker.track(image),
        "track.image": lambda: tracker.start(image[:, :, 0], FIRST_BOX),
        "track.image ": lambda: tracker.start(image / 255, FIRST_BOX),
        "track.image  ": lambda: tracker.start(image.tolist(), FIRST_BOX),
        "track.box": lambda: tracker.start(image, (1, 2, 0, 4)),
        "fetch.address": lambda: Tracker.load("hf://owner/name"),
        "variable.invalid_value": lambda: Tracker.load("hf://owner/na me/x.safetensors"),
        "checkpoint.missing": lambda: Tracker.load("none.safetensors"),
        "checkpoint.missing ": lambda: Tracker.load("/"),
        "checkpoint.missing  ": lambda: Tracker.load("a\0b"),
        "checkpoint.missing   ": lambda: Tracker.load("~nobody-has-this-name/x.safetensors"),
        "device.unknown": lambda: Tracker.load("nano", device="gpu"),
        "tracking.precision": lambda: Tracker.load("nano", device="cpu", precision="fp64"),
    }.items():
        with pytest.raises(UserError) as refused:
            call()
        assert [problem.code for problem in refused.value.problems] == [code.strip()]


def test_the_package_alone_does_not_import_torch() -> None:
    text = "import seqtrack, sys; assert 'torch' not in sys.modules; assert seqtrack.Tracker and 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", text], cwd=ROOT, check=True)

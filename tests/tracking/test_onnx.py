"""Exported models: the same tokens and boxes as torch, for `track` and for a script of its own; and refusals."""

import hashlib
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from contracts.test_formats import differences, table
from model.small_models import lively
from runs import command, demo_data, environment, save_epoch

from seqtrack.cli import main
from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.data.annotations import read_boxes
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.tracking import onnx_export
from seqtrack.tracking.load import select_checkpoints
from seqtrack.tracking.onnx_model import load_onnx
from seqtrack.tracking.tracker import BatchTracker, TrackedModel, TrackerSettings
from seqtrack.tracking.video import open_frames

from .conftest import FIRST_BOX
from .test_video import patch, write_video

__all__ = ["demo_data"]

BOX = ",".join(f"{value:g}" for value in FIRST_BOX)
ROOT = Path(__file__).resolve().parents[2]
FILES = ["decoder.onnx", "encoder.onnx", "model.json"]
Codes = Callable[..., tuple[int, list[str]]]
Video = tuple[Sequence[np.ndarray], tuple[float, ...]]


@pytest.fixture(scope="session")
def config() -> Config:
    """With rates that are not 1, as nano has."""
    keys = {"TEST.NUM_TEMPLATES": 2, "DATA.TEMPLATE.NUMBER": 2, "TEST.CENTER_RATE": 0.5, "TEST.SIZE_RATE": 0.3}
    return load_config("demo", overrides=[(key, str(value)) for key, value in keys.items()])


@pytest.fixture(scope="module")
def torch_model(config: Config) -> SeqTrack:
    return lively(build_model(model_spec(config), seed=3)).eval()


@pytest.fixture(scope="module")
def output(torch_model: SeqTrack, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with epoch 4, exported as `model`. Not to be changed."""
    folder = tmp_path_factory.mktemp("exported") / "output"
    save_epoch(folder, 4, torch_model, config)
    assert main(["export", str(checkpoint_of(folder)), "--onnx", "-o", str(folder / "model")]) == 0
    return folder


def checkpoint_of(output: Path) -> Path:
    return output / "phase_1" / "checkpoints" / "SEQTRACK_ep0004.safetensors"


@pytest.fixture
def run(output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Codes:
    """The exit code of a command, and the codes of its errors."""
    monkeypatch.setenv("OUTPUT_DIR", str(output))
    for name in ("PHASE", "DEVICE"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object) -> tuple[int, list[str]]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        lines = capsys.readouterr().err.splitlines()
        return code, [line.split("]")[0][7:] for line in lines if line.startswith("error [")]

    return call


def follow(model: TrackedModel, settings: TrackerSettings, videos: Sequence[Video]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and boxes, (frames, objects, 4), of videos of one length tracked in one batch."""
    tracker = BatchTracker(model, settings)
    states = [tracker.start(frames[0], box) for frames, box in videos]
    found = [tracker.track(states, images) for images in zip(*(frames[1:] for frames, _ in videos), strict=True)]
    tokens = np.array([[one.tokens for one in step] for step in found])
    return tokens, np.array([[one.box_xywh for one in step] for step in found])


def test_the_record_names_the_checkpoint_and_what_was_compared(output: Path) -> None:
    folder = output / "model"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    record, manifest = (
        json.loads(path.read_text()) for path in (folder / FILES[2], checkpoint_of(output).with_suffix(".json"))
    )
    assert differences(record, table("model.json", "field")) == []
    assert record["checkpoint"]["sha256"] == manifest["sha256"] and record["checkpoint"]["epoch"] == 4
    assert record["config"] == manifest["config"] and record["encoder"]["bytes"] == (folder / FILES[1]).stat().st_size
    checked = record["checked"]
    assert checked["same_tokens"] == checked["images"] == 3
    assert 0 < checked["memory_difference"] < 1e-4 and 0 < checked["logits_difference"] < 1e-4


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_any_number_of_objects_gives_torchs_tokens_and_boxes(
    runtime: str, torch_model: SeqTrack, output: Path, frames: list[np.ndarray]
) -> None:
    exported, config, _ = load_onnx(output / "model", runtime)
    settings = TrackerSettings(update_interval=2, update_threshold=0.0, mean=config.DATA.MEAN, std=config.DATA.STD)
    videos = [(frames, FIRST_BOX), (frames[::-1], (50.0, 40.0, 30.0, 24.0)), (frames, (10.0, 10.0, 60.0, 50.0))]
    for count in (1, 3):
        tokens, boxes = follow(torch_model, settings, videos[:count])
        assert len(np.unique(tokens.reshape(-1, 4), axis=0)) > 5, "the tokens depend on the images"
        ours, theirs = follow(exported, settings, videos[:count])
        assert (ours == tokens).all()
        np.testing.assert_allclose(theirs, boxes, atol=1e-6)


def test_track_and_the_example_give_the_checkpoints_boxes(
    run: Codes, output: Path, video_folder: Path, tmp_path: Path
) -> None:
    for path in [*video_folder.iterdir()]:
        path.rename(video_folder / f"{int(path.stem)}.jpg")  # 10 after 9
    (video_folder / "._1.jpg").write_bytes(b"of a file manager")
    common = ("track", video_folder, "--box", BOX, "--no-video", "-o")
    assert run(*common, tmp_path / "a.mp4") == (0, [])
    assert run(*common, tmp_path / "b.mp4", "--onnx", output / "model") == (0, [])
    assert run(*common, tmp_path / "o.mp4", "--onnx", output / "model", "--runtime", "openvino") == (0, [])
    plain, exported, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "abo")
    assert plain["checkpoint"] == exported["checkpoint"] == other["checkpoint"]
    assert [one["runtime"].split()[0] for one in (exported, other)] == ["onnxruntime", "openvino"]
    # The example alone: no torch, nothing of this project.
    shutil.copy(ROOT / "examples" / "onnx_tracker.py", tmp_path)
    block = "import sys; sys.modules['torch'] = sys.modules['seqtrack'] = None; sys.argv[0] = 'x'; "
    script = block + "import runpy; runpy.run_path('onnx_tracker.py', run_name='__main__')"
    words = [sys.executable, "-I", "-c", script, str(output / "model"), str(video_folder), BOX, "c.txt"]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=100)
    a, b, c, o = (read_boxes(tmp_path / f"{name}.txt") for name in "abco")
    assert len(np.unique(a, axis=0)) > 3
    np.testing.assert_allclose(b, a, atol=1e-6)
    np.testing.assert_allclose(o, a, atol=1e-6)
    np.testing.assert_allclose(c, a, atol=1e-3)


def test_the_example_reads_the_frames_that_track_reads(
    frames: list[np.ndarray], video_folder: Path, tmp_path: Path
) -> None:
    read = runpy.run_path(str(ROOT / "examples" / "onnx_tracker.py"))["frames"]
    lasot, mixed, turned = tmp_path / "person-1", tmp_path / "mixed", tmp_path / "turned.mp4"
    shutil.copytree(video_folder, lasot / "img")
    mixed.mkdir()
    for name, frame in zip(("b2.bmp", "b10.png", "a.jpg", "3.TIF", "b1_2.webp", "b1_10.jpeg"), frames, strict=False):
        cv2.imwrite(str(mixed / name), frame)
    shutil.copy(mixed / "b10.png", lasot / "img" / "1.png")  # is no frame where others are named as in LaSOT
    patch(write_video(turned, [frame[:64] for frame in frames]), b"tkhd", 40, 0, 1 << 16, 0, -1 << 16, 0, 0)
    for place in (lasot, mixed, turned):
        ours, theirs = ([*one] for one in (open_frames(str(place)).frames(), read(str(place))))
        assert len(ours) == len(theirs) and all(map(np.array_equal, ours, theirs)), place


def test_a_signal_after_openvinos_graphs_were_closed_is_handled(output: Path) -> None:
    script = """
import gc, os, pathlib, signal, sys
from seqtrack.tracking.onnx_model import load_onnx
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
model = load_onnx(pathlib.Path(sys.argv[1]), "openvino")[0]
del model
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""
    words = [sys.executable, "-c", script, str(output / "model")]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=100)
    assert (ended.returncode, ended.stdout) == (0, "handled\n")


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(
    run: Codes, output: Path, torch_model: SeqTrack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, target = ("export", checkpoint_of(output), "--onnx", "-o"), tmp_path / "model"
    assert run(*export, output / "model") == (2, ["file.exists"])
    other = load_config("demo", overrides=[("MODEL.DECODER.DIM_FEEDFORWARD", "64")])
    save_epoch(tmp_path, 4, torch_model, other)
    code, codes = run("export", checkpoint_of(tmp_path), "--onnx", "-o", target)
    assert (code, codes[-1]) == (2, "weights.other_model")
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "_LARGEST", 1000)
        assert run(*export, target) == (2, ["onnx.too_large"])
    for library in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, library, None)
            assert run(*export, target) == (2, ["onnx.not_installed"])
    assert not target.exists()
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "TOLERANCE", 0.0)
        assert run(*export, target) == (1, ["onnx.differs"])
    assert not [*target.iterdir()]


def _truncate(folder: Path) -> None:
    path = folder / "encoder.onnx"
    path.write_bytes(path.read_bytes()[:-1000])


def _mix(folder: Path) -> None:
    """A graph of a model of the same form: the same size, other weights."""
    path = folder / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _rewrite(folder: Path) -> None:
    """A graph that its record describes and no runtime can read."""
    path, record = folder / "decoder.onnx", json.loads((folder / "model.json").read_text())
    path.write_bytes(b"junk")
    record["decoder"] = {"bytes": 4, "sha256": hashlib.sha256(b"junk").hexdigest()}
    (folder / "model.json").write_text(json.dumps(record))


def _exchange(folder: Path) -> None:
    path = folder / "model.json"
    record = json.loads(path.read_text())
    (folder / "encoder.onnx").rename(folder / "other")
    (folder / "decoder.onnx").rename(folder / "encoder.onnx")
    (folder / "other").rename(folder / "decoder.onnx")
    path.write_text(json.dumps(record | {"encoder": record["decoder"], "decoder": record["encoder"]}))


def _claim_bins(folder: Path) -> None:
    path = folder / "model.json"
    record = json.loads(path.read_text())
    record["config"]["MODEL"]["BINS"] *= 2
    path.write_text(json.dumps(record))


DAMAGE: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated": ("onnx.damaged", _truncate),
    "another model's graph": ("onnx.damaged", _mix),
    "no graph": ("onnx.missing", lambda folder: (folder / "decoder.onnx").unlink()),
    "no record": ("onnx.missing", lambda folder: (folder / "model.json").unlink()),
    "half a record": ("onnx.record", lambda folder: (folder / "model.json").write_text('{"format": ')),
    "another record": ("onnx.record", lambda folder: (folder / "model.json").write_text('{"format": "x"}')),
    "not a graph": ("onnx.graph", _rewrite),
    "each other's graphs": ("onnx.graph", _exchange),
    "another configuration": ("onnx.graph", _claim_bins),
}


def test_a_model_that_cannot_be_used_is_refused(
    run: Codes, output: Path, video_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = ("track", video_folder, "--box", BOX, "--no-video", "-o", tmp_path / "out.mp4", "--onnx")
    for name, (expected, damage) in DAMAGE.items():
        folder = Path(shutil.copytree(output / "model", tmp_path / name))
        damage(folder)
        for runtime in ("onnxruntime", "openvino"):
            assert run(*track, folder, "--runtime", runtime) == (2, [expected]), (name, runtime)
    assert run(*track, checkpoint_of(output)) == (2, ["onnx.record"])
    record = (output / "model" / "model.json").read_bytes()
    for place in (output / "model", output / "model" / "model.json"):
        assert run(*track[:-2], output / "model" / "model.mp4", "--onnx", place) == (2, ["video.output"])
    assert (output / "model" / "model.json").read_bytes() == record
    assert run(*track, output / "model", "--checkpoint", "4") == (2, ["track.option"])
    for option in (("--precision", "bf16"), ("--device", "cuda")):
        assert run(*track, output / "model", *option) == (2, ["onnx.option"])
    assert run(*track[:-1], "--checkpoint", "4", "--runtime", "openvino") == (2, ["track.option"])
    for runtime in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, runtime, None)
        assert run(*track, output / "model", "--runtime", runtime) == (2, ["onnx.not_installed"])
    assert not (tmp_path / "out.txt").exists()


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("name", "least"), [("demo", 10_000), ("seqtrack_b256", 50), ("seqtrack_b384", 25)])
def test_tokens_and_boxes_of_whole_sequences_are_torchs(
    name: str, least: int, runtime: str, demo_data: Path, test_data: Path, tmp_path: Path
) -> None:
    """The demo's model trained, the large ones with random weights, on demo and real frames."""
    words = ["parity", "--config", name, "--frames", str(least), "--runtime", runtime, "--device", "cpu", "--json"]
    words += ["--demo", str(demo_data), "--lasot", str(test_data / "lasot_mini")]
    if name == "demo":
        output = tmp_path / "output"
        env = environment(output, demo_data, EPOCHS=6) | {"OVERRIDES": ""}
        assert command("train", env=env, timeout=1800).code == 0
        words += ["--checkpoint", str(select_checkpoints(output / "phase_1", ["last"])[0].path)]
    script = [sys.executable, str(ROOT / "scripts" / "bench.py"), *words]
    found = json.loads(subprocess.run(script, check=True, stdout=subprocess.PIPE).stdout)
    print(found)
    assert max(found["checked"]["memory_difference"], found["checked"]["logits_difference"]) < 1e-4
    assert found["frames"] >= least and found["distinct_tokens"] > found["frames"] / 10
    assert found["share"] >= 0.999 and found["boxes_mean_px"] < 0.1

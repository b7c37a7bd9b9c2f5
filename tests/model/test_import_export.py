"""Export to the authors' file format and back is bitwise equal, and importing never executes anything."""

import json
import pickle
import re
import subprocess
from collections import OrderedDict, defaultdict
from pathlib import Path

import pytest
import torch
import yaml

from seqtrack.checkpoints.store import Manifest, load_weights, manifest_of, write_weights
from seqtrack.cli import main
from seqtrack.config.loader import config_digest, dump_config, load_config
from seqtrack.model.build import build_model
from seqtrack.model.spec import model_spec

CONFIG = "demo"


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return build_model(model_spec(load_config(CONFIG)), seed=1).state_dict()


def write_imported(path: Path, weights: dict[str, torch.Tensor]) -> Manifest:
    """A checkpoint of these weights with the demo configuration."""
    config = load_config(CONFIG)
    describe = {
        "epoch": 7, "step": 70, "sample": 0, "loss": 1.0, "iou": 0.5, "parent_sha256": None, "data_digest": None,
        "config_digest": config_digest(config), "created": "2026-01-01T00:00:00Z",
        "config": yaml.safe_load(dump_config(config)),
    }  # fmt: skip
    return write_weights(path, weights, describe=describe)


@pytest.fixture
def checkpoint(state: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    return write_imported(tmp_path / "SEQTRACK_ep0007.safetensors", state).path


def _import(file: Path, out: Path, *more: str) -> int:
    return main(["import", str(file), "--config", CONFIG, "-o", str(out), *more])


def test_export_then_import_is_bitwise_equal(state: dict[str, torch.Tensor], checkpoint: Path, tmp_path: Path) -> None:
    exported, back = tmp_path / "SEQTRACK_ep0007.pth.tar", tmp_path / "back" / "again.safetensors"
    assert main(["export", str(checkpoint), "-o", str(exported)]) == 0
    theirs = torch.load(exported, weights_only=True)
    assert set(theirs["net"]) == set(state)
    assert (theirs["epoch"], theirs["net_type"]) == (7, "SEQTRACK")
    assert _import(exported, back) == 0
    again = load_weights(manifest_of(back))
    assert set(again) == set(state)
    for name, value in state.items():
        assert torch.equal(again[name], value), name
        assert torch.equal(theirs["net"][name], value), name
    before, after = manifest_of(checkpoint), manifest_of(back)
    assert after.weights_sha256 == before.weights_sha256
    assert (after.kind, after.epoch, after.config_digest) == ("imported", 7, before.config_digest)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", after.created)


def test_a_changed_weight_changes_the_digest(state: dict[str, torch.Tensor], checkpoint: Path, tmp_path: Path) -> None:
    changed = {**state, "pos_embed": state["pos_embed"] + 1e-6}
    torch.save({"net": changed}, tmp_path / "x.pth.tar")
    assert _import(tmp_path / "x.pth.tar", tmp_path / "x.safetensors") == 0
    assert manifest_of(tmp_path / "x.safetensors").weights_sha256 != manifest_of(checkpoint).weights_sha256


def test_a_bare_state_dict_is_read_as_epoch_0(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(dict(state), tmp_path / "bare.pth.tar")
    assert _import(tmp_path / "bare.pth.tar", tmp_path / "bare.safetensors") == 0
    assert torch.equal(load_weights(manifest_of(tmp_path / "bare.safetensors"))["pos_embed"], state["pos_embed"])
    assert manifest_of(tmp_path / "bare.safetensors").epoch == 0


def test_weights_that_do_not_fit_are_refused_with_all_names(
    state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = dict(state)
    del net["vocab_embed.layers.0.bias"], net["bottleneck.bias"]
    net["extra.weight"] = torch.ones(2)
    net["pos_embed"] = torch.ones(1, 2, 3)
    torch.save({"net": net}, tmp_path / "x.pth.tar")
    assert _import(tmp_path / "x.pth.tar", tmp_path / "x.safetensors") == 2
    said = capsys.readouterr().err
    lines = dict(re.findall(r"^error \[(\S+)\]: (.*)$", said, re.MULTILINE))
    assert "bottleneck.bias, vocab_embed.layers.0.bias" in lines["weights.missing"]
    assert "extra.weight" in lines["weights.unexpected"]
    assert all(part in lines["weights.shape"] for part in ("pos_embed", "[1, 2, 3]", "[1, 36, 128]"))
    assert "weights.other_model" in lines
    assert not (tmp_path / "x.safetensors").exists()
    assert not (tmp_path / "x.json").exists()


class _Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[list[str]]]:
        return subprocess.call, (["touch", str(self.marker)],)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_file_that_would_execute_code_is_refused_and_nothing_is_executed(
    state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str], as_zip: bool
) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "bomb.pth.tar"
    content = {"net": dict(state), "settings": _Bomb(marker)}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip)
    assert _import(path, tmp_path / "x.safetensors") == 2
    assert "subprocess.call" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
    # With --skip-objects the weights are read, and still nothing is executed.
    assert _import(path, tmp_path / "x.safetensors", "--skip-objects") == 0
    assert torch.equal(load_weights(manifest_of(tmp_path / "x.safetensors"))["pos_embed"], state["pos_embed"])
    assert not marker.exists()
    # Negative control: an unguarded reader does execute it.
    torch.load(path, weights_only=False)
    assert marker.exists()


class Settings:
    """Like the training settings in the authors' checkpoints."""

    def __init__(self) -> None:
        self.env = {"workspace_dir": "/somewhere"}


def test_the_objects_of_the_authors_full_checkpoint_are_skipped(
    state: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "SEQTRACK_ep0500.pth.tar"
    torch.save({"epoch": 500, "net": dict(state), "settings": Settings(), "stats": {"loss": [Settings()]}}, path)
    assert _import(path, tmp_path / "x.safetensors") == 2
    assert _import(path, tmp_path / "x.safetensors", "--skip-objects") == 0
    assert "Settings" in caplog.text
    assert manifest_of(tmp_path / "x.safetensors").epoch == 500


class ListOfTheirs(list[int]):
    """A subclass of list."""


def test_plain_entries_besides_the_weights_are_ignored(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    others = {
        "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state(), "stats": OrderedDict(loss=[1.0, None]),
        "settings": {"lr": 1e-4, "names": ["a"], "size": torch.Size([2]), "device": torch.device("cpu")},
    }  # fmt: skip
    for name, as_zip in (("new", True), ("old", False)):
        path = tmp_path / f"{name}.pth.tar"
        content = {"epoch": 12, "net": dict(state), **others}
        torch.save(content, path, _use_new_zipfile_serialization=as_zip)
        assert _import(path, tmp_path / f"{name}.safetensors") == 0
        assert manifest_of(tmp_path / f"{name}.safetensors").epoch == 12
        again = load_weights(manifest_of(tmp_path / f"{name}.safetensors"))
        assert set(again) == set(state)
        assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.mark.parametrize("thing", [ListOfTheirs([1, 2]), defaultdict(list, {1: [2]}), {(1, 2): {3}, (4, 5): None}])
@pytest.mark.parametrize("protocol", [2, 4])
def test_any_objects_besides_the_weights_are_skipped_on_request(
    state: dict[str, torch.Tensor], tmp_path: Path, thing: object, protocol: int
) -> None:
    torch.save({"net": dict(state), "seen": thing}, tmp_path / "x.pth.tar", pickle_protocol=protocol)
    assert _import(tmp_path / "x.pth.tar", tmp_path / "x.safetensors", "--skip-objects") == 0
    assert torch.equal(load_weights(manifest_of(tmp_path / "x.safetensors"))["pos_embed"], state["pos_embed"])


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps([1, 2, 3]), pickle.dumps({"net": 3}), b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pth.tar"
    path.write_bytes(content)
    assert _import(path, tmp_path / "x.safetensors") == 2
    assert str(path) in capsys.readouterr().err
    assert _import(tmp_path / "nowhere.pth.tar", tmp_path / "x.safetensors") == 2


def test_nothing_is_overwritten_without_force(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.pth.tar"
    out.write_text("precious")
    assert main(["export", str(checkpoint), "-o", str(out)]) == 2
    assert out.read_text() == "precious"
    assert main(["export", str(checkpoint), "-o", str(out), "--force"]) == 0
    written = tmp_path / "in.safetensors"
    assert _import(out, written) == 0
    assert _import(out, written) == 2
    assert _import(out, written, "--force") == 0
    assert _import(out, tmp_path / "in.bin") == 2


def test_a_corrupt_checkpoint_is_not_exported(checkpoint: Path, tmp_path: Path) -> None:
    damaged = bytearray(checkpoint.read_bytes())
    damaged[-1] ^= 1
    checkpoint.write_bytes(damaged)
    assert main(["export", str(checkpoint), "-o", str(tmp_path / "out.pth.tar")]) == 2
    assert not (tmp_path / "out.pth.tar").exists()
    assert json.loads(checkpoint.with_suffix(".json").read_text())["epoch"] == 7

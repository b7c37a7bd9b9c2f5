"""A damaged checkpoint is refused or skipped: no traceback, no hang, and never a wrong load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seqtrack.checkpoints.safetensors_io import CHUNK, DamagedFileError, TensorBytes
from seqtrack.checkpoints.store import (
    Manifest,
    latest_valid,
    list_checkpoints,
    load_tensors,
    load_weights,
    manifest_of,
    read_manifest,
    verify_checkpoint,
    write_checkpoint,
)
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.errors import UserError
from seqtrack.training.resume import CachedCheckpoint

DESCRIBE: dict[str, Any] = {
    "created": "2024-01-01T00:00:00Z",
    "parent_sha256": "ab" * 32,
    "config_digest": "cd" * 32,
    "data_digest": "ef" * 32,
}


def write_small(folder: Path, epoch: int) -> Manifest:
    """A checkpoint with a few hundred bytes of tensors, whose contents depend on the epoch."""
    draw = torch.Generator().manual_seed(epoch)
    tensors = {
        "model/weight": torch.randn(5, 7, generator=draw),
        "model/bias": torch.randn(7, generator=draw).to(torch.bfloat16),
        "optimizer/state/weight/exp_avg": torch.randn(5, 7, generator=draw),
        "rng/0/torch": torch.arange(16, dtype=torch.uint8),
        "empty/nothing": torch.zeros(0, 3),
    }
    loss, iou = 4.0 / epoch, 0.1 * epoch
    values = {
        "epoch": epoch,
        "step": 10 * epoch,
        "sample": 0,
        "scheduler": {"step_count": 10 * epoch},
        "history": {"epochs": [{"epoch": epoch, "loss": loss, "iou": iou}]},
    }
    facts = {"kind": "epoch", "epoch": epoch, "step": 10 * epoch, "sample": 0, "loss": loss, "iou": iou}
    return write_checkpoint(
        folder / f"SEQTRACK_ep{epoch:04d}.safetensors",
        {name: tensor_bytes(tensor) for name, tensor in tensors.items()},
        values,
        describe={**DESCRIBE, **facts},
    )


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _gone(path: Path) -> None:
    path.unlink()


def _one_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_empty, _gone, _one_bit, _cut_short, _a_folder])
@pytest.mark.parametrize("what", ["checkpoint", "manifest"])
def test_the_latest_when_damaged_is_skipped_with_a_warning(
    what: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = write_small(tmp_path, 1), write_small(tmp_path, 2)
    untouched = older.path.read_bytes(), older.manifest_path.read_bytes()
    damage(newer.path if what == "checkpoint" else newer.manifest_path)
    found = latest_valid(list_checkpoints(tmp_path))
    assert found == older
    if not (what == "manifest" and damage is _gone):  # without a manifest there is nothing to warn of
        (warning,) = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
        assert "SEQTRACK_ep0002" in warning
    assert (older.path.read_bytes(), older.manifest_path.read_bytes()) == untouched


def test_a_manifest_with_another_step_than_its_file_is_damage(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 2)
    fields = json.loads(manifest.manifest_path.read_text())
    manifest.manifest_path.write_text(json.dumps({**fields, "step": fields["step"] + 1}))
    with pytest.raises(DamagedFileError, match="step 21"):
        verify_checkpoint(read_manifest(manifest.manifest_path))


def test_a_manifest_may_not_point_elsewhere(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 2)
    fields = json.loads(manifest.manifest_path.read_text())
    manifest.manifest_path.write_text(json.dumps({**fields, "file": "../other.safetensors"}))
    with pytest.raises(UserError) as refusal:
        manifest_of(manifest.path)
    assert refusal.value.code == "checkpoint.manifest"


def test_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 3)
    weights = load_weights(manifest)
    assert sorted(weights) == ["bias", "weight"]
    assert weights["bias"].dtype == torch.bfloat16
    draw = torch.Generator().manual_seed(3)
    assert torch.equal(weights["weight"], torch.randn(5, 7, generator=draw))


def test_equal_states_give_equal_files_and_another_state_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, same = write_small(tmp_path / "a", 1), write_small(tmp_path / "b", 1)
    other = write_small(tmp_path / "a", 2)
    assert (one.sha256, one.parts) == (same.sha256, same.parts)
    assert one.sha256 != other.sha256
    assert one.parts["model"] != other.parts["model"]
    assert one.parts["rng"] == other.parts["rng"]


def test_a_checkpoint_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 1)
    assert torch.equal(load_file(manifest.path)["model/weight"], load_weights(manifest)["weight"])


def test_what_is_loaded_is_what_was_verified_whatever_the_disk_returns_later(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 1)
    expected = load_tensors(manifest)
    cached = CachedCheckpoint()
    cached.verify(manifest)
    _one_bit(manifest.path)
    loaded = cached.take(manifest)[0]
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    with pytest.raises(UserError) as refusal:
        cached.take(manifest)
    assert refusal.value.code == "checkpoint.damaged"


def test_a_checkpoint_that_was_not_the_last_to_be_verified_is_read_again(tmp_path: Path) -> None:
    first, second = write_small(tmp_path, 1), write_small(tmp_path, 2)
    cached = CachedCheckpoint()
    cached.verify(second)
    assert torch.equal(cached.take(first)[0]["model/weight"], load_tensors(first)["model/weight"])
    cached.verify(second)
    _one_bit(first.path)
    with pytest.raises(DamagedFileError):
        cached.verify(first)
    with pytest.raises(UserError):
        cached.take(first)


def test_a_file_larger_than_a_piece_is_digested_whole(tmp_path: Path) -> None:
    weights = torch.arange(3 * CHUNK // 4 + 5, dtype=torch.float32)
    manifest = write_checkpoint(
        tmp_path / "SEQTRACK_ep0001.safetensors",
        {"model/weight": tensor_bytes(weights), "optimizer/step": tensor_bytes(torch.tensor(7.0))},
        {},
        describe={**DESCRIBE, "kind": "epoch", "epoch": 1, "step": 1, "sample": 0, "loss": 1.0, "iou": 0.5},
    )
    for part in (None, "model", "optimizer"):
        loaded = load_tensors(manifest, part=part)
        assert all(torch.equal(loaded[name], weights if "weight" in name else torch.tensor(7.0)) for name in loaded)
        assert len(loaded) == (1 if part else 2)
    for place in (CHUNK, 2 * CHUNK, manifest.bytes - 1):
        _flip_at(manifest.path, place)
        for part in (None, "model", "optimizer"):
            with pytest.raises(DamagedFileError, match="sha256"):
                load_tensors(manifest, part=part)
        _flip_at(manifest.path, place)
    verify_checkpoint(manifest)


def _flip_at(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_an_element_type_that_is_never_stored_is_refused_by_its_name(tmp_path: Path) -> None:
    raw = TensorBytes("U32", (2,), memoryview(bytes(8)))
    manifest = write_checkpoint(
        tmp_path / "SEQTRACK_ep0001.safetensors",
        {"model/odd": raw},
        {},
        describe={**DESCRIBE, "kind": "epoch", "epoch": 1, "step": 1, "sample": 0, "loss": 1.0, "iou": 0.5},
    )
    with pytest.raises(UserError, match=r"SEQTRACK_ep0001.*U32"):
        load_tensors(manifest)

"""A damaged checkpoint, or one whose digests match and whose content makes no sense, is refused or skipped: no
traceback, no hang, and never a wrong load."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_checkpoint_file
from seqtrack.checkpoints.store import (
    Manifest,
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    manifest_of,
    read_manifest,
    verify_checkpoint,
    write_checkpoint,
)
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.errors import UserError

DESCRIBE: dict[str, Any] = {
    "created": "2024-01-01T00:00:00Z", "parent_sha256": "ab" * 32, "config_digest": "cd" * 32, "data_digest": "ef" * 32,
}  # fmt: skip
FACTS = {**DESCRIBE, "kind": "epoch", "epoch": 2, "step": 20, "sample": 0, "loss": 1.0, "iou": 0.5}


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
    facts = {"epoch": epoch, "step": 10 * epoch, "sample": 0}
    values = {**facts, "scheduler": {"step_count": 1}, "history": [{"loss": loss, "iou": iou}]}
    return write_checkpoint(
        folder / f"SEQTRACK_ep{epoch:04d}.safetensors",
        {name: tensor_bytes(tensor) for name, tensor in tensors.items()},
        values,
        describe={**DESCRIBE, **facts, "kind": "epoch", "loss": loss, "iou": iou},
    )


def _one_bit(path: Path, place: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "one bit": _one_bit,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("what", ["checkpoint", "manifest"])
def test_the_latest_when_damaged_is_skipped_with_a_warning(
    what: str, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = write_small(tmp_path, 1), write_small(tmp_path, 2)
    untouched = older.path.read_bytes(), older.manifest_path.read_bytes()
    DAMAGES[damage](newer.path if what == "checkpoint" else newer.manifest_path)
    assert latest_valid(list_checkpoints(tmp_path)) == older
    if (what, damage) != ("manifest", "gone"):  # without a manifest there is nothing to warn of
        (warning,) = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
        assert "SEQTRACK_ep0002" in warning
    assert (older.path.read_bytes(), older.manifest_path.read_bytes()) == untouched


OTHERS = {"step": 21, "epoch": 3, "loss": 1.0, "iou": 0.9, "kind": "step", "weights_sha256": "0" * 64, "parts": {}}


@pytest.mark.parametrize("field", OTHERS)
def test_a_manifest_that_states_something_else_than_its_file_is_damage(field: str, tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 2)
    verify_checkpoint(manifest)
    manifest.manifest_path.write_text(json.dumps({**manifest.model_dump(), field: OTHERS[field]}))
    with pytest.raises(DamagedFileError, match=field):
        verify_checkpoint(read_manifest(manifest.manifest_path))


def test_a_checkpoint_is_an_ordinary_safetensors_file_and_comes_back_bit_for_bit(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 3)
    tensors, values = load_checkpoint(manifest)
    others = load_file(manifest.path)
    assert tensors.keys() == others.keys() and len(tensors) == 5
    assert all(t.dtype == others[n].dtype and torch.equal(t, others[n]) for n, t in tensors.items())
    assert values["step"] == 30
    weights = load_weights(manifest)
    assert sorted(weights) == ["bias", "weight"] and torch.equal(weights["weight"], others["model/weight"])


@pytest.mark.parametrize("part", ["", "optimizer"])
def test_a_tensor_that_is_not_loaded_is_verified_as_well(part: str, tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 1)
    good = manifest.path.read_bytes()
    head = 8 + int.from_bytes(good[:8], "little")
    for place in range(head, len(good), 5):
        _one_bit(manifest.path, place)
        with pytest.raises(DamagedFileError, match="sha256"):
            load_checkpoint(manifest, part=part)
        manifest.path.write_bytes(good)
    load_checkpoint(manifest, part=part)


def test_a_file_that_is_no_checkpoint_is_refused_by_what_it_is(tmp_path: Path) -> None:
    path = write_small(tmp_path, 1).path
    contents = {"file.empty": b"", "file.html_page": b"<html>", "file.torch": b"PK\x03\x04", "checkpoint.missing": None}
    for code, content in contents.items():
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(UserError) as refusal:
            manifest_of(path)
        assert refusal.value.code == code


def test_what_other_files_of_a_folder_hold_is_never_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    secret = json.dumps({"format": "hidden-value", "password": "hidden-value"})
    manifest = write_small(tmp_path, 1)
    for name in ("client_secrets.json", "SEQTRACK_ep1.json.json", ".SEQTRACK_ep0002.json"):
        (tmp_path / name).write_text(secret)
    assert list_checkpoints(tmp_path) == [manifest] and caplog.records == []
    (tmp_path / "SEQTRACK_ep0003.json").write_text(secret)
    for name in ("none.json", *(f"{stem}.safetensors" for stem in ("none", "client_secrets", "SEQTRACK_ep0003"))):
        with pytest.raises(UserError) as refusal:
            manifest_of(tmp_path / name)
        assert [problem.code for problem in refusal.value.problems] == ["checkpoint.missing"]
        assert "hidden-value" not in str(refusal.value) and caplog.records == []
    assert list_checkpoints(tmp_path) == [manifest] and len(caplog.records) == 1, "a checkpoint's own is reported"
    for document in ({"password": "hidden-value"}, ["hidden-value"], "hidden-value"):
        (tmp_path / "client_secrets.json").write_text(json.dumps(document))
        with pytest.raises(DamagedFileError) as damaged:
            manifest_of(tmp_path / "client_secrets.json")
        assert "hidden-value" not in str(damaged.value)


ODD_HEADS: dict[str, Callable[[bytes], bytes]] = {
    "metadata twice": lambda head: head.rstrip()[:-1] + b',"__metadata__":{"state":"{}"}}',
    "state's key twice": lambda head: head.replace(rb"{\"epoch\":2", rb"{\"epoch\":1,\"epoch\":2"),
    "no state": lambda head: head.replace(b'"state"', b'"stale"'),
    "a gap": lambda head: head.replace(b'"data_offsets":[0,', b'"data_offsets":[4,'),
    "deep": lambda head: b'{"a":' * 100_000 + head,
}


@pytest.mark.parametrize("name", ODD_HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    """The same tensors follow it, and the manifest has its digest."""
    manifest = write_small(tmp_path, 2)
    raw = manifest.path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = ODD_HEADS[name](raw[8 : 8 + length])
    data = len(head).to_bytes(8, "little") + head + raw[8 + length :]
    assert data != raw
    manifest.path.write_bytes(data)
    fields = {**manifest.model_dump(), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest.manifest_path.write_text(json.dumps(fields))
    changed = read_manifest(manifest.manifest_path)
    for read in (lambda: read_checkpoint_file(changed.path), lambda: load_weights(changed)):
        with pytest.raises(DamagedFileError) as caught:
            read()
        assert caught.value.code in ("checkpoint.head", "checkpoint.state", "file.unknown")


ODD_MANIFESTS: dict[str, Callable[[bytes], bytes]] = {
    "nested key twice": lambda text: text.replace(b'"parts": {', b'"parts": {"model": "", "model": "",'),
    "NaN": lambda text: text.replace(b'"loss": 2.0', b'"loss": NaN'),
    "deep": lambda text: b"[" * 100_000 + text,
    "true for a number": lambda text: text.replace(b'"epoch": 2', b'"epoch": true'),
    "unknown": lambda text: text.replace(b'"epoch": 2', b'"epoch": 2, "folder": "/"'),
    "another format": lambda text: text.replace(b"checkpoint/1", b"checkpoint/2"),
    "elsewhere": lambda text: text.replace(b'"SEQTRACK_ep', b'"../SEQTRACK_ep'),
}


@pytest.mark.parametrize("name", ODD_MANIFESTS)
def test_a_manifest_of_another_structure_is_refused(tmp_path: Path, name: str) -> None:
    manifest = write_small(tmp_path, 2)
    good = manifest.manifest_path.read_bytes()
    manifest.manifest_path.write_bytes(ODD_MANIFESTS[name](good))
    assert manifest.manifest_path.read_bytes() != good
    with pytest.raises(DamagedFileError) as caught:
        read_manifest(manifest.manifest_path)
    assert caught.value.code == "checkpoint.manifest"
    assert list_checkpoints(tmp_path) == []

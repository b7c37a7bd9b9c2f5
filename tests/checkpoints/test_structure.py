"""Files whose digests match and whose content makes no sense: refused by every reader."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.test_fuzz_checkpoints import new_state, trained_state

from checkpoints.test_damage import write_small
from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_checkpoint_file
from seqtrack.checkpoints.store import Manifest, list_checkpoints, load_weights, read_manifest
from seqtrack.errors import UserError

HEAD = Callable[[bytes], bytes]


def _rewrite(manifest: Manifest, change: HEAD) -> Manifest:
    """Another head before the same tensors, and a manifest with its digest."""
    raw = manifest.path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = change(raw[8 : 8 + length])
    data = len(head).to_bytes(8, "little") + head + raw[8 + length :]
    assert data != raw
    manifest.path.write_bytes(data)
    fields = {**manifest.model_dump(), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest.manifest_path.write_text(json.dumps(fields))
    return read_manifest(manifest.manifest_path)


ODD_HEADS: dict[str, HEAD] = {
    "metadata twice": lambda head: head.rstrip()[:-1] + b',"__metadata__":{"state":"{}"}}',
    "tensor twice": lambda head: head.replace(b'"model/bias":', b'"model/weight":'),
    "key of a tensor twice": lambda head: head.replace(b'"dtype":"BF16"', b'"dtype":"BF16","dtype":"BF16"'),
    "state's key twice": lambda head: head.replace(rb"{\"epoch\":2", rb"{\"epoch\":1,\"epoch\":2"),
    "no state": lambda head: head.replace(b'"state"', b'"stale"'),
    "type as a list": lambda head: head.replace(b'"dtype":"BF16"', b'"dtype":["BF16"]'),
    "unknown type": lambda head: head.replace(b'"dtype":"BF16"', b'"dtype":"B16"'),
    "number of too many digits": lambda head: head.replace(b'"shape":[7]', b'"shape":[' + b"7" * 5000 + b"]"),
    "true for a number": lambda head: head.replace(b'"shape":[0,3]', b'"shape":[false,3]'),
    "shape of another size": lambda head: head.replace(b'"shape":[7]', b'"shape":[8]'),
    "a gap": lambda head: head.replace(b'"data_offsets":[0,', b'"data_offsets":[4,'),
    "NaN": lambda head: head.replace(rb"\"loss\":2.0", rb"\"loss\":NaN"),
    "deep": lambda head: b'{"a":' * 100_000 + head,
    "a list": lambda head: b"[" + head + b"]",
    "blanks first": lambda head: b"  " + head,
    "not UTF-8": lambda head: head.replace(b"weight", b"w\xffight"),
}


@pytest.mark.parametrize("name", ODD_HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    changed = _rewrite(write_small(tmp_path, 2), ODD_HEADS[name])
    for read in (lambda: read_checkpoint_file(changed.path), lambda: load_weights(changed)):
        with pytest.raises(DamagedFileError) as caught:
            read()
        assert caught.value.code in ("checkpoint.head", "checkpoint.state", "file.unknown")


ODD_MANIFESTS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "key twice": ("file.json", lambda text: text[:-2] + b', "epoch": 2}'),
    "nested key twice": ("file.json", lambda text: text.replace(b'"parts": {', b'"parts": {"model": "", "model": "",')),
    "NaN": ("file.json", lambda text: text.replace(b'"loss": 2.0', b'"loss": NaN')),
    "deep": ("file.json", lambda text: b"[" * 100_000 + text),
    "pointer": ("file.lfs_pointer", lambda _: b"version https://git-lfs.github.com/spec/v1\nsize 5\n"),
    "page": ("file.html_page", lambda _: b"<html>"),
    "list": ("file.json", lambda text: b"[" + text + b"]"),
    "true for a number": ("checkpoint.manifest", lambda text: text.replace(b'"epoch": 2', b'"epoch": true')),
    "negative": ("checkpoint.manifest", lambda text: text.replace(b'"step": 20', b'"step": -20')),
    "text for a number": ("checkpoint.manifest", lambda text: text.replace(b'"iou": 0.2', b'"iou": "0.2"')),
    "unknown": ("checkpoint.manifest", lambda text: text.replace(b'"epoch": 2', b'"epoch": 2, "folder": "/"')),
    "another format": ("checkpoint.manifest", lambda text: text.replace(b"checkpoint/1", b"checkpoint/2")),
    "short digest": ("checkpoint.manifest", lambda text: text.replace(b'"' + b"ab" * 32, b'"' + b"ab" * 31)),
    "elsewhere": ("checkpoint.manifest", lambda text: text.replace(b'"SEQTRACK_ep', b'"../SEQTRACK_ep')),
}


@pytest.mark.parametrize("name", ODD_MANIFESTS)
def test_a_manifest_with_a_field_of_another_type_is_refused(tmp_path: Path, name: str) -> None:
    manifest = write_small(tmp_path, 2)
    good = manifest.manifest_path.read_bytes()
    code, change = ODD_MANIFESTS[name]
    manifest.manifest_path.write_bytes(change(good))
    assert change(good) != good
    with pytest.raises(DamagedFileError) as caught:
        read_manifest(manifest.manifest_path)
    assert caught.value.code == code
    assert list_checkpoints(tmp_path) == []


def test_every_problem_of_a_manifest_is_named_at_once(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 2)
    fields = manifest.model_dump() | {"epoch": "2", "loss": [], "extra": 1}
    del fields["sha256"]
    manifest.manifest_path.write_text(json.dumps(fields))
    with pytest.raises(DamagedFileError) as caught:
        read_manifest(manifest.manifest_path)
    assert [field for field in ("epoch", "loss", "extra", "sha256") if field not in str(caught.value)] == []


Tensors = dict[str, torch.Tensor]
ODD_STATES: dict[str, Callable[[Tensors, dict[str, Any]], object]] = {
    "moment's type": lambda t, _: t.update({"optimizer/state/weight/exp_avg": torch.zeros(2, 3, dtype=torch.float64)}),
    "moment's shape": lambda t, _: t.update({"optimizer/state/weight/exp_avg_sq": torch.zeros(3, 2)}),
    "step's shape": lambda t, _: t.update({"optimizer/state/weight/step": torch.zeros(4)}),
    "weights' type": lambda t, _: t.update({"model/weight": torch.zeros(2, 3, dtype=torch.int64)}),
    "weights' name": lambda t, _: t.update({"model/other": t.pop("model/weight")}),
    "generator": lambda t, _: t.update({"rng/0/torch": torch.zeros(3, dtype=torch.uint8)}),
    "a number as a tensor": lambda t, _: t.update({"meters/count": torch.ones(1)}),
    "in a list": lambda t, _: t.update({"optimizer/names/0": torch.ones(1)}),
    "tensor and value": lambda t, _: t.update({"rng/0/numpy": torch.ones(1)}),
    "step": lambda _, v: v.update(step=1.5),
    "sample": lambda _, v: v.update(sample="0"),
    "rng": lambda _, v: v.update(rng=5),
    "Python's generator": lambda _, v: v["rng"]["0"].update(python=[3, [-1] * 625, None]),
    "position": lambda _, v: v["rng"]["0"]["numpy"].__setitem__(2, 10**6),
    "optimizer": lambda _, v: v.update(optimizer=[1]),
    "names": lambda _, v: v["optimizer"].update(names=[7]),
    "scheduler": lambda _, v: v.update(scheduler=None),
    "meters": lambda _, v: v["meters"].update(count=[]),
    "history": lambda _, v: v.update(history={"epochs": {"1": 2}}),
    "record": lambda _, v: v.update(history={"epochs": [5]}),
}


@pytest.mark.parametrize("name", ODD_STATES)
def test_a_state_of_another_structure_is_refused_when_it_is_restored(name: str) -> None:
    tensors, values = trained_state().capture()
    new_state(3).restore(tensors, values)
    ODD_STATES[name](tensors, values)
    with pytest.raises(UserError) as caught:
        new_state(3).restore(tensors, values)
    assert caught.value.code in ("checkpoint.state", "weights.dtype", "weights.missing")

"""Files whose digests are right and whose content makes no sense: refused by every reader, by component and type."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.test_fuzz_checkpoints import new_state, trained_state

from checkpoints.test_damage import write_small
from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_header, read_json_object
from seqtrack.checkpoints.store import (
    Manifest,
    latest_valid,
    list_checkpoints,
    load_weights,
    read_manifest,
    read_values,
    verify_checkpoint,
)
from seqtrack.errors import UserError

HEAD = Callable[[bytes], bytes]


def _rewrite(manifest: Manifest, change: HEAD) -> Manifest:
    """Another head before the same tensors, and a manifest that tells its digest."""
    raw = manifest.path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = change(raw[8 : 8 + length])
    data = len(head).to_bytes(8, "little") + head + raw[8 + length :]
    manifest.path.write_bytes(data)
    told = json.loads(manifest.manifest_path.read_text())
    told |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    manifest.manifest_path.write_text(json.dumps(told))
    return read_manifest(manifest.manifest_path)


def _with_state(**changes: Any) -> HEAD:
    def change(head: bytes) -> bytes:
        tree = json.loads(head)
        state = json.loads(tree["__metadata__"]["state"]) | changes
        tree["__metadata__"]["state"] = json.dumps(state)
        return json.dumps(tree).encode()

    return change


NUMPY = {"kind": "MT19937", "position": 5, "has_gauss": 0, "cached": 0.0}
ODD_STATES: dict[str, dict[str, Any]] = {
    "rng": {"rng": 5},
    "model": {"model": 3},
    "model list": {"model": []},
    "optimizer": {"optimizer": [1]},
    "groups": {"optimizer": {"groups": {}, "state": {}}},
    "group": {"optimizer": {"groups": [7]}},
    "rate": {"optimizer": {"groups": [{"names": [], "lr": "x", "weight_decay": 0.1, "betas": [0.9]}]}},
    "state of a parameter": {"optimizer": {"groups": [], "state": {"a": 5}}},
    "scheduler": {"scheduler": None},
    "step_count": {"scheduler": {"step_count": True}},
    "scaler": {"scaler": {"scale": "big"}},
    "meters": {"meters": {"count": []}},
    "history": {"history": {"epochs": {"1": 2}}},
    "record": {"history": {"epochs": [5]}},
    "loss": {"history": {"epochs": [{"loss": {}}]}},
    "rank": {"rng": {"0": []}},
    "name of a rank": {"rng": {"zero": {}}},
    "position": {"rng": {"0": {"python": {"version": 3, "gauss": None}, "numpy": NUMPY | {"position": 10**6}}}},
    "epoch": {"epoch": -1},
    "step": {"step": 1.5},
    "sample": {"sample": "0"},
}


@pytest.mark.parametrize("name", ODD_STATES)
def test_a_state_of_another_structure_is_refused_by_its_component_and_skipped(tmp_path: Path, name: str) -> None:
    older, newer = write_small(tmp_path, 1), write_small(tmp_path, 2)
    assert latest_valid(list_checkpoints(tmp_path)) == newer, "the negative control"
    changed = _rewrite(newer, _with_state(**ODD_STATES[name]))
    for read in (verify_checkpoint, lambda manifest: read_values(manifest.path, read_header(manifest.path))):
        with pytest.raises(DamagedFileError, match=f"state component {next(iter(ODD_STATES[name]))}") as caught:
            read(changed)
        assert caught.value.code == "checkpoint.state"
    assert latest_valid(list_checkpoints(tmp_path)) == older


def _twice(head: bytes) -> bytes:
    return head.rstrip()[:-1] + b',"__metadata__":{"state":"{}"}}'


ODD_HEADS: dict[str, HEAD] = {
    "metadata twice": _twice,
    "tensor twice": lambda head: head.replace(b'"model/bias":', b'"model/weight":'),
    "key of a tensor twice": lambda head: head.replace(b'"dtype":"BF16"', b'"dtype":"BF16","dtype":"BF16"'),
    "state's key twice": lambda head: head.replace(rb"{\"epoch\":2", rb"{\"epoch\":1,\"epoch\":2"),
    "type as a list": lambda head: head.replace(b'"dtype":"BF16"', b'"dtype":["BF16"]'),
    "type as an object": lambda head: head.replace(b'"dtype":"BF16"', b'"dtype":{"BF16":2}'),
    "number of too many digits": lambda head: head.replace(b'"shape":[7]', b'"shape":[' + b"7" * 5000 + b"]"),
    "true for a number": lambda head: head.replace(b'"shape":[0,3]', b'"shape":[false,3]'),
    "NaN": lambda head: head.replace(rb"\"loss\":2.0", rb"\"loss\":NaN"),
    "deep": lambda head: b'{"a":' * 100_000 + head,
    "a list": lambda head: b"[" + head + b"]",
    "blanks first": lambda head: b"  " + head,
    "byte order mark": lambda head: b"\xef\xbb\xbf" + head,
    "not UTF-8": lambda head: head.replace(b"weight", b"w\xffight"),
}


@pytest.mark.parametrize("name", ODD_HEADS)
def test_a_head_that_can_be_read_in_two_ways_is_refused_by_every_reader(tmp_path: Path, name: str) -> None:
    manifest = write_small(tmp_path, 2)
    before = manifest.path.read_bytes()
    changed = _rewrite(manifest, ODD_HEADS[name])
    assert manifest.path.read_bytes() != before
    with pytest.raises(DamagedFileError) as caught:
        read_values(changed.path, read_header(changed.path))
    assert caught.value.code in ("checkpoint.head", "checkpoint.state", "checkpoint.damaged")
    with pytest.raises(UserError) as refused:
        load_weights(changed)
    assert refused.value.code == caught.value.code


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
    "null": ("checkpoint.manifest", lambda text: text.replace(b'"iou": 0.2', b'"bytes": null, "iou": 0.2', 1)),
    "unknown": ("checkpoint.manifest", lambda text: text.replace(b'"epoch": 2', b'"epoch": 2, "folder": "/"')),
    "another format": ("checkpoint.manifest", lambda text: text.replace(b"checkpoint/1", b"checkpoint/2")),
    "short digest": ("checkpoint.manifest", lambda text: text.replace(b'"' + b"ab" * 32, b'"' + b"ab" * 31)),
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
    assert caught.value.code in (code, "file.json")
    assert list_checkpoints(tmp_path) == []
    if code != "checkpoint.manifest":  # what has no manifest's fields to check
        with pytest.raises(DamagedFileError):
            read_json_object(manifest.manifest_path)


def test_every_problem_of_a_manifest_is_named_at_once(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 2)
    told = json.loads(manifest.manifest_path.read_text()) | {"epoch": "2", "loss": [], "extra": 1}
    del told["sha256"]
    manifest.manifest_path.write_text(json.dumps(told))
    with pytest.raises(DamagedFileError) as caught:
        read_manifest(manifest.manifest_path)
    for field in ("epoch", "loss", "extra", "sha256"):
        assert field in str(caught.value)


def test_a_manifest_that_tells_other_digests_of_components_is_damage(tmp_path: Path) -> None:
    manifest = write_small(tmp_path, 2)
    told = json.loads(manifest.manifest_path.read_text())
    for changes in ({"weights_sha256": "0" * 64}, {"parts": told["parts"] | {"rng": "0" * 64}}, {"parts": {}}):
        manifest.manifest_path.write_text(json.dumps(told | changes))
        with pytest.raises(DamagedFileError):
            verify_checkpoint(read_manifest(manifest.manifest_path))


ODD_TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], None]] = {
    "moment's type": lambda t: t.update({"optimizer/state/weight/exp_avg": torch.zeros(2, 3, dtype=torch.float64)}),
    "moment's shape": lambda t: t.update({"optimizer/state/weight/exp_avg_sq": torch.zeros(3, 2)}),
    "step's shape": lambda t: t.update({"optimizer/state/weight/step": torch.zeros(4)}),
    "weights' type": lambda t: t.update({"model/weight": torch.zeros(2, 3, dtype=torch.int64)}),
    "weights' name": lambda t: t.update({"model/other": t.pop("model/weight")}),
    "generator": lambda t: t.update({"rng/0/torch": torch.zeros(3, dtype=torch.uint8)}),
    "words": lambda t: t.update({"rng/0/python/words": torch.full((625,), -1)}),
    "a number as a tensor": lambda t: t.update({"meters/count": torch.ones(1)}),
    "in a list": lambda t: t.update({"optimizer/groups/0": torch.ones(1)}),
    "next to a value": lambda t: t.update({"rng/0/numpy/position": torch.ones(1)}),
}


@pytest.mark.parametrize("name", ODD_TENSORS)
def test_tensors_of_another_type_or_place_are_refused_when_the_state_is_put_back(name: str) -> None:
    tensors, values = trained_state().capture()
    new_state(3).restore(tensors, values)
    ODD_TENSORS[name](tensors)
    with pytest.raises(UserError) as caught:
        new_state(3).restore(tensors, values)
    assert caught.value.code in ("checkpoint.state", "weights.dtype", "weights.missing", "user.error")

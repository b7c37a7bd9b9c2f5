"""Damaged manifests and checkpoint files: each is refused with a code, or loads what it held before."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints.test_damage import DESCRIBE, write_small
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from fuzz.mutations import cases, counts
from seqtrack.checkpoints.safetensors_io import DamagedFileError, canonical_json, read_checkpoint_file
from seqtrack.checkpoints.store import (
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    read_manifest,
    write_checkpoint,
)
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.config.schema import Train
from seqtrack.errors import UserError
from seqtrack.training.optimizer import NamedOptimizer, Schedule
from seqtrack.training.state import RandomStates, TrainState

# A valid input, whether it is JSON, and what a reader makes of a damaged one.
Target = tuple[bytes, bool, Callable[[bytes], str]]


def _is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _newest_of_two(folder: Path, kind: str) -> Target:
    """What a start of a run makes of two checkpoints of which the newer has a damaged file or manifest."""
    older, newer = write_small(folder, 1), write_small(folder, 2)
    tensors, values = load_checkpoint(newer)
    damaged = newer.manifest_path if kind == "manifest" else newer.path

    def check(data: bytes) -> str:
        damaged.write_bytes(data)
        found = latest_valid(list_checkpoints(folder))
        assert found is not None, "the older checkpoint was lost"
        if found.file == older.file:
            return "refused"
        for name in ("kind", "epoch", "step", "sample", "file", "bytes", "sha256"):
            assert getattr(found, name) == getattr(newer, name), name
        loaded, loaded_values = load_checkpoint(found)
        assert loaded_values == values and _is_same(loaded, tensors)
        return "same"

    return damaged.read_bytes(), kind == "manifest", check


def new_state(seed: int) -> TrainState:
    """A whole training state around a model of two tensors."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = NamedOptimizer(model, Train())
    schedule, scaler = Schedule(optimizer, Train(), 10), GradScaler("cpu", enabled=True)
    return TrainState(model, optimizer, schedule, scaler, RandomStates(0))


def trained_state() -> TrainState:
    state = new_state(1)
    state.model(torch.ones(1, 3)).sum().backward()
    state.optimizer.inner.step()
    state.epoch, state.step = 2, 20
    state.meters.add(4.0, 1.0, 8, 0.5)
    state.history = [{"epoch": n, "loss": 2.0 / n, "iou": 0.1 * n, "lr": [1e-4, 1e-5]} for n in (1, 2)]
    return state


def _edited_state(folder: Path, kind: str) -> Target:
    """The JSON of a training state, edited by someone who gave the file all its digests, and restored."""
    tensors, values = trained_state().capture()
    facts = {"kind": "epoch", "epoch": 2, "step": 20, "sample": 0, "loss": 1.0, "iou": 0.2}
    stored = {name: tensor_bytes(value) for name, value in tensors.items()}
    path = folder / "SEQTRACK_ep0002.safetensors"
    manifest = write_checkpoint(path, stored, values, describe={**DESCRIBE, **facts})
    raw, fields = path.read_bytes(), json.loads(manifest.manifest_path.read_text())
    length = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + length])

    def check(data: bytes) -> str:
        edited = json.dumps({**head, "__metadata__": {"state": data.decode("latin-1")}}).encode()
        path.write_bytes(len(edited).to_bytes(8, "little") + edited + raw[8 + length :])
        digests = {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        fresh = new_state(3)
        try:
            digests["parts"] = read_checkpoint_file(path).parts
            manifest.manifest_path.write_text(json.dumps({**fields, **digests}))
            fresh.restore(*load_checkpoint(read_manifest(manifest.manifest_path)))
        except (DamagedFileError, UserError):
            return "refused"
        restored, restored_values = fresh.capture()
        fresh.optimizer.inner.step()
        is_same = canonical_json(restored_values) == canonical_json(values) and _is_same(restored, tensors)
        return "same" if is_same else "another state"

    original = canonical_json(values).encode()
    assert check(original) == "same", "the negative control"
    return original, True, check


TARGETS = {"manifest": _newest_of_two, "file": _newest_of_two, "state": _edited_state}


@counts(40, 1200)
@pytest.mark.parametrize("kind", TARGETS)
def test_damaged_inputs_are_refused_or_load_what_they_held(kind: str, count: int, tmp_path: Path) -> None:
    original, is_json, check = TARGETS[kind](tmp_path, kind)
    outcomes: Counter[str] = Counter()
    for number, data in cases([original], count, is_json=is_json):
        try:
            outcomes[check(data)] += 1
        except Exception as error:
            raise AssertionError(f"input {number} of {kind}: {error!r}") from error
    assert outcomes["refused"] > count // 3, outcomes

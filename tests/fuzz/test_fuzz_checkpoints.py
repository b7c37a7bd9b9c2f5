"""Damaged manifests, checkpoint files and archives: each is refused with a code, or loads what it held before.

No traceback, no hang, and never a wrong load. The old format of torch.save has no checksum; there, shapes and types
must be right.
"""

import contextlib
import hashlib
import io
import json
import zipfile
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
    Manifest,
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    read_manifest,
    write_checkpoint,
)
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.config.schema import Train
from seqtrack.errors import UserError
from seqtrack.model.authors import read_authors_file
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


def _with_digest(manifest: Manifest, *, parts: bool) -> Manifest:
    """The manifest of a file that was changed by someone who gave it the file's digest, or all digests."""
    fields, data = json.loads(manifest.manifest_path.read_text()), manifest.path.read_bytes()
    fields |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    with contextlib.suppress(DamagedFileError):
        fields["parts"] = read_checkpoint_file(manifest.path).parts if parts else fields["parts"]
    manifest.manifest_path.write_text(json.dumps(fields))
    return read_manifest(manifest.manifest_path)


def _with_a_right_digest(folder: Path, kind: str) -> Target:
    """The JSON before the tensors, or the state in it, put into a training state."""
    tensors, values = trained_state().capture()
    facts = {"kind": "epoch", "epoch": 2, "step": 20, "sample": 0, "loss": 1.0, "iou": 0.2}
    stored = {name: tensor_bytes(value) for name, value in tensors.items()}
    path = folder / "SEQTRACK_ep0002.safetensors"
    manifest = write_checkpoint(path, stored, values, describe={**DESCRIBE, **facts})
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = raw[8 : 8 + length]

    def check(data: bytes, *, parts: bool = False) -> str:
        if kind == "state":
            data = json.dumps({**json.loads(head), "__metadata__": {"state": data.decode("latin-1")}}).encode()
        path.write_bytes(len(data).to_bytes(8, "little") + data + raw[8 + length :])
        fresh = new_state(3)
        try:
            fresh.restore(*load_checkpoint(_with_digest(manifest, parts=parts)))
        except (DamagedFileError, UserError):
            return "refused"
        restored, restored_values = fresh.capture()
        is_same = canonical_json(restored_values) == canonical_json(values) and _is_same(restored, tensors)
        fresh.optimizer.inner.step()
        assert parts or is_same
        return "same" if is_same else "another state"

    original = canonical_json(values).encode() if kind == "state" else head
    assert check(original) == "same", "the negative control"
    if kind == "head":
        return original, True, check
    return original, True, lambda data: (check(data), check(data, parts=True))[1]


def _authors_file(folder: Path, kind: str) -> Target:
    """An archive of torch.save, its old format, or the pickle alone in an archive that is good."""
    draw = torch.Generator().manual_seed(4)
    net = {"a.weight": torch.randn(4, 6, generator=draw), "a.bias": torch.randn(6, generator=draw)}
    saved, content = io.BytesIO(), {"epoch": 3, "net": net, "stats": {"loss": [1.0, None]}}
    torch.save(content, saved, _use_new_zipfile_serialization=kind != "old format")
    members: dict[str, bytes] = {}
    if kind == "pickle":
        with zipfile.ZipFile(saved) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    place = next((name for name in members if name.endswith("data.pkl")), "")
    path = folder / "x.pth.tar"

    def check(data: bytes) -> str:
        path.write_bytes(data)
        if members:
            with zipfile.ZipFile(path, "w") as archive:
                for name, member in {**members, place: data}.items():
                    archive.writestr(name, member)
        try:
            weights, epoch = read_authors_file(path, net, skip_objects=True)
        except UserError as error:
            assert all(problem.code != "user.error" for problem in error.problems)
            return "refused"
        if (epoch, _is_same(weights, net)) == (3, True):
            return "same"
        assert kind != "zip", "a wrong load"
        assert type(epoch) is int and epoch >= 0
        assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in net.items()}
        assert all(value.dtype == torch.float32 and bool(torch.isfinite(value).all()) for value in weights.values())
        return "no checksum"

    return members.get(place, saved.getvalue()), False, check


TARGETS: dict[str, Callable[[Path, str], Target]] = {
    **dict.fromkeys(("manifest", "file"), _newest_of_two),
    **dict.fromkeys(("head", "state"), _with_a_right_digest),
    **dict.fromkeys(("zip", "old format", "pickle"), _authors_file),
}


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

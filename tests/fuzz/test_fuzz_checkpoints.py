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
from typing import Any

import pytest
import torch
from checkpoints.test_damage import DESCRIBE, write_small
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from fuzz.mutations import cases
from seqtrack.checkpoints.safetensors_io import DamagedFileError, canonical_json, read_checkpoint_file
from seqtrack.checkpoints.store import (
    Manifest,
    latest_valid,
    list_checkpoints,
    load_checkpoint,
    manifest_of,
    read_manifest,
    write_checkpoint,
)
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.config.schema import Train
from seqtrack.errors import UserError
from seqtrack.model.authors import read_authors_file
from seqtrack.training.optimizer import NamedOptimizer, Schedule
from seqtrack.training.state import RandomStates, TrainState

SHORT, LONG = 40, 1200
# Fields of a manifest that describe the state; the others may differ without an effect on the load.
FACTS = ("kind", "epoch", "step", "sample", "file", "bytes", "sha256", "weights_sha256", "parts", "loss", "iou")


def new_state(seed: int) -> TrainState:
    """A whole training state around a model of two tensors."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    optimizer = NamedOptimizer(model, Train())
    scaler = GradScaler("cpu", enabled=True)
    return TrainState(model, optimizer, Schedule(optimizer, Train(), 10), scaler, RandomStates(0))


def trained_state() -> TrainState:
    state = new_state(1)
    state.model(torch.ones(1, 3)).sum().backward()
    state.optimizer.inner.step()
    state.epoch, state.step = 2, 20
    state.meters.add(4.0, 1.0, 8, 0.5)
    state.history = [{"epoch": n, "loss": 2.0 / n, "iou": 0.1 * n, "lr": [1e-4, 1e-5]} for n in (1, 2)]
    return state


def _is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


class _Pair:
    """An older checkpoint, and a newer one that is damaged again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.older, self.newer = write_small(folder, 1), write_small(folder, 2)
        self.good = self.newer.path.read_bytes(), self.newer.manifest_path.read_bytes()
        self.tensors, self.values = load_checkpoint(self.newer)

    def loads(self, file_bytes: bytes, manifest: bytes) -> str:
        """What a start of a run makes of these two files."""
        self.newer.path.write_bytes(file_bytes)
        self.newer.manifest_path.write_bytes(manifest)
        found = latest_valid(list_checkpoints(self.folder))
        assert found is not None, "the older checkpoint was lost"
        try:
            manifest_of(self.newer.path)
        except UserError as error:
            assert error.code != "user.error"
        if found.file == self.older.file:
            return "skipped"
        for name in FACTS[:7]:
            assert getattr(found, name) == getattr(self.newer, name), name
        tensors, values = load_checkpoint(found)
        assert values == self.values
        assert _is_same(tensors, self.tensors)
        return "same"


def _manifests(folder: Path) -> tuple[list[bytes], bool, Callable[[bytes], str]]:
    pair = _Pair(folder)
    return [pair.good[1]], True, lambda data: pair.loads(pair.good[0], data)


def _files(folder: Path) -> tuple[list[bytes], bool, Callable[[bytes], str]]:
    pair = _Pair(folder)
    return [pair.good[0]], False, lambda data: pair.loads(data, pair.good[1])


def _with_digest(manifest: Manifest, file_bytes: bytes, *, digests: bool = False) -> Manifest:
    """The manifest of a file that was changed by someone who gave it the file's digest, or all `digests`."""
    manifest.path.write_bytes(file_bytes)
    fields = json.loads(manifest.manifest_path.read_text())
    fields |= {"sha256": hashlib.sha256(file_bytes).hexdigest(), "bytes": len(file_bytes)}
    with contextlib.suppress(DamagedFileError):
        fields["parts"] = read_checkpoint_file(manifest.path).parts if digests else fields["parts"]
    manifest.manifest_path.write_text(json.dumps(fields))
    return read_manifest(manifest.manifest_path)


def _heads(folder: Path) -> tuple[list[bytes], bool, Callable[[bytes], str]]:
    """The JSON before the tensors, in a file whose digest is right."""
    manifest = write_small(folder, 2)
    raw = manifest.path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    tensors, _ = load_checkpoint(manifest)

    def check(head: bytes) -> str:
        changed = _with_digest(manifest, len(head).to_bytes(8, "little") + head + raw[8 + length :])
        try:
            loaded, _ = load_checkpoint(changed)
        except (DamagedFileError, UserError):
            return "refused"
        assert _is_same(loaded, tensors)
        return "same"

    return [raw[8 : 8 + length]], True, check


def _states(folder: Path) -> tuple[list[bytes], bool, Callable[[bytes], str]]:
    """The state's JSON, in a file whose digest is right, put into a training state."""
    tensors, values = trained_state().capture()
    original = new_state(3)
    facts = {"kind": "epoch", "epoch": 2, "step": 20, "sample": 0, "loss": 1.0, "iou": 0.2}
    manifest = write_checkpoint(
        folder / "SEQTRACK_ep0002.safetensors", {name: tensor_bytes(value) for name, value in tensors.items()}, values,
        describe={**DESCRIBE, **facts},
    )  # fmt: skip
    raw = manifest.path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    head = json.loads(raw[8 : 8 + length])

    def check(state: bytes, *, digests: bool = False) -> str:
        text = json.dumps({**head, "__metadata__": {"state": state.decode("latin-1")}}).encode()
        changed = _with_digest(manifest, len(text).to_bytes(8, "little") + text + raw[8 + length :], digests=digests)
        try:
            fresh = new_state(3)
            fresh.restore(*load_checkpoint(changed))
        except (DamagedFileError, UserError):
            return "refused"
        fresh_values = fresh.capture()[1]
        fresh.optimizer.inner.step()
        assert digests or canonical_json(fresh_values) == canonical_json(values)
        return "same" if canonical_json(fresh_values) == canonical_json(values) else "another state"

    assert check(canonical_json(values).encode()) == "same", "the negative control"
    assert not _is_same(original.capture()[0], tensors)
    return [canonical_json(values).encode()], True, lambda data: (check(data), check(data, digests=True))[1]


def _net() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return {"a.weight": torch.randn(4, 6, generator=draw), "a.bias": torch.randn(6, generator=draw)}


def _file(as_zip: bool) -> bytes:
    data = io.BytesIO()
    torch.save({"epoch": 3, "net": _net(), "stats": {"loss": [1.0, None]}}, data, _use_new_zipfile_serialization=as_zip)
    return data.getvalue()


def _import(folder: Path, data: bytes, *, checked: bool) -> str:
    path = folder / "x.pth.tar"
    path.write_bytes(data)
    try:
        weights, epoch = read_authors_file(path, _net(), skip_objects=True)
    except UserError as error:
        assert all(problem.code != "user.error" for problem in error.problems)
        return "refused"
    assert type(epoch) is int and epoch >= 0
    if (epoch, _is_same(weights, _net())) == (3, True):
        return "same"
    assert not checked, "a wrong load"
    assert {name: value.shape for name, value in weights.items()} == {n: v.shape for n, v in _net().items()}
    assert all(value.dtype == torch.float32 and bool(torch.isfinite(value).all()) for value in weights.values())
    return "no checksum"


def _zips(folder: Path) -> tuple[list[bytes], bool, Callable[[bytes], str]]:
    return [_file(True)], False, lambda data: _import(folder, data, checked=True)


def _old_files(folder: Path) -> tuple[list[bytes], bool, Callable[[bytes], str]]:
    return [_file(False)], False, lambda data: _import(folder, data, checked=False)


def _pickles(folder: Path) -> tuple[list[bytes], bool, Callable[[bytes], str]]:
    """The pickle alone, in an archive that is good."""
    with zipfile.ZipFile(io.BytesIO(_file(True))) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (place,) = (name for name in members if name.endswith("data.pkl"))

    def check(data: bytes) -> str:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, data if name == place else content)
        return _import(folder, packed.getvalue(), checked=False)

    return [members[place]], False, check


TARGETS: dict[str, Callable[[Path], tuple[list[bytes], bool, Callable[[bytes], Any]]]] = {
    "manifest": _manifests, "file": _files, "head": _heads, "state": _states, "zip": _zips,
    "old format": _old_files, "pickle": _pickles,
}  # fmt: skip


def _fuzz(folder: Path, target: str, count: int) -> Counter[str]:
    originals, is_json, check = TARGETS[target](folder)
    outcomes: Counter[str] = Counter()
    for number, data in cases(originals, count, is_json=is_json):
        try:
            outcomes[check(data)] += 1
        except Exception as error:
            raise AssertionError(f"input {number} of {target}: {error!r}") from error
    assert sum(outcomes.values()) == count
    return outcomes


@pytest.mark.parametrize("target", TARGETS)
def test_damaged_inputs_are_refused_or_load_what_they_held(target: str, tmp_path: Path) -> None:
    outcomes = _fuzz(tmp_path, target, SHORT)
    assert outcomes["refused"] + outcomes["skipped"] > SHORT // 3, outcomes


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("target", TARGETS)
def test_many_damaged_inputs_are_refused_or_load_what_they_held(target: str, tmp_path: Path) -> None:
    print(f"{target}: {dict(_fuzz(tmp_path, target, LONG))}")

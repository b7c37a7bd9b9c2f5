"""A checkpoint holds everything that the rest of a run depends on, and no component can be lost unnoticed."""

import random
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzz.test_fuzz_checkpoints import new_state, trained_state
from runs import assert_same_run
from torch import Tensor, nn

from seqtrack.checkpoints.store import load_checkpoint
from seqtrack.errors import UserError
from seqtrack.reports.compare import compare_runs
from seqtrack.runtime.stop import StopRequest
from seqtrack.training.state import TrainState
from training.harness import Run

PARTS = [field.name for field in fields(TrainState)]
SCORES = ("auc", "op50", "op75", "p20", "p_norm", "mean_iou", "sequences", "frames", "fps")
CUT, NEXT = 8, 9  # inside epoch 2 of 6 steps each


def _draws(_model: nn.Module, _stop: StopRequest) -> dict[str, float]:
    """Scores drawn from the global generators, so that training would change if it used them."""
    drawn = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
    return dict.fromkeys(SCORES, drawn)


@pytest.fixture(scope="module")
def uninterrupted(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in one process, with its state after two steps inside an epoch saved on the way."""
    run = Run(tmp_path_factory.mktemp("engine") / "uninterrupted", demo_data, validate=_draws)
    assert not run.until(CUT)
    assert not run.until(NEXT)
    assert run.until(None)
    return run


def _resumed_without(part: str | None, uninterrupted: Run, folder: Path, data: Path) -> Run:
    """The run resumed at the cut, with one state component as in a fresh run."""
    tensors, values = load_checkpoint(uninterrupted.at(CUT))
    for name in ("checkpoints/SEQTRACK_ep0001.safetensors", "checkpoints/SEQTRACK_ep0001.json", "logs/metrics.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(uninterrupted.folder / name, folder / name)
    if part is not None:
        fresh_tensors, fresh_values = Run(folder.parent / "fresh", data).state.capture()
        tensors = {name: one for name, one in tensors.items() if not name.startswith(f"{part}/")}
        tensors |= {name: one for name, one in fresh_tensors.items() if name.startswith(f"{part}/")}
        if part in fresh_values:
            values[part] = fresh_values[part]
    parent = uninterrupted.at(CUT).parent_sha256
    run = Run(folder, data, state=(tensors, values), resume_step=CUT, parent=parent, validate=_draws)
    run.until(max(run.state.step + 1, 1) if part == "step" else NEXT)
    run.until(None)
    return run


def test_a_restored_state_continues_as_the_uninterrupted(uninterrupted: Run, demo_data: Path, tmp_path: Path) -> None:
    assert sorted(uninterrupted.at(CUT).parts) == sorted([*PARTS, "lineage"]), "every field of the state is saved"
    resumed = _resumed_without(None, uninterrupted, tmp_path / "run", demo_data)
    assert resumed.at(NEXT).sha256 == uninterrupted.at(NEXT).sha256
    assert_same_run(resumed.folder, uninterrupted.folder)
    assert all(one.same for one in compare_runs(resumed.folder, uninterrupted.folder).epochs)


@pytest.mark.parametrize("part", PARTS)
def test_the_comparison_names_a_component_that_is_not_restored(
    part: str, uninterrupted: Run, demo_data: Path, tmp_path: Path
) -> None:
    resumed = _resumed_without(part, uninterrupted, tmp_path / "run", demo_data)
    comparison = compare_runs(uninterrupted.folder, resumed.folder)
    assert comparison.verdict == "differs"
    assert comparison.first_difference is not None
    # A component that is reset at an epoch's end leaves its trace in the history.
    expected = {"meters": "history", "sample": "step", "epoch": "step"}.get(part, part)
    named = {difference.partition(" (")[0] for one in comparison.epochs for difference in one.differences}
    assert expected in named, named


ODD_STATES: dict[str, Callable[[dict[str, Tensor], dict[str, Any]], object]] = {  # others: tests/fuzz
    "moment's type": lambda t, _: t.update({"optimizer/state/weight/exp_avg": torch.zeros(2, 3, dtype=torch.float64)}),
    "moment's shape": lambda t, _: t.update({"optimizer/state/weight/exp_avg_sq": torch.zeros(3, 2)}),
    "another model": lambda t, _: t.update({"model/other": t.pop("model/weight")}),
    "generator": lambda t, _: t.update({"rng/0/torch": torch.zeros(3, dtype=torch.uint8)}),
    "a number as a tensor": lambda t, _: t.update({"meters/count": torch.ones(1)}),
    "step": lambda _, v: v.update(step=1.5),
    "names": lambda _, v: v["optimizer"].update(names=[7]),
    "unknown": lambda _, v: v.update(momentum=1),
}


@pytest.mark.parametrize("name", [*ODD_STATES, *(f"no {part}" for part in PARTS if part != "model")])
def test_a_state_of_another_structure_or_without_a_component_is_refused(name: str) -> None:
    tensors, values = trained_state().capture()
    new_state(3).restore(tensors, values)
    if part := name.removeprefix("no ") if name.startswith("no ") else "":
        del values[part]
        tensors = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] != part}
    else:
        ODD_STATES[name](tensors, values)
    with pytest.raises(UserError, match=part) as caught:
        new_state(3).restore(tensors, values)
    assert caught.value.code in ("checkpoint.state", "weights.dtype", "weights.missing")

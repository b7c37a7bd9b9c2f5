"""A checkpoint holds everything that the rest of a run depends on, and no component can be lost unnoticed."""

import random
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import assert_same_run
from torch import nn

from seqtrack.checkpoints.safetensors_io import read_checkpoint_file
from seqtrack.checkpoints.store import list_checkpoints
from seqtrack.errors import UserError
from seqtrack.reports.compare import compare_runs
from seqtrack.runtime.stop import StopRequest
from seqtrack.training.state import Meters, TrainState
from training.harness import Run, saved

PARTS = [field.name for field in fields(TrainState)]
SCORES = ("auc", "op50", "op75", "p20", "p_norm", "mean_iou", "sequences", "frames", "fps")
CUT, NEXT = 8, 9  # inside epoch 2 of 6 steps each


def _draws(_model: nn.Module, _stop: StopRequest) -> dict[str, float]:
    """Scores drawn from the global generators, so that training would change if it used them."""
    drawn = random.random() + float(np.random.rand()) + float(torch.rand(()))  # noqa: NPY002
    return dict.fromkeys(SCORES, drawn)


@pytest.fixture(scope="module")
def whole(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was never stopped."""
    run = Run(tmp_path_factory.mktemp("engine") / "whole", demo_data, validate=_draws)
    assert run.until(None)
    return run


@pytest.fixture(scope="module")
def uninterrupted(whole: Run, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same, with its state after two steps inside an epoch saved on the way."""
    run = Run(tmp_path_factory.mktemp("engine") / "uninterrupted", demo_data, validate=_draws)
    assert not run.until(CUT)
    assert not run.until(NEXT)
    assert run.until(None)
    assert_same_run(run.folder, whole.folder)
    return run


def _resumed_without(part: str | None, uninterrupted: Run, folder: Path, data: Path) -> Run:
    """The run resumed at the cut, with one state component as in a fresh run."""
    tensors, values = saved(uninterrupted.at(CUT))
    (folder / "logs").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    for name in ("SEQTRACK_ep0001.safetensors", "SEQTRACK_ep0001.json"):
        shutil.copy(uninterrupted.folder / "checkpoints" / name, folder / "checkpoints" / name)
    shutil.copy(uninterrupted.folder / "logs" / "metrics.jsonl", folder / "logs" / "metrics.jsonl")
    if part is not None:
        fresh_tensors, fresh_values = Run(folder.parent / "fresh", data).state.capture()
        tensors = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] != part}
        tensors |= {name: tensor for name, tensor in fresh_tensors.items() if name.split("/")[0] == part}
        if part in fresh_values:
            values[part] = fresh_values[part]
    run = Run(
        folder,
        data,
        state=(tensors, values),
        resume_step=CUT,
        parent=uninterrupted.at(CUT).parent_sha256,
        validate=_draws,
    )
    run.until(max(run.state.step + 1, 1) if part == "step" else NEXT)
    run.until(None)
    return run


def test_a_restored_state_continues_as_the_uninterrupted(uninterrupted: Run, demo_data: Path, tmp_path: Path) -> None:
    resumed = _resumed_without(None, uninterrupted, tmp_path / "run", demo_data)
    assert resumed.at(NEXT).sha256 == uninterrupted.at(NEXT).sha256
    assert_same_run(resumed.folder, uninterrupted.folder)
    assert compare_runs(resumed.folder, uninterrupted.folder).verdict == "identical"


@pytest.mark.parametrize("part", PARTS)
def test_the_comparison_names_a_component_that_is_not_restored(
    part: str, uninterrupted: Run, demo_data: Path, tmp_path: Path
) -> None:
    resumed = _resumed_without(part, uninterrupted, tmp_path / "run", demo_data)
    comparison = compare_runs(uninterrupted.folder, resumed.folder)
    assert comparison.verdict == "differs"
    assert comparison.first_difference is not None
    ours, theirs = (
        read_checkpoint_file(manifest.path).parts
        for manifest in (list_checkpoints(resumed.folder / "checkpoints", kinds=("step",))[-1], uninterrupted.at(NEXT))
    )
    assert part in {name for name in ours if ours[name] != theirs[name]}
    # A component that is reset at an epoch's end leaves its trace in the history.
    expected = {"meters": "history", "sample": "step", "epoch": "step"}.get(part, part)
    named = " ".join(difference for one in comparison.epochs for difference in one.differences)
    assert expected in named, named


def test_every_field_of_the_state_is_saved(uninterrupted: Run) -> None:
    assert sorted(uninterrupted.at(CUT).parts) == sorted(PARTS)


@pytest.mark.parametrize("part", [part for part in PARTS if part != "model"])
def test_a_checkpoint_that_lacks_a_component_is_refused_by_its_name(
    part: str, uninterrupted: Run, demo_data: Path, tmp_path: Path
) -> None:
    tensors, values = saved(uninterrupted.at(CUT))
    del values[part]
    tensors = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] != part}
    with pytest.raises(UserError, match=f"\\['{part}'\\]") as refusal:
        Run(tmp_path / "run", demo_data, state=(tensors, values))
    assert refusal.value.code == "checkpoint.state"


def test_a_checkpoint_with_an_unknown_component_or_of_another_model_is_refused(
    uninterrupted: Run, demo_data: Path, tmp_path: Path
) -> None:
    tensors, values = saved(uninterrupted.at(CUT))
    with pytest.raises(UserError, match=r"\['momentum'\]") as refusal:
        Run(tmp_path / "run", demo_data, state=(tensors, {**values, "momentum": 1}))
    assert refusal.value.code == "checkpoint.state"
    with pytest.raises(UserError) as refusal:
        Run(tmp_path / "run", demo_data, {"MODEL.HIDDEN_DIM": "64"}, state=(tensors, values))
    assert "weights.other_model" in [problem.code for problem in refusal.value.problems]


def test_generator_states_are_restored_on_the_cpu(uninterrupted: Run) -> None:
    uninterrupted.state.rng.of_ranks = {}
    tensors, values = uninterrupted.state.capture()
    expected = _draws(uninterrupted.state.model, uninterrupted.stop)
    assert _draws(uninterrupted.state.model, uninterrupted.stop) != expected
    uninterrupted.state.restore(tensors, values)
    assert _draws(uninterrupted.state.model, uninterrupted.stop) == expected
    moved = {name: tensor for name, tensor in tensors.items() if name.startswith("rng/")}
    assert moved and all(tensor.device.type == "cpu" for tensor in moved.values())


def test_meters_are_means_over_samples_not_over_batches_nor_the_last_batch() -> None:
    meters = Meters()
    meters.add(loss_sum=16 * 4.0, iou_sum=16 * 0.1, count=16, grad_norm=1.0)
    meters.add(loss_sum=3 * 1.0, iou_sum=3 * 0.9, count=3, grad_norm=2.0)
    assert meters.loss == pytest.approx((16 * 4 + 3 * 1) / 19)
    assert meters.iou == pytest.approx((16 * 0.1 + 3 * 0.9) / 19)
    assert meters.loss != pytest.approx((4 + 1) / 2), "the mean of the batches' means"
    assert meters.loss != pytest.approx(1.0), "the last batch"

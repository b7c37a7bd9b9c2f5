"""Steps, log lines, saves, sanity checks and schedules, each alone."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints.test_damage import FACTS
from reports.test_plots import INTERVAL
from runs import numbers
from torch import nn

from seqtrack.checkpoints.side_files import IntervalRecord, read_metrics
from seqtrack.checkpoints.store import load_weights, manifest_of
from seqtrack.config.schema import Scheduler, Train
from seqtrack.data.loader import Batch
from seqtrack.runtime.metrics_log import interval_line
from seqtrack.training import sanity_checks, trainer
from seqtrack.training.checkpointer import Checkpointer
from seqtrack.training.optimizer import learning_rate_factor
from seqtrack.training.train_step import StepResult, TrainStep
from training.harness import RANKS, Run


def test_the_interval_line_has_the_form_that_scripts_parse() -> None:
    values = {"epoch": 8, "sample": 992, "samples": 992, "interval_samples": 32, "time_s": 62.0, "elapsed_s": 14591.0}
    record = IntervalRecord.model_validate({**INTERVAL, **values, "eta_s": 0.0, "loss": 8.07525, "iou": 0.06536})
    assert interval_line(record) == (
        "[phase_1] Epoch 8 : 992 / 992 samples , time for last 32 samples : 0:01:02 hours , "
        "time since beginning : 4:03:11 hours , time left to finish the epoch : 0:00:00 hours , "
        "Loss/total: 8.07525 , IoU: 0.06536"
    )


def test_intervals_count_samples_not_batches_and_the_epoch_is_the_mean_of_its_samples(
    demo_data: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", demo_data, {"TRAIN.EPOCH": "1"})
    assert run.until(None)
    *intervals, epoch = [record for record in numbers(run.folder) if record["type"] in ("interval", "epoch")]
    assert [record["sample"] for record in intervals] == [16, 32, 48, 64, 80, 88]
    assert {record["samples"] for record in intervals} == {88} and (epoch["samples"], epoch["steps"]) == (88, 6)
    weights = [16] * 5 + [8]
    mean = sum(weight * record["interval_loss"] for weight, record in zip(weights, intervals, strict=True)) / 88
    assert epoch["loss"] == intervals[-1]["loss"] == pytest.approx(mean, rel=1e-12)
    assert epoch["loss"] != intervals[-1]["interval_loss"], "not that of its last batch"


def test_an_epoch_of_three_centuries_ends_no_run(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "run", demo_data, {"DATA.TRAIN.SAMPLE_PER_EPOCH": str(10**9)})
    monkeypatch.setattr(trainer, "time", SimpleNamespace(perf_counter=itertools.count(step=1e4).__next__))
    assert not run.until(1)
    (record,) = read_metrics(run.folder / "logs" / "metrics.jsonl").of(IntervalRecord)
    assert record.samples == 10**9 and record.eta_s > 9e9


DROPOUT = {"MODEL.DECODER.DROPOUT": "0.5"}


@pytest.fixture
def run(demo_data: Path, tmp_path: Path) -> Run:
    return Run(tmp_path / "run", demo_data, DROPOUT)


def _step(run: Run, batch: Batch) -> StepResult:
    train_step = TrainStep(run.state, run.state.model, RANKS, run.config)
    return train_step.read(train_step(batch))


def test_random_draws_change_no_step_and_a_restored_state_shares_no_memory(
    run: Run, demo_data: Path, tmp_path: Path
) -> None:
    twin = Run(tmp_path / "twin", demo_data, DROPOUT)
    batch = next(iter(run.loader.batches(1)))
    first = _step(run, batch)
    torch.manual_seed(999)
    torch.rand(1000)
    assert _step(twin, batch) == first
    assert _step(run, batch).loss_sum != first.loss_sum

    tensors, values = run.state.capture()
    twin.state.restore(tensors, values)
    theirs = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    ours = [tensor for name, tensor in twin.state.capture()[0].items() if name.startswith(("model/", "optimizer/"))]
    assert ours and not theirs & {tensor.untyped_storage().data_ptr() for tensor in ours}


def test_the_gradient_is_clipped_to_its_norm(run: Run) -> None:
    batch = next(iter(run.loader.batches(1)))
    result = _step(run, batch)
    norms = [parameter.grad.norm() for parameter in run.state.optimizer.parameters() if parameter.grad is not None]
    assert result.grad_norm > 0.1, "before clipping"
    assert float(torch.stack(norms).norm()) == pytest.approx(0.1, rel=1e-3)


def test_a_save_keeps_the_state_of_its_moment_while_training_continues(tmp_path: Path) -> None:
    weight = torch.zeros(2_000_000)
    checkpointer = Checkpointer(tmp_path, parent_sha256=None)
    checkpointer.save("SEQTRACK_ep0001.safetensors", {"model/w": weight}, {}, describe=FACTS)
    weight.fill_(1.0)
    checkpointer.wait()
    assert not load_weights(manifest_of(tmp_path / "SEQTRACK_ep0001.json"))["w"].any()


def test_a_first_loss_an_encoder_or_an_iou_without_sense_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    trained, frozen = nn.Sequential(), nn.Sequential()
    trained.add_module("encoder", nn.Linear(2, 2))
    frozen.add_module("encoder", nn.Linear(2, 2).requires_grad_(False))
    trained(torch.ones(1, 2)).sum().backward()
    assert not sanity_checks.check_first_loss(8.3, 4000)
    assert not any(map(sanity_checks.check_encoder_gradient, (trained, frozen)))
    assert not any(sanity_checks.check_history([{"iou": one} for one in iou]) for iou in ([0.25], [0.25, 0.26]))
    assert not caplog.records
    trained.zero_grad(set_to_none=False)
    assert sanity_checks.check_first_loss(2.0, 4000) and sanity_checks.check_encoder_gradient(trained)
    assert sanity_checks.check_history([{"iou": 0.25}, {"iou": 0.25}]) and caplog.records


def _factor(step: int, *, drop: int = 400, **schedule: Any) -> float:
    """The factor of a run of 5 epochs with 10 steps each."""
    return learning_rate_factor(step, Train(EPOCH=5, LR_DROP_EPOCH=drop, SCHEDULER=Scheduler(**schedule)), 10)


def test_schedules_drop_at_their_epochs() -> None:
    assert [_factor(at, drop=2) for at in (0, 19, 20, 40)] == pytest.approx([1, 1, 0.1, 0.01])
    mstep = {"TYPE": "mstep", "MILESTONES": (1, 3)}
    assert [_factor(at, **mstep) for at in (9, 10, 29, 30)] == pytest.approx([1, 0.1, 0.1, 0.01])
    cosine = {"TYPE": "cosine", "WARMUP_STEPS": 10, "FINAL_RATIO": 0.02}
    assert [_factor(at, **cosine) for at in (0, 9, 30, 50)] == pytest.approx([0.1, 1.0, 0.51, 0.02])

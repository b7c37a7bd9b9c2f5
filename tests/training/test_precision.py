"""fp16's overflows, numbers that are not finite, and the fingerprint of each precision."""

import itertools
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import environment, epochs, numbers
from torch.amp.grad_scaler import GradScaler

from seqtrack.checkpoints.side_files import ValidationRecord, read_metrics
from seqtrack.config.environment import configure
from seqtrack.errors import RunError
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.guarantee import guarantee
from seqtrack.runtime.metrics_log import RunLog
from seqtrack.training.build import run_fingerprint, set_kernels
from training.harness import RANKS, Run

OVERFLOWS = (2, 9)  # one in each of the first two epochs of 6 steps


def test_a_step_whose_gradient_overflows_is_skipped_counted_and_left_out_of_the_mean(
    demo_data: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", demo_data, {"TRAIN.EPOCH": "2"}, overflows=OVERFLOWS)
    assert run.until(None)
    records = numbers(run.folder)
    intervals = {record["step"]: record for record in records if record["type"] == "interval"}
    assert {step for step, record in intervals.items() if record["grad_norm"] is None} == set(OVERFLOWS)
    assert {step for step, record in intervals.items() if record["skipped_steps"] == 1} == set(OVERFLOWS)
    first, second = (record for record in records if record["type"] == "epoch")
    assert (first["steps"], first["skipped_steps"], second["skipped_steps"]) == (6, 1, 1)
    taken = [intervals[step]["grad_norm"] for step in range(1, 7) if step not in OVERFLOWS]
    assert first["grad_norm"] == pytest.approx(sum(taken) / 5)
    assert run.state.step == run.state.scheduler.step_count == 12, "the schedule counts skipped steps"
    assert {int(values["step"]) for values in run.state.optimizer.inner.state.values()} == {10}, "AdamW does not"
    assert sorted(epochs(run.folder)) == [1, 2]


@pytest.mark.parametrize(
    ("scaled", "overflows", "code", "step"),
    [(True, range(1, 1000), "train.fp16_scale", 11), (False, (2,), "train.not_finite", 2)],  # 1024 halved eleven times
)
def test_a_run_whose_every_gradient_overflows_ends_and_without_a_scaler_one_that_does_ends_it(
    scaled: bool, overflows: Container[int], code: str, step: int, demo_data: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", demo_data, overflows=overflows)
    if not scaled:
        run.state.scaler = GradScaler(RANKS.device.type, enabled=False)
    with pytest.raises(RunError) as ended:
        run.until(None)
    assert (ended.value.code, run.state.step) == (code, step)


def test_a_state_saved_without_a_scale_continues_with_one(demo_data: Path, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", demo_data)
    tensors, values = run.state.capture()
    resumed = Run(tmp_path / "resumed", demo_data, state=(tensors, {**values, "scaler": {}}))
    assert resumed.state.scaler.get_scale() == 1024.0
    assert resumed.until(1) is False


def test_a_number_that_is_not_finite_is_null_in_the_records(tmp_path: Path) -> None:
    log = RunLog(tmp_path, phase=1, epochs=3, resume_step=0, writes=True)
    names = ("op50", "op75", "p20", "p_norm", "mean_iou", "sequences", "frames", "fps")
    log.validation(1, 6, {"auc": float("nan"), **dict.fromkeys(names, 0.5)})
    log.close()
    (record,) = read_metrics(tmp_path / "metrics.jsonl").of(ValidationRecord)
    assert (record.auc, record.p20) == (None, 0.5)


def test_whatever_changes_bits_is_in_the_fingerprint(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[dict[str, Any]] = []
    for switch in ("", "NVIDIA_TF32_OVERRIDE", "TRAIN.AMP bf16", "TRAIN.COMPILE True", "TRAIN.TF32 True"):
        if switch.startswith("NVIDIA"):
            monkeypatch.setenv(switch, "1")
        key, _, value = switch.partition(" ")
        _, config = configure(environment(tmp_path, demo_data, {key: value} if value else {}))
        try:
            set_kernels(config, RANKS)
            found.append(run_fingerprint(config, RANKS))
        finally:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
            torch.use_deterministic_algorithms(False)
    assert all(one != other for one, other in itertools.combinations(found, 2))


def test_the_number_of_processes_is_in_the_fingerprint_unless_batches_have_shards(
    demo_data: Path, tmp_path: Path
) -> None:
    pair = DistributedContext(0, 2, RANKS.device)
    for shards, expected in ((0, ["world_size: 2 then, 1 now"]), (4, [])):
        _, config = configure(environment(tmp_path, demo_data, {"TRAIN.SHARDS": shards}))
        ours, theirs = (run_fingerprint(config, one) | {"deterministic": True} for one in (RANKS, pair))
        assert guarantee(ours, theirs)[1] == expected
        assert ours.get("shards", 0) == shards

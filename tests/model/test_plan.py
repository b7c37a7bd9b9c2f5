"""`seqtrack plan`: its numbers agree with counted ones, and what does not fit is refused.

That the memory agrees with a measured peak is an item of `scripts/gpu_check.py`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqtrack.cli import main
from seqtrack.commands.plan import GPUS, Machine, Plan, measure_speed
from seqtrack.config.environment import configure
from seqtrack.gpu_peaks import peak_tflops
from seqtrack.model.build import build_empty
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import ModelSpec

GIB = 2**30
LARGE = "vit_large_patch16"


@pytest.mark.parametrize(
    ("spec", "parameters", "tokens", "gflop"),
    [
        (ModelSpec(), 90_596_002, 768, 153.1),
        (ModelSpec(search_size=384, template_size=384), 91_169_442, 1728, 405.6),
        (ModelSpec(encoder_type=LARGE), 308_244_898, 768, 523.0),
        pytest.param(
            ModelSpec(encoder_type=LARGE, search_size=384, template_size=384),
            308_982_178,
            1728,
            1339.9,
            marks=pytest.mark.long,
        ),
    ],
    ids=["b256", "b384", "l256", "l384"],
)
def test_counts_are_those_of_the_authors_models(spec: ModelSpec, parameters: int, tokens: int, gflop: float) -> None:
    cost = cost_of(spec)
    assert (cost.parameters, spec.encoder_tokens) == (parameters, tokens)
    assert cost.encoder_flops / 1e9 == pytest.approx(gflop, abs=0.05)
    assert 0.9 < cost.executed_flops / cost.training_flops < 1
    assert cost.checkpoint_bytes == 12 * parameters


def test_executed_flops_leave_out_the_templates_in_the_last_block() -> None:
    cost, same = cost_of(ModelSpec()), ModelSpec(hidden_dim=768)
    found = [flops / 1e9 for flops in (cost.training_flops, cost.executed_flops, cost.decoder_flops)]
    assert found == pytest.approx([460.1, 437.5, 0.27], abs=0.05)
    unused = sum(p.numel() for p in build_empty(same).bottleneck.parameters())  # saved, but not trained
    assert cost_of(same).checkpoint_bytes == 12 * cost_of(same).parameters - 8 * unused


Answer = tuple[int, dict[str, Any], str]


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Answer]:
    """`seqtrack plan --json` on a machine of a given size: exit code, plan, stderr."""

    def ask(config: str, *machine: str, memory_gib: float = 0, disk_gib: float = 99, **environ: str) -> Answer:
        for name in ("CONFIG", "DATASET", "OVERRIDES", "BATCH_SIZE", "EPOCHS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"DEVICE": "cpu", "OUTPUT_DIR": str(tmp_path), **environ}.items():
            monkeypatch.setenv(name, value)
        size = ["--disk-gib", str(disk_gib), *(["--memory-gib", str(memory_gib)] if memory_gib else [])]
        code = main(["plan", "--json", "--config", config, *machine, *size])
        said = capsys.readouterr()
        return code, json.loads(said.out or "{}"), said.err

    return ask


def test_a_run_that_fits_is_planned_with_exit_code_0(
    plan: Callable[..., Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, said = plan("seqtrack_b256", memory_gib=40, disk_gib=40, EPOCHS="10")
    assert code == 0, said
    assert (found["upload_bytes"], found["disk_needed"]) == (10 * 12 * 90_596_002, 11 * 12 * 90_596_002)
    keys = "MODEL.ENCODER.USE_CHECKPOINT True"
    less = plan("seqtrack_b256", memory_gib=40, disk_gib=40, EPOCHS="10", OVERRIDES=keys)[1]
    assert less["memory_needed"] < found["memory_needed"] / 2
    assert found["problems"] == []
    thin = plan("seqtrack_b256", memory_gib=40, disk_gib=40, EPOCHS="11", OVERRIDES="TRAIN.CHECKPOINT_EPOCHS 5")[1]
    assert [thin[one] // thin["checkpoint_bytes"] for one in ("upload_bytes", "disk_needed")] == [3, 4]
    assert main(["plan", "--config", "demo", "--disk-gib", "10", "--memory-gib", "10"]) == 0
    assert len(capsys.readouterr().out.splitlines()) >= 10


def test_what_does_not_fit_is_refused_and_following_the_advice_makes_it_fit(plan: Callable[..., Answer]) -> None:
    code, found, said = plan("seqtrack_b256", memory_gib=6, disk_gib=30, EPOCHS="100")
    assert code == 2
    for part in (f"{found['memory_needed'] / GIB:.2f} GiB", f"{found['disk_needed'] / GIB:.2f} GiB"):
        assert part in said
    for advice in ("MODEL.ENCODER.USE_CHECKPOINT True", "TRAIN.ACCUMULATION_STEPS 3"):
        assert advice.split()[0] in said and "KEEP_CHECKPOINTS to 28" in said
        overrides = f"{advice} TRAIN.KEEP_CHECKPOINTS 28"
        assert plan("seqtrack_b256", memory_gib=6, disk_gib=30, EPOCHS="100", OVERRIDES=overrides)[0] == 0
    shards = plan("seqtrack_b256", memory_gib=6, EPOCHS="1", OVERRIDES="TRAIN.SHARDS 2")
    assert shards[0] == 2 and "multiply TRAIN.SHARDS by 2" in shards[2]
    assert shards[1]["tensors"]["waiting_gradients"] == shards[1]["tensors"]["gradients"]
    assert plan("seqtrack_b256", memory_gib=6, EPOCHS="1", OVERRIDES="TRAIN.SHARDS 4")[0] == 0
    two = {"NPROC": "2", "EPOCHS": "1", "OVERRIDES": "TRAIN.SHARDS 1"}
    assert "[run.too_many_processes]" in plan("seqtrack_b256", memory_gib=99, **two)[2]
    code, _, said = plan("seqtrack_l384", memory_gib=4, disk_gib=9999)  # no batch fits
    assert code == 2
    assert "[plan.memory]" in said and "ACCUMULATION_STEPS" not in said and "USE_CHECKPOINT" not in said


def test_another_gpu_gets_its_own_precision_attention_and_memory(plan: Callable[..., Answer]) -> None:
    needed = {}
    for gpu, amp, precision, stores_scores in (
        ("T4", "auto", "fp16", False),
        ("Tesla T4", "bf16", "bf16", True),
        ("7.5", "auto", "fp16", False),
        ("sm_86", "auto", "bf16", False),
        ("NVIDIA A100-SXM4-40GB", "auto", "bf16", False),
        ("rtx 3050 laptop", "off", "fp32", False),
    ):
        options = {"EPOCHS": "1", "BATCH_SIZE": "16", "OVERRIDES": f"TRAIN.AMP {amp}"}
        code, found, said = plan("seqtrack_b256", "--gpu", gpu, memory_gib=40, **options)
        assert code == 0, said
        assert (found["device"], found["precision"], found["stores_scores"]) == ("cuda", precision, stores_scores)
        needed[gpu] = found["memory_needed"]
    # Stored scores of B256 at a batch of 16: 12 blocks of 16 x 12 heads x 768 x 768 values.
    assert 2.7 * GIB < needed["Tesla T4"] - needed["sm_86"] < 8 * GIB
    code, found, said = plan("seqtrack_b256", "--gpu", "RTX 3050 Laptop GPU", EPOCHS="1")
    assert (code, found["memory"]) == (2, 4 * GIB) and "[plan.memory]" in said
    assert "[plan.gpu_memory]" in plan("seqtrack_b256", "--gpu", "8.6")[2]
    for name in ("RTX 9999", "8600", "laptop"):
        assert "[plan.unknown_gpu]" in plan("seqtrack_b256", "--gpu", name)[2]


def test_this_machine_is_planned_with_its_free_memory_and_speed(
    plan: Callable[..., Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    code, found, said = plan("demo", disk_gib=0.001)
    assert (code, found["hours_at_least"] > 0) == (2, True) and "[plan.disk]" in said
    monkeypatch.setattr("seqtrack.commands.plan.free_memory", lambda: (GIB // 4, "free now of a small machine"))
    code, found, said = plan("demo")
    assert (code, found["memory"], found["memory_from"]) == (2, GIB // 4, "free now of a small machine")
    assert "[plan.memory]" in said
    assert (found["samples_per_epoch"], found["steps_per_epoch"]) == (4000, 250)
    assert (found["experiment"], found["data_sets"]) == ("demo", ["DEMO"])
    assert found["samples_per_s"] is None and "hours_per_epoch" not in found


def test_how_long_a_run_takes_is_measured_in_seconds_or_follows_from_the_card(plan: Callable[..., Answer]) -> None:
    _, config = configure({"CONFIG": "demo", "BATCH_SIZE": "1", "DEVICE": "cpu"})
    demo = Plan(config, Machine(1, None, "", 8 * GIB, "given", 8 * GIB))
    for limit_s, how in ((1.0, "steps"), (1e-6, "matrix products")):
        speed, said = measure_speed(demo, config, limit_s=limit_s)
        assert speed > 0 and how in said
    # 0.3 of the peak by 460 GFLOP per sample.
    for gpu, rate in (("RTX 3050 Laptop GPU", 9.3), ("NVIDIA H100 80GB HBM3", 645), ("7.5", None)):
        found = plan("seqtrack_b256", "--gpu", gpu, memory_gib=40, EPOCHS="1")[1]
        assert found["samples_per_s"] == (rate and pytest.approx(rate, rel=0.02))
        if rate:
            assert found["hours_per_epoch"] == pytest.approx(60_000 / found["samples_per_s"] / 3600)
    assert [name for cards in GPUS.values() for name in cards if not peak_tflops(name, "fp32")] == []


def test_a_huge_batch_is_planned_at_once(plan: Callable[..., Answer]) -> None:
    assert plan("seqtrack_b256", memory_gib=40, BATCH_SIZE="100000")[0] == 2

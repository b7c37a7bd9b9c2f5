"""The items of the GPU check, in the order of their value."""

from collections.abc import Callable
from dataclasses import dataclass

from gpu_checks import exactness, runs, speed
from gpu_checks.common import Check, Context


@dataclass(frozen=True)
class Item:
    """One item: what it does, what is expected, the most seconds that it may take, and those that it usually takes."""

    name: str
    run: Callable[[Context, Check], str]
    expected: str
    limit_s: float
    usual_s: float


ITEMS = (
    Item("start", exactness.start, "in the arch list; AMP auto is bf16 natively; doctor finds no fault", 60, 12),
    Item("golden", exactness.golden_parity, "encoder 7e-6, logits 5e-6, gradients 1e-4, the same tokens", 60, 25),
    Item("twice", exactness.two_runs, "all weights and moments equal, also in a child process", 50, 20),
    Item("resume", runs.interrupted, "identical after SIGKILL and SIGTERM; exit codes 0, -9, 75", 120, 60),
    Item("amp", exactness.amp_variants, "loss falls; an fp16 overflow is skipped; fp16 resumes bit-equal", 45, 20),
    Item("checkpointing", exactness.activation_checkpointing, "gradients equal byte for byte", 20, 5),
    Item("memory", speed.memory, "peak between 0.85 and 1.05 of plan's figure", 60, 30),
    Item("out_of_memory", runs.out_of_memory, "exit 1, one line, no traceback, no half-written checkpoint", 80, 35),
    Item("save", exactness.save, "stall below 60 ms; file equal to the state of that moment", 40, 16),
    Item("step", speed.real_step, "fp32 70-100, TF32 350-500, bf16/16 500-800, bf16/64 800-1000; 1 sync", 120, 65),
    Item("deterministic", speed.not_deterministic, "without, at most 10 to 25 % faster", 50, 20),
    Item("tracker", speed.tracker, "120-250 fps alone, 600-1500 with 16", 60, 20),
    Item("data", speed.data_fed, "at least 95 % of the step's samples/s with 8 workers or more", 60, 35),
    Item("ranks", runs.several_ranks, "identical for 2 and 3 ranks on one GPU; with shards to 1 rank", 200, 120),
    Item("nccl", runs.nccl_alone, "no error", 40, 12),
    Item("compile", speed.compiled, "no recompilation at the second full batch; faster than eager", 120, 60),
)  # fmt: skip

"""The cost of TRAIN.SHARDS: a step with K shards, relative to one of the same batch in K accumulation parts.

Both kinds of step alternate in one process, so that other load affects both; `ratio` is the median of the pairs', and
`cpu_ratio` that of CPU time, which other load affects less. With `--kind` only one of them runs, for its peak of
resident memory.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from seqtrack.config.loader import load_config
from seqtrack.data.loader import Batch
from seqtrack.device import choose_device
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.training import build
from seqtrack.training.train_step import TrainStep

KINDS = {"parts": "TRAIN.ACCUMULATION_STEPS", "shards": "TRAIN.SHARDS"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="demo", help="the experiment")
    parser.add_argument("--shards", type=int, default=4, help="K")
    parser.add_argument("--batch", type=int, default=0, help="samples of a step; 0: the experiment's")
    parser.add_argument("--pairs", type=int, default=100, help="measured pairs, after two that warm up")
    parser.add_argument("--kind", choices=("both", *KINDS), default="both", help="which kind of step")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the result."""
    kinds = [args.kind] if args.kind != "both" else list(KINDS)
    steps = {kind: _step(args, kind) for kind in kinds}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    cpu_seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(-2, args.pairs):
        if number == 0:
            Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark of resident memory
        for kind in kinds if number % 2 else reversed(kinds):
            began, cpu_began = time.perf_counter(), time.process_time()
            train_step, batch = steps[kind]
            train_step.read(train_step(batch))
            if number >= 0:
                seconds[kind].append(time.perf_counter() - began)
                cpu_seconds[kind].append(time.process_time() - cpu_began)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    weights = steps[kinds[0]][0].state.model.parameters()
    result: dict[str, Any] = {
        "benchmark": "shards",
        **{name: getattr(args, name) for name in ("config", "shards", "kind", "device", "pairs")},
        "batch": steps[kinds[0]][1].count,
        **{f"{kind}_s": statistics.median(found) for kind, found in seconds.items()},
        "gradient_gib": sum(one.nbytes for one in weights if one.requires_grad) / 2**30,
        "peak_gib": int(status["VmHWM"].split()[0]) / 2**20,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if len(kinds) == 2:
        for prefix, found in (("", seconds), ("cpu_", cpu_seconds)):
            ratios = [ours / theirs for ours, theirs in zip(found["shards"], found["parts"], strict=True)]
            quartiles = statistics.quantiles(ratios, n=4)[::2]
            result |= {f"{prefix}ratio": statistics.median(ratios), f"{prefix}quartiles": quartiles}
    return result


def _step(args: argparse.Namespace, kind: str) -> tuple[TrainStep, Batch]:
    overrides = [(KINDS[kind], str(args.shards)), ("MODEL.ENCODER.PRETRAIN_TYPE", "scratch"), ("TRAIN.LR", "1e-5")]
    overrides += [("TRAIN.BATCH_SIZE", str(args.batch))] if args.batch else []
    config = load_config(args.config, overrides=overrides)
    distributed = DistributedContext(0, 1, choose_device(args.device))
    build.set_kernels(config, distributed)
    state = build.build_state(config, distributed, 1000, fresh=True)
    count, data, generator = config.TRAIN.BATCH_SIZE, config.DATA, torch.Generator().manual_seed(2)
    sides = ((count, data.TEMPLATE.NUMBER, 3, *[data.TEMPLATE.SIZE] * 2), (count, 3, *[data.SEARCH.SIZE] * 2))
    templates, search = (torch.randint(0, 256, side, dtype=torch.uint8, generator=generator) for side in sides)
    boxes, bright = torch.rand(count, 4, generator=generator) * 0.5, torch.ones(count, data.TEMPLATE.NUMBER)
    batch = Batch(templates, search, bright, bright[:, 0].clone(), boxes, torch.arange(count), count, count)
    return TrainStep(state, build.callable_form(config, state.model), distributed, config), batch

"""Items about memory and time. Figures are reported; a GPU's are judged where the specification has a limit."""

import contextlib
import functools
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch

from gpu_checks.common import (
    Check,
    Context,
    Trainer,
    completed,
    host_syncs,
    make_batch,
    profile_step,
    timed,
    wait,
)
from gpu_checks.exactness import switches
from seqtrack.commands.plan import Machine, Plan
from seqtrack.data.loader import Batch
from seqtrack.data.sources import open_source
from seqtrack.gpu_peaks import peak_tflops
from seqtrack.model.build import build_model
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import model_spec
from seqtrack.tracking.tracker import BatchTracker, TrackerSettings
from seqtrack.training import build

GIB = 2**30


def memory(context: Context, check: Check) -> str:
    """Peak memory of the real step against what `plan` estimates, tensors and the whole process."""
    capability = torch.cuda.get_device_capability(0) if context.is_cuda else None
    at_start = _used(context)
    worst, table = [1.0, 1.0], []
    for amp in ("off", "bf16"):
        for checkpointing in (False, True):
            for batch in context.pick((1, 8, 16, 64), (1, 2)):
                keys = {"TRAIN.AMP": amp, "MODEL.ENCODER.USE_CHECKPOINT": checkpointing, "TRAIN.BATCH_SIZE": batch}
                context.forget()
                trainer = Trainer(context, keys, batch=batch)
                plan = Plan(trainer.config, Machine(1, capability, "", 2**60, "", 2**60))
                trainer.steps(3)
                wait(context)
                row = {"amp": amp, "checkpointing": checkpointing, "batch": batch, "plan": plan.memory_needed}
                row["plan_tensors"] = sum(plan.tensors.values())
                if context.is_cuda:
                    row["allocated"] = torch.cuda.max_memory_allocated()
                    row["reserved"] = torch.cuda.max_memory_reserved()
                    row["device_total"] = _used(context)  # the context included
                    ratio = row["device_total"] / row["plan"]
                    worst = [min(worst[0], ratio), max(worst[1], ratio)]
                table.append(row)
                del trainer
    check.values |= {"table": table, "used_at_start": at_start}
    if context.is_cuda:
        # The context and the libraries' workspaces: what is used beyond torch's own.
        outside = [row["device_total"] - row["reserved"] for row in table]
        check.values["process_bytes_median"] = sorted(outside)[len(outside) // 2]
        check.that(worst[0] >= 0.85 and worst[1] <= 1.05, f"used / planned is {worst[0]:.2f} to {worst[1]:.2f}")
    return f"used / planned {worst[0]:.2f} to {worst[1]:.2f} over {len(table)} settings"


def _used(context: Context) -> int:
    if not context.is_cuda:
        return 0
    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def real_step(context: Context, check: Check) -> str:
    """The training step in each precision: samples per second, utilisation, waits, kernels, the GPU's idle share."""
    steps, warm = context.pick((20, 5), (2, 1))
    found = []
    variants = [("fp32", "off", False, False), ("tf32", "off", True, False), ("bf16", "bf16", False, False)]
    variants.append(("bf16 checkpointing", "bf16", False, True))
    for name, amp, tf32, checkpointing in variants:
        for batch in context.pick((16, 64), (2,)):
            keys = {"TRAIN.AMP": amp, "MODEL.ENCODER.USE_CHECKPOINT": checkpointing}
            trainer = Trainer(context, keys, batch=batch)
            with switches(tf32):
                row: dict[str, Any] = timed(trainer, steps=steps, warm=warm)
                row["host_syncs"] = host_syncs(trainer)
                row |= profile_step(trainer)
                if name == "bf16":
                    trainer.batch = trainer.batch.copy()  # not in page-locked memory
                    row["unpinned"] = timed(trainer, steps=steps, warm=2)["samples_per_s"]
            peak = peak_tflops(torch.cuda.get_device_name(0), name.split()[0]) if context.is_cuda else None
            if peak is not None:  # shares of the card's peak: of the nominal work, and of the work that was done
                cost, rate = cost_of(model_spec(trainer.config)), row["samples_per_s"]
                row["mfu"] = round(cost.training_flops * rate / peak / 1e12, 4)
                row["executed_mfu"] = round(cost.executed_flops * rate / peak / 1e12, 4)
            check.values[f"{name}/{batch}"] = row
            context.speeds[f"{name}/{batch}"] = row["samples_per_s"]
            if context.is_cuda:
                check.that(row["host_syncs"] <= 1, f"{name}/{batch}: {row['host_syncs']} waits per step")
            found.append(f"{name}/{batch} {row['samples_per_s']:.0f}")
            del trainer
            context.forget()
    return ", ".join(found) + " samples/s"


def not_deterministic(context: Context, check: Check) -> str:
    """What deterministic kernels cost."""
    steps, warm = context.pick((20, 5), (2, 1))
    found = []
    for batch in context.pick((16, 64), (2,)):
        rates = []
        for deterministic in (True, False):
            trainer = Trainer(context, {"TRAIN.AMP": "bf16", "TRAIN.DETERMINISTIC": deterministic}, batch=batch)
            rates.append(timed(trainer, steps=steps, warm=warm)["samples_per_s"])
            del trainer
            context.forget()
        check.values[f"bf16/{batch}"] = {"deterministic": rates[0], "not": rates[1], "gain": rates[1] / rates[0] - 1}
        found.append(f"bf16/{batch} {rates[1] / rates[0] - 1:+.1%}")
    return ", ".join(found)


def tracker(context: Context, check: Check) -> str:
    """Frames per second of the tracker, alone and sixteen at once."""
    frames, warm = context.pick((60, 10), (3, 1))
    config = context.config()
    model = build_model(model_spec(config), seed=1).to(context.device).eval()
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    found = []
    for name in ("fp32", "tf32", "bf16"):
        for objects in context.pick((1, 16), (1, 2)):
            follower = BatchTracker(model, TrackerSettings(precision=name))
            states = [follower.start(noise, (290.0, 150.0, 60.0, 60.0)) for _ in range(objects)]
            for _ in range(warm):
                follower.track(states, [noise] * objects)
            wait(context)
            began = time.perf_counter()
            for _ in range(frames):
                follower.track(states, [noise] * objects)
            wait(context)
            fps = objects * frames / (time.perf_counter() - began)
            check.values[f"{name}/{objects}"] = round(fps, 1)
            found.append(f"{name}/{objects} {fps:.0f}")
    return ", ".join(found) + " fps"


def data_fed(context: Context, check: Check) -> str:
    """An epoch's steps on real or drawn frames through the loader, with more and more workers."""
    steps, batch = context.pick((40, 64), (3, 4))
    completed(context, context.environment(context.work / "none"), "seqtrack", "data", "prepare")
    found = []
    for workers in context.pick((1, 8, 15), (1,)):
        keys = {"TRAIN.AMP": "bf16", "TRAIN.NUM_WORKER": workers, "TRAIN.BATCH_SIZE": batch}
        keys["DATA.TRAIN.SAMPLE_PER_EPOCH"] = (steps + 8) * batch
        trainer = Trainer(context, keys, batch=batch)
        sources = [open_source("DEMO", context.work / "data", classes=(), split="train")]
        with contextlib.closing(build.build_loader(trainer.config, sources, trainer.distributed)) as loader:
            loader.start_workers()
            batches, waits = iter(loader.batches(1)), []

            def ask(batches: Iterator[Batch] = batches, waits: list[float] = waits) -> Batch | None:
                asked = time.perf_counter()
                made = next(batches, None)
                waits.append(time.perf_counter() - asked)
                return made

            ends = [time.perf_counter() for _ in trainer.each(iter(ask, None))]
            wait(context)
            seconds = time.perf_counter() - ends[7]
        row = {"samples_per_s": steps * batch / seconds, "data_wait_share": sum(waits[9:]) / seconds}
        check.values[f"{workers} workers"] = row
        alone = context.speeds.get(f"bf16/{batch}")
        if alone and workers >= 8:
            check.that(row["samples_per_s"] > 0.95 * alone, f"{workers} workers: slower than the {alone:.0f} samples/s")
        found.append(f"{workers}: {row['samples_per_s']:.0f} samples/s, waits {row['data_wait_share']:.1%}")
        del trainer
        context.forget()
    return "; ".join(found)


def compiled(context: Context, check: Check) -> str:
    """TRAIN.COMPILE: a full batch, a smaller one as at an epoch's end, a full one again."""
    import torch._dynamo as dynamo
    from torch._dynamo.utils import counters

    full, less, steps, warm = context.pick((16, 8, 20, 5), (4, 2, 2, 1))
    # Small: the graphs are made and counted, and run by torch's own kernels.
    eager = mock.patch("torch.compile", functools.partial(torch.compile, backend="eager"))
    with eager if context.small else contextlib.nullcontext():
        dynamo.reset()
        counters.clear()
        keys = {"TRAIN.AMP": "bf16", "TRAIN.COMPILE": True}
        trainer = Trainer(context, keys, batch=full)
        graphs = []
        began = time.perf_counter()
        for size in (full, less, full):
            list(trainer.each([make_batch(trainer.config, size)]))
            graphs.append(counters["stats"]["unique_graphs"])
            check.values.setdefault("first_step_s", time.perf_counter() - began)
        check.values["graphs after each batch"] = graphs
        check.that(graphs[2] == graphs[1], f"another compilation at the second full batch: {graphs}")
        row = timed(trainer, steps=steps, warm=warm)
        check.values |= row
        del trainer
        context.forget()
        trainer = Trainer(context, {**keys, "MODEL.ENCODER.USE_CHECKPOINT": True}, batch=full)
        check.values["checkpointing"] = timed(trainer, steps=max(1, steps // 2), warm=1)
        dynamo.reset()
    eager = context.speeds.get(f"bf16/{full}")
    gain = f", {row['samples_per_s'] / eager - 1:+.0%} against eager" if eager else ""
    return f"{row['samples_per_s']:.0f} samples/s{gain}, first step {check.values['first_step_s']:.0f} s"

"""What the items share: the device, real training steps on made-up batches, timing, and whole runs as processes."""

import gc
import json
import multiprocessing
import os
import signal
import statistics
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqtrack.config.environment import VARIABLES, configure
from seqtrack.config.schema import Config
from seqtrack.data.loader import Batch
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.training import build
from seqtrack.training.state import TrainState
from seqtrack.training.train_step import TrainStep

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "MODEL.HIDDEN_DIM": "32", "MODEL.ENCODER.EMBED_DIM": "32", "MODEL.ENCODER.DEPTH": "1",
    "MODEL.ENCODER.NUM_HEADS": "2", "MODEL.DECODER.NHEADS": "2", "MODEL.DECODER.DEC_LAYERS": "1",
    "MODEL.DECODER.DIM_FEEDFORWARD": "64", "TRAIN.NUM_WORKER": "0", "TRAIN.PRINT_INTERVAL": "16",
    "DATA.TRAIN.SAMPLE_PER_EPOCH": "72",
}  # fmt: skip

SHORT = {"TRAIN.PRINT_INTERVAL": "64", "DATA.TRAIN.SAMPLE_PER_EPOCH": "800"}


class Skipped(Exception):
    """An item that cannot be asked here, and why."""


@dataclass
class Check:
    """Collects what an item measured and what was not as expected."""

    values: dict[str, Any]
    failures: list[str] = field(default_factory=list)

    def that(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.failures.append(otherwise)


@dataclass
class Context:
    """Where and how large the items run."""

    device: str
    small: bool
    work: Path
    speeds: dict[str, float] = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        return self.device == "cuda"

    def pick(self, full: Any, small: Any) -> Any:
        return small if self.small else full

    def forget(self) -> None:
        """Give back what an item left in memory and in torch's switches."""
        gc.collect()
        torch.use_deterministic_algorithms(False)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def environment(self, output: Path, keys: dict[str, object] | None = None, **variables: object) -> dict[str, str]:
        """Variables of a whole demo run on this device, nothing of the caller's own settings."""
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        overrides = {**(TINY if self.small else SHORT), "MODEL.DECODER.DROPOUT": "0.1"}
        overrides |= {key: str(value) for key, value in (keys or {}).items()}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "OUTPUT_DIR": str(output),
            "DATA_DIR": str(self.work / "data"),
            "DATASET": "demo",
            "CONFIG": "demo",
            "DEVICE": self.device,
            "EPOCHS": "2",
            "OVERRIDES": " ".join(f"{key} {value}" for key, value in overrides.items()),
            **{name: str(value) for name, value in variables.items()},
        }

    def config(self, keys: dict[str, object] | None = None) -> Config:
        """B256, or the tiny model; from scratch."""
        wanted = {**(TINY if self.small else {}), "MODEL.ENCODER.PRETRAIN_TYPE": "scratch", **(keys or {})}
        overrides = " ".join(f"{key} {value}" for key, value in wanted.items())
        name = "demo" if self.small else "seqtrack_b256"
        return configure({"CONFIG": name, "DATASET": "demo", "OVERRIDES": overrides})[1]


class Trainer:
    """The real training step on one made-up batch."""

    def __init__(self, context: Context, keys: dict[str, object] | None = None, *, batch: int) -> None:
        self.context = context
        self.config = context.config(keys)
        device = torch.device(context.device, 0) if context.is_cuda else torch.device("cpu")
        self.distributed = DistributedContext(0, 1, device)
        build.set_kernels(self.config, self.distributed)
        self.state: TrainState = build.build_state(self.config, self.distributed, 1000, fresh=True)
        model = build.callable_form(self.config, self.state.model)
        self.launch = TrainStep(self.state, model, self.distributed, self.config)
        self.read = self.launch.read
        self.batch = make_batch(self.config, batch)

    def each(self, batches: Iterable[Batch]) -> Iterator[Any]:
        """The result of a step on each batch, read when the next one has been launched, as training does."""
        before = None
        for batch in batches:
            launched = self.launch(batch)
            if before is not None:
                yield self.read(before)
            before = launched
        yield self.read(before)

    def steps(self, count: int) -> list[Any]:
        return list(self.each([self.batch] * count))

    def tensors(self) -> dict[str, Tensor]:
        """A copy on the host of everything that a checkpoint would hold."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self.state.capture()[0].items()}


def make_batch(config: Config, size: int) -> Batch:
    """Noise with boxes; in page-locked memory where a GPU is."""
    generator = torch.Generator().manual_seed(7)
    data = config.DATA

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=generator).movedim(-1, -3).contiguous()

    side, small = data.SEARCH.SIZE, data.TEMPLATE.SIZE
    batch = Batch(
        templates=pixels(size, data.TEMPLATE.NUMBER, small, small),
        search=pixels(size, side, side),
        template_brightness=torch.ones(size, data.TEMPLATE.NUMBER),
        search_brightness=torch.ones(size),
        boxes=torch.rand(size, 4, generator=generator) * 0.3 + 0.35,
        indices=torch.arange(size),
        global_count=size,
        count=size,
    )
    return batch.pin_memory() if torch.cuda.is_available() else batch


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """Names of tensors that are not equal in every byte."""
    only, both = set(ours) ^ set(theirs), set(ours) & set(theirs)
    return sorted(only | {name for name in both if as_bytes(ours[name]) != as_bytes(theirs[name])})


def as_bytes(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def timed(trainer: Trainer, *, steps: int, warm: int) -> dict[str, float]:
    """Median step by the host's clock, and the mean by CUDA events over the whole loop; nothing waits inside it."""
    trainer.steps(warm)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if trainer.context.is_cuda else []
    wait(trainer.context)
    if events:
        events[0].record()
    stamps = [time.perf_counter()]
    for _ in trainer.each([trainer.batch] * steps):
        stamps.append(time.perf_counter())
    if events:
        events[1].record()
    wait(trainer.context)
    walls = [after - before for before, after in pairwise(stamps)]
    found = {"median_s": statistics.median(walls), "mean_s": (time.perf_counter() - stamps[0]) / steps}
    if events:
        found["device_s"] = events[0].elapsed_time(events[1]) / 1e3 / steps
    found["samples_per_s"] = len(trainer.batch.indices) / found["mean_s"]
    return {name: round(value, 6) for name, value in found.items()}


def wait(context: Context) -> None:
    if context.is_cuda:
        torch.cuda.synchronize()


def host_syncs(trainer: Trainer) -> int | None:
    """How often one step, read one step late, makes the host wait for the device."""
    if not trainer.context.is_cuda:
        return None
    before = trainer.launch(trainer.batch)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            after = trainer.launch(trainer.batch)
            trainer.read(before)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    trainer.read(after)
    return sum("synchroniz" in str(one.message) for one in caught)


def profile_step(trainer: Trainer) -> dict[str, float]:
    """Kernels of one step, and the share of its time in which the GPU computed nothing; on a CPU the operators."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if trainer.context.is_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        trainer.steps(1)
        wait(trainer.context)
    cuda = torch.autograd.DeviceType.CUDA
    kernels = [event for event in profile.events() if event.device_type == cuda]
    if not kernels:
        return {"operators": len(profile.events())}
    spans = sorted((event.time_range.start, event.time_range.end) for event in kernels)
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return {"kernels": len(kernels), "idle_share": round(1 - busy / max(1e-9, end - spans[0][0]), 4)}


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["gpu_checks.children"])


@dataclass(frozen=True)
class Ended:
    """How a process ended, and all that it said."""

    code: int
    said: str

    @property
    def last_line(self) -> str:
        return (self.said.strip().splitlines() or [""])[-1]


class Child:
    """A process forked from one that has torch imported and has not met the GPU."""

    def __init__(self, context: Context, env: dict[str, str], task: str, *arguments: object) -> None:
        from gpu_checks import children

        self.log = context.work / f"child-{time.monotonic_ns()}.log"
        self.log.touch()
        words = [str(one) for one in arguments]
        self.process: BaseProcess = _FORKS.Process(target=children.become, args=(task, words, env, str(self.log)))
        self.process.start()

    def signal(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    def end(self) -> Ended:
        """Wait for the end; one that does not come is a failure."""
        self.process.join(180)
        said = self.log.read_text(errors="replace")
        if self.process.exitcode is None:
            raise RuntimeError(f"a process did not end within 180 s:\n{said[-2000:]}")
        return Ended(self.process.exitcode, said)


@contextmanager
def started(context: Context, env: dict[str, str], task: str, *arguments: object) -> Any:
    """A child that is gone after the block, whatever happens in it."""
    child = Child(context, env, task, *arguments)
    try:
        yield child
    finally:
        child.signal(signal.SIGKILL)
        child.process.join()


def completed(context: Context, env: dict[str, str], task: str, *arguments: object) -> Ended:
    with started(context, env, task, *arguments) as child:
        return child.end()


def epoch_reached(folder: Path, epoch: int) -> bool:
    """Whether a run's metrics hold a record of this epoch."""
    place = folder / "logs" / "metrics.jsonl"
    lines = place.read_text(errors="replace").split("\n")[:-1] if place.is_file() else []
    return any(json.loads(line).get("epoch") == epoch for line in lines)

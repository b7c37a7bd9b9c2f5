"""`seqtrack plan`: what a configuration needs, before anything is downloaded, allocated or rented.

Reads the same environment variables as `train`. Exits with 2 if the run does not fit on this machine, or on the one
that --gpu, --memory-gib and --disk-gib describe.
"""

import argparse
import bisect
import json
import math
import os
import re
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.optim.adamw import AdamW

from seqtrack.config.environment import Environment, configure
from seqtrack.config.schema import Config
from seqtrack.device import DTYPES, Capability, capability_of, choose_precision, device_plan, is_emulated
from seqtrack.errors import Problem, UserError
from seqtrack.gpu_peaks import peak_tflops
from seqtrack.model.build import build_model
from seqtrack.model.cost import cost_of, training_memory
from seqtrack.model.loss import sequence_loss
from seqtrack.model.spec import model_spec
from seqtrack.parsing import did_you_mean
from seqtrack.shards import waiting_nodes
from seqtrack.tokens import target_sequences

GIB = 2**30
# GPUs of this project's users by compute capability, with their memory in GiB.
GPUS: dict[Capability, dict[str, int]] = {
    (6, 0): {"P100": 16},
    (7, 0): {"V100": 16},
    (7, 5): {"T4": 15},
    (8, 0): {"A100-SXM4-40GB": 40, "A100-PCIE-40GB": 40, "A100-SXM4-80GB": 80, "A100 80GB PCIe": 80},
    (8, 6): {"A10": 22, "RTX 3050": 8, "RTX 3060": 12, "RTX 3070": 8, "RTX 3080": 10, "RTX 3090": 24}
    | {"RTX 3050 Laptop": 4, "RTX 3050 Ti Laptop": 4, "RTX 3060 Laptop": 6, "RTX 3070 Laptop": 8, "RTX 3080 Laptop": 8},
    (8, 9): {"L4": 22, "RTX 4060": 8, "RTX 4070": 12, "RTX 4080": 16, "RTX 4090": 24, "RTX 4050 Laptop": 6}
    | {"RTX 4060 Laptop": 8, "RTX 4070 Laptop": 8, "RTX 4080 Laptop": 12, "RTX 4090 Laptop": 16},
    (9, 0): {"H100 80GB HBM3": 80, "H100 PCIe": 80, "H200": 141},
}
_SHARE_OF_PEAK = 0.3  # that ViT training reaches: published figures for an H100 are 23 and 29 %
# Besides tensors: the interpreter with its libraries on the CPU; context and workspaces on a GPU.
_PROCESS_BYTES = {"cpu": int(0.45 * GIB), "cuda": int(0.8 * GIB)}


@dataclass(frozen=True)
class Machine:
    """What a run is planned for. `memory` is per device, in bytes; `capability` is the GPU's, None for a CPU."""

    processes: int
    capability: Capability | None
    gpu: str
    memory: int
    memory_from: str
    disk: int


class Plan:
    """All numbers of a run of `config` on `machine`, as the command prints them; `problems` is what does not fit."""

    def __init__(self, config: Config, machine: Machine) -> None:
        train, samples = config.TRAIN, config.DATA.TRAIN.SAMPLE_PER_EPOCH
        self.machine, self.spec, self.problems = machine, model_spec(config), list[Problem]()
        self.cost, self.encoder_tokens, ours = cost_of(self.spec), self.spec.encoder_tokens, self.spec.use_checkpoint
        self.device = "cpu" if machine.capability is None else "cuda"
        self.precision = choose_precision(train.AMP, machine.capability)
        self.stores_scores = is_emulated(self.precision, machine.capability)
        self.shards = train.SHARDS
        if 0 < self.shards < machine.processes:
            text = f"{machine.processes} processes, but TRAIN.SHARDS is {self.shards}: set NPROC to at most that"
            self.problems.append(Problem(text, "run.too_many_processes"))
        parts = self.shards or machine.processes * train.ACCUMULATION_STEPS
        batch = self.batch_at_a_time = math.ceil(train.BATCH_SIZE / parts)
        self.samples_per_epoch = None if samples == "auto" else samples
        self.steps_per_epoch = None if samples == "auto" else math.ceil(samples / train.BATCH_SIZE)
        self.samples = None if samples == "auto" else train.EPOCH * samples
        self.steps = None if samples == "auto" else train.EPOCH * math.ceil(samples / train.BATCH_SIZE)
        self.tensors, self.memory_needed = self._needed(batch, ours)
        size = self.checkpoint_bytes = self.cost.checkpoint_bytes
        files = self.checkpoint_files = math.ceil(train.EPOCH / train.CHECKPOINT_EPOCHS)
        # One more than is kept: the newest is complete before the oldest is deleted.
        self.disk_needed = (min(train.KEEP_CHECKPOINTS or files, files) + 1) * size
        self.upload_bytes = files * size
        if self.memory_needed > (memory := machine.memory):
            helps = not ours and self._needed(batch, True)[1] <= memory
            ways = ["set MODEL.ENCODER.USE_CHECKPOINT True"] * helps
            if self.shards:
                factors = (2**n for n in range(1, 13) if self.shards * 2**n <= train.BATCH_SIZE)
                fitting = (n for n in factors if self._needed(math.ceil(batch / n), ours, more_shards=n)[1] <= memory)
                ways += [f"multiply TRAIN.SHARDS by {n}" for n in fitting][:1]
            elif fits := bisect.bisect_right(range(1, batch), memory, key=lambda fewer: self._needed(fewer, ours)[1]):
                ways.append(f"multiply TRAIN.ACCUMULATION_STEPS by {math.ceil(batch / fits)}")
            needed = f"{self.memory_needed / GIB:.2f} GiB of memory needed to train {batch} samples at a time"
            text = f"{needed}, {memory / GIB:.2f} GiB available ({machine.memory_from})"
            self.problems.append(Problem(f"{text}; {', or '.join(ways) or 'use a smaller model'}", "plan.memory"))
        if self.disk_needed > machine.disk:
            room = machine.disk // size - 1
            way = f"set TRAIN.KEEP_CHECKPOINTS to {room} or less, or TRAIN.CHECKPOINT_EPOCHS higher, or use"
            way = way if room >= 1 else "use"
            text = f"{self.disk_needed / GIB:.2f} GiB of disk needed for checkpoints, {machine.disk / GIB:.2f} GiB free"
            self.problems.append(Problem(f"{text}; {way} another disk", "plan.disk"))

    def _needed(self, batch: int, checkpointing: bool, *, more_shards: int = 1) -> tuple[dict[str, int], int]:
        """Bytes by kind of tensor, and of everything on a device, for all processes that train on it."""
        half, stored = self.precision != "fp32", self.stores_scores
        tensors = training_memory(self.spec, batch=batch, half=half, checkpointing=checkpointing, stored_scores=stored)
        if self.shards:  # sums of earlier shards, while a further one is computed
            waiting = waiting_nodes(self.shards * more_shards, self.machine.processes)
            tensors["waiting_gradients"] = tensors["gradients"] * waiting
        one = sum(tensors.values()) + _PROCESS_BYTES[self.device]
        # The trainer keeps a copy of the state in host memory, so that saving does not block the next step.
        on_cpu = one * self.machine.processes + self.cost.checkpoint_bytes
        return tensors, one if self.device == "cuda" else on_cpu


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit 2 if it does not fit."""
    environment, config = configure(os.environ)
    plan = Plan(config, find_machine(environment, args.gpu, args.memory_gib, args.disk_gib))
    numbers: dict[str, Any] = {"experiment": environment.config, "data_sets": list(config.DATA.TRAIN.DATASETS_NAME)}
    numbers |= {**asdict(plan.cost), "training_flops": plan.cost.training_flops, **asdict(plan.machine)}
    numbers |= {name: value for name, value in vars(plan).items() if name not in ("spec", "cost", "machine")}
    numbers |= _duration(plan, config, elsewhere=args.gpu is not None or args.memory_gib is not None)
    if args.json:
        print(json.dumps(numbers, indent=2))
    else:
        _print(numbers)
    if plan.problems:
        raise UserError(plan.problems)
    return 0


def _print(numbers: dict[str, Any]) -> None:
    for name, value in numbers.items():
        if isinstance(value, dict):
            value = ", ".join(f"{part} {size / GIB:.2f}" for part, size in value.items()) + " GiB"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        elif isinstance(value, bool):
            value = "yes" if value else "no"
        elif isinstance(value, int):
            value = f"{value / GIB:.2f} GiB" if re.search("memory|disk|bytes", name) else f"{value:,}"
        elif isinstance(value, float):
            hours = f" ({timedelta(seconds=round(3600 * value))})" if name.startswith("hours") else ""
            value = f"{value:{',.0f' if value >= 1000 else '.3g'}}{hours}"
        if value not in (None, "", []) and name != "problems":
            print(f"{name.replace('_', ' '):24}{value}")


def _duration(plan: Plan, config: Config, *, elsewhere: bool) -> dict[str, Any]:
    """Samples per second, where that number is from, and the hours that it means."""
    machine = plan.machine
    if elsewhere:
        peak = peak_tflops(machine.gpu, plan.precision) if machine.gpu else None
        speed = peak and peak * 1e12 * _SHARE_OF_PEAK / plan.cost.training_flops * machine.processes
        said = f"{_SHARE_OF_PEAK:.0%} of the card's peak of {peak:.0f} TFLOP/s" if peak else "unknown for this device"
    elif "plan.memory" in [problem.code for problem in plan.problems]:
        speed, said = None, "not measured: a step does not fit into memory"
    else:
        speed, said = measure_speed(plan, config)
    found: dict[str, Any] = {"samples_per_s": speed, "samples_per_s_from": said}
    if speed and plan.samples:
        hours = plan.samples / speed / 3600
        found |= {"hours_per_epoch": hours / config.TRAIN.EPOCH, "hours_at_least": hours}
    return found


def measure_speed(plan: Plan, config: Config, *, limit_s: float = 10.0) -> tuple[float, str]:
    """Samples per second of training here without any wait for data, and how it was found, in about `limit_s` seconds.

    Measured by steps of few samples with random weights; where three steps of one sample would take longer than that,
    by matrix products, whose speed a step of a large model comes close to.
    """
    threads, on_gpu = torch.get_num_threads(), plan.device == "cuda"
    if config.TRAIN.NUM_THREADS:
        torch.set_num_threads(config.TRAIN.NUM_THREADS)
    devices = plan.machine.processes if on_gpu else 1  # processes on a CPU share its cores
    x = torch.ones(2048, 2048, device=plan.device, dtype=DTYPES[plan.precision])
    one = plan.cost.training_flops / (2 * 2048**3) * min(_seconds(lambda: x @ x, on_gpu) for _ in range(3))
    if 3 * one > limit_s:
        speed, said = 1 / one, "the speed of matrix products here"
    else:
        batch = max(1, min(plan.batch_at_a_time, int(limit_s / 4 / one), 64))
        step = _make_step(plan, batch)
        step()  # the first one allocates
        taken, end = list[float](), time.monotonic() + limit_s / 2
        while not taken or (len(taken) < 10 and time.monotonic() < end):
            taken.append(_seconds(step, on_gpu))
        speed, said = batch / statistics.median(taken), f"{len(taken)} steps of {batch} samples here, without data"
    torch.set_num_threads(threads)
    return speed * devices, said


def _make_step(plan: Plan, batch: int) -> Callable[[], None]:
    """A training step of the run's model on one fixed batch of noise."""
    spec, device = plan.spec, plan.device
    model = build_model(spec, seed=1).to(device).train()
    templates = torch.zeros(batch, spec.num_templates, 3, *[spec.template_size] * 2, device=device)
    search = torch.zeros(batch, 3, *[spec.search_size] * 2, device=device)
    inputs, targets = target_sequences(torch.full((batch, 4), 0.25, device=device), spec.bins)
    parameters = [one for one in model.parameters() if one.requires_grad]
    optimizer = AdamW(parameters, fused=True)
    dtype = DTYPES[plan.precision]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
            logits = model(templates, search, inputs)
        sequence_loss(logits, targets, spec.bins).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 0.1)
        optimizer.step()

    return step


def _seconds(work: Callable[[], object], on_gpu: bool) -> float:
    begun = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def find_machine(
    environment: Environment, gpu: str | None = None, memory_gib: float | None = None, disk_gib: float | None = None
) -> Machine:
    """This machine as a run would use it now, or the one that the arguments describe.

    Raises:
        UserError: an unknown GPU, unknown GPU memory, or fewer GPUs than processes.
    """
    folder = environment.output_dir.resolve()
    disk = shutil.disk_usage(next(one for one in (folder, *folder.parents) if one.exists())).free
    capability: Capability | None = None
    memory: int | None
    name = gpu or ""
    if gpu is not None:
        memory_from, processes = f"installed in {gpu}", 1 if environment.nproc == "auto" else environment.nproc
        short = " ".join(re.sub(r"\b(nvidia|tesla|geforce|gpu)\b|-", " ", gpu.lower()).split())
        known = {name: (capability, gib * GIB) for capability, cards in GPUS.items() for name, gib in cards.items()}
        if numbers := re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", gpu.lower()):
            capability, memory = (int(numbers[1]), int(numbers[2])), None
        elif names := [name for name in known if name.lower().replace("-", " ") == short]:
            capability, memory = known[names[0]]
            name = names[0]
        else:
            wanted = f"expected a compute capability such as 7.5 or a known GPU{did_you_mean(gpu, known)}"
            raise UserError(f"--gpu {gpu}: {wanted}", code="plan.unknown_gpu")
    else:
        device, processes = device_plan(environment.device, environment.nproc)
        memory, memory_from = free_memory()
        if device == "cuda":
            memory, total, index = min((*torch.cuda.mem_get_info(index), index) for index in range(processes))
            capability, name = capability_of(torch.device("cuda", index)), torch.cuda.get_device_name(index)
            memory_from = f"free now of the {total / GIB:.2f} GiB of {name}"
    if memory_gib is not None:
        memory, memory_from = int(memory_gib * GIB), "--memory-gib"
    if memory is None:
        raise UserError(f"the memory of --gpu {gpu} is unknown; add --memory-gib", "plan.gpu_memory")
    return Machine(processes, capability, name, memory, memory_from, disk if disk_gib is None else int(disk_gib * GIB))


def free_memory(*, meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """Free bytes of the machine or within the container's limit, and a description."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    try:
        limit, used = (int((cgroup / name).read_text()) for name in ("memory.max", "memory.current"))
        # Cached files count as used, but the kernel frees them on demand.
        cached = re.search(r"^inactive_file (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # ValueError: `max`, which is no limit
        limit = total
    if limit >= total:
        return free, f"free now of this machine's {total / GIB:.1f} GiB"
    free = min(free, limit - used + (int(cached[1]) if cached else 0))
    return free, f"free now of this container's limit of {limit / GIB:.1f} GiB"

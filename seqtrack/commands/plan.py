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
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from seqtrack.config.environment import Environment, configure
from seqtrack.config.schema import Config
from seqtrack.device import DTYPES, Capability, capability_of, choose_precision, device_plan, is_emulated
from seqtrack.errors import Problem, UserError
from seqtrack.model.cost import cost_of, training_memory
from seqtrack.model.spec import model_spec
from seqtrack.parsing import did_you_mean

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
        batch = self.batch_at_a_time = math.ceil(train.BATCH_SIZE / machine.processes / train.ACCUMULATION_STEPS)
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
            if fits := bisect.bisect_right(range(1, batch), memory, key=lambda fewer: self._needed(fewer, ours)[1]):
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

    def _needed(self, batch: int, checkpointing: bool) -> tuple[dict[str, int], int]:
        """Bytes by kind of tensor, and of everything on a device, for all processes that train on it."""
        half, stored = self.precision != "fp32", self.stores_scores
        tensors = training_memory(self.spec, batch=batch, half=half, checkpointing=checkpointing, stored_scores=stored)
        one = sum(tensors.values()) + _PROCESS_BYTES[self.device]
        # The trainer keeps a copy of the state in host memory, so that saving does not block the next step.
        on_cpu = one * self.machine.processes + self.cost.checkpoint_bytes
        return tensors, one if self.device == "cuda" else on_cpu


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit 2 if it does not fit."""
    environment, config = configure(os.environ)
    plan = Plan(config, find_machine(environment, args.gpu, args.memory_gib, args.disk_gib))
    numbers = {**asdict(plan.cost), "training_flops": plan.cost.training_flops, **asdict(plan.machine)}
    numbers |= {name: value for name, value in vars(plan).items() if name not in ("spec", "cost", "machine")}
    if plan.samples and args.gpu is None and args.memory_gib is None:
        # At the speed of matrix products here; a step that waits for nothing else comes close to it.
        x = torch.ones(2048, 2048, device=plan.device, dtype=DTYPES[plan.precision])
        float((x @ x)[0, 0])  # the first one loads the library
        begun = time.perf_counter()
        float((x @ x @ x @ x)[0, 0])
        devices = plan.machine.processes if plan.device == "cuda" else 1
        speed = devices * 3 * 2 * 2048**3 / (time.perf_counter() - begun)
        numbers["hours_at_least"] = round(plan.samples * plan.cost.training_flops / speed / 3600, 2)
    if args.json:
        print(json.dumps(numbers, indent=2))
    for name, value in numbers.items() if not args.json else ():
        if isinstance(value, int):
            value = f"{value / GIB:.2f} GiB" if re.search("memory|disk|bytes", name) else f"{value:,}"
        print(f"{name.replace('_', ' '):24}{value}")
    if plan.problems:
        raise UserError(plan.problems)
    return 0


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

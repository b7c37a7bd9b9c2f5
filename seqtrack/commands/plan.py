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
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from seqtrack.config.environment import Environment, configure
from seqtrack.config.schema import Config
from seqtrack.device import Capability, capability_of, choose_precision, device_plan, is_emulated
from seqtrack.errors import Problem, UserError
from seqtrack.model.cost import cost_of, training_memory
from seqtrack.model.spec import model_spec
from seqtrack.parsing import did_you_mean

GIB = 2**30
# GPUs of this project's users by compute capability, with their memory in GiB.
GPUS: dict[Capability, dict[str, int]] = {
    (6, 0): {"P100-PCIE-16GB": 16},
    (7, 0): {"V100-SXM2-16GB": 16},
    (7, 5): {"T4": 15},
    (8, 0): {"A100-SXM4-40GB": 40, "A100-PCIE-40GB": 40, "A100-SXM4-80GB": 80, "A100 80GB PCIe": 80},
    (8, 6): {
        "A10": 22, "RTX 3050": 8, "RTX 3060": 12, "RTX 3060 Ti": 8, "RTX 3070": 8, "RTX 3080": 10, "RTX 3090": 24,
        "RTX 3050 Laptop GPU": 4, "RTX 3050 Ti Laptop GPU": 4, "RTX 3060 Laptop GPU": 6, "RTX 3070 Laptop GPU": 8,
        "RTX 3080 Laptop GPU": 8,
    },
    (8, 9): {
        "L4": 22, "RTX 4060": 8, "RTX 4060 Ti": 8, "RTX 4070": 12, "RTX 4080": 16, "RTX 4090": 24,
        "RTX 4050 Laptop GPU": 6, "RTX 4060 Laptop GPU": 8, "RTX 4070 Laptop GPU": 8, "RTX 4080 Laptop GPU": 12,
        "RTX 4090 Laptop GPU": 16,
    },
    (9, 0): {"H100 80GB HBM3": 80, "H100 PCIe": 80, "H200": 141},
}  # fmt: skip
# Besides tensors: the interpreter with its libraries on the CPU; context and workspaces on a GPU.
_PROCESS_BYTES = {"cpu": int(0.45 * GIB), "cuda": int(0.8 * GIB)}


@dataclass(frozen=True)
class Machine:
    """What a run is planned for. `memory` is per device, in bytes; `*_from` describe where a number comes from.

    `capability` is the GPU's, None for a CPU. `host_memory` is None where the host is unknown.
    """

    processes: int
    capability: Capability | None
    gpu: str
    memory: int
    memory_from: str
    host_memory: int | None
    disk: int
    disk_from: str


class Plan:
    """All numbers of a run of `config` on `machine`; `problems` is what does not fit."""

    def __init__(self, config: Config, machine: Machine) -> None:
        train = config.TRAIN
        self.machine, self.spec = machine, model_spec(config)
        self.device = "cpu" if machine.capability is None else "cuda"
        self.batch = math.ceil(train.BATCH_SIZE / machine.processes / train.ACCUMULATION_STEPS)
        self.precision = choose_precision(train.AMP, machine.capability)
        self.stores_scores = is_emulated(self.precision, machine.capability)
        self.checkpoint_bytes = cost_of(self.spec).checkpoint_bytes
        self.memory = self.tensors(self.batch, self.spec.use_checkpoint)
        self.memory_needed = self.needed(self.batch, self.spec.use_checkpoint)
        self.host_memory_needed = _PROCESS_BYTES["cpu"] * machine.processes + self.checkpoint_bytes
        # One more than is kept: the newest is complete before the oldest is deleted.
        self.disk_needed = (min(train.KEEP_CHECKPOINTS or train.EPOCH, train.EPOCH) + 1) * self.checkpoint_bytes
        self.upload_bytes = train.EPOCH * self.checkpoint_bytes
        samples = config.DATA.TRAIN.SAMPLE_PER_EPOCH
        self.steps = None if samples == "auto" else train.EPOCH * math.ceil(samples / train.BATCH_SIZE)
        self.problems = [*self._memory_problems(), *self._disk_problems()]

    def tensors(self, batch: int, checkpointing: bool) -> dict[str, int]:
        """Bytes of one process's tensors by purpose, as `TrainingMemory`."""
        half, stored = self.precision != "fp32", self.stores_scores
        return training_memory(self.spec, batch=batch, half=half, checkpointing=checkpointing, stored_scores=stored)

    def needed(self, batch: int, checkpointing: bool) -> int:
        """Bytes on a device for all processes that train on it."""
        one = sum(self.tensors(batch, checkpointing).values()) + _PROCESS_BYTES[self.device]
        # The trainer keeps a copy of the state in host memory, so that saving does not block the next step.
        return one if self.device == "cuda" else one * self.machine.processes + self.checkpoint_bytes

    def to_json(self) -> dict[str, object]:
        """For `--json`: bytes, tokens and FLOPs per sample."""
        cost = cost_of(self.spec)
        return {
            "encoder": self.spec.encoder_type,
            "patch_px": self.spec.patch_size,
            "encoder_tokens": self.spec.encoder_tokens,
            "memory_tokens": self.spec.memory_tokens,
            **asdict(cost),
            "training_flops": cost.training_flops,
            "device": self.device,
            **asdict(self.machine),
            "steps": self.steps,
            "batch_at_a_time": self.batch,
            "precision": self.precision,
            "attention": "stores its scores" if self.stores_scores else "fused",
            "tensors": self.memory,
            "memory_without_checkpointing": self.needed(self.batch, False),
            "memory_with_checkpointing": self.needed(self.batch, True),
            "memory_needed": self.memory_needed,
            "host_memory_needed": self.host_memory_needed,
            "checkpoint_bytes": self.checkpoint_bytes,
            "disk_needed": self.disk_needed,
            "upload_bytes": self.upload_bytes,
            "problems": self.problems,
        }

    def _memory_problems(self) -> list[Problem]:
        machine, checkpointing, found = self.machine, self.spec.use_checkpoint, []
        if self.memory_needed > machine.memory:
            ways = []
            if not checkpointing and self.needed(self.batch, True) <= machine.memory:
                ways.append("set MODEL.ENCODER.USE_CHECKPOINT True")
            smaller = range(1, self.batch)
            fitting = bisect.bisect_right(smaller, machine.memory, key=lambda batch: self.needed(batch, checkpointing))
            if fitting:
                parts = math.ceil(self.batch / fitting)
                ways.append(f"multiply TRAIN.ACCUMULATION_STEPS by {parts} ({math.ceil(self.batch / parts)} at a time)")
            smallest = f"one sample with activation checkpointing needs {self.needed(1, True) / GIB:.2f} GiB"
            text = (
                f"memory: {self.memory_needed / GIB:.2f} GiB needed to train {self.batch} samples at a time, "
                f"{machine.memory / GIB:.2f} GiB available ({machine.memory_from}); "
                f"{', or '.join(ways) or f'use a smaller model: {smallest}'}"
            )
            found.append(Problem(text, "plan.memory"))
        if self.device == "cuda" and machine.host_memory is not None and machine.host_memory < self.host_memory_needed:
            text = (
                f"host memory: {self.host_memory_needed / GIB:.2f} GiB needed for the processes and a copy of the "
                f"training state, {machine.host_memory / GIB:.2f} GiB free; end other programs or raise the limit"
            )
            found.append(Problem(text, "plan.host_memory"))
        return found

    def _disk_problems(self) -> list[Problem]:
        if self.disk_needed <= self.machine.disk:
            return []
        room = self.machine.disk // self.checkpoint_bytes - 1
        way = f"set TRAIN.KEEP_CHECKPOINTS to {room} or less, or " if room >= 1 else ""
        text = (
            f"disk: {self.disk_needed / GIB:.2f} GiB needed for checkpoints of {self.checkpoint_bytes / GIB:.2f} GiB, "
            f"{self.machine.disk / GIB:.2f} GiB free ({self.machine.disk_from}); {way}use another disk"
        )
        return [Problem(text, "plan.disk")]


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit 2 if it does not fit."""
    environment, config = configure(os.environ)
    plan = Plan(config, find_machine(environment, args.gpu, args.memory_gib, args.disk_gib))
    numbers = plan.to_json()
    if args.json:
        print(json.dumps(numbers, indent=2))
    else:
        shown = {name: _shown(name, value) for name, value in numbers.items() if name not in ("tensors", "problems")}
        print("\n".join(f"{name.replace('_', ' '):32}{text}" for name, text in shown.items()))
    if plan.problems:
        raise UserError(plan.problems)
    return 0


def _shown(name: str, value: object) -> str:
    if not isinstance(value, int):
        return str(value)
    if name.endswith("flops"):
        return f"{value / 1e9:.1f} GFLOP per sample"
    return f"{value / GIB:.2f} GiB" if re.search("memory(?!_tokens)|disk|bytes", name) else f"{value:,}"


def find_machine(
    environment: Environment, gpu: str | None = None, memory_gib: float | None = None, disk_gib: float | None = None
) -> Machine:
    """This machine as a run would use it now, or the one that the arguments describe.

    Raises:
        UserError: an unknown GPU, unknown GPU memory, or fewer GPUs than processes.
    """
    disk, disk_from = free_disk(environment.output_dir)
    if disk_gib is not None:
        disk, disk_from = int(disk_gib * GIB), "--disk-gib"
    host: int | None = None
    capability: Capability | None = None
    memory: int | None
    if gpu is not None:
        capability, memory = _other_gpu(gpu)
        name, memory_from = gpu, f"installed in {gpu}"
        processes = 1 if environment.nproc == "auto" else environment.nproc
    else:
        here = device_plan(environment.device, environment.nproc)
        processes, name = here.processes, ""
        host, memory_from = free_memory()
        memory = host
        if here.device == "cuda":
            memory, total, index = min((*torch.cuda.mem_get_info(index), index) for index in range(processes))
            capability, name = capability_of(torch.device("cuda", index)), torch.cuda.get_device_name(index)
            memory_from = f"free now of the {total / GIB:.2f} GiB of {name}"
    if memory_gib is not None:
        memory, memory_from, host = int(memory_gib * GIB), "--memory-gib", None
    if memory is None:
        raise UserError(f"the memory of --gpu {gpu} is unknown; add --memory-gib", "plan.gpu_memory")
    return Machine(processes, capability, name, memory, memory_from, host, disk, disk_from)


def _other_gpu(text: str) -> tuple[Capability, int | None]:
    """Compute capability and bytes of memory (None if unknown) of a GPU."""
    if numbers := re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.lower()):
        return (int(numbers[1]), int(numbers[2])), None
    for capability, cards in GPUS.items():
        for name, memory_gib in cards.items():
            if _short_name(name) == _short_name(text):
                return capability, memory_gib * GIB
    names = [name for cards in GPUS.values() for name in cards]
    wanted = f"expected a compute capability such as 7.5 or a known GPU{did_you_mean(text, names)}"
    raise UserError(f"--gpu {text}: {wanted}", code="plan.unknown_gpu")


def _short_name(name: str) -> str:
    parts = [word for word in name.lower().replace("-", " ").split() if word not in ("nvidia", "tesla", "geforce")]
    return " ".join(parts).removesuffix(" gpu")


def free_memory(*, meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, str]:
    """Free bytes of the machine or within the container's limit, and a description."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free, total = (int(lines[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        # Cached files count as used, but the kernel frees them on demand.
        cached = re.search(r"^inactive_file (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # ValueError: `max`, which is no limit
        limit = total
    if limit >= total:
        return free, f"free now of this machine's {total / GIB:.1f} GiB"
    free = min(free, limit - used + (int(cached[1]) if cached else 0))
    return free, f"free now of this container's limit of {limit / GIB:.1f} GiB"


def free_disk(folder: Path) -> tuple[int, str]:
    """Free bytes on the file system of a folder, and its nearest existing parent."""
    place = next(one for one in (folder.resolve(), *folder.resolve().parents) if one.exists())
    usage = os.statvfs(place)
    return usage.f_bavail * usage.f_frsize, str(place)

"""`seqtrack plan`: what a configuration needs, before anything is downloaded, allocated or paid for.

Reads the same environment variables as `train`. Exits with 2 and the number that does not fit if the machine, or what
--memory-gib and --disk-gib say of another, cannot carry the run.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqtrack.config.schema import Config
    from seqtrack.model.spec import ModelSpec

GIB = 2**30
# Beside the tensors: the interpreter with its libraries on the CPU; context and workspaces on a GPU.
_PROCESS_BYTES = {"cpu": int(0.45 * GIB), "cuda": int(0.8 * GIB)}


@dataclass(frozen=True)
class Machine:
    """What there is: bytes of memory that one device has, free bytes of disk, and where the figures come from."""

    memory: int
    memory_from: str
    disk: int
    disk_from: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Another configuration than the environment's, and another machine than this one."""
    parser.add_argument("--config", help="experiment or YAML file (default: CONFIG)")
    parser.add_argument("--memory-gib", type=float, help="memory of the device the run is planned for")
    parser.add_argument("--disk-gib", type=float, help="free disk the run is planned for")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(args: argparse.Namespace) -> int:
    """Print the plan; refuse what does not fit."""
    from seqtrack.config.environment import configure
    from seqtrack.errors import UserError

    environ = dict(os.environ)
    if args.config:
        environ["CONFIG"] = args.config
    environment, config = configure(environ)
    device, processes = _device(environment.device, environment.nproc)
    machine = _machine(args, device, environment.output_dir)
    plan = make_plan(config, device=device, processes=processes, machine=machine)
    if args.json:
        print(json.dumps(plan, indent=2))
    else:
        _print_table(plan)
    if plan["problems"]:
        raise UserError(plan["problems"])
    return 0


def make_plan(config: Config, *, device: str, processes: int, machine: Machine) -> dict[str, Any]:
    """All figures of a run, and under "problems" a sentence for each that does not fit.

    Args:
        device: "cpu" or "cuda".
        processes: ranks; on a CPU they share its memory, on GPUs each has its own.
    """
    from seqtrack.model.cost import cost_of
    from seqtrack.model.memory import checkpoint_bytes, training_memory
    from seqtrack.model.spec import model_spec

    spec = model_spec(config)
    train = config.TRAIN
    share = math.ceil(train.BATCH_SIZE / processes / train.ACCUMULATION_STEPS)
    bf16 = train.AMP in ("bf16", "fp16") or (train.AMP == "auto" and device == "cuda")
    needed = functools.partial(_memory_needed, spec, bf16=bf16, device=device, processes=processes)
    cost = cost_of(spec)
    checkpoint = checkpoint_bytes(spec)
    plan: dict[str, Any] = {
        "encoder": spec.encoder_type,
        "patch_px": spec.patch_size,
        "parameters": cost.parameters,
        "trained_parameters": cost.trained_parameters,
        "encoder_tokens": cost.encoder_tokens,
        "memory_tokens": cost.memory_tokens,
        "forward_gflop": (cost.encoder_flops + cost.decoder_flops) / 1e9,
        "training_gflop": cost.training_flops / 1e9,
        "device": device,
        "processes": processes,
        "batch_at_a_time": share,
        "precision": "bf16" if bf16 else "fp32",
        "memory": asdict(training_memory(spec, batch=share, bf16=bf16, checkpointing=spec.use_checkpoint)),
        "memory_without_checkpointing": needed(share, checkpointing=False),
        "memory_with_checkpointing": needed(share, checkpointing=True),
        "use_checkpoint": spec.use_checkpoint,
        "memory_needed": needed(share, checkpointing=spec.use_checkpoint),
        "memory_there": machine.memory,
        "memory_from": machine.memory_from,
        "checkpoint_bytes": checkpoint,
        "epochs": train.EPOCH,
        "disk_bytes": disk_bytes(config),
        "disk_there": machine.disk,
        "disk_from": machine.disk_from,
        "upload_bytes": train.EPOCH * checkpoint,
    }
    plan["problems"] = [*_memory_problems(plan, needed), *_disk_problems(plan)]
    return plan


def disk_bytes(config: Config) -> int:
    """Bytes of all checkpoints of a run that stand on the disk at once."""
    from seqtrack.model.memory import checkpoint_bytes
    from seqtrack.model.spec import model_spec

    kept = min(config.TRAIN.KEEP_CHECKPOINTS or config.TRAIN.EPOCH, config.TRAIN.EPOCH)
    # One more than is kept: the newest is whole before the oldest goes, or stands inside an epoch.
    return (kept + 1) * checkpoint_bytes(model_spec(config))


def _memory_needed(spec: ModelSpec, batch: int, *, checkpointing: bool, bf16: bool, device: str, processes: int) -> int:
    """Bytes that a device needs for all processes that train on it."""
    from seqtrack.model.memory import checkpoint_bytes, training_memory

    tensors = training_memory(spec, batch=batch, bf16=bf16, checkpointing=checkpointing).total
    if device == "cuda":
        return tensors + _PROCESS_BYTES[device]
    # The trainer keeps a copy of the state in host memory, so that a save does not hold up the next step.
    return (tensors + _PROCESS_BYTES[device]) * processes + checkpoint_bytes(spec)


def _memory_problems(plan: dict[str, Any], needed: Callable[..., int]) -> list[str]:
    there, share = plan["memory_there"], plan["batch_at_a_time"]
    if plan["memory_needed"] <= there:
        return []
    ways = []
    if not plan["use_checkpoint"] and plan["memory_with_checkpointing"] <= there:
        ways.append("set MODEL.ENCODER.USE_CHECKPOINT True")
    fitting = [batch for batch in range(1, share) if needed(batch, checkpointing=plan["use_checkpoint"]) <= there]
    if fitting:
        parts = math.ceil(share / fitting[-1])
        ways.append(f"multiply TRAIN.ACCUMULATION_STEPS by {parts} ({math.ceil(share / parts)} at a time)")
    if not ways:
        smallest = needed(1, checkpointing=True) / GIB
        ways.append(f"take a smaller model: one sample with activation checkpointing still needs {smallest:.2f} GiB")
    return [
        f"memory: {plan['memory_needed'] / GIB:.2f} GiB needed to train {share} samples at a time, "
        f"{there / GIB:.2f} GiB there ({plan['memory_from']}); {', or '.join(ways)}"
    ]


def _disk_problems(plan: dict[str, Any]) -> list[str]:
    if plan["disk_bytes"] <= plan["disk_there"]:
        return []
    room = plan["disk_there"] // plan["checkpoint_bytes"] - 1
    way = f"set TRAIN.KEEP_CHECKPOINTS to {room} or less" if room >= 1 else "not even two fit"
    return [
        f"disk: {plan['disk_bytes'] / GIB:.2f} GiB needed for checkpoints of {plan['checkpoint_bytes'] / GIB:.2f} GiB, "
        f"{plan['disk_there'] / GIB:.2f} GiB free ({plan['disk_from']}); {way}, or use another disk"
    ]


def _device(name: str, nproc: str | int) -> tuple[str, int]:
    """ "cpu" or "cuda", and the number of processes that train."""
    import torch

    gpus = torch.cuda.device_count() if name in ("auto", "cuda") and torch.cuda.is_available() else 0
    device = "cuda" if name == "cuda" or gpus else "cpu"
    return device, max(1, gpus) if nproc == "auto" else int(nproc)


def _machine(args: argparse.Namespace, device: str, output_dir: Path) -> Machine:
    import shutil

    from seqtrack.commands.doctor_machine import nearest_folder

    if args.memory_gib is not None:
        memory, memory_from = int(args.memory_gib * GIB), "--memory-gib"
    elif device == "cuda":
        memory, memory_from = _gpu_memory()
    else:
        memory, memory_from = _cpu_memory()
    if args.disk_gib is not None:
        return Machine(memory, memory_from, int(args.disk_gib * GIB), "--disk-gib")
    place = nearest_folder(output_dir.resolve())
    return Machine(memory, memory_from, shutil.disk_usage(place).free, str(place))


def _gpu_memory() -> tuple[int, str]:
    import torch

    from seqtrack.errors import UserError

    if not torch.cuda.is_available():
        raise UserError("DEVICE=cuda, but no GPU is visible here; say --memory-gib of the one that is meant")
    smallest = min(range(torch.cuda.device_count()), key=lambda i: torch.cuda.get_device_properties(i).total_memory)
    properties = torch.cuda.get_device_properties(smallest)
    return int(properties.total_memory), properties.name


def _cpu_memory() -> tuple[int, str]:
    """Installed memory, or less where a container's limit says so."""
    from seqtrack.commands.doctor_machine import container_limit

    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = container_limit()
    if limit is not None and limit < installed:
        return limit, "limit of this container"
    return installed, "this machine"


def _print_table(plan: dict[str, Any]) -> None:
    def gib(count: int) -> str:
        return f"{count / GIB:.2f} GiB"

    have = f"{gib(plan['memory_there'])} ({plan['memory_from']})"
    rows = [
        ("encoder", f"{plan['encoder']}, patches of {plan['patch_px']} px"),
        ("parameters", f"{plan['parameters']:,}, trained {plan['trained_parameters']:,}"),
        ("tokens", f"{plan['encoder_tokens']} in the encoder, {plan['memory_tokens']} for the decoder"),
        ("work a sample", f"{plan['forward_gflop']:.1f} GFLOP forward, {plan['training_gflop']:.1f} a training step"),
        ("training", f"{plan['device']}, {plan['processes']} processes, {plan['batch_at_a_time']} samples at a time, "
                     f"{plan['precision']}"),
        ("memory, all activations kept", gib(plan["memory_without_checkpointing"])),
        ("memory, activation checkpointing", gib(plan["memory_with_checkpointing"])),
        ("memory, as configured", f"{gib(plan['memory_needed'])} of {have}"),
        ("a checkpoint", f"{plan['checkpoint_bytes']:,} bytes"),
        ("disk for the run", f"{gib(plan['disk_bytes'])} of {gib(plan['disk_there'])} free ({plan['disk_from']})"),
        ("upload", f"{gib(plan['upload_bytes'])} in {plan['epochs']} epochs"),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:34}{value}")

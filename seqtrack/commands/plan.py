"""`seqtrack plan`: what a configuration needs, before anything is downloaded, allocated or rented.

Reads the same environment variables as `train`. Exits with 2 if the run does not fit on this machine, or on the one
that --gpu, --memory-gib and --disk-gib describe.
"""

import argparse
import functools
import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from seqtrack.commands import machine as measured
from seqtrack.commands.machine import GIB
from seqtrack.config.environment import Environment, configure
from seqtrack.config.fields import did_you_mean
from seqtrack.config.schema import Config
from seqtrack.device import (
    Capability,
    capability_of,
    choose_precision,
    device_plan,
    is_emulated,
    visible_gpus,
)
from seqtrack.errors import Problem, UserError
from seqtrack.model.cost import cost_of
from seqtrack.model.memory import checkpoint_bytes, training_memory
from seqtrack.model.spec import model_spec
from seqtrack.runtime.gpus import GPUS, find_gpu

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

    @property
    def device(self) -> str:
        return "cpu" if self.capability is None else "cuda"


def run(args: argparse.Namespace) -> int:
    """Print the plan; exit 2 if it does not fit."""

    environ = dict(os.environ)
    if args.config:
        environ["CONFIG"] = args.config
    environment, config = configure(environ)
    plan = make_plan(config, find_machine(environment, args.gpu, args.memory_gib, args.disk_gib))
    if args.json:
        print(json.dumps(plan, indent=2))
    else:
        _print_table(plan)
    if plan["problems"]:
        raise UserError(plan["problems"])
    return 0


def make_plan(config: Config, machine: Machine) -> dict[str, Any]:
    """All numbers of a run, and under "problems" what does not fit."""

    spec = model_spec(config)
    train = config.TRAIN
    share = math.ceil(train.BATCH_SIZE / machine.processes / train.ACCUMULATION_STEPS)
    precision = choose_precision(train.AMP, machine.capability)
    stored = is_emulated(precision, machine.capability)
    tensors = functools.partial(training_memory, spec, half=precision != "fp32", stored_scores=stored)
    cost = cost_of(spec)
    checkpoint = checkpoint_bytes(spec)

    def needed(batch: int, *, checkpointing: bool) -> int:
        """Bytes on a device for all processes that train on it."""
        one = sum(tensors(batch=batch, checkpointing=checkpointing).values()) + _PROCESS_BYTES[machine.device]
        # The trainer keeps a copy of the state in host memory, so that saving does not block the next step.
        return one if machine.device == "cuda" else one * machine.processes + checkpoint

    plan: dict[str, Any] = {
        "encoder": spec.encoder_type,
        "patch_px": spec.patch_size,
        "parameters": cost.parameters,
        "trained_parameters": cost.trained_parameters,
        "encoder_tokens": spec.encoder_tokens,
        "memory_tokens": spec.memory_tokens,
        "forward_gflop": (cost.encoder_flops + cost.decoder_flops) / 1e9,
        "training_gflop": cost.training_flops / 1e9,
        "executed_gflop": cost.executed_flops / 1e9,
        "device": machine.device,
        "gpu": machine.gpu,
        "processes": machine.processes,
        "batch_at_a_time": share,
        "precision": precision,
        "attention": "stores its scores" if stored else "fused",
        "memory": tensors(batch=share, checkpointing=spec.use_checkpoint),
        "memory_without_checkpointing": needed(share, checkpointing=False),
        "memory_with_checkpointing": needed(share, checkpointing=True),
        "use_checkpoint": spec.use_checkpoint,
        "memory_needed": needed(share, checkpointing=spec.use_checkpoint),
        "memory_there": machine.memory,
        "memory_from": machine.memory_from,
        "host_memory_needed": _PROCESS_BYTES["cpu"] * machine.processes + checkpoint,
        "checkpoint_bytes": checkpoint,
        "epochs": train.EPOCH,
        "disk_bytes": disk_bytes(config),
        "disk_there": machine.disk,
        "disk_from": machine.disk_from,
        "upload_bytes": train.EPOCH * checkpoint,
    }
    plan["problems"] = [*_memory_problems(plan, needed), *_host_problems(plan, machine), *_disk_problems(plan)]
    return plan


def disk_bytes(config: Config) -> int:
    """Maximum bytes of a run's checkpoints on disk."""

    kept = min(config.TRAIN.KEEP_CHECKPOINTS or config.TRAIN.EPOCH, config.TRAIN.EPOCH)
    # One more than is kept: the newest is complete before the oldest is deleted.
    return (kept + 1) * checkpoint_bytes(model_spec(config))


def _memory_problems(plan: dict[str, Any], needed: Callable[..., int]) -> list[Problem]:
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
        ways.append(f"use a smaller model: one sample with activation checkpointing needs {smallest:.2f} GiB")
    text = (
        f"memory: {plan['memory_needed'] / GIB:.2f} GiB needed to train {share} samples at a time, "
        f"{there / GIB:.2f} GiB available ({plan['memory_from']}); {', or '.join(ways)}"
    )
    return [Problem(text, "plan.memory")]


def _host_problems(plan: dict[str, Any], machine: Machine) -> list[Problem]:
    there = machine.host_memory
    if machine.device == "cpu" or there is None or plan["host_memory_needed"] <= there:
        return []
    text = (
        f"host memory: {plan['host_memory_needed'] / GIB:.2f} GiB needed for the processes and a copy of the training "
        f"state, {there / GIB:.2f} GiB free; end other programs or raise the container's limit"
    )
    return [Problem(text, "plan.host_memory")]


def _disk_problems(plan: dict[str, Any]) -> list[Problem]:
    if plan["disk_bytes"] <= plan["disk_there"]:
        return []
    room = plan["disk_there"] // plan["checkpoint_bytes"] - 1
    way = f"set TRAIN.KEEP_CHECKPOINTS to {room} or less" if room >= 1 else "not even two fit"
    text = (
        f"disk: {plan['disk_bytes'] / GIB:.2f} GiB needed for checkpoints of {plan['checkpoint_bytes'] / GIB:.2f} GiB, "
        f"{plan['disk_there'] / GIB:.2f} GiB free ({plan['disk_from']}); {way}, or use another disk"
    )
    return [Problem(text, "plan.disk")]


def find_machine(
    environment: Environment, gpu: str | None = None, memory_gib: float | None = None, disk_gib: float | None = None
) -> Machine:
    """This machine as a run would use it now, or the one that the arguments describe.

    Raises:
        UserError: an unknown GPU, unknown GPU memory, or fewer GPUs than processes.
    """

    disk, disk_from = measured.free_disk(environment.output_dir)
    if disk_gib is not None:
        disk, disk_from = int(disk_gib * GIB), "--disk-gib"
    host: int | None = None
    capability: Capability | None = None
    memory: int | None
    if gpu is None and memory_gib is not None and environment.device == "cuda" and not visible_gpus():
        gpu = "8.0"
    if gpu is not None:
        name, capability, memory = _other_gpu(gpu)
        processes, memory_from = 1 if environment.nproc == "auto" else int(environment.nproc), f"installed in {name}"
    else:
        here = device_plan(environment.device, environment.nproc)
        processes, name = here.processes, ""
        host, memory_from = measured.free_memory()
        memory = host
        if here.device == "cuda":
            memory, memory_from, index = measured.free_gpu_memory(processes)
            capability, name = capability_of(torch.device("cuda", index)), torch.cuda.get_device_name(index)
    if memory_gib is not None:
        memory, memory_from, host = int(memory_gib * GIB), "--memory-gib", None
    if memory is None:
        raise UserError(f"the memory of --gpu {gpu} is unknown; add --memory-gib", "plan.gpu_memory")
    return Machine(processes, capability, name, memory, memory_from, host, disk, disk_from)


def _other_gpu(text: str) -> tuple[str, Capability, int | None]:
    """Name, compute capability and bytes of memory (None if unknown) of a GPU."""

    numbers = re.fullmatch(r"(?:sm_?)?(\d{1,2})\.?(\d)", text.lower())
    if numbers:
        capability = (int(numbers[1]), int(numbers[2]))
        return f"compute capability {capability[0]}.{capability[1]}", capability, None
    card = find_gpu(text)
    if card is None:
        raise UserError(
            f"--gpu {text}: expected a compute capability such as 7.5 or a known GPU{did_you_mean(text, GPUS)}",
            code="plan.unknown_gpu",
        )
    return text, card.capability, int(card.memory_gib * GIB)


def _print_table(plan: dict[str, Any]) -> None:
    def gib(count: int) -> str:
        return f"{count / GIB:.2f} GiB"

    have = f"{gib(plan['memory_there'])} ({plan['memory_from']})"
    rows = [
        ("encoder", f"{plan['encoder']}, patches of {plan['patch_px']} px"),
        ("parameters", f"{plan['parameters']:,}, trained {plan['trained_parameters']:,}"),
        ("tokens", f"{plan['encoder_tokens']} in the encoder, {plan['memory_tokens']} for the decoder"),
        ("FLOPs per sample", f"{plan['forward_gflop']:.1f} GFLOP forward, {plan['training_gflop']:.1f} per training "
                            f"step, of which {plan['executed_gflop']:.1f} are computed"),
        ("training", f"{plan['gpu'] or plan['device']}, {plan['processes']} processes, {plan['batch_at_a_time']} "
                     f"samples at a time, {plan['precision']}"),
        ("attention", f"{plan['attention']}"),
        ("memory, all activations kept", gib(plan["memory_without_checkpointing"])),
        ("memory, activation checkpointing", gib(plan["memory_with_checkpointing"])),
        ("memory, as configured", f"{gib(plan['memory_needed'])} of {have}"),
        ("checkpoint", f"{plan['checkpoint_bytes']:,} bytes"),
        ("disk for the run", f"{gib(plan['disk_bytes'])} of {gib(plan['disk_there'])} free ({plan['disk_from']})"),
        ("upload", f"{gib(plan['upload_bytes'])} in {plan['epochs']} epochs"),
    ]  # fmt: skip
    for name, value in rows:
        print(f"{name:34}{value}")

"""The doctor's trials of the device, in processes like those of training, within a time limit.

`try_device` is the parent; the child processes run this module and print each finding as one line of JSON. A missing
kernel or an exchange that hangs is found here and not in the run.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch

from seqtrack.commands.doctor import BAD, OK, Finding
from seqtrack.config.environment import Environment
from seqtrack.config.schema import Config
from seqtrack.device import DTYPES, capability_of, choose_device, choose_precision, device_plan, is_emulated
from seqtrack.errors import UserError
from seqtrack.model.spec import model_spec
from seqtrack.process import end_with_parent
from seqtrack.runtime.distributed import DistributedContext, end_process, join
from seqtrack.runtime.launcher import Launch, launch

LIMIT_S = 120.0
_VARIABLE = "_SEQTRACK_DOCTOR"
_MODULE = [sys.executable, "-m", "seqtrack.commands.doctor_probe"]


def try_device(environment: Environment, config: Config, *, limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """Try what a run with these settings needs of its device."""

    try:
        plan = device_plan(environment.device, environment.nproc)
        capability = capability_of(choose_device(plan.device))
        precision = choose_precision(config.TRAIN.AMP, capability)
    except UserError as error:
        yield from (Finding("device", BAD, problem) for problem in error.problems)
        return
    found = f"TRAIN.AMP {config.TRAIN.AMP} is {precision} here"
    if is_emulated(precision, capability):
        yield Finding("precision", BAD, found, "The device emulates bf16, slower than float32: use TRAIN.AMP auto")
    else:
        yield Finding("precision", OK, found)
    tokens = model_spec(config).encoder_tokens
    work = {"device": plan.device, "processes": plan.processes, "precision": precision, "tokens": tokens}
    yield from run_trials(work, limit_s)


def run_trials(work: dict[str, Any], limit_s: float) -> Iterator[Finding]:
    """The findings of the child processes, and one more if they crash or hang."""
    child = subprocess.Popen(
        _MODULE,
        env={**os.environ, _VARIABLE: json.dumps(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    failure = ""
    try:
        output, errors = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, errors = child.communicate()
        failure = f"no answer within {limit_s:.0f} s"
    findings = [Finding(**json.loads(line)) for line in output.splitlines() if line.startswith("{")]
    yield from findings
    if child.returncode and not failure and all(one.level != BAD for one in findings):
        failure = (errors.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    if failure:
        after = f"after: {findings[-1].about}" if findings else "at the start"
        yield Finding("device trials", BAD, f"{failure} ({after})", "Training would stop there as well")


def _matrix_product(distributed: DistributedContext, work: dict[str, Any]) -> str:

    device = distributed.device
    ones = torch.ones(256, 256, device=device, dtype=DTYPES[work["precision"]] or torch.float32)
    if not bool((ones @ ones == 256).all()):
        raise RuntimeError(f"a product of ones in {work['precision']} is wrong")
    if device.type == "cpu":
        return f"right in {work['precision']}, CPU, torch {torch.__version__}"
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return f"right in {work['precision']}, {name}, compute capability {major}.{minor}, torch {torch.__version__}"


def _attention(distributed: DistributedContext, work: dict[str, Any]) -> str:

    dtype = DTYPES[work["precision"]] or torch.float32
    x = torch.randn(1, 2, work["tokens"], 64, device=distributed.device, dtype=dtype, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()  # type: ignore[no-untyped-call]
    if x.grad is None or not bool(x.grad.isfinite().all()):
        raise RuntimeError(f"attention's gradient in {work['precision']} is not finite")
    return f"forward and backward in {work['precision']}, {work['tokens']} tokens"


def _exchange(distributed: DistributedContext, _work: dict[str, Any]) -> str:

    if float(distributed.sum_in_place(torch.ones(1, device=distributed.device))) != distributed.world_size:
        raise RuntimeError(f"the sum over {distributed.world_size} processes is wrong")
    return f"sum over {distributed.world_size} processes"


# What is tried, and what to do when it fails.
TRIALS: dict[str, tuple[Callable[[DistributedContext, dict[str, Any]], str], str]] = {
    "matrix product": (
        _matrix_product,
        "No code for this GPU in this torch: CUDA=cu128 docker compose build for newer GPUs, DEVICE=cpu for older",
    ),
    "attention": (_attention, "Set TRAIN.AMP off in OVERRIDES, or use DEVICE=cpu"),
    "exchange": (_exchange, "See NCCL_DEBUG=INFO; in a container, docker run --shm-size 2g"),
}


def main() -> int:
    """One process of the trials, or the launcher of several."""

    work: dict[str, Any] = json.loads(os.environ[_VARIABLE])
    several = work["processes"] > 1
    if several and "RANK" not in os.environ:
        launch(_MODULE, Launch(work["processes"]))
        return 0
    end_with_parent(signal.SIGKILL)
    distributed = join(work["device"])
    for about, (trial, advice) in TRIALS.items():
        if about == "exchange" and not several:
            continue
        try:
            finding = Finding(about, OK, trial(distributed, work))
        except (RuntimeError, MemoryError, ImportError, OSError, NotImplementedError) as error:
            finding = Finding(about, BAD, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", advice)
        if distributed.is_main or finding.level == BAD:
            print(json.dumps(asdict(finding)), flush=True)
    if several:
        end_process(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())

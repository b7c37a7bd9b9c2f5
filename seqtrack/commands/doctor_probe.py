"""The doctor's checks that need torch: data, memory and disk, and trials of the device.

The trials run in processes like those of training, which execute this module, within a time limit: a missing kernel or
an exchange that hangs is found here and not in the run.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch

from seqtrack.commands.doctor import BAD, NOTE, OK, Finding
from seqtrack.commands.plan import GIB, Plan, find_machine
from seqtrack.config.environment import Environment
from seqtrack.config.schema import Config
from seqtrack.device import DTYPES, is_emulated
from seqtrack.errors import UserError
from seqtrack.process import end_with_parent
from seqtrack.runtime.distributed import DistributedContext, end_process, join
from seqtrack.runtime.launcher import Launch, launch
from seqtrack.training.build import open_sources

LIMIT_S = 120.0
_VARIABLE = "_SEQTRACK_DOCTOR"
_MODULE = [sys.executable, "-m", "seqtrack.commands.doctor_probe"]
NO_GPU = (
    'In a container, start it with --gpus all; if Docker then reports \'could not select device driver "nvidia" with '
    "capabilities: [[gpu]]', install nvidia-container-toolkit on the host and restart Docker. Without a GPU, add "
    "'-f compose.yaml -f compose.cpu.yaml' and train on the CPU"
)


def check_data(environment: Environment, config: Config) -> list[Finding]:
    """Whether the training data opens, counted as a run counts it. Demo data is not drawn for this."""
    demo = environment.data_dir / "demo"
    if "DEMO" in (name.upper() for name in config.DATA.TRAIN.DATASETS_NAME) and not demo.is_dir():
        return [Finding("data", NOTE, f"demo: synthetic, drawn at first use into {demo} (45 MB)")]
    logging.getLogger("seqtrack.data").setLevel(logging.ERROR)
    try:
        sources = open_sources(config, environment.data_dir)
    except UserError as error:
        advice = "`seqtrack data check` lists everything; `seqtrack data download` fetches classes of LaSOT"
        return [Finding("data", BAD, problem, advice) for problem in error.problems[:5]]
    return [
        Finding("data", OK, f"{one.name}: {len(one.sequences)} training sequences, "
                f"{sum(sequence.num_frames for sequence in one.sequences):,} frames")
        for one in sources
    ]  # fmt: skip


def check_device(environment: Environment, config: Config, *, limit_s: float = LIMIT_S) -> Iterator[Finding]:
    """Memory and disk compared with `plan`'s numbers, and trials of what a run with these settings needs."""
    try:
        machine = find_machine(environment)
        plan = Plan(config, machine)
    except UserError as error:
        yield from (Finding("device", BAD, problem, NO_GPU) for problem in error.problems)
        return
    if plan.device == "cpu":
        yield Finding(
            "device", NOTE, f"CPU (DEVICE={environment.device})", NO_GPU if environment.device == "auto" else ""
        )
    found = f"TRAIN.AMP {config.TRAIN.AMP} is {plan.precision} here"
    if is_emulated(plan.precision, machine.capability):
        yield Finding("precision", BAD, found, "The device emulates bf16, slower than float32: use TRAIN.AMP auto")
    else:
        yield Finding("precision", OK, found)
    yield from (Finding(problem.code.removeprefix("plan."), BAD, problem) for problem in plan.problems)
    if not plan.problems:
        memory, disk = f"{machine.memory / GIB:.1f} GiB ({machine.memory_from})", f"{machine.disk / GIB:.1f} GiB"
        yield Finding("memory", OK, f"{plan.memory_needed / GIB:.1f} GiB of {memory} needed")
        yield Finding("disk", OK, f"{plan.disk_needed / GIB:.1f} GiB of {disk} needed")
    work = (plan.device, machine.processes, plan.precision, plan.spec.encoder_tokens)
    yield from run_trials(json.dumps(work), limit_s)


def run_trials(work: str, limit_s: float) -> Iterator[Finding]:
    """The findings of the child processes, and one more if they crash or hang."""
    child = subprocess.Popen(
        _MODULE, env={**os.environ, _VARIABLE: work}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    failure = ""
    try:
        output, errors = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, errors = child.communicate()
        failure = f"no answer within {limit_s:.0f} s"
    findings = [Finding(*json.loads(line)) for line in output.splitlines() if line.startswith("[")]
    yield from findings
    if child.returncode and not failure and all(one.level != BAD for one in findings):
        failure = (errors.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
    if failure:
        after = f"after: {findings[-1].about}" if findings else "at the start"
        yield Finding("device trials", BAD, f"{failure} ({after})", "Training would stop there as well")


def _kernels(distributed: DistributedContext, precision: str, tokens: int) -> str:
    device, dtype = distributed.device, DTYPES[precision] or torch.float32
    x = torch.randn(1, 2, tokens, 64, device=device, dtype=dtype, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()  # type: ignore[no-untyped-call]
    if x.grad is None or not bool(x.grad.isfinite().all()):
        raise RuntimeError(f"attention's gradient in {precision} is not finite")
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"attention and its gradient in {precision}, {tokens} tokens, {name}, torch {torch.__version__}"


def _exchange(distributed: DistributedContext, _precision: str, _tokens: int) -> str:
    if float(distributed.sum_in_place(torch.ones(1, device=distributed.device))) != distributed.world_size:
        raise RuntimeError(f"the sum over {distributed.world_size} processes is wrong")
    return f"sum over {distributed.world_size} processes"


# What is tried, and what to do when it fails.
TRIALS: dict[str, tuple[Callable[[DistributedContext, str, int], str], str]] = {
    "kernels": (
        _kernels,
        "If torch has no code for this GPU: CUDA=cu128 docker compose build for newer ones, DEVICE=cpu for older ones",
    ),
    "exchange": (_exchange, "See NCCL_DEBUG=INFO; in a container, docker run --shm-size 2g"),
}


def main() -> int:
    """One process of the trials, or the launcher of several."""
    device, processes, precision, tokens = json.loads(os.environ[_VARIABLE])
    if processes > 1 and "RANK" not in os.environ:
        launch(_MODULE, Launch(processes))
        return 0
    end_with_parent(signal.SIGKILL)
    distributed = join(device)
    for about, (trial, advice) in TRIALS.items():
        try:
            finding = Finding(about, OK, trial(distributed, precision, tokens))
        except (RuntimeError, MemoryError, ImportError, OSError, NotImplementedError) as error:
            finding = Finding(about, BAD, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", advice)
        if distributed.is_main or finding.level == BAD:
            print(json.dumps(finding), flush=True)
    if processes > 1:
        end_process(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())

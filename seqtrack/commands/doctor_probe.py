"""The doctor's trials: what training asks of the device, tried in processes like those of training, within a limit.

The parent is `try_device`; the processes run this module, and print each finding as one line of JSON. A kernel that is
missing, memory that cannot be pinned or an exchange that hangs shows here, not in the run.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from seqtrack.commands.machine import GIB

if TYPE_CHECKING:
    import torch

    from seqtrack.commands.doctor import Finding
    from seqtrack.config.environment import Environment
    from seqtrack.config.schema import Config
    from seqtrack.runtime.distributed import DistributedContext

LIMIT_S = 120.0
_WORK = "_SEQTRACK_DOCTOR"


def try_device(environment: "Environment", config: "Config", *, limit_s: float = LIMIT_S) -> "Iterator[Finding]":
    """Try in processes of their own what a run with these settings needs of its device."""
    from seqtrack.commands.doctor import BAD, OK, Finding
    from seqtrack.device import capability_of, choose_device, choose_precision, device_plan, is_emulated
    from seqtrack.errors import UserError
    from seqtrack.model.memory import checkpoint_bytes
    from seqtrack.model.spec import model_spec

    try:
        plan = device_plan(environment.device, environment.nproc)
        capability = capability_of(choose_device(plan.device))
        precision = choose_precision(config.TRAIN.AMP, capability)
    except UserError as error:
        yield from (Finding("device", BAD, problem) for problem in error.problems)
        return
    amp = f"TRAIN.AMP {config.TRAIN.AMP} is {precision} here"
    slow = "The device emulates bf16, slower than float32: use TRAIN.AMP auto"
    emulated = is_emulated(precision, capability)
    yield Finding("precision", BAD if emulated else OK, amp, slow if emulated else "")
    spec = model_spec(config)
    work = {
        "device": plan.device,
        "processes": plan.processes,
        "precision": precision,
        "tokens": spec.encoder_tokens,
        "checkpoint_bytes": checkpoint_bytes(spec),
        "compile": config.TRAIN.COMPILE,
    }
    # torch.compile takes a minute on a slow machine.
    yield from _in_processes(work, limit_s * (3 if config.TRAIN.COMPILE else 1))


def _in_processes(work: dict[str, Any], limit_s: float) -> "Iterator[Finding]":
    from seqtrack.commands.doctor import BAD, Finding

    child = subprocess.Popen(
        [sys.executable, "-m", "seqtrack.commands.doctor_probe"],
        env={**os.environ, _WORK: json.dumps(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    failure = ""
    try:
        said, complaint = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, complaint = child.communicate()
        failure = f"no answer within {limit_s:.0f} s"
    found = [Finding(**json.loads(line)) for line in said.splitlines() if line.startswith("{")]
    yield from found
    if child.returncode and not failure and not any(one.level == BAD for one in found):
        failure = (complaint.strip().splitlines() or [f"the process ended with {child.returncode}"])[-1]
    if failure:
        after = f"after: {found[-1].about}" if found else "at the start"
        yield Finding("trials on the device", BAD, f"{failure} ({after})", "Training would stop there as well")


def _matrix_product(device: "torch.device", work: dict[str, Any]) -> str:
    import torch

    from seqtrack.device import DTYPES

    dtype = DTYPES[work["precision"]] or torch.float32
    ones = torch.ones(256, 256, device=device, dtype=dtype)
    if not bool((ones @ ones == 256).all()):
        raise RuntimeError(f"a product of ones in {work['precision']} came out wrong")
    return f"right in {work['precision']}, {_describe(device)}"


def _describe(device: "torch.device") -> str:
    import torch

    if device.type == "cpu":
        return f"CPU, torch {torch.__version__}"
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_name(device)
    return f"{name}, compute capability {major}.{minor}, torch {torch.__version__} for CUDA {torch.version.cuda}"


def _attention(device: "torch.device", work: dict[str, Any]) -> str:
    import torch

    from seqtrack.device import DTYPES

    dtype = DTYPES[work["precision"]] or torch.float32
    x = torch.randn(1, 2, work["tokens"], 64, device=device, dtype=dtype, requires_grad=True)
    torch.nn.functional.scaled_dot_product_attention(x, x, x).sum().backward()  # type: ignore[no-untyped-call]
    if x.grad is None or not bool(x.grad.isfinite().all()):
        raise RuntimeError(f"attention's gradient in {work['precision']} is not finite")
    return f"forward and backward in {work['precision']}, {work['tokens']} tokens"


def _checkpoint_memory(device: "torch.device", work: dict[str, Any]) -> str:
    import torch

    count, pinned = work["checkpoint_bytes"], device.type == "cuda"
    try:
        torch.empty(count, dtype=torch.uint8, pin_memory=pinned)[::4096].fill_(1)
    except RuntimeError as error:
        if not pinned:
            raise
        return f"copied through ordinary memory, which is slower: {str(error).splitlines()[0]}"
    return f"{count / GIB:.2f} GiB of {'page-locked' if pinned else 'ordinary'} memory for a copy of the training state"


def _compiler(device: "torch.device", _work: dict[str, Any]) -> str:
    import torch

    torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    return "torch.compile works"


TRIALS: dict[str, tuple[Callable[["torch.device", dict[str, Any]], str], str]] = {
    "matrix product": (
        _matrix_product,
        "A torch without code for this GPU: CUDA=cu128 docker compose build for newer ones, DEVICE=cpu for older ones",
    ),
    "attention": (_attention, "Set TRAIN.AMP off in OVERRIDES, or use DEVICE=cpu"),
    "checkpoint memory": (
        _checkpoint_memory,
        "Free memory, or raise the limit on locked memory (docker run --ulimit memlock=-1; under WSL2 it is small)",
    ),
    "compiler": (_compiler, "Install a C compiler, or set TRAIN.COMPILE False"),
}


def main() -> int:
    """One process of the trials, or the launcher of several."""
    work: dict[str, Any] = json.loads(os.environ[_WORK])
    several = work["processes"] > 1
    if several and "RANK" not in os.environ:
        from seqtrack.runtime.launcher import Launch, launch

        launch([sys.executable, "-m", "seqtrack.commands.doctor_probe"], Launch(work["processes"]))
        return 0
    from seqtrack.process import end_with_parent
    from seqtrack.runtime.distributed import end_process, join

    end_with_parent(signal.SIGKILL)
    distributed = join(work["device"])
    for about, (trial, advice) in TRIALS.items():
        if about != "compiler" or work["compile"]:
            _tell(distributed, about, advice, lambda trial=trial: trial(distributed.device, work))  # type: ignore[misc]
    if several:
        _tell(distributed, "exchange", "Look at NCCL_DEBUG=INFO", lambda: _exchange(distributed))
        end_process(0)
    return 0


def _exchange(distributed: "DistributedContext") -> str:
    import torch

    if float(distributed.sum_in_place(torch.ones(1, device=distributed.device))) != distributed.world_size:
        raise RuntimeError(f"the sum over {distributed.world_size} processes came out wrong")
    return f"sum over {distributed.world_size} processes"


def _tell(distributed: "DistributedContext", about: str, advice: str, trial: Callable[[], str]) -> None:
    """Print what a trial found; of several processes the first one does, and any whose trial fails."""
    from seqtrack.commands.doctor import BAD, OK

    try:
        level, found, remedy = OK, trial(), ""
    except (RuntimeError, MemoryError, ImportError, OSError, NotImplementedError) as error:
        level, found, remedy = BAD, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", advice
    if distributed.is_main or level == BAD:
        print(json.dumps({"about": about, "level": level, "found": found, "advice": remedy}), flush=True)


if __name__ == "__main__":
    sys.exit(main())

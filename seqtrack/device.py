"""Which device a process computes on, how many processes a run has on this machine, and what a device can do.

The one place that decides it, for training, tracking, evaluation, `plan` and `doctor`. What a device can do natively,
never by emulation, is a function of its compute capability, so that it holds for a GPU of another machine as well.
"""

import contextlib
import importlib.util
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, TypeVar

import torch

from seqtrack.errors import RunError, UserError

logger = logging.getLogger(__name__)

_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
T = TypeVar("T")
DeviceType = Literal["cpu", "cuda"]
Capability = tuple[int, int]
# Ampere: the first generation whose matrix units take bf16 and TF32. torch emulates bf16 on older ones, slower than
# float32, and calls that supported.
_AMPERE: Capability = (8, 0)
# Messages of the errors that torch has no type for: of the driver, cuBLAS and NCCL, and of its CPU allocator.
_OUT_OF_MEMORY = re.compile(
    r"CUDA error: out of memory|CUDA out of memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_ALLOC_FAILED|'out of memory'"
    r"|can't allocate memory|not enough memory"
)
LESS_MEMORY = (
    "raise TRAIN.ACCUMULATION_STEPS (or TRAIN.SHARDS), set MODEL.ENCODER.USE_CHECKPOINT True, or lower BATCH_SIZE; "
    "`seqtrack plan` estimates what each needs"
)
_not_pinned: set[str] = set()
DTYPES: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class DevicePlan(NamedTuple):
    """The device type of every process of a run on this machine, and the number of processes."""

    device: DeviceType
    processes: int


def device_plan(device: str, processes: int | str) -> DevicePlan:
    """What the variables DEVICE (auto, cpu, cuda) and NPROC (a number or "auto") mean on this machine.

    "auto" processes are one per GPU, and one on a CPU.

    Raises:
        UserError: `device.no_gpu`, a GPU was requested and none is usable; `device.too_many_processes`, every process
            needs its own GPU and there are fewer; `device.unknown`, another device.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device {device!r}: expected auto, cpu or cuda", "device.unknown")
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if device == "cuda" and gpus == 0:
        raise UserError(
            f"DEVICE=cuda, but there is no usable GPU (torch {torch.__version__} with CUDA {torch.version.cuda}); use "
            "DEVICE=cpu, or run `seqtrack doctor` to find the reason",
            code="device.no_gpu",
        )
    wanted = max(1, gpus) if processes == "auto" else int(processes)
    if gpus and wanted > gpus:
        text = f"NPROC={wanted}, but every process needs its own GPU, and {gpus} can be used"
        raise UserError(f"{text}; use NPROC={gpus} or DEVICE=cpu", code="device.too_many_processes")
    return DevicePlan("cuda" if gpus else "cpu", wanted)


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device that DEVICE=`name` means for process `local_rank` of this machine.

    Raises:
        UserError: as `device_plan` with `local_rank` + 1 processes.
    """
    is_gpu = device_plan(name, local_rank + 1).device == "cuda"
    return torch.device("cuda", local_rank) if is_gpu else torch.device("cpu")


def capability_of(device: torch.device) -> Capability | None:
    """The compute capability of a GPU; None for the CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def choose_precision(amp: str, capability: Capability | None) -> str:
    """What TRAIN.AMP (auto, off, bf16, fp16) means on a device: "fp32", "bf16" or "fp16".

    "auto" is bf16 from compute capability 8.0 on, fp16 on older GPUs, fp32 on a CPU.

    Raises:
        UserError: fp16 on a CPU, whose kernels for it are missing.
    """
    if amp == "auto":
        return "fp32" if capability is None else "bf16" if capability >= _AMPERE else "fp16"
    if amp == "fp16" and capability is None:
        raise UserError("TRAIN.AMP fp16 needs a GPU; use bf16 or off on a CPU", code="device.fp16_on_cpu")
    return "fp32" if amp == "off" else amp


def is_emulated(precision: str, capability: Capability | None) -> bool:
    """Whether a GPU emulates this precision: correct, slower than float32, and without fused attention."""
    return precision == "bf16" and capability is not None and capability < _AMPERE


def has_tf32(capability: Capability | None) -> bool:
    """Whether float32 products can run on the matrix units."""
    return capability is not None and capability >= _AMPERE


def allow_deterministic_matmul(device: torch.device) -> None:
    """Make PyTorch accept cuBLAS's matrix products as deterministic, before the first one of the process.

    They are, because PyTorch gives cuBLAS a workspace of its own for each stream; but it looks for a variable at the
    first one. While that is set, PyTorch up to 2.11 parses it once or twice in each product, which takes the host 25 us
    and more. So it is set for one product, unless the caller has set it.
    """
    if device.type == "cuda" and _WORKSPACES not in os.environ:
        os.environ[_WORKSPACES] = ":4096:8"  # 32 MiB, no less than PyTorch takes without the variable
        with explain_out_of_memory("when cuBLAS was started", "free some of the GPU's memory, or use DEVICE=cpu"):
            ones = torch.ones(16, 16, device=device)
            ones @ ones
        del os.environ[_WORKSPACES]


def compiler_problem(device: torch.device) -> str | None:
    """Why `torch.compile` cannot work here, or None where it can."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "torch.compile needs the package triton for a GPU, which is not installed"
    names = ("CXX", "g++", "c++", "clang++") if device.type == "cpu" else ("CC", "gcc", "cc", "clang")
    there = any(shutil.which(os.environ.get(name, name)) for name in names)
    return None if there else f"torch.compile needs a compiler: none of {', '.join(names)} is set or on the PATH"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host had no memory left."""
    typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return typed or (isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error))))


@contextlib.contextmanager
def explain_out_of_memory(doing: str, advice: str) -> Iterator[None]:
    """Turn an out-of-memory error of the block into "out of memory {doing}; {advice}".

    Raises:
        RunError: `device.out_of_memory`.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunError(f"out of memory {doing} ({reason}); {advice}", code="device.out_of_memory") from error


def pin_or_none(pin: Callable[[], T], what: str, num_bytes: int) -> T | None:
    """What `pin` allocates in page-locked memory; None where that fails, as it does under WSL2 beyond a small limit.

    Page-locked memory only makes copies faster. The failure is logged once per `what`.
    """
    try:
        return pin()
    except RuntimeError as error:
        if what not in _not_pinned:
            _not_pinned.add(what)
            text = "%s : copied through ordinary memory, which is slower: %.1f MB could not be page-locked (%s)"
            logger.warning(text, what, num_bytes / 1e6, str(error).splitlines()[0])
        return None


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Peak bytes allocated to tensors and reserved by torch since the last call; None on a CPU."""
    if device.type != "cuda":
        return {"max_memory_allocated": None, "max_memory_reserved": None}
    reserved, total = torch.cuda.max_memory_reserved(device), torch.cuda.get_device_properties(device).total_memory
    if reserved > total:  # the driver keeps the rest in host memory, on Windows and WSL2
        text = "%.2f GiB of memory were reserved on a GPU of %.2f GiB: many times slower; %s"
        logger.warning(text, reserved / 2**30, total / 2**30, LESS_MEMORY)
    allocated = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return {"max_memory_allocated": allocated, "max_memory_reserved": reserved}

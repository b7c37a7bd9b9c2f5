"""Which device a process computes on, and how many processes a run has on this machine.

The one place that decides it: training, tracking, evaluation, `plan` and `doctor` ask here. torch is imported inside
the functions, because the process that launches a run on CPUs needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from seqtrack.errors import UserError

if TYPE_CHECKING:
    import torch

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class DevicePlan:
    """The device type of every process of a run on this machine, and the number of processes."""

    device: DeviceType
    processes: int


def visible_gpus() -> int:
    """The number of GPUs that this torch can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_plan(device: str, processes: int | str) -> DevicePlan:
    """What the variables DEVICE (auto, cpu, cuda) and NPROC (a number or "auto") mean on this machine.

    "auto" processes are one per GPU, and one on a CPU.

    Raises:
        UserError: `device.no_gpu`, a GPU was asked for and none is usable; `device.too_many_processes`, every process
            needs a GPU of its own and there are fewer.
    """
    gpus = 0 if device == "cpu" else visible_gpus()
    if device == "cuda" and gpus == 0:
        raise _no_gpu()
    kind: DeviceType = "cuda" if gpus else "cpu"
    wanted = max(1, gpus) if processes == "auto" else int(processes)
    if kind == "cuda" and wanted > gpus:
        raise UserError(
            f"NPROC={wanted}, but there {'is 1 usable GPU' if gpus == 1 else f'are {gpus} usable GPUs'} and every "
            f"process needs its own; use NPROC={gpus} or DEVICE=cpu",
            code="device.too_many_processes",
        )
    return DevicePlan(kind, wanted)


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device that DEVICE=`name` means for process `local_rank` of this machine.

    Raises:
        UserError: as `device_plan` with `local_rank` + 1 processes.
    """
    import torch

    kind = device_plan(name, local_rank + 1).device
    return torch.device(kind, local_rank) if kind == "cuda" else torch.device(kind)


def _no_gpu() -> UserError:
    import torch

    return UserError(
        f"DEVICE=cuda, but there is no usable GPU (torch {torch.__version__} with CUDA {torch.version.cuda}); use "
        "DEVICE=cpu, or run `seqtrack doctor` to see what is wrong",
        code="device.no_gpu",
    )

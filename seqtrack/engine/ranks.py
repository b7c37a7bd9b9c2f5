"""The processes of one run. The only file that imports torch.distributed.

A run of one process goes through the same calls; they then do nothing. Sums over ranks are taken in float64 and in
rank order, so that they come out the same each time for the same number of processes.
"""

import contextlib
import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from torch.nn.parallel import DistributedDataParallel

from seqtrack.errors import RunError, UserError

T = TypeVar("T")

# A rank that waits longer than this for the others takes them for dead; a save of a large model must fit in.
_PATIENCE = timedelta(minutes=15)


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and the log."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose gradients are averaged over ranks in the backward pass."""
        if self.world == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Static buckets and no unused-parameter search: every parameter takes part in every step, and the order of
        # the sums must not depend on what happened in an earlier process.
        return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks of each value, in float64."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return [float(value) for value in total]

    def sum_in_place(self, numbers: torch.Tensor) -> torch.Tensor:
        """The sums over all ranks of each element, on the device and without waiting for it."""
        if self.world > 1:
            dist.all_reduce(numbers)
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether any rank raised its flag: the vote at a step's end."""
        return self.sum([1.0 if flag else 0.0])[0] > 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def agree(self, decide: Callable[[], T]) -> T:
        """What rank 0 decides, on every rank; what it raises as the user's mistake, every rank raises.

        Raises:
            UserError: rank 0's.
        """
        if self.world == 1:
            return decide()
        answer: tuple[T | None, list[str]] = (None, [])
        if self.is_main:
            try:
                answer = (decide(), [])
            except UserError as error:
                answer = (None, [*error.problems])
        value, problems = self.from_main(answer)
        if problems:
            raise UserError(problems)
        return value  # type: ignore[no-any-return]

    def broadcast(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rank 0's CPU tensors on every rank; the others' argument is not looked at."""
        if self.world == 1:
            return tensors
        shapes = self.from_main({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
        received = {}
        for name, (shape, dtype) in shapes.items():
            value = tensors[name] if self.is_main else torch.empty(shape, dtype=dtype)
            there = value.to(self.device).contiguous()
            dist.broadcast(there, src=0)
            received[name] = there.cpu()
        return received

    def close(self) -> None:
        """Part from the other processes."""
        if self.world == 1 or not dist.is_initialized():
            return
        if dist.get_backend() == "gloo":
            # gloo's destructor waits for its threads with Python's lock held; a thread that lets go of its last tensor
            # just then waits for that lock, and the process never ends (seen with torch 2.4.1). So the group is never
            # taken apart: one reference more than there are holders. The kernel closes its sockets.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
            return
        dist.destroy_process_group()


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """Say in words that another process of the run went away in the middle of an exchange.

    Raises:
        RunError: instead of the backend's own exception.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception of its own, only its file's name in the message.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise RunError(
            f"another process of this run ended, so this one cannot go on ({str(error).splitlines()[0]:.150})"
        ) from error


def end_process(code: int) -> NoReturn:
    """End one process of several with `code`, when everything it had to write is written.

    The interpreter is not taken apart: a gloo thread that lets go of its last tensor only then finds no interpreter to
    give it back to, and the process aborts after its work was done (seen with torch 2.4.1, one end in twenty).
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


@dataclass(frozen=True)
class Launch:
    """How many processes to start here, and where they meet those of other machines ("host:port", or "")."""

    processes: int
    machines: int = 1
    machine: int = 0
    rendezvous: str = ""
    max_restarts: int = 0


def launch(command: Sequence[str], how: Launch) -> bool:
    """Run `command` as the processes of one run, and start all of them again when one dies.

    Returns:
        True when every process ended with 0; False when this process was told to stop, and has stopped them.

    Raises:
        RunError: a process died more often than allowed.
    """
    # The processes of one machine meet at a port that is held from now on. Left to itself, torch 2.4's launcher looks
    # for a free one and lets it go again, for a process to take it seconds later, when it may be somebody else's.
    here = how.machines == 1
    held = dist.TCPStore("127.0.0.1", 0, is_master=True, multi_tenant=True) if here else None  # type: ignore[attr-defined]
    settings = LaunchConfig(
        min_nodes=how.machines,
        max_nodes=how.machines,
        nproc_per_node=how.processes,
        run_id="seqtrack",
        rdzv_backend="static",
        rdzv_endpoint=how.rendezvous if held is None else f"127.0.0.1:{held.port}",
        rdzv_configs={"rank": how.machine, "timeout": int(_PATIENCE.total_seconds())},
        max_restarts=how.max_restarts,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(settings, command[0])(*command[1:])
    except ChildFailedError as error:
        codes = ", ".join(f"rank {rank}: exit code {failure.exitcode}" for rank, failure in error.failures.items())
        raise RunError(
            f"a process of the run died ({codes}); its own message stands above. The checkpoints are sound: start "
            "again to go on, or set MAX_RESTARTS"
        ) from error
    except SignalException:
        return False
    return True


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device that `name` (auto, cpu, cuda) means on this machine.

    Raises:
        UserError: cuda was asked for and there is none that this torch can use.
    """
    if name == "cpu":
        return torch.device("cpu")
    usable = torch.cuda.is_available() and local_rank < torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda", local_rank) if usable else torch.device("cpu")
    if not usable:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise UserError(
            f"DEVICE=cuda, but process {local_rank} finds {found} usable GPUs (torch {torch.__version__} with CUDA "
            f"{torch.version.cuda}); use DEVICE=cpu, or run `seqtrack doctor` to see what is wrong"
        )
    return torch.device("cuda", local_rank)


def join(device_name: str) -> Ranks:
    """Meet the other processes, as torchrun's environment variables say; alone without them.

    Raises:
        UserError: the device asked for is not there.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = choose_device(device_name, local_rank=local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world == 1:
        return Ranks(0, 1, device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = launchers_store()
        dist.init_process_group(backend, timeout=_PATIENCE, store=store, rank=int(os.environ["RANK"]), world_size=world)
    else:
        dist.init_process_group(backend, timeout=_PATIENCE)
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def launchers_store() -> dist.PrefixStore:  # type: ignore[name-defined]
    """The place where the processes of one run find each other, held by their launcher.

    Each start after a death has names of its own in it: torch 2.11 leaves that out, and the new processes would wait
    for the dead ones whose addresses still stand there.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    held = dist.TCPStore(host, port, is_master=False, timeout=_PATIENCE)  # type: ignore[attr-defined]
    return dist.PrefixStore(f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}", held)  # type: ignore[attr-defined]

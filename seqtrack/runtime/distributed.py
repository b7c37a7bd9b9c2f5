"""The processes of one run. The only file that imports torch.distributed.

A run of one process goes through the same calls; they then do nothing. Everything that is summed over processes is
summed by one all-reduce over a buffer whose layout never changes, so that it comes out the same each time for the same
number of processes.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import FileStore, PrefixStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]

from seqtrack.device import choose_device
from seqtrack.errors import Problem, RunError, UserError
from seqtrack.runtime.launcher import LAUNCH_FOLDER, MEETING, tell_joined

T = TypeVar("T")

# How long the processes wait for each other to start.
_MEETING_LIMIT = timedelta(minutes=15)
# Once they have met they wait without a limit: one of them may validate, download or write to a slow disk for hours.
# A process that dies closes its connections, and its launcher ends the others.
_NO_LIMIT = timedelta(days=365)


class PeerLostError(RunError):
    """Another process of the run ended; this one cannot continue, and has nothing of its own to report."""


@dataclass(frozen=True)
class DistributedContext:
    """This process's place among the processes of the run."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and the log."""
        return self.rank == 0

    def sum_in_place(self, numbers: Tensor) -> Tensor:
        """The sums over all ranks of each element, on the device and without waiting for it."""
        if self.world_size > 1:
            dist.all_reduce(numbers)
        return numbers

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def run_on_rank0_and_broadcast(self, decide: Callable[[], T]) -> T:
        """What rank 0 decides, on every rank; what it raises as the user's mistake, every rank raises.

        Raises:
            UserError: rank 0's.
        """
        if self.world_size == 1:
            return decide()
        answer: tuple[T | None, list[Problem]] = (None, [])
        if self.is_main:
            try:
                answer = (decide(), [])
            except UserError as error:
                answer = (None, error.problems)
        value, problems = self.broadcast_object(answer)
        if problems:
            raise UserError(problems)
        return value  # type: ignore[no-any-return]

    def broadcast(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rank 0's CPU tensors on every rank; the others' argument is not looked at."""
        if self.world_size == 1:
            return tensors
        shapes = self.broadcast_object({name: (tuple(t.shape), t.dtype) for name, t in tensors.items()})
        received = {}
        for name, (shape, dtype) in shapes.items():
            value = tensors[name] if self.is_main else torch.empty(shape, dtype=dtype)
            there = value.to(self.device).contiguous()
            dist.broadcast(there, src=0)
            received[name] = there.cpu()
        return received

    def share(self, model: nn.Module) -> None:
        """Give every rank rank 0's weights, in place."""
        if self.world_size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)

    def __enter__(self) -> "DistributedContext":
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        # After a failure the others may are in a collective, and taking the group apart would wait for them. gloo's
        # is never taken apart: its threads may need Python's lock while the destructor, which holds it, waits for
        # them (seen with torch 2.4.1). `end_process` leaves both to the kernel.
        if failure is None and self.world_size > 1 and self.device.type == "cuda":
            dist.destroy_process_group()


class Gradients:
    """The gradients of a model's trainable parameters, and their sum over the ranks.

    With several ranks each gradient is a view into one flat buffer per element type, made once, in the order of the
    parameters, and summed whole. An element's place in what is summed decides in which order the ranks' addends come;
    here it is the same in the first step of a process and in every other. (DistributedDataParallel lays its buffers out
    again after the first step, so that with three ranks a resumed run differs from an uninterrupted one.)
    """

    def __init__(self, model: nn.Module, distributed: DistributedContext) -> None:
        self._ranks = distributed
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._flat: list[Tensor] = []
        if distributed.world_size == 1:
            return
        for dtype in dict.fromkeys(parameter.dtype for parameter in self._parameters):
            alike = [parameter for parameter in self._parameters if parameter.dtype == dtype]
            flat = torch.zeros(sum(one.numel() for one in alike), dtype=dtype, device=distributed.device)
            for parameter, part in zip(alike, torch.split(flat, [one.numel() for one in alike]), strict=True):
                parameter.grad = part.view_as(parameter)
            self._flat.append(flat)

    def clear(self) -> None:
        """Begin a step. One process gives the memory back: its gradients need not lie next to each other."""
        if self._ranks.world_size == 1:
            for parameter in self._parameters:
                parameter.grad = None
        for flat in self._flat:
            flat.zero_()

    def sum_over_ranks(self) -> None:
        """Replace every gradient by its sum over the ranks: once per step, after the last part of the batch."""
        for flat in self._flat:
            self._ranks.sum_in_place(flat)


@contextlib.contextmanager
def peers_needed() -> Iterator[None]:
    """Say in words that another process of the run went away in the middle of an exchange.

    Raises:
        PeerLostError: instead of the backend's own exception.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no exception of its own, only its file's name in the message.
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise PeerLostError(
            f"another process of this run ended, so this one cannot continue ({str(error).splitlines()[0]:.150})",
            code="run.peer_lost",
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


def join(device_name: str) -> DistributedContext:
    """Meet the other processes, as the launcher's or torchrun's environment variables say; alone without them.

    Raises:
        UserError: the device asked for is not there, for this process or another.
        RunError: `run.not_met`, the others did not come.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if world_size == 1:
        device = choose_device(device_name, local_rank=local_rank)
    else:
        try:
            store = meeting_place(world_size)
            device = _common_device(store, device_name, rank, world_size, local_rank)
        except RuntimeError as error:
            raise RunError(
                f"the {world_size} processes of the run did not meet: {error}", code="run.not_met"
            ) from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_NO_LIMIT, store=store, rank=rank, world_size=world_size)
    tell_joined()
    return DistributedContext(rank, world_size, device)


def meeting_place(world_size: int) -> Store:
    """Where the processes of one start of a run find each other; a start after a death reads nothing of the dead."""
    meeting, folder = os.environ.get(MEETING), os.environ.get(LAUNCH_FOLDER)
    if meeting:
        address, start = meeting.split()
        return PrefixStore(f"start {start}", _tcp_store(address, hold=False))
    if folder:
        # All on this machine: nothing listens beyond it. The launcher makes a folder for each start.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
        store = FileStore(str(Path(folder, "store")), world_size)
        store.set_timeout(_MEETING_LIMIT)
        return store
    found, _, _ = next(rendezvous("env://", timeout=_MEETING_LIMIT))
    return PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", found)


def hold_store(address: str) -> Store:
    """Hold the place at `address` ("host:port", of this machine) where machines meet, as long as the result lives."""
    return _tcp_store(address, hold=True)


def _tcp_store(address: str, *, hold: bool) -> Store:
    host, _, port = address.rpartition(":")
    return TCPStore(host.strip("[]"), int(port), is_master=hold, timeout=_MEETING_LIMIT, wait_for_workers=False)


def _common_device(store: Store, name: str, rank: int, world_size: int, local_rank: int) -> torch.device:
    """This rank's device, of the type that rank 0 takes. Every rank sees every rank's answer, so all decide alike."""
    try:
        mine: dict[str, Any] = {"device": choose_device(name, local_rank=local_rank).type, "problems": []}
    except UserError as error:
        mine = {"device": None, "problems": [(problem, problem.code) for problem in error.problems]}
    keys = [f"device of {other}" for other in range(world_size)]
    store.set(keys[rank], json.dumps(mine))
    store.wait(keys, _MEETING_LIMIT)
    answers = [json.loads(store.get(key)) for key in keys]
    problems = [Problem(text, code) for answer in answers for text, code in answer["problems"]]
    if problems:
        raise UserError(list(dict.fromkeys(problems)))
    kind = answers[0]["device"]
    if kind == "cuda" and (without := [other for other in range(world_size) if answers[other]["device"] != kind]):
        raise UserError(
            f"process 0 computes on a GPU, and processes {without} have none; set DEVICE=cpu on every machine, or use "
            "only machines with GPUs",
            code="device.ranks_differ",
        )
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, local_rank)

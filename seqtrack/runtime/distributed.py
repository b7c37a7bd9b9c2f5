"""The processes of one run. The only file that imports torch.distributed.

A run of one process makes the same calls, which then do nothing. Every sum over processes is one all-reduce of a buffer
whose layout never changes, so that it has the same bits each time for the same number of processes; with TRAIN.SHARDS
gradients are added in the order of a fixed tree instead, for the same bits with any number. A process group is never
destroyed: after a failure the others may be inside a collective, and gloo's threads may need the GIL while the
destructor, which holds it, waits for them (seen with torch 2.4.1). `end_process` leaves it to the kernel.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]

from seqtrack.device import choose_device
from seqtrack.errors import Problem, RunError, UserError
from seqtrack.runtime.launcher import RENDEZVOUS_URL, mark_joined
from seqtrack.shards import Node, nodes_of, shard_range

T = TypeVar("T")

# Gradients that are exchanged at once with TRAIN.SHARDS; a process needs about twice as much for it.
_PIECE_BYTES = 16 << 20
# How long the processes wait for each other at the start. After that they wait without a limit: one of them may
# validate or write to a slow disk for hours. One that dies closes its connections, and its launcher ends the others.
_MEETING_LIMIT, _NO_LIMIT = timedelta(minutes=15), timedelta(days=365)


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
        """Sum each element over all ranks, on the device and without waiting for it."""
        if self.world_size > 1:
            dist.all_reduce(numbers)
        return numbers

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast_object(self, value: T) -> T:
        """Rank 0's value on every rank."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def run_on_rank0_and_broadcast(self, function: Callable[[], T]) -> T:
        """Rank 0's result on every rank; its UserError is raised on every rank."""
        value, problems = None, list[Problem]()
        try:
            value = function() if self.is_main else None
        except UserError as error:
            problems = error.problems
        value, problems = self.broadcast_object((value, problems))
        if problems:
            raise UserError(problems)
        return value  # type: ignore[return-value]

    def broadcast(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's CPU tensors on every rank; the argument of the others is ignored."""
        if self.world_size == 1:
            return tensors
        received = {}
        for name, shape, dtype in self.broadcast_object([(name, t.shape, t.dtype) for name, t in tensors.items()]):
            value = (tensors[name] if self.is_main else torch.empty(shape, dtype=dtype)).to(self.device).contiguous()
            dist.broadcast(value, src=0)
            received[name] = value.cpu()
        return received

    def share(self, model: nn.Module) -> None:
        """Give every rank rank 0's weights, in place."""
        if self.world_size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)


class Gradients:
    """The gradients of a model's trainable parameters, and their sum over the ranks.

    With several ranks each gradient is a view into one flat buffer per element type, in the order of the parameters. An
    element's place in the reduced buffer decides the order of the ranks' addends; here it is the same in every step.
    (DistributedDataParallel rebuilds its buckets after the first step: with three ranks a resumed run would differ.)
    """

    def __init__(self, model: nn.Module, distributed: DistributedContext) -> None:
        self._ranks, self._flat = distributed, list[Tensor]()
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        shared = self._parameters if distributed.world_size > 1 else []
        for dtype in dict.fromkeys(parameter.dtype for parameter in shared):
            alike = [parameter for parameter in shared if parameter.dtype == dtype]
            flat = torch.zeros(sum(one.numel() for one in alike), dtype=dtype, device=distributed.device)
            for parameter, part in zip(alike, torch.split(flat, [one.numel() for one in alike]), strict=True):
                parameter.grad = part.view_as(parameter)
            self._flat.append(flat)

    def clear(self) -> None:
        """Begin a step. A single process frees the memory: its gradients need not be contiguous."""
        for parameter in self._parameters if self._ranks.world_size == 1 else ():
            parameter.grad = None
        for flat in self._flat:
            flat.zero_()

    def end_part(self, shard: int) -> None:
        """Nothing: the backward pass adds to the gradients of the part before."""

    def sum_over_ranks(self) -> None:
        """Replace every gradient by its sum over the ranks: once per step, after the last accumulation part."""
        for flat in self._flat:
            self._ranks.sum_in_place(flat)


class ShardGradients:
    """The gradients of a model's trainable parameters, by shard (TRAIN.SHARDS), and their sum in the order of a tree.

    A shard begins without gradients, so that they are what autograd computes for this shard alone. A parameter that a
    shard does not use has zeros. Sums are added in place: while a shard is computed, at most `waiting_nodes` wait.
    """

    def __init__(self, model: nn.Module, distributed: DistributedContext, shards: int) -> None:
        self._ranks, self._shards = distributed, shards
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._nodes: dict[Node, list[Tensor]] = {}
        self._runs = [nodes_of(shard_range(shards, distributed.world_size, r)) for r in range(distributed.world_size)]
        self._pieces = self._cut() if distributed.world_size > 1 else []
        self._buffers: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        for dtype in dict.fromkeys(self._parameters[piece][0].dtype for piece in self._pieces):
            width = max(self._width(piece) for piece in self._pieces if self._parameters[piece][0].dtype == dtype)
            counts = (distributed.world_size, sum(map(len, self._runs)))
            one, other = (torch.zeros(count * width, dtype=dtype, device=distributed.device) for count in counts)
            self._buffers[dtype] = one, other

    def clear(self) -> None:
        """Begin a step."""
        self._nodes.clear()
        for parameter in self._parameters:
            parameter.grad = None

    def end_part(self, shard: int) -> None:
        """Add the gradients of a shard to the tree; called for every shard of this process in order, empty ones too."""
        found = [one.grad if one.grad is not None else torch.zeros_like(one) for one in self._parameters]
        for parameter in self._parameters:
            parameter.grad = None
        _add_node(self._nodes, (0, shard), found)

    def sum_over_ranks(self) -> None:
        """Give every parameter the gradient of the whole batch: once per step, after the last shard."""
        if self._ranks.world_size > 1:
            self._exchange()
        (total,) = self._nodes.values()
        self._nodes.clear()
        for parameter, gradient in zip(self._parameters, total, strict=True):
            parameter.grad = gradient

    def _cut(self) -> list[slice]:
        """Ranges of parameters of one type with at most _PIECE_BYTES, or of a single parameter."""
        starts, room, before = list[int](), 0, None
        for place, one in enumerate(self._parameters):
            room -= one.nbytes
            if room < 0 or one.dtype != before:
                starts.append(place)
                room, before = _PIECE_BYTES - one.nbytes, one.dtype
        return [slice(*ends) for ends in zip(starts, [*starts[1:], len(self._parameters)], strict=True)]

    def _width(self, piece: slice) -> int:
        """Elements of a piece that one process adds up."""
        return -(-sum(one.numel() for one in self._parameters[piece]) // self._ranks.world_size)

    def _exchange(self) -> None:
        """Add the nodes of all processes, each process an equal share of every gradient's elements; then collect them.

        As much traffic as a reduce-scatter and an all-gather, where every process has one node.
        """
        rank, processes = self._ranks.rank, self._ranks.world_size
        own = [self._nodes[node] for node in self._runs[rank]]
        for piece in self._pieces:
            parameters, width = self._parameters[piece], self._width(piece)
            sizes = [one.numel() for one in parameters]
            flat, received = self._buffers[parameters[0].dtype]
            flat, rows = flat[: processes * width], dict[Node, list[Tensor]]()
            for number in range(max(map(len, self._runs))):  # the first node of every process, then the second
                senders = [other for other in range(processes) if number < len(self._runs[other])]
                shares = [width if other in senders else 0 for other in range(processes)]
                arrived, received = received[: sum(shares)], received[sum(shares) :]
                if rank in senders:
                    torch.cat([one.flatten() for one in own[number][piece]], out=flat[: sum(sizes)])
                sent = flat[: processes * shares[rank]]
                dist.all_to_all_single(arrived, sent, shares, [shares[rank]] * processes)
                for other, row in zip(senders, arrived.chunk(len(senders)), strict=True):
                    _add_node(rows, self._runs[other][number], [row])
            ((total,),) = rows.values()
            dist.all_gather_into_tensor(flat, total)
            values = flat[: sum(sizes)].split_with_sizes(sizes)
            for gradient, value in zip(own[0][piece], values, strict=True):
                gradient.copy_(value.view_as(gradient))
        self._nodes = {(self._shards.bit_length() - 1, 0): own[0]}


def _add_node(nodes: dict[Node, list[Tensor]], node: Node, value: list[Tensor]) -> None:
    """Put a node's tensors into a tree; where the sibling waits, both become their parent, and so on."""
    level, index = node
    while (sibling := nodes.pop((level, index ^ 1), None)) is not None:
        left, right = (sibling, value) if index % 2 else (value, sibling)
        torch._foreach_add_(left, right)
        value, level, index = left, level + 1, index // 2
    nodes[level, index] = value


def is_lost_peer(error: Exception) -> bool:
    """Whether an error of a collective means that another process ended."""
    # gloo has no exception of its own, only its file's name in the message.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def end_process(code: int) -> NoReturn:
    """End one process of several with `code`, when everything it had to write is written.

    Without the interpreter's shutdown, in which a gloo thread may abort the process (torch 2.4.1, one of twenty runs).
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def join(device_name: str) -> DistributedContext:
    """Join the process group of the launcher's or torchrun's environment variables; a single process without them.

    Raises:
        UserError: the requested device does not exist, or another process has another kind of device.
        RunError: `run.not_met`, the others did not join.
    """
    rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if world_size <= 1:
        device = choose_device(device_name, local_rank=local_rank)
    else:
        kind = ""
        try:
            store = rendezvous_store(world_size)
            try:
                device = choose_device(device_name, local_rank=local_rank)
                kind = device.type
            finally:  # every rank reads every rank's answer, so that all of them end if one has none
                store.set(f"device of {rank}", kind)
            kinds = [store.get(f"device of {other}").decode() for other in range(world_size)]
        except RuntimeError as error:
            text = f"not all of the {world_size} processes of the run joined: {error}"
            raise RunError(text, code="run.not_met") from error
        if len(set(kinds)) > 1:
            shown = ", ".join(f"process {other}: {kind or 'none'}" for other, kind in enumerate(kinds))
            text = f"the processes have different devices ({shown}); set DEVICE=cpu on every machine, or use GPUs only"
            raise UserError(text, code="device.ranks_differ")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world_size > 1:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=_NO_LIMIT, store=store, rank=rank, world_size=world_size)
    mark_joined()
    return DistributedContext(rank, max(1, world_size), device)


def rendezvous_store(world_size: int) -> Store:
    """Where the processes of one start of a run meet; a restart reads nothing that the processes before it wrote."""
    url = os.environ.get(RENDEZVOUS_URL, "env://")
    store, _, _ = next(rendezvous(url, int(os.environ["RANK"]), world_size, timeout=_MEETING_LIMIT))
    store.set_timeout(_MEETING_LIMIT)  # that of a file has not taken it
    return PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def hold_store(host: str, port: int) -> Store:
    """The rendezvous server at an address of this machine; it runs as long as the result lives."""
    return TCPStore(host, port, is_master=True, timeout=_MEETING_LIMIT, wait_for_workers=False)

"""Batches of an epoch, made by worker processes and handed over in order.

Knows how samples are dealt to global batches and ranks. It must not know of devices or of training. Which worker makes
a batch changes nothing in it, so the stream is the same for any number of workers and from any start.
"""

import logging
import os
import signal
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from seqtrack.data.pairs import SampleDataset
from seqtrack.device import pin_or_none
from seqtrack.errors import RunError, UserError
from seqtrack.processes import end_with_parent

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch, on the CPU.

    Attributes:
        templates: (B, T, 3, S, S) uint8 RGB.
        search: (B, 3, S, S) uint8 RGB.
        template_brightness: (B, T) float32; pixels are clamp(x * factor / 255, 0, 1).
        search_brightness: (B,) float32.
        boxes: (B, 4) float32 cx, cy, w, h in fractions of the search crop, not clipped.
        indices: (B,) int64, numbers of the samples in the epoch, counted over all ranks.
        global_count: samples of the global batch.
        count: samples of this share that count; 0 where the share is empty and one sample stands in for it.
    """

    templates: Tensor
    search: Tensor
    template_brightness: Tensor
    search_brightness: Tensor
    boxes: Tensor
    indices: Tensor
    global_count: int
    count: int

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from which copies to a GPU need not be waited for; as it is where none is
        left."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        pinned = pin_or_none(
            lambda: {name: tensor.pin_memory() for name, tensor in tensors.items()}, "batches", num_bytes
        )
        return self if pinned is None else replace(self, **cast(dict[str, Any], pinned))


class WorkerDied(RunError):
    """A loader worker ended on its own: killed for memory, or crashed."""


@dataclass(frozen=True)
class _Failure:
    """A user's problem met in a worker, carried to the main process without the worker's traceback."""

    problems: list[str]


def share(samples: int, world: int, rank: int) -> tuple[int, int]:
    """First and last + 1 sample of a rank's contiguous share: the first `samples % world` ranks get one more."""
    each, more = divmod(samples, world)
    start = rank * each + min(rank, more)
    return start, start + each + (1 if rank < more else 0)


class _Steps(Sampler[tuple[int, int]]):
    """The positions to make, set anew for each epoch."""

    def __init__(self) -> None:
        self.epoch, self.start, self.stop = 0, 0, 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, step) for step in range(self.start, self.stop)])

    def __len__(self) -> int:
        return self.stop - self.start


class _Batches(Dataset[Batch | _Failure]):
    """A batch by (epoch, step): what a worker does."""

    def __init__(self, dataset: SampleDataset, batch_size: int, samples: int, world: int, rank: int) -> None:
        self._dataset, self._batch_size, self._samples = dataset, batch_size, samples
        self._world, self._rank = world, rank

    def __getitem__(self, position: tuple[int, int]) -> Batch | _Failure:
        epoch, step = position
        first = step * self._batch_size
        size = min(self._batch_size, self._samples - first)
        start, stop = share(size, self._world, self._rank)
        indices = list(range(first + start, first + stop)) or [first]
        try:
            return self._collate(epoch, indices, global_count=size, count=stop - start)
        except UserError as error:
            return _Failure([*error.problems])

    def _collate(self, epoch: int, indices: list[int], *, global_count: int, count: int) -> Batch:
        samples = [self._dataset.sample(epoch, index) for index in indices]
        return Batch(
            templates=torch.from_numpy(np.stack([sample.templates for sample in samples])),
            search=torch.from_numpy(np.stack([sample.search for sample in samples])),
            template_brightness=torch.from_numpy(np.stack([sample.template_brightness for sample in samples])),
            search_brightness=torch.from_numpy(np.array([sample.search_brightness for sample in samples])),
            boxes=torch.from_numpy(np.stack([sample.box for sample in samples])),
            indices=torch.tensor(indices, dtype=torch.int64),
            global_count=global_count,
            count=count,
        )


class BatchLoader:
    """Makes the batches of one rank.

    Args:
        dataset: draws the samples.
        batch_size_global: samples of a step over all ranks.
        samples_per_epoch: of an epoch over all ranks; the last batch may be smaller.
        world, rank: how many processes train together, and which this is.
        num_workers: processes that make batches; 0 makes them in this one.
        prefetch: batches a worker is ahead.
        pin: put batches into page-locked memory, in a thread, for a GPU to copy from.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        dataset: SampleDataset,
        *,
        batch_size_global: int,
        samples_per_epoch: int,
        world: int = 1,
        rank: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        pin: bool = False,
    ) -> None:
        if batch_size_global < 1 or samples_per_epoch < 1 or num_workers < 0:
            raise UserError(
                f"BATCH_SIZE {batch_size_global} and SAMPLE_PER_EPOCH {samples_per_epoch} must be at least 1, "
                f"NUM_WORKER {num_workers} at least 0"
            )
        self.steps_per_epoch = -(-samples_per_epoch // batch_size_global)
        self.samples_per_epoch = samples_per_epoch
        self._steps = _Steps()
        self._loader: DataLoader[Batch | _Failure] = DataLoader(
            _Batches(dataset, batch_size_global, samples_per_epoch, world, rank),
            batch_size=None,
            sampler=self._steps,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            worker_init_fn=_start_worker,
            persistent_workers=num_workers > 0,
            prefetch_factor=prefetch if num_workers > 0 else None,
            pin_memory=pin,
            # Without a generator of its own the loader would draw its workers' base seed from torch's global one.
            generator=torch.Generator(),
        )
        # Also when nobody closes: at its exit Python sends workers a signal that they ignore, and waits for them.
        weakref.finalize(self, _end_workers, self._loader)

    def start_workers(self) -> None:
        """Start the workers now, with nothing to do yet; `batches` would do it otherwise.

        Best before a model is made. They are forks: of every page that this process writes to afterwards, it first
        makes a copy, and the old one stays in memory for as long as they live.
        """
        if self._loader.num_workers and self._loader._iterator is None:
            self._steps.start = self._steps.stop = 0
            _watch_calmly(iter(self._loader))

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """This rank's share of the global batches `start_step`, `start_step + 1`, ... of an epoch.

        Raises:
            UserError: a frame file cannot be read.
            WorkerDied: a worker process ended.
        """
        self._steps.epoch, self._steps.start, self._steps.stop = epoch, start_step, self.steps_per_epoch
        if start_step >= self.steps_per_epoch:
            return
        iterator = self._ask(lambda: iter(self._loader))
        _watch_calmly(iterator)
        while True:
            made = self._ask(lambda: next(iterator, None))
            if made is None:
                return
            if isinstance(made, _Failure):
                self.close()
                raise UserError(made.problems)
            yield made

    def _ask(self, ask: Callable[[], T]) -> T:
        answer, trouble = _answer(ask, self._loader)
        if trouble is not None:
            self.close()
            raise WorkerDied(
                f"a data loader worker died ({trouble}). Most often memory ran out: lower TRAIN.NUM_WORKER or the "
                "batch size, or give the container more shared memory (shm_size)"
            )
        return cast(T, answer)

    def close(self) -> None:
        """End the workers. A loader that was closed starts new ones when it is used again."""
        _end_workers(self._loader)


def _answer(ask: Callable[[], T], loader: "DataLoader[Batch | _Failure]") -> tuple[T | None, str | None]:
    """What `ask` returns; or how a worker died, on whom it waited.

    The error is not chained: its frames hold temporary files of torch's, which new workers would inherit and delete.
    """
    try:
        return ask(), None
    except (RuntimeError, OSError, EOFError) as error:
        # A dead worker shows as a broken connection as well, when its last batch is taken over.
        if not any(_is_dead(worker) for worker in getattr(loader._iterator, "_workers", ())):
            raise
        return None, str(error).splitlines()[0] if str(error) else type(error).__name__


def _is_dead(worker: Any) -> bool:
    worker.join(0.5)
    return not worker.is_alive()


def _watch_calmly(iterator: Any) -> None:
    """Let a dead worker be noticed when its batch is waited for, within five seconds, and nowhere else.

    torch's handler of SIGCHLD raises wherever the program happens to be: in the middle of writing a checkpoint, or
    where nobody can catch it.
    """
    if getattr(iterator, "_worker_pids_set", False):
        torch._C._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _end_workers(loader: "DataLoader[Batch | _Failure]") -> None:
    iterator = loader._iterator
    if iterator is None:
        return
    loader._iterator = None
    workers = list(getattr(iterator, "_workers", ()))
    iterator._shutdown_workers()  # type: ignore[attr-defined]
    for worker in workers:
        # One that stands in a read from a dead disk; it ignores the polite signal, and Python would wait for it.
        if worker.is_alive():
            worker.kill()


def _as_it_is(made: Any) -> Any:
    return made


def _start_worker(worker: int) -> None:
    """Runs first in a worker: leave signals to the parent, but never outlive it, and take one core."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # the parent died before the line above could ask to be told
    cv2.setNumThreads(0)

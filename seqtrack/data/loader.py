"""Batches of an epoch, made by worker processes and delivered in order.

Knows how samples are distributed over global batches and ranks. Which worker makes a batch changes nothing in it, so
the stream is the same for any number of workers and from any start.

A worker writes samples into memory that it has shared with the trainer since it was forked, and sends one short message
through a pipe: delivering a batch needs no file descriptor, no space in /dev/shm and no thread, so it cannot fail for
lack of them, and a dead worker is noticed at once, as the end of its pipe.
"""

import contextlib
import math
import mmap
import multiprocessing
import multiprocessing.process
import os
import signal
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Any, NoReturn, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.device import pin_or_none
from seqtrack.errors import Problem, RunError, UserError
from seqtrack.process import STOP_SIGNALS, end_with_parent, limit_problem

_FORK = multiprocessing.get_context("fork")
_POLL_S = 0.2  # interval at which a wait checks for a request to stop
_JOIN_S = 5.0  # how long a killed worker is waited for; one that hangs in a read from a dead disk outlives even this
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Batch:
    """One rank's shard of a global batch, on the CPU.

    Attributes:
        templates: (B, T, 3, S, S) uint8 RGB.
        search: (B, 3, S, S) uint8 RGB.
        template_brightness: (B, T) float32; pixels are clamp(x * factor / 255, 0, 1).
        search_brightness: (B,) float32.
        boxes: (B, 4) float32 cx, cy, w, h in fractions of the search crop, not clipped.
        indices: (B,) int64, of the samples in the epoch, over all ranks.
        global_count: samples of the global batch.
        count: samples of this shard that count; 0 where the shard is empty and holds one sample as a placeholder.
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
        """A copy in page-locked memory, from which copies to a GPU are asynchronous; itself where none is left."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        num_bytes = sum(tensor.nbytes for tensor in tensors.values())
        pinned = pin_or_none(
            lambda: {name: tensor.pin_memory() for name, tensor in tensors.items()}, "batches", num_bytes
        )
        return self if pinned is None else replace(self, **cast(dict[str, Any], pinned))

    def clone(self) -> "Batch":
        """A copy in memory of its own."""
        tensors = {name: value.clone() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **cast(dict[str, Any], tensors))


class WorkerDied(RunError):
    """A loader worker died: killed for lack of memory, or crashed."""


class _WorkerTraceback(Exception):
    """Where an error was raised in a worker; the cause of the error that the trainer raises."""


@dataclass(frozen=True)
class _Failure:
    """What a worker sends instead of a batch. `trace` is empty for a `UserError`."""

    problems: list[Problem]
    trace: str = ""


def shard_range(samples: int, world_size: int, rank: int) -> tuple[int, int]:
    """First and last + 1 sample of a rank's contiguous shard: the first `samples % world_size` ranks get one more."""
    each, more = divmod(samples, world_size)
    start = rank * each + min(rank, more)
    return start, start + each + (1 if rank < more else 0)


@dataclass(frozen=True)
class _BatchMaker:
    """Makes one rank's shard of any global batch."""

    dataset: TrackingDataset
    batch_size: int
    samples: int
    world_size: int
    rank: int

    def shard_range(self, step: int) -> tuple[list[int], int, int]:
        """Indices to make (a placeholder for an empty shard), samples of the global batch, samples that count."""
        first = step * self.batch_size
        size = min(self.batch_size, self.samples - first)
        start, stop = shard_range(size, self.world_size, self.rank)
        return list(range(first + start, first + stop)) or [first], size, stop - start

    def fill(self, arrays: Arrays, epoch: int, step: int) -> None:
        """Write the samples of a shard into the first rows of `arrays`."""
        for place, index in enumerate(self.shard_range(step)[0]):
            sample = self.dataset.sample(epoch, index)
            arrays["templates"][place] = sample.templates
            arrays["search"][place] = sample.search
            arrays["template_brightness"][place] = sample.template_brightness
            arrays["search_brightness"][place] = sample.search_brightness
            arrays["boxes"][place] = sample.box

    def batch(self, arrays: Arrays, step: int) -> Batch:
        """A view of the samples that `fill` wrote."""
        indices, size, count = self.shard_range(step)
        tensors = {name: torch.from_numpy(array[: len(indices)]) for name, array in arrays.items()}
        return Batch(indices=torch.tensor(indices, dtype=torch.int64), global_count=size, count=count, **tensors)


def _shared_arrays(spec: SampleSpec, samples: int) -> Arrays:
    """Memory for a batch that forks of this process write and this process reads."""
    template, search = (3, spec.template_size, spec.template_size), (3, spec.search_size, spec.search_size)
    layout: dict[str, tuple[tuple[int, ...], Any]] = {
        "templates": ((samples, spec.num_templates, *template), np.uint8),
        "search": ((samples, *search), np.uint8),
        "template_brightness": ((samples, spec.num_templates), np.float32),
        "search_brightness": ((samples,), np.float32),
        "boxes": ((samples, 4), np.float32),
    }
    arrays = {}
    for name, (shape, kind) in layout.items():
        memory = mmap.mmap(-1, math.prod(shape) * np.dtype(kind).itemsize)  # anonymous and shared
        arrays[name] = np.frombuffer(memory, dtype=kind).reshape(shape)
    return arrays


@dataclass
class _Worker:
    """A process, the trainer's end of its pipe, and its memory: one buffer for each batch that it is ahead."""

    process: ForkProcess
    pipe: Connection
    buffers: list[Arrays]
    pending: int = 0  # positions sent whose answers were not read yet


class BatchLoader:
    """Makes the batches of one rank.

    Args:
        dataset: draws the samples.
        batch_size_global: samples of a step over all ranks.
        samples_per_epoch: over all ranks; the last batch may be smaller.
        world_size, rank: of the processes that train together.
        num_workers: processes that make batches; 0 makes them in this process.
        prefetch: batches that a worker is ahead.
        pin: put batches into page-locked memory, for a GPU to copy from.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(
        self,
        dataset: TrackingDataset,
        *,
        batch_size_global: int,
        samples_per_epoch: int,
        world_size: int = 1,
        rank: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        pin: bool = False,
    ) -> None:
        if batch_size_global < 1 or samples_per_epoch < 1 or num_workers < 0:
            raise UserError(
                f"BATCH_SIZE {batch_size_global} and SAMPLE_PER_EPOCH {samples_per_epoch} must be at least 1, "
                f"NUM_WORKER {num_workers} at least 0",
                "loader.numbers",
            )
        self.steps_per_epoch = -(-samples_per_epoch // batch_size_global)
        self.samples_per_epoch = samples_per_epoch
        self._maker = _BatchMaker(dataset, batch_size_global, samples_per_epoch, world_size, rank)
        self._num_workers, self._prefetch, self._pin = num_workers, prefetch, pin
        # A single process can stop between two batches at once; of several, the others wait for this one's batch, and
        # only a vote after it ends them all at the same step.
        self._stop_patience_s = 0.0 if world_size == 1 else 60.0
        self._own: Arrays | None = None  # buffer of this process when there are no workers
        self._workers: list[_Worker] = []
        # Also when nobody calls close(): at exit Python sends workers a signal that they ignore, and waits for them.
        weakref.finalize(self, _end_workers, self._workers)

    def start_workers(self) -> None:
        """Start the workers now, idle; otherwise `batches` does it.

        Best before a model is built. They are forks: this process copies every page that it writes to afterwards, and
        the old page stays in memory for as long as they live.

        Raises:
            RunError: the system grants no further process, memory or file.
        """
        if self._workers:
            return
        try:
            for _ in range(self._num_workers):
                buffers = [self._new_buffer() for _ in range(self._prefetch)]
                ours, theirs = _FORK.Pipe()
                with contextlib.closing(theirs):
                    process = _FORK.Process(target=_work, args=(os.getpid(), theirs, buffers, self._maker), daemon=True)
                    process.start()
                self._workers.append(_Worker(process, ours, buffers))
        except (OSError, MemoryError) as error:
            self.close()
            problem = limit_problem(error) or f"a data loader worker could not be started ({error})"
            raise RunError(problem, code="loader.start") from error

    def batches(self, epoch: int, start_step: int = 0, *, stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """This rank's shards of the global batches `start_step`, `start_step + 1`, ... of an epoch.

        Ends early where `stop()` becomes true while a batch is waited for.

        Raises:
            UserError: a frame file cannot be read.
            WorkerDied: a worker process ended.
            RunError: a worker could not make its batch.
        """
        if self._num_workers == 0:
            self._own = self._own or self._new_buffer()
            for step in range(start_step, self.steps_per_epoch):
                self._maker.fill(self._own, epoch, step)
                yield self._copy(self._maker.batch(self._own, step))
            return
        self.start_workers()
        for worker in self._workers:  # an epoch that was abandoned
            while worker.pending:
                if self._call_checking_workers(worker, stop) is False:
                    return
        ahead = self._num_workers * self._prefetch
        for step in range(start_step, min(start_step + ahead, self.steps_per_epoch)):
            self._request(epoch, step)
        for step in range(start_step, self.steps_per_epoch):
            worker = self._workers[step % self._num_workers]
            answer = self._call_checking_workers(worker, stop)
            if answer is False:
                return
            if isinstance(answer, _Failure):
                self.close()
                if not answer.trace:
                    raise UserError(answer.problems)
                raise RunError(answer.problems[0]) from _WorkerTraceback(answer.trace)
            batch = self._copy(self._maker.batch(worker.buffers[self._buffer(step)], step))
            if step + ahead < self.steps_per_epoch:  # into the buffer that was just read
                self._request(epoch, step + ahead)
            yield batch

    def _copy(self, view: Batch) -> Batch:
        pinned = view.pin_memory() if self._pin else view
        return view.clone() if pinned is view else pinned

    def _new_buffer(self) -> Arrays:
        return _shared_arrays(self._maker.dataset.spec, -(-self._maker.batch_size // self._maker.world_size))

    def _buffer(self, step: int) -> int:
        return step // self._num_workers % self._prefetch

    def _request(self, epoch: int, step: int) -> None:
        worker = self._workers[step % self._num_workers]
        try:
            worker.pipe.send((epoch, step, self._buffer(step)))
        except OSError:
            self._died(worker)
        worker.pending += 1

    def _call_checking_workers(self, worker: _Worker, stop: Callable[[], bool]) -> "_Failure | bool":
        """True when the next batch of this worker is in its buffer; False when `stop()` ended the wait."""
        patient_until = None
        while not worker.pipe.poll(_POLL_S):
            if stop():
                patient_until = patient_until or time.monotonic() + self._stop_patience_s
                if time.monotonic() >= patient_until:
                    return False
        try:
            answer: _Failure | bool = worker.pipe.recv()
        except (EOFError, OSError):
            self._died(worker)
        worker.pending -= 1
        return answer

    def _died(self, worker: _Worker) -> NoReturn:
        worker.process.join(_JOIN_S)
        code = worker.process.exitcode
        self.close()
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        raise WorkerDied(
            f"a data loader worker died ({how}). Most often memory ran out: lower TRAIN.NUM_WORKER or the batch size, "
            "or give the Docker container more memory",
            code="loader.worker_died",
        )

    def close(self) -> None:
        """End the workers. A closed loader starts new ones when it is used again."""
        _end_workers(self._workers)


def _end_workers(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.process.kill()  # they hold nothing that could be left half-written
        worker.pipe.close()
    for worker in workers:
        worker.process.join(_JOIN_S)
        if worker.process.is_alive():  # in a read from a dead disk; at its exit Python would wait for it
            multiprocessing.process._children.discard(worker.process)  # type: ignore[attr-defined]
    workers.clear()


def _work(parent: int, pipe: Connection, buffers: list[Arrays], maker: _BatchMaker) -> NoReturn:
    """Main loop of a worker: receive a position, write the batch, answer."""
    for number in STOP_SIGNALS:  # for the trainer, which may need batches until it has saved
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the call above took effect
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    while True:
        try:
            epoch, step, buffer = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        pipe.send(_fill(maker, buffers[buffer], epoch, step))


def _fill(maker: _BatchMaker, arrays: Arrays, epoch: int, step: int) -> _Failure | bool:
    try:
        maker.fill(arrays, epoch, step)
    except Exception as error:  # noqa: BLE001 - nothing is swallowed: the trainer raises it
        problem = limit_problem(error)
        if isinstance(error, UserError) and problem is None:
            return _Failure(error.problems)
        problem = problem or Problem(
            f"a data loader worker failed in epoch {epoch}, step {step}: {type(error).__name__}: {error}",
            "loader.worker_failed",
        )
        return _Failure([problem], traceback.format_exc())
    return True

"""Batches of an epoch, made by worker processes and delivered in order.

Knows how samples are distributed over global batches and ranks. Which worker makes a batch changes nothing in it, so
the stream is the same for any number of workers and from any start. Workers are forks that write samples into memory
which they have shared with the trainer since the fork: a batch needs no file descriptor and no space in /dev/shm.
"""

import math
import mmap
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.context import ForkContext, ForkProcess

import cv2
import numpy as np
import torch
from torch import Tensor

from seqtrack.data.dataset import TrackingDataset
from seqtrack.device import pin_or_none
from seqtrack.errors import RunError, UserError
from seqtrack.process import STOP_SIGNALS, end_with_parent, exit_reason, limit_problem
from seqtrack.shards import shard_range

_PREFETCH = 2  # batches per worker that are made in advance
_MAX_BATCH_BYTES = 2**31 - 64  # NumPy counts them in a C int, with those that align the fields
_POLL_S = 0.2  # interval at which a wait checks for a request to stop
_JOIN_S = 5.0  # how long a killed worker is waited for
# A single process can stop between two batches at once; of several, the others wait for this one's batch, and only a
# vote after it ends them all at the same step.
_STOP_PATIENCE_S = 60.0
_FIELDS = ("templates", "search", "template_brightness", "search_brightness", "boxes")  # of a batch, made by workers
_loader: "BatchLoader"  # of a worker


class _Worker(ForkProcess):
    # A pool that lost a worker calls this and waits for the others, which ignore SIGTERM and hold nothing half-written.
    terminate = ForkProcess.kill


class _ForkContext(ForkContext):
    Process = _Worker


@dataclass(frozen=True)
class Batch:
    """One rank's samples of a global batch, on the CPU.

    Attributes:
        templates: (B, T, 3, S, S) uint8 RGB.
        search: (B, 3, S, S) uint8 RGB.
        template_brightness: (B, T) float32; pixels are clamp(x * factor / 255, 0, 1).
        search_brightness: (B,) float32.
        boxes: (B, 4) float32 cx, cy, w, h in fractions of the search crop, not clipped.
        indices: (B,) int64, of the samples in the epoch, over all ranks.
        global_count: samples of the global batch.
        count: samples that count; 0 where this rank has none and holds one sample as a placeholder.
        checksum: sum of the checksums of the samples that count, modulo 2**64; over all ranks it depends on neither
            their number nor the order of the samples.
    """

    templates: Tensor
    search: Tensor
    template_brightness: Tensor
    search_brightness: Tensor
    boxes: Tensor
    indices: Tensor
    global_count: int
    count: int
    checksum: int = 0

    def copy(self, function: Callable[[Tensor], Tensor] = Tensor.clone) -> "Batch":
        return Batch(*(function(one) if isinstance(one, Tensor) else one for one in vars(self).values()))  # type: ignore[arg-type]

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which copies to a GPU are asynchronous; itself where none is left."""
        num_bytes = sum(one.nbytes for one in vars(self).values() if isinstance(one, Tensor))
        return pin_or_none(lambda: self.copy(Tensor.pin_memory), "batches", num_bytes) or self


class BatchLoader:
    """Makes the batches of one rank.

    Args:
        batch_size_global, samples_per_epoch: over all ranks; the last batch may be smaller.
        shards: a batch is cut into so many, and a rank has consecutive ones; 0: one per rank.
        num_workers: processes that make batches; 0 makes them in this process.
        pin: put batches into page-locked memory, for a GPU to copy from.

    Raises:
        UserError: a batch has more bytes than a buffer can have.
    """

    def __init__(
        self,
        dataset: TrackingDataset,
        *,
        batch_size_global: int,
        samples_per_epoch: int,
        world_size: int = 1,
        rank: int = 0,
        shards: int = 0,
        num_workers: int = 0,
        pin: bool = False,
    ) -> None:
        self.steps_per_epoch = -(-samples_per_epoch // batch_size_global)
        self.samples_per_epoch = samples_per_epoch
        self.dataset, self._batch_size = dataset, batch_size_global
        self._world_size, self._num_workers, self._pin = world_size, num_workers, pin
        self._num_shards = shards or world_size
        self._shards = shard_range(self._num_shards, world_size, rank)  # of this rank
        spec, size = dataset.spec, max(1, len(self._samples(batch_size_global)))
        search = (size, 3, spec.search_size, spec.search_size)
        templates = (size, spec.num_templates, 3, spec.template_size, spec.template_size)
        shapes = (templates, search, (size, spec.num_templates), (size,), (size, 4))
        kinds = (np.uint8, np.uint8, np.float32, np.float32, np.float32)
        fields = [*zip(_FIELDS, kinds, shapes, strict=True), ("checksums", np.uint64, (size,))]
        per_sample = sum(np.dtype(kind).itemsize * math.prod(shape) for _, kind, shape in fields) // size
        if size > (most := _MAX_BATCH_BYTES // per_sample):
            text = f"TRAIN.BATCH_SIZE is {batch_size_global}: {size} samples per process of {per_sample} bytes each"
            raise UserError(f"{text}; at most {most} fit into a buffer", code="loader.batch_too_large")
        layout = np.dtype(fields, align=True)
        count = max(1, num_workers * _PREFETCH)  # of whole batches, in anonymous memory that a fork shares
        self._buffers = [np.frombuffer(mmap.mmap(-1, layout.itemsize), layout) for _ in range(count)]
        self._pool: ProcessPoolExecutor | None = None
        self._pending: deque[Future[None]] = deque()

    def start_workers(self) -> None:
        """Start the workers now, idle; otherwise `batches` does it.

        Best before a model is built. They are forks: this process copies every page that it writes to afterwards, and
        the old page stays in memory for as long as they live.

        Raises:
            RunError: the system grants no further process, memory or file.
        """
        if self._pool is not None or self._num_workers == 0:
            return
        try:
            self._pool = ProcessPoolExecutor(self._num_workers, _ForkContext(), _begin_worker, (self, os.getpid()))
            self._pool.submit(os.getpid)  # forks all of them
        except (OSError, MemoryError, RuntimeError) as error:
            self.close()
            problem = limit_problem(error) or f"a data loader worker could not be started ({error})"
            raise RunError(problem, code="loader.start") from error

    def batches(self, epoch: int, start_step: int = 0, *, stop: Callable[[], bool] = lambda: False) -> Iterator[Batch]:
        """This rank's samples of the global batches `start_step`, `start_step + 1`, ... of an epoch.

        Ends early where `stop()` becomes true while a batch is waited for.

        Raises:
            UserError: a frame file cannot be read.
            RunError: a worker died (`loader.worker_died`), or could not make its batch.
        """
        self.start_workers()
        ahead, last = len(self._buffers), self.steps_per_epoch
        if self._pool is None:
            for step in range(start_step, last):
                self.fill(0, epoch, step)
                yield self._batch(0, step)
            return
        try:
            while self._pending:  # of an epoch that was abandoned
                if not self._is_made(stop):
                    return
            for step in range(start_step, min(start_step + ahead, last)):
                self._pending.append(self._pool.submit(_fill, step % ahead, epoch, step))
            for step in range(start_step, last):
                if not self._is_made(stop):
                    return
                batch = self._batch(step % ahead, step)
                if step + ahead < last:  # into the buffer that was just read
                    self._pending.append(self._pool.submit(_fill, step % ahead, epoch, step + ahead))
                yield batch
        except BrokenProcessPool as error:
            how = exit_reason(self.close()[0])
            advice = (
                "Most often memory ran out: lower TRAIN.NUM_WORKER or the batch size, or raise the container's limit"
            )
            raise RunError(f"a data loader worker died ({how}). {advice}", code="loader.worker_died") from error
        except Exception:
            self.close()
            raise

    def _is_made(self, stop: Callable[[], bool]) -> bool:
        """Whether the next batch is in its buffer; False when `stop()` ended the wait."""
        asked_at = math.inf
        while not wait([self._pending[0]], _POLL_S).done:
            asked_at = min(asked_at, time.monotonic()) if stop() else asked_at
            if time.monotonic() >= asked_at + (0 if self._world_size == 1 else _STOP_PATIENCE_S):
                return False
        self._pending.popleft().result()
        return True

    def _own(self, step: int) -> tuple[list[int], int, int]:
        """Indices to make (a placeholder where there is none), samples of the global batch, samples that count."""
        first = step * self._batch_size
        size = min(self._batch_size, self.samples_per_epoch - first)
        mine = [first + one for one in self._samples(size)]
        return mine or [first], size, len(mine)

    def _samples(self, size: int) -> range:
        """The places of this rank's samples in a global batch of `size`."""
        first, last = (shard_range(size, self._num_shards, one) for one in (self._shards[0], self._shards[-1]))
        return range(first.start, last.stop)

    def fill(self, number: int, epoch: int, step: int) -> None:
        """Write this rank's samples of a step into a buffer."""
        buffer = self._buffers[number]
        for place, index in enumerate(self._own(step)[0]):
            sample = self.dataset.sample(epoch, index)
            for name, array in {**vars(sample), "boxes": sample.box}.items():
                if name in _FIELDS:
                    buffer[name][0, place] = array
            buffer["checksums"][0, place] = sample.checksum

    def _batch(self, number: int, step: int) -> Batch:
        """A copy of the samples that `fill` wrote."""
        indices, size, count = self._own(step)
        tensors = {name: torch.from_numpy(self._buffers[number][name][0, : len(indices)]) for name in _FIELDS}
        checksum = int(self._buffers[number]["checksums"][0, :count].sum())
        view = Batch(indices=torch.tensor(indices), global_count=size, count=count, checksum=checksum, **tensors)
        pinned = view.pin_memory() if self._pin else view
        return view.copy() if pinned is view else pinned

    def close(self) -> list[int]:
        """End the workers; a closed loader starts new ones when it is used again.

        Returns:
            their exit codes, first of those that died otherwise.
        """
        pool, self._pool = self._pool, None
        self._pending.clear()
        workers = list(pool._processes.values()) if pool else []
        for worker in workers:
            worker.kill()
        # Not `join` or `is_alive`: the pool's thread waits for them too, and only one wait gets the exit code.
        ended = [connection.wait([worker.sentinel], _JOIN_S) for worker in workers]
        if pool:
            pool.shutdown(wait=all(ended))
        return sorted((worker.exitcode or 0 for worker in workers), key=lambda code: code in (0, -signal.SIGKILL))


def _begin_worker(loader: BatchLoader, parent: int) -> None:
    global _loader
    for number in STOP_SIGNALS:  # for the trainer, which may need batches until it has saved
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the call above took effect
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    _loader = loader


def _fill(number: int, epoch: int, step: int) -> None:
    try:
        _loader.fill(number, epoch, step)
    except Exception as error:
        problem = limit_problem(error)
        if problem is None and isinstance(error, UserError):
            raise
        text = f"a data loader worker failed in epoch {epoch}, step {step}: {type(error).__name__}: {error}"
        raise RunError(problem or text, "loader.worker_failed") from error

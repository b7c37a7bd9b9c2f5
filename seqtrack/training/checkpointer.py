"""Saving while training continues: a quick copy of the state, then a durable write in the background.

Training is still for the copy alone. A write is durable before the next one starts; if it fails, the run stops at
the next step with the cause.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqtrack.checkpoints.safetensors_io import DamagedFileError
from seqtrack.checkpoints.store import Manifest, write_checkpoint
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.device import pin_or_none
from seqtrack.errors import RunError
from seqtrack.process import limit_problem

logger = logging.getLogger(__name__)

# Next to the container itself: its head, the manifest, the log lines and plots that follow.
_SPARE_BYTES = 8 * 1024 * 1024
# Memory for copies is taken in pieces of this size: torch rounds a page-locked block up to a power of two, so that one
# block for B256's 1.09 GB would take 2.1.
_PIECE_BYTES = 64 * 1024 * 1024
_ALIGNMENT = 64


class Checkpointer:
    """Writes the checkpoints of one run, one after the other.

    Args:
        folder: where checkpoints go.
        parent_sha256: the digest of the epoch's checkpoint that this run starts from, if any.
        on_durable: called in the writing thread with each manifest once it is durable.
    """

    def __init__(
        self, folder: Path, *, parent_sha256: str | None, on_durable: Callable[[Manifest], None] | None = None
    ) -> None:
        self.folder = folder
        self.parent_sha256 = parent_sha256
        self.on_durable = on_durable
        # Called in the writing thread before a checkpoint: what it relies on must be durable before it is.
        self.before_write: Callable[[], None] | None = None
        self.last_stall_s = 0.0
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, describe: Mapping[str, Any]
    ) -> None:
        """Copy the state and start writing it; waits first until the write before is durable.

        Raises:
            RunError: too little space, or an earlier write failed.
        """
        started = time.perf_counter()
        self.wait()
        self._check_space(_num_bytes(tensors.values()))
        copied = self._copy(tensors)
        self.last_stall_s = time.perf_counter() - started
        kind = describe["kind"]
        thread = threading.Thread(
            target=self._write, args=(self.folder / name, copied, dict(values), dict(describe), kind), name="checkpoint"
        )
        try:
            thread.start()
        except RuntimeError as error:  # "can't start new thread"
            raise RunError(limit_problem(error) or str(error)) from error
        self._thread = thread

    def preallocate(self, tensors: Mapping[str, Tensor]) -> None:
        """Find the memory for copies of such tensors now: the first save would stand for it otherwise.

        Raises:
            RunError: too little space on the disk for a checkpoint of this size.
        """
        self._check_space(_num_bytes(tensors.values()))
        self._buffers = _buffers_like(tensors)

    @property
    def is_busy(self) -> bool:
        """Whether a write is in progress, which the next save would have to wait for."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what went wrong with a write in the background, if anything did.

        Raises:
            RunError: the disk's fault, with the cause, and what to do; any other exception as it was.
        """
        if self._failure is not None:
            failure, self._failure = self._failure, None
            limit = limit_problem(failure)
            if limit is not None:
                raise RunError(limit) from failure
            if not isinstance(failure, (OSError, DamagedFileError)):
                raise failure
            what = str(failure)
            if isinstance(failure, OSError):
                what = f"{failure.filename or self.folder} could not be written ({failure.strerror})"
            raise RunError(
                f"{what}; older checkpoints are untouched: fix the disk or make room and start again; it continues "
                "from the newest of them",
                code="run.disk",
            ) from failure

    def wait(self) -> None:
        """Return when the last write is durable.

        Raises:
            RunError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Let the write in progress end, whatever happened to the run; its failure is only logged here."""
        try:
            self.wait()
        except RunError as error:
            logger.error("%s", error)

    def _check_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes + _SPARE_BYTES:
            raise RunError(
                f"{self.folder} has {free / 1e6:.0f} MB free; the next checkpoint needs {num_bytes / 1e6:.0f} MB and "
                f"{_SPARE_BYTES / 1e6:.0f} MB to spare: make room, or set TRAIN.KEEP_CHECKPOINTS"
            )

    def _copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors' values now, in buffers on the CPU that are kept from save to save.

        Fresh memory would cost more than the copy itself: the pages have to be found first.
        """
        if not all(_fits(self._buffers.get(name), tensor) for name, tensor in tensors.items()):
            self._buffers = {}  # given back before as much is asked for again
            self._buffers = _buffers_like(tensors)
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return {name: self._buffers[name] for name in tensors}

    def _write(
        self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], describe: dict[str, Any], kind: str
    ) -> None:
        try:
            self._write_and_tidy(path, tensors, values, describe, kind)
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed: `check` raises it in the training thread
            self._failure = error

    def _write_and_tidy(
        self, path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any], describe: dict[str, Any], kind: str
    ) -> None:
        started = time.perf_counter()
        if self.before_write is not None:
            self.before_write()
        raw = {name: tensor_bytes(tensor) for name, tensor in tensors.items()}
        manifest = write_checkpoint(path, raw, values, describe={**describe, "parent_sha256": self.parent_sha256})
        if kind == "epoch":
            self.parent_sha256 = manifest.sha256
        logger.info(
            "checkpoint %s : %.1f MB , training stood %.3f s , durable after %.2f s , sha256 %s",
            manifest.file,
            manifest.bytes / 1e6,
            self.last_stall_s,
            time.perf_counter() - started,
            manifest.sha256[:16],
        )
        if self.on_durable is not None:
            self.on_durable(manifest)


def _fits(buffer: Tensor | None, tensor: Tensor) -> bool:
    return buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype


def _buffers_like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A buffer on the CPU for each tensor; for a GPU's in page-locked memory, if there is enough of it."""
    pieces: list[dict[str, Tensor]] = []
    free = 0
    for name, tensor in tensors.items():
        if _padded(tensor) > free:
            pieces.append({})
            free = _PIECE_BYTES
        pieces[-1][name] = tensor
        free -= _padded(tensor)
    sizes = [sum(map(_padded, piece.values())) for piece in pieces]
    memory = None
    if any(tensor.is_cuda for tensor in tensors.values()):
        memory = pin_or_none(
            lambda: [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes], "checkpoints", sum(sizes)
        )
    if memory is None:
        memory = [torch.empty(size, dtype=torch.uint8) for size in sizes]
    buffers = {}
    for piece, block in zip(pieces, memory, strict=True):
        block.zero_()  # the kernel finds the pages now
        start = 0
        for name, tensor in piece.items():
            buffers[name] = block[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            start += _padded(tensor)
    return buffers


def _padded(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)

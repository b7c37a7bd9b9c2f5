"""Saving while training continues: a quick copy of the state, then a durable write in a background thread.

Training is blocked for the copy alone. A write is durable before the next one starts; if it fails, the run stops at
the next step with the cause.
"""

import logging
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqtrack.checkpoints.manifest import Manifest
from seqtrack.checkpoints.store import write_checkpoint
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.device import pin_or_none
from seqtrack.errors import RunError

logger = logging.getLogger(__name__)

# In addition to the tensors: the file's head, the manifest, the log lines and plots that follow.
_SPARE_BYTES = 8 * 1024 * 1024
# Memory for copies is allocated in pieces of this size: torch rounds a page-locked block up to a power of two, so that
# one block for B256's 1.09 GB would take 2.1.
_PIECE_BYTES = 64 * 1024 * 1024
_ALIGNMENT = 64


class Checkpointer:
    """Writes the checkpoints of one run, one after the other.

    Args:
        folder: where checkpoints go.
        parent_sha256: the digest of the epoch's checkpoint that this run starts from, if any.
    """

    def __init__(self, folder: Path, *, parent_sha256: str | None) -> None:
        self.folder = folder
        self.parent_sha256 = parent_sha256
        # Both are called in the writing thread: before a checkpoint, to make durable what it relies on, and after it.
        self.before_write: Callable[[], None] = lambda: None
        self.on_durable: Callable[[Manifest], None] = lambda manifest: None
        self._buffers: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(
        self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, describe: Mapping[str, object]
    ) -> None:
        """Copy the state and start writing it; first waits until the previous write is durable.

        Raises:
            OSError: an earlier write failed.
        """
        started = time.perf_counter()
        self.wait()
        copied = self._copy(tensors)
        arguments = (self.folder / name, copied, dict(values), dict(describe), time.perf_counter() - started)
        thread = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        thread.start()
        self._thread = thread

    def preallocate(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate the memory for copies of such tensors now rather than in the first save.

        Raises:
            RunError: too little space on the disk for a checkpoint of this size.
        """
        needed, free = sum(tensor.nbytes for tensor in tensors.values()), shutil.disk_usage(self.folder).free
        if free < needed + _SPARE_BYTES:
            raise RunError(
                f"{self.folder} has {free / 1e6:.0f} MB free; a checkpoint needs {needed / 1e6:.0f} MB and "
                f"{_SPARE_BYTES / 1e6:.0f} MB to spare: make room, or set TRAIN.KEEP_CHECKPOINTS",
                code="run.no_space",
            )
        self._buffers = {}  # freed before as much is allocated again
        self._buffers = _buffers_like(tensors)

    @property
    def is_busy(self) -> bool:
        """Whether a write is in progress, which the next save would have to wait for."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what went wrong with a write in the background, if anything did."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Return when the last write is durable.

        Raises:
            OSError: it failed; older checkpoints are untouched.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def close(self) -> None:
        """Let the write in progress finish, whatever happened to the run; its failure is only logged here."""
        try:
            self.wait()
        except OSError as error:
            logger.error("%s", error)

    def _copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors' values now, in buffers on the CPU that are reused from save to save.

        Fresh memory would cost more than the copy itself, because of its page faults.
        """
        kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        if not kinds.items() <= {name: (one.shape, one.dtype) for name, one in self._buffers.items()}.items():
            self.preallocate(tensors)
        for name, tensor in tensors.items():
            self._buffers[name].copy_(tensor.detach(), non_blocking=True)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return {name: self._buffers[name] for name in tensors}

    def _write(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        values: Mapping[str, Any],
        describe: Mapping[str, object],
        blocked_s: float,
    ) -> None:
        try:
            started = time.perf_counter()
            self.before_write()
            raw = {name: tensor_bytes(tensor) for name, tensor in tensors.items()}
            manifest = write_checkpoint(path, raw, values, describe={**describe, "parent_sha256": self.parent_sha256})
            if manifest.kind == "epoch":
                self.parent_sha256 = manifest.sha256
            logger.info(
                "checkpoint %s : %.1f MB , blocked training for %.3f s , durable after %.2f s , sha256 %s",
                manifest.file,
                manifest.bytes / 1e6,
                blocked_s,
                time.perf_counter() - started,
                manifest.sha256[:16],
            )
            self.on_durable(manifest)
        except BaseException as error:  # noqa: BLE001 - nothing is swallowed: `check` raises it in the training thread
            self._failure = error


def _buffers_like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A buffer on the CPU for each tensor; for a GPU's in page-locked memory, if there is enough of it."""
    places: dict[str, tuple[int, int]] = {}  # piece, and first byte in it, of each tensor
    sizes = [0]
    for name, tensor in tensors.items():
        needed = -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        if sizes[-1] and sizes[-1] + needed > _PIECE_BYTES:
            sizes.append(0)
        places[name] = (len(sizes) - 1, sizes[-1])
        sizes[-1] += needed

    def allocate(pinned: bool) -> list[Tensor]:
        return [torch.empty(size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]

    on_gpu = any(tensor.is_cuda for tensor in tensors.values())
    pieces = (pin_or_none(lambda: allocate(True), "checkpoints", sum(sizes)) if on_gpu else None) or allocate(False)
    for piece in pieces:
        piece.zero_()  # takes the page faults now
    return {
        name: pieces[number][start : start + tensors[name].nbytes].view(tensors[name].dtype).view(tensors[name].shape)
        for name, (number, start) in places.items()
    }

"""Saving while training continues: a quick copy of the state, then a durable write in a background thread.

Training is blocked for the copy alone. A write is durable before the next one starts; if it fails, the run stops at
the next step with the cause.
"""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from seqtrack.checkpoints.side_files import Manifest
from seqtrack.checkpoints.store import write_checkpoint
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.device import pin_or_none
from seqtrack.errors import RunError
from seqtrack.training.state import LINEAGE, State

logger = logging.getLogger(__name__)

# In addition to the tensors: the file's head, the manifest, the log lines and plots that follow.
_SPARE_BYTES = 8 * 1024 * 1024


def lineage(describe: Mapping[str, object], parent_sha256: str | None) -> State:
    """The component that puts a checkpoint into the hash chain: what its manifest repeats. Without the configuration's
    digest: a run that was extended has the checkpoints of one that was planned as long."""
    chain: State = {"data_digest": describe.get("data_digest"), "parent_sha256": parent_sha256}
    return chain | ({"init_sha256": init} if (init := describe.get("init_sha256")) else {})


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
        self._last_name, self._last_parent = "", parent_sha256
        self._buffers: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def save(self, name: str, tensors: Mapping[str, Tensor], values: State, *, describe: Mapping[str, object]) -> None:
        """Copy the state and start writing it; first `wait`."""
        started = time.perf_counter()
        self.wait()
        if name == self._last_name:  # the same epoch once more, now with its file
            self.parent_sha256 = self._last_parent
        self._last_name, self._last_parent = name, self.parent_sha256
        values = {**values, LINEAGE: lineage(describe, self.parent_sha256)}
        copied = self._copy(tensors)
        blocked_s = time.perf_counter() - started
        self._writing = self._thread.submit(self._write, self.folder / name, copied, values, describe, blocked_s)

    def preallocate(self, tensors: Mapping[str, Tensor]) -> None:
        """Allocate the memory for copies of such tensors now rather than in the first save; a GPU's in page-locked
        memory, if there is enough of it. The values are set, which takes the page faults now.

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

        def allocate(pinned: bool) -> dict[str, Tensor]:
            return {n: torch.zeros(one.shape, dtype=one.dtype, pin_memory=pinned) for n, one in tensors.items()}

        self._buffers = {}  # freed before as much is allocated again
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        pinned = pin_or_none(lambda: allocate(True), "checkpoints", needed) if on_gpu else None
        self._buffers = pinned or allocate(False)

    @property
    def is_busy(self) -> bool:
        """Whether a write is in progress, which the next save would have to wait for."""
        return self._writing is not None and not self._writing.done()

    def check(self) -> None:
        """Raise what went wrong with a write in the background, if anything did."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return when the last write is durable, or raise its error: older checkpoints are untouched."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """Let the write in progress finish, whatever happened to the run; its failure is only logged here."""
        try:
            self.wait()
        except OSError as error:
            logger.error("%s", error)
        self._thread.shutdown()

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
        self, path: Path, tensors: Mapping[str, Tensor], values: State, describe: Mapping[str, object], blocked_s: float
    ) -> None:
        started = time.perf_counter()
        self.before_write()
        raw = {name: tensor_bytes(tensor) for name, tensor in tensors.items()}
        manifest = write_checkpoint(path, raw, values, describe={**describe, "parent_sha256": self.parent_sha256})
        if manifest.kind != "step":
            self.parent_sha256 = manifest.sha256
        logger.info(
            "checkpoint %s : %.1f MB , blocked training for %.3f s , durable after %.2f s , sha256 %s",
            manifest.file,
            manifest.bytes / 1e6,
            blocked_s,
            time.perf_counter() - started,
            manifest.sha256[:16],
            extra={"short": ""},  # for the file alone, where the screen is a terminal
        )
        self.on_durable(manifest)

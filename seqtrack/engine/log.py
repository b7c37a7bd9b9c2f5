"""What a run says: the human log on screen and in its file, `metrics.jsonl`, and TensorBoard.

The three agree because they are fed from one record. On resume the records after the point of resumption are dropped,
so that the files read as if the run had never been cut. Only rank 0 writes.
"""

import contextlib
import functools
import json
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm import tqdm

from seqtrack.checkpoints.files import write_atomic

logger = logging.getLogger("seqtrack")

# Fields that depend on the clock or on what else the process allocated; two runs that are the same run differ in them.
WALL_CLOCK_FIELDS = frozenset(
    {"time_s", "elapsed_s", "eta_s", "samples_per_s", "data_wait_s", "data_wait_share", "fps"}
    | {"max_memory_allocated", "max_memory_reserved"}
)


class _ScreenHandler(logging.Handler):
    """Prints above a progress bar, if one stands there."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _RankHandler(logging.Handler):
    """Lets a rank other than 0 speak only when something is wrong."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.WARNING)
        self.rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"[rank {self.rank}] {self.format(record)}\n")


class _FileHandler(logging.FileHandler):
    """A log that cannot be written ends the run; the base class would print a traceback and go on without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class EarlyLines(logging.Handler):
    """Keeps what is said before a run's log file can be opened; a context manager."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(record)

    def take(self) -> list[logging.LogRecord]:
        """The lines so far; no more are kept."""
        logger.removeHandler(self)
        return self._lines

    def __enter__(self) -> "EarlyLines":
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger.removeHandler(self)


@contextlib.contextmanager
def logging_to(path: Path | None, *, rank: int, earlier: Sequence[logging.LogRecord] = ()) -> Iterator[None]:
    """Send this package's log lines to the screen and, on rank 0, to `path` as well, until the block ends.

    Args:
        earlier: lines that were said already and are still missing in `path`.
    """
    handlers: list[logging.Handler] = [_ScreenHandler() if rank == 0 else _RankHandler(rank)]
    if path is not None:
        handlers.append(_FileHandler(path, encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    if path is not None:
        for record in list(earlier):
            handlers[-1].handle(record)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))


@dataclass(frozen=True)
class Interval:
    """What one log interval measured."""

    epoch: int
    step: int
    sample: int
    samples: int
    interval_samples: int
    loss: float
    iou: float
    interval_loss: float
    interval_iou: float
    lr: list[float]
    grad_norm: float | None
    skipped_steps: int
    time_s: float
    elapsed_s: float
    eta_s: float
    samples_per_s: float
    data_wait_s: float
    data_wait_share: float


def interval_line(phase: int, record: Interval) -> str:
    """The line every 50 samples; users' scripts read it, so its form is fixed."""
    return (
        f"[phase_{phase}] Epoch {record.epoch} : {record.sample} / {record.samples} samples , "
        f"time for last {record.interval_samples} samples : {clock(record.time_s)} hours , "
        f"time since beginning : {clock(record.elapsed_s)} hours , "
        f"time left to finish the epoch : {clock(record.eta_s)} hours , "
        f"Loss/total: {record.loss:.5f} , IoU: {record.iou:.5f}"
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`, in order; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().split(b"\n"):
        if line:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
    return records


class RunLog:
    """The run's records. `resume_step` is the optimizer step that the run starts from.

    Args:
        folder: the run's `logs` folder.
        writes: whether this process writes (rank 0).
    """

    def __init__(self, folder: Path, *, phase: int, resume_step: int, writes: bool) -> None:
        self.phase = phase
        self.writes = writes
        self.elapsed_before_s = 0.0
        self._file: int | None = None
        self._board_folder, self._resume_step = folder / "tensorboard", resume_step
        if not writes:
            return
        path = folder / "metrics.jsonl"
        kept = [record for record in read_metrics(path) if record.get("step", 0) <= resume_step]
        write_atomic(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in kept).encode())
        self.elapsed_before_s = max((record.get("elapsed_s", 0.0) for record in kept), default=0.0)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)

    @functools.cached_property
    def _board(self) -> Any:
        # Opened with the first record: ranks that do not write need not load it, and no first step waits for it.
        from torch.utils.tensorboard.writer import SummaryWriter

        return SummaryWriter(str(self._board_folder), purge_step=self._resume_step + 1)  # type: ignore[no-untyped-call]

    def interval(self, record: Interval) -> None:
        """Say and keep one interval."""
        if not self.writes:
            return
        logger.info("%s", interval_line(self.phase, record))
        self.record("interval", **record.__dict__)
        self._scalars(
            record.step,
            {
                "interval/loss": record.interval_loss,
                "interval/iou": record.interval_iou,
                "interval/grad_norm": record.grad_norm,
                "interval/samples_per_s": record.samples_per_s,
                "interval/data_wait_share": record.data_wait_share,
                **{f"interval/lr_{i}": rate for i, rate in enumerate(record.lr)},
            },
        )

    def epoch(self, values: dict[str, Any]) -> None:
        """Say and keep one epoch: `values` is its history record with its wall-clock fields."""
        if not self.writes:
            return
        peak = values["max_memory_reserved"]
        logger.info(
            "[phase_%d] Epoch %d finished : mean loss %.5f , mean IoU %.5f , time %s hours , %.1f samples/s , "
            "%.1f %% of it waiting for data , learning rates %s%s",
            self.phase,
            values["epoch"],
            values["loss"],
            values["iou"],
            clock(values["time_s"]),
            values["samples_per_s"],
            100 * values["data_wait_share"],
            " ".join(f"{rate:.3g}" for rate in values["lr"]),
            "" if peak is None else f" , at most {peak / 2**30:.2f} GiB of GPU memory",
        )
        self.record("epoch", **values)
        self._scalars(
            values["epoch"],
            {
                f"epoch/{name}": values[name]
                for name in ("loss", "iou", "grad_norm", "samples_per_s", "data_wait_share")
            },
        )
        self._board.flush()

    def validation(self, epoch: int, step: int, scores: dict[str, float]) -> None:
        """Say and keep the scores on held-out sequences."""
        if not self.writes:
            return
        words = " , ".join(f"{name} {value:.2f}" for name, value in scores.items())
        logger.info("[phase_%d] Epoch %d validation : %s", self.phase, epoch, words)
        self.record("validation", epoch=epoch, step=step, **scores)
        self._scalars(epoch, {f"validation/{name}": value for name, value in scores.items()})

    def record(self, kind: str, **values: Any) -> None:
        """Append one record in a single write, so that a kill leaves a whole line or none.

        A number that is not finite, such as the mean of nothing, becomes null: JSON has no word for it.
        """
        if self._file is not None:
            values = {name: None if _is_not_finite(value) else value for name, value in values.items()}
            line = json.dumps({"type": kind, "phase": self.phase, **values}, allow_nan=False) + "\n"
            os.write(self._file, line.encode())

    def progress(self, epoch: int, samples: int, *, done: int) -> "tqdm[Any]":
        """A bar below the lines, where a person looks at a terminal."""
        return tqdm(
            total=samples,
            initial=done,
            desc=f"phase_{self.phase} epoch {epoch}",
            unit="sample",
            leave=False,
            dynamic_ncols=True,
            disable=None if self.writes else True,  # None: only where stderr is a terminal
        )

    def sync(self) -> None:
        """Make the records so far durable."""
        if self._file is not None:
            os.fsync(self._file)

    def images(self, step: int, name: str, images: Any) -> None:
        """Show (N, 3, H, W) uint8 images in TensorBoard."""
        if self.writes:
            self._board.add_images(name, images, step)

    def _scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        for name, value in values.items():
            if value is not None and not _is_not_finite(value):
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Make the records durable and close both files."""
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
        if "_board" in self.__dict__:  # nothing is opened only to be closed
            self._board.close()


def _is_not_finite(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)

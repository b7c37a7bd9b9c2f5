"""The log of a run on screen and in its file, `metrics.jsonl`, and TensorBoard.

The three agree because they are fed from one record. On resume the records after the resume point are dropped, so that
the files equal an uninterrupted run's. Only rank 0 writes.
"""

import contextlib
import functools
import io
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any, BinaryIO, cast

from tqdm import tqdm

from seqtrack.checkpoints.safetensors_io import name_in_errors, new_file, write_atomic
from seqtrack.checkpoints.side_files import (
    EpochRecord,
    IntervalRecord,
    Record,
    ValidationRecord,
    metrics_lines,
    shorten,
)
from seqtrack.errors import Problem
from seqtrack.run_dir import DAMAGED_METRICS_FILE, METRICS_FILE, TENSORBOARD, phase_name
from seqtrack.runtime.curves import Curves

logger = logging.getLogger("seqtrack")

# Fields that depend on the clock or on what else the process allocated; two runs that are the same run differ in them.
WALL_CLOCK_FIELDS = frozenset(
    {"time_s", "elapsed_s", "eta_s", "samples_per_s", "data_wait_s", "data_wait_share", "fps"}
    | {"max_memory_allocated", "max_memory_reserved"}
)


class _OneLine(logging.Formatter):
    """For the screen: an error's traceback is in the log file only."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class _ScreenHandler(logging.Handler):
    """Prints above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _RankHandler(logging.Handler):
    """Prints the warnings of a rank other than 0."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.WARNING)
        self.rank = rank

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(f"[rank {self.rank}] {self.format(record)}\n")


class _FileHandler(logging.FileHandler):
    """A log that cannot be written ends the run; the base class would print a traceback and continue without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        with name_in_errors(Path(self.baseFilename)):
            raise


class EarlyLogRecords(BufferingHandler):
    """Keeps the records of the time before a run's log file can be opened; a context manager."""

    def __init__(self) -> None:
        super().__init__(sys.maxsize)

    def take(self) -> list[logging.LogRecord]:
        """The records so far; no more are kept."""
        logger.removeHandler(self)
        return self.buffer

    def __enter__(self) -> "EarlyLogRecords":
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logger.removeHandler(self)


@contextlib.contextmanager
def logging_to(path: Path | None, *, rank: int, earlier: Sequence[logging.LogRecord] = ()) -> Iterator[None]:
    """Send this package's log lines to the screen and, on rank 0, to `path` as well, until the block ends.

    An error that ends the block, or a thread, goes to the file with its traceback; the screen gets errors where the
    command ends.

    Args:
        earlier: records that were printed before and belong into `path`.
    """
    screen: logging.Handler = _ScreenHandler() if rank == 0 else _RankHandler(rank)
    screen.setFormatter(_OneLine())
    file = _FileHandler(path, encoding="utf-8") if path is not None else logging.NullHandler()
    file.setFormatter(logging.Formatter("%(message)s"))
    level, propagate, hook = logger.level, logger.propagate, threading.excepthook
    for handler in (screen, file):
        logger.addHandler(handler)
    for record in list(earlier):
        file.handle(record)
    logger.setLevel(logging.INFO)
    logger.propagate = False

    def keep(error: BaseException, about: str) -> None:
        text = f"{about}: {str(error) or type(error).__name__}"
        info = (type(error), error, error.__traceback__)
        with contextlib.suppress(OSError):
            file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), info))

    def thread_failed(args: "threading.ExceptHookArgs") -> None:
        if args.exc_value is not None:
            keep(args.exc_value, f"thread {args.thread.name if args.thread else ''} failed")

    threading.excepthook = thread_failed
    try:
        yield
    except BaseException as error:
        keep(error, "the run ended")
        raise
    finally:
        threading.excepthook = hook
        logger.setLevel(level)
        logger.propagate = propagate
        for handler in (screen, file):
            logger.removeHandler(handler)
            handler.close()


def clock(seconds: float) -> str:
    """Seconds as H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))


def interval_line(record: IntervalRecord) -> str:
    """The log line of an interval; users' scripts parse it, so its form is fixed."""
    return (
        f"[{phase_name(record.phase)}] Epoch {record.epoch} : {record.sample} / {record.samples} samples , "
        f"time for last {record.interval_samples} samples : {clock(record.time_s)} hours , "
        f"time since beginning : {clock(record.elapsed_s)} hours , "
        f"time left to finish the epoch : {clock(record.eta_s)} hours , "
        f"Loss/total: {record.loss:.5f} , IoU: {record.iou:.5f}"
    )


class RunLog:
    """The run's records. `curves` holds what the plots show of them so far.

    Args:
        folder: the run's `logs` folder.
        resume_step: the optimizer step that the run starts from.
        writes: whether this process writes (rank 0).
    """

    def __init__(self, folder: Path, *, phase: int, resume_step: int, writes: bool) -> None:
        self.phase = phase
        self.writes = writes
        self.elapsed_before_s = 0.0
        self.curves = Curves()
        self._file: int | None = None
        self._unscored: set[int] = set()
        self._board_folder, self._resume_step = folder / TENSORBOARD, resume_step
        self._board_works = True
        self._path = folder / METRICS_FILE
        if not writes:
            return
        with new_file(self._path) as kept:
            self._keep_records(kept, resume_step)
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def _keep_records(self, kept: BinaryIO, resume_step: int) -> None:
        """Copy the records up to the resume point; damaged lines are moved to another file in their order."""
        problems: list[Problem] = []
        aside: list[bytes] = []
        buffered = io.BufferedWriter(cast(io.RawIOBase, kept), 1024 * 1024)
        for line, record in metrics_lines(self._path):
            if isinstance(record, Problem):
                problems.append(record)
                aside.append(line)
            elif record.step <= resume_step:
                buffered.write(line.rstrip(b"\r\n") + b"\n")
                self._note(record)
                if not isinstance(record, ValidationRecord):
                    self.elapsed_before_s = max(self.elapsed_before_s, record.elapsed_s)
        buffered.flush()
        buffered.detach()
        if aside:
            place = self._path.with_name(DAMAGED_METRICS_FILE)
            before = place.read_bytes() if place.exists() else b""
            write_atomic(place, before + b"".join(aside))
            for problem in shorten(problems):
                logger.warning("moved to %s: %s", place, problem)

    @functools.cached_property
    def _board(self) -> Any:
        # Opened with the first record, for start-up time: ranks that do not write never load it.
        from torch.utils.tensorboard.writer import SummaryWriter

        return SummaryWriter(str(self._board_folder), purge_step=self._resume_step + 1)  # type: ignore[no-untyped-call]

    def interval(self, record: IntervalRecord) -> None:
        """Log and record one interval."""
        if not self.writes:
            return
        logger.info("%s", interval_line(record))
        self.record(record)
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
        """Log and record one epoch: `values` is its history record with its wall-clock fields."""
        if not self.writes:
            return
        record = EpochRecord(phase=self.phase, **values)
        peak = record.max_memory_reserved
        logger.info(
            "[phase_%d] Epoch %d finished : mean loss %.5f , mean IoU %.5f , time %s hours , %.1f samples/s , "
            "%.1f %% of it waiting for data , learning rates %s%s",
            self.phase,
            record.epoch,
            record.loss,
            record.iou,
            clock(record.time_s),
            record.samples_per_s,
            100 * record.data_wait_share,
            " ".join(f"{rate:.3g}" for rate in record.lr),
            "" if peak is None else f" , at most {peak / 2**30:.2f} GiB of GPU memory",
        )
        self.record(record)
        names = ("loss", "iou", "grad_norm", "samples_per_s", "data_wait_share")
        self._scalars(record.epoch, {f"epoch/{name}": getattr(record, name) for name in names})
        self._to_board(lambda board: board.flush())

    def validation(self, epoch: int, step: int, scores: dict[str, float]) -> None:
        """Log and record the scores on held-out sequences."""
        if not self.writes:
            return
        shown = " , ".join(f"{name} {value:.2f}" for name, value in scores.items())
        logger.info("[phase_%d] Epoch %d validation : %s", self.phase, epoch, shown)
        values = {"type": "validation", "phase": self.phase, "epoch": epoch, "step": step, **scores}
        record = ValidationRecord.model_validate(values)
        self.record(record)
        self._scalars(epoch, {f"validation/{name}": getattr(record, name) for name in scores})

    def lacks_scores(self, epoch: int) -> bool:
        """Whether `epoch` is recorded, by this process or an earlier one in this folder, and no validation of it."""
        return epoch in self._unscored

    def _note(self, record: Record) -> None:
        self.curves.add(record)
        if isinstance(record, EpochRecord):
            self._unscored.add(record.epoch)
        elif isinstance(record, ValidationRecord):
            self._unscored.discard(record.epoch)

    def record(self, record: Record) -> None:
        """Append one record in a single write, so that a kill leaves a complete line or none."""
        if self._file is not None:
            values = record.model_dump()
            line = (json.dumps({"type": values.pop("type"), **values}, allow_nan=False) + "\n").encode()
            with name_in_errors(self._path):
                if rest := line[os.write(self._file, line) :]:
                    os.write(self._file, rest)  # after a partial write this raises the reason
            self._note(record)

    def progress(self, epoch: int, samples: int, *, done: int) -> "tqdm[Any]":
        """A progress bar below the log lines, on terminals only."""
        return tqdm(
            total=samples,
            initial=done,
            desc=f"{phase_name(self.phase)} epoch {epoch}",
            unit="sample",
            leave=False,
            dynamic_ncols=True,
            disable=None if self.writes else True,  # None: only where stderr is a terminal
        )

    def sync(self) -> None:
        """Make the records so far durable."""
        if self._file is not None:
            with name_in_errors(self._path):
                os.fsync(self._file)

    def images(self, step: int, name: str, images: Any) -> None:
        """Show (N, 3, H, W) uint8 images in TensorBoard."""
        if self.writes:
            self._to_board(lambda board: board.add_images(name, images, step))

    def _scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        known = {name: value for name, value in values.items() if value is not None}
        self._to_board(lambda board: [board.add_scalar(name, value, step) for name, value in known.items()])

    def _to_board(self, write: Callable[[Any], object]) -> None:
        """TensorBoard's numbers are all in metrics.jsonl: a failure to write them is a warning and never ends a run."""
        if not self._board_works:
            return
        try:
            write(self._board)
        except OSError as error:
            self._board_works = False
            logger.warning("%s could not be written (%s): training continues without it", self._board_folder, error)

    def close(self) -> None:
        """Make the records durable and close both files."""
        if self._file is not None:
            self.sync()
            os.close(self._file)
            self._file = None
        if "_board" in self.__dict__:  # not opened only to be closed
            self._to_board(lambda board: board.close())

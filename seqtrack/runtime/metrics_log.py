"""The log of a run on screen and in its file, `metrics.jsonl`, and TensorBoard.

The three agree because they are fed from one record. On resume the records after the resume point are dropped, so that
the files equal an uninterrupted run's. Only rank 0 writes.
"""

import contextlib
import functools
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from seqtrack.checkpoints.safetensors_io import name_in_errors, new_file
from seqtrack.checkpoints.side_files import (
    EpochRecord,
    IntervalRecord,
    Record,
    ValidationRecord,
    metrics_records,
)
from seqtrack.errors import Problem
from seqtrack.run_dir import DAMAGED_METRICS_FILE, METRICS_FILE, TENSORBOARD, phase_name

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("seqtrack")

# Fields that depend on the clock or on what else the process allocated; two runs that are the same run differ in them.
WALL_CLOCK_FIELDS = frozenset(
    {"time_s", "elapsed_s", "eta_s", "samples_per_s", "data_wait_s", "data_wait_share", "fps"}
    | {"max_memory_allocated", "max_memory_reserved"}
)


class _ScreenHandler(logging.Handler):
    """Prints lines above a progress bar, without tracebacks; of ranks other than 0 only warnings."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.WARNING if rank else logging.INFO)
        self._prefix = f"[rank {rank}] " if rank else ""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self._prefix + record.getMessage(), file=sys.stderr)


class _FileHandler(logging.FileHandler):
    """A log that cannot be written ends the run; the base class would print a traceback and continue without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        with name_in_errors(Path(self.baseFilename)):
            raise


@contextlib.contextmanager
def early_log_records() -> Iterator[MemoryHandler]:
    """Keep the records of the time before a run's log file can be opened."""
    kept = MemoryHandler(sys.maxsize, flushLevel=logging.CRITICAL + 1)
    logger.addHandler(kept)
    try:
        yield kept
    finally:
        logger.removeHandler(kept)


@contextlib.contextmanager
def logging_to(path: Path | None, *, rank: int, earlier: MemoryHandler | None = None) -> Iterator[None]:
    """Send this package's log lines to the screen and, on rank 0, to `path` as well, until the block ends.

    An error that ends the block, or a thread, goes to the file with its traceback; the screen gets errors where the
    command ends.

    Args:
        earlier: records that were printed before and belong into `path`.
    """
    file = logging.NullHandler() if path is None else _FileHandler(path, encoding="utf-8")
    if earlier is not None:
        logger.removeHandler(earlier)
        earlier.setTarget(file)
        earlier.flush()
    before = logger.level, logger.propagate, threading.excepthook
    handlers = (_ScreenHandler(rank), file)
    for handler in handlers:
        logger.addHandler(handler)

    def keep(about: str, error: BaseException) -> None:
        text, info = f"{about}: {str(error) or type(error).__name__}", (type(error), error, error.__traceback__)
        with contextlib.suppress(OSError):
            file.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), info))

    logger.setLevel(logging.INFO)
    logger.propagate = False
    threading.excepthook = lambda args: keep("a thread failed", args.exc_value or SystemExit())
    try:
        yield
    except BaseException as error:
        keep("the run ended", error)
        raise
    finally:
        level, logger.propagate, threading.excepthook = before
        logger.setLevel(level)
        for handler in handlers:
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
    """The run's records.

    Args:
        folder: the run's `logs` folder.
        resume_step: the optimizer step that the run starts from.
        writes: whether this process writes (rank 0).
    """

    def __init__(self, folder: Path, *, phase: int, resume_step: int, writes: bool) -> None:
        self.phase = phase
        self.writes = writes
        self.elapsed_before_s = 0.0
        self._unscored: set[int] = set()
        self._board_folder, self._resume_step = folder / TENSORBOARD, resume_step
        self._board_works = True
        self._path = folder / METRICS_FILE
        if writes:
            self._keep_records(resume_step)
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def _keep_records(self, resume_step: int) -> None:
        """Drop the records after the resume point; a file with damaged lines is kept under another name as well."""
        problems: list[Problem] = []
        with new_file(self._path) as kept:
            for record in metrics_records(self._path):
                if isinstance(record, Problem):
                    problems.append(record)
                elif record.step <= resume_step:
                    kept.write(_line(record))
                    self._note(record)
                    if not isinstance(record, ValidationRecord):
                        self.elapsed_before_s = max(self.elapsed_before_s, record.elapsed_s)
            if problems:
                shutil.copyfile(self._path, self._path.with_name(DAMAGED_METRICS_FILE))
        if problems:
            text = "%d damaged lines are dropped (%s has them), the first: %s"
            logger.warning(text, len(problems), DAMAGED_METRICS_FILE, problems[0])

    @functools.cached_property
    def _board(self) -> Any:
        from torch.utils.tensorboard.writer import SummaryWriter  # deferred: start-up time

        return SummaryWriter(str(self._board_folder), purge_step=self._resume_step + 1)  # type: ignore[no-untyped-call]

    def interval(self, record: IntervalRecord) -> None:
        """Log and record one interval."""
        logger.info("%s", interval_line(record))
        self.record(record)
        shown = {"loss": record.interval_loss, "iou": record.interval_iou}
        shown |= {f"lr_{i}": rate for i, rate in enumerate(record.lr)}
        self._scalars("interval", record.step, shown | _common_scalars(record))

    def epoch(self, values: Mapping[str, object]) -> None:
        """Log and record one epoch: `values` is its history record with its wall-clock fields."""
        record = EpochRecord.model_validate({"phase": self.phase, **values})
        shown = (
            f"[{phase_name(self.phase)}] Epoch {record.epoch} finished : mean loss {record.loss:.5f} , mean IoU "
            f"{record.iou:.5f} , time {clock(record.time_s)} hours , {record.samples_per_s:.1f} samples/s , "
            f"{100 * record.data_wait_share:.1f} % of it waiting for data , learning rates "
            + " ".join(f"{rate:.3g}" for rate in record.lr)
        )
        if (peak := record.max_memory_reserved) is not None:
            shown += f" , at most {peak / 2**30:.2f} GiB of GPU memory"
        logger.info("%s", shown)
        self.record(record)
        self._scalars("epoch", record.epoch, {"loss": record.loss, "iou": record.iou} | _common_scalars(record))
        self._to_board(lambda board: board.flush())

    def validation(self, epoch: int, step: int, scores: Mapping[str, float]) -> None:
        """Log and record the scores on held-out sequences."""
        shown = " , ".join(f"{name} {value:.2f}" for name, value in scores.items())
        logger.info("[phase_%d] Epoch %d validation : %s", self.phase, epoch, shown)
        record = ValidationRecord.model_validate({"phase": self.phase, "epoch": epoch, "step": step, **scores})
        self.record(record)
        self._scalars("validation", epoch, {name: getattr(record, name) for name in scores})

    def lacks_scores(self, epoch: int) -> bool:
        """Whether `epoch` is recorded, by this process or an earlier one in this folder, and no validation of it."""
        return epoch in self._unscored

    def _note(self, record: Record) -> None:
        if isinstance(record, EpochRecord):
            self._unscored.add(record.epoch)
        elif isinstance(record, ValidationRecord):
            self._unscored.discard(record.epoch)

    def record(self, record: Record) -> None:
        """Append one record in a single write, so that a kill leaves a complete line or none."""
        if self.writes:
            line = _line(record)
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

    def images(self, step: int, name: str, images: "Tensor") -> None:
        """Show (N, 3, H, W) uint8 images in TensorBoard."""
        self._to_board(lambda board: board.add_images(name, images, step))

    def _scalars(self, group: str, step: int, values: Mapping[str, float | None]) -> None:
        known = {f"{group}/{name}": value for name, value in values.items() if value is not None}
        self._to_board(lambda board: [board.add_scalar(*item, step) for item in known.items()])

    def _to_board(self, write: Callable[[Any], object]) -> None:
        """TensorBoard's numbers are all in metrics.jsonl: a failure to write them is a warning and never ends a run."""
        if not (self.writes and self._board_works):
            return
        try:
            write(self._board)
        except OSError as error:
            self._board_works = False
            logger.warning("%s could not be written (%s): training continues without it", self._board_folder, error)

    def sync(self) -> None:
        """Make the records so far durable."""
        if self.writes:
            with name_in_errors(self._path):
                os.fsync(self._file)

    def close(self) -> None:
        """Make the records durable and close both files."""
        if self.writes:
            self.sync()
            os.close(self._file)
            if "_board" in self.__dict__:  # not opened only to be closed
                self._to_board(lambda board: board.close())


def _line(record: Record) -> bytes:
    return (json.dumps({"type": record.type, **record.model_dump()}, allow_nan=False) + "\n").encode()


def _common_scalars(record: IntervalRecord | EpochRecord) -> dict[str, float | None]:
    return {name: getattr(record, name) for name in ("grad_norm", "samples_per_s", "data_wait_share")}

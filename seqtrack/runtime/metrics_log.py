"""The log of a run on screen and in its file, `metrics.jsonl`, and TensorBoard.

On a terminal the screen has a bar and one short line per epoch in place of the file's lines.
The three agree because they are fed from one record. On resume the records after the resume point are dropped, so that
the files equal an uninterrupted run's. Only rank 0 writes.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from seqtrack.checkpoints.safetensors_io import name_in_errors, new_file
from seqtrack.checkpoints.side_files import EpochRecord, IntervalRecord, Record, ValidationRecord, metrics_records
from seqtrack.errors import Problem
from seqtrack.markdown import table
from seqtrack.process import TerminalFormatter, terminal_columns
from seqtrack.run_dir import DAMAGED_METRICS_FILE, METRICS_FILE, TENSORBOARD, phase_name

logger = logging.getLogger("seqtrack")

# Fields that depend on the clock or on what else the process allocated; two runs that are the same run differ in them.
WALL_CLOCK_FIELDS = frozenset(
    {"time_s", "elapsed_s", "eta_s", "samples_per_s", "data_wait_s", "data_wait_share", "fps"}
    | {"max_memory_allocated", "max_memory_reserved"}
)


RATE_NAMES = ("decoder", "encoder")  # of the optimizer's groups, in their order


class _FileHandler(logging.FileHandler):
    """A log that cannot be written ends the run; the base class would print a traceback and continue without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        with name_in_errors(Path(self.baseFilename)):
            raise


class _Bar(tqdm):  # type: ignore[type-arg]  # not a generic class at run time
    """The bar of one epoch, with the numbers of the last interval and the time left for the samples of the run."""

    later = 0  # samples of the epochs after this one

    @property
    def format_dict(self) -> "dict[str, object]":
        values: Any = super().format_dict
        rate = values["rate"]
        left = ((self.total or 0) - self.n + self.later) / rate if rate else None
        return {**values, "speed": _speed(rate, left), "ncols": terminal_columns() - 1}


def _speed(samples_per_s: float | None, left_s: float | None) -> str:
    if not samples_per_s or left_s is None:
        return "-/s  ETA run -:--"
    number = f"{samples_per_s:.0f}" if samples_per_s >= 10 else f"{samples_per_s:.2g}"
    return f"{number}/s  ETA run {clock(left_s).removeprefix('0:').removeprefix('0')}"


@contextlib.contextmanager
def run_logging() -> Iterator[Callable[[Path | None, int], None]]:
    """Send this package's log lines to a file as well, and on screen above progress bars, until the block ends.

    The block gets a function that opens the file (of a process that writes) for a rank; the lines before that call
    belong into the file too. Of ranks other than 0 only warnings are shown from then on. An error that ends the block,
    or a thread, goes to the file with its traceback; the screen gets it where the command ends.
    """
    lines = MemoryHandler(sys.maxsize, flushLevel=logging.CRITICAL + 1)

    def open_file(path: Path | None, rank: int) -> None:
        lines.setTarget(logging.NullHandler() if path is None else _FileHandler(path, encoding="utf-8"))
        lines.flush()
        lines.flushLevel = logging.NOTSET  # each line at once
        logger.setLevel(logging.WARNING if rank else logging.INFO)

    def keep(about: str, error: BaseException) -> None:
        text, info = f"{about}: {str(error) or type(error).__name__}", (type(error), error, error.__traceback__)
        with contextlib.suppress(OSError):
            lines.handle(logger.makeRecord(logger.name, logging.ERROR, "", 0, text, (), info))

    level, excepthook = logger.level, threading.excepthook
    threading.excepthook = lambda args: keep("a thread failed", args.exc_value or SystemExit())
    logger.addHandler(lines)
    try:
        with logging_redirect_tqdm():
            screen = logging.getLogger().handlers[-1]
            if isinstance(screen.formatter, TerminalFormatter):
                screen.addFilter(lambda record: getattr(record, "short", None) != "")
            yield open_file
    except BaseException as error:
        keep("the run ended", error)
        raise
    finally:
        threading.excepthook = excepthook
        logger.setLevel(level)
        logger.removeHandler(lines)
        if lines.target is not None:
            with contextlib.suppress(OSError):  # which the line that could not be written has raised
                lines.target.close()


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


def record_line(record: Record) -> str:
    """The log line of a record, which follows from it alone."""
    if isinstance(record, IntervalRecord):
        return interval_line(record)
    where = f"[{phase_name(record.phase)}] Epoch {record.epoch}"
    if isinstance(record, ValidationRecord):
        scores = record.model_dump(exclude={"phase", "epoch", "step", "type"})
        names = sorted(scores, key=lambda name: name in ("sequences", "frames"))  # the counts last
        shown = (f"{name} {math.nan if scores[name] is None else scores[name]:.2f}" for name in names)
        return f"{where} validation : {' , '.join(shown)}"
    rates = " ".join(f"{name} {rate:.3g}" for name, rate in zip(RATE_NAMES, record.lr, strict=False))
    peak = record.max_memory_reserved
    return (
        f"{where} finished : mean loss {record.loss:.5f} , mean IoU {record.iou:.5f} , "
        f"time {clock(record.time_s)} hours , {record.samples_per_s:.1f} samples/s , "
        f"{100 * record.data_wait_share:.1f} % of it waiting for data , learning rates {rates}"
        + ("" if peak is None else f" , at most {peak / 2**30:.2f} GiB of GPU memory")
    )


class RunLog:
    """The run's records.

    Args:
        folder: the run's `logs` folder.
        epochs: their number in the whole run.
        resume_step: the optimizer step that the run starts from.
        writes: whether this process writes (rank 0).
    """

    def __init__(self, folder: Path, *, phase: int, epochs: int, resume_step: int, writes: bool) -> None:
        # For TensorBoard: the configuration by key, and a PNG of training samples.
        self.settings: Mapping[str, object] = {}
        self.samples: Path | None = None
        self.phase, self.epochs, self.writes, self.elapsed_before_s = phase, epochs, writes, 0.0
        self._path, self._board_folder, self._resume_step = folder / METRICS_FILE, folder / TENSORBOARD, resume_step
        self._board: Any = None  # TensorBoard's writer, made when first needed; False once it failed
        self._bar: _Bar | None = None
        self._seen: set[tuple[str, int]] = set()  # type and epoch of every record
        if writes:
            self._keep_records()
            self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND)

    def _keep_records(self) -> None:
        """Drop the records after the resume point; a file with damaged lines is kept under another name as well."""
        problems: list[Problem] = []
        with new_file(self._path) as kept:
            for record in metrics_records(self._path):
                if isinstance(record, Problem):
                    problems.append(record)
                elif record.step <= self._resume_step:
                    kept.write(_line(record))
                    self._seen.add((record.type, record.epoch))
                    self.elapsed_before_s = max(self.elapsed_before_s, getattr(record, "elapsed_s", 0.0))
            if problems:
                shutil.copyfile(self._path, self._path.with_name(DAMAGED_METRICS_FILE))
                text = "%d invalid lines were dropped (%s has them), the first: %s"
                logger.warning(text, len(problems), DAMAGED_METRICS_FILE, problems[0])

    def interval(self, record: IntervalRecord) -> None:
        """Log and record one interval."""
        if self._bar is not None:
            self._bar.set_description_str(self._numbers(record), refresh=False)
        logger.info("%s", interval_line(record), extra={"short": ""})
        self.record(record)

    def epoch(self, values: Mapping[str, object]) -> None:
        """Log and record one epoch: `values` is its history record with its wall-clock fields."""
        record = EpochRecord.model_validate({"phase": self.phase, **values})
        speed = _speed(record.samples_per_s, (self.epochs - record.epoch) * record.samples / record.samples_per_s)
        logger.info("%s", record_line(record), extra={"short": f"{self._numbers(record)}  {speed}"})
        self.record(record)
        self._to_board(lambda board: board.flush())

    def validation(self, epoch: int, step: int, scores: Mapping[str, float]) -> None:
        """Log and record the scores on held-out sequences."""
        record = ValidationRecord.model_validate({"phase": self.phase, "epoch": epoch, "step": step, **scores})
        logger.info("%s", record_line(record))
        self.record(record)

    def lacks_scores(self, epoch: int) -> bool:
        """Whether `epoch` is recorded, by this process or an earlier one in this folder, and no validation of it."""
        return ("epoch", epoch) in self._seen and ("validation", epoch) not in self._seen

    def record(self, record: Record) -> None:
        """Append one record in a single write, so that a kill leaves a complete line or none."""
        if not self.writes:
            return
        line, values = _line(record), record.model_dump()
        with name_in_errors(self._path):
            if rest := line[os.write(self._file, line) :]:
                os.write(self._file, rest)  # after a partial write this raises the reason
        self._seen.add((record.type, record.epoch))
        values |= {f"lr_{name}": rate for name, rate in zip(RATE_NAMES, values.pop("lr", ()), strict=False)}
        shown = {
            f"{record.type}/{name}": value
            for name, value in values.items()
            if isinstance(value, float) and (name == "samples_per_s" or not name.endswith("_s"))
        }
        at = record.step if record.type == "interval" else record.epoch
        self._to_board(lambda board: [board.add_scalar(*scalar, at) for scalar in shown.items()])

    def progress(self, epoch: int, samples: int, *, done: int) -> "tqdm[Any]":
        """A progress bar below the log lines, on terminals only."""
        hidden = None if self.writes else True  # None: only where stderr is a terminal
        title, style = f"epoch {epoch}/{self.epochs}", "{desc}  {speed}  {bar}"
        self._bar = _Bar(
            total=samples, initial=done, desc=title, leave=False, disable=hidden, bar_format=style, nrows=24
        )  # rows, because a terminal that states none hides the bar
        self._bar.later = (self.epochs - epoch) * samples
        return self._bar

    def _numbers(self, record: IntervalRecord | EpochRecord) -> str:
        return f"epoch {record.epoch}/{self.epochs}  loss {record.loss:.2f}  IoU {record.iou:.2f}"

    def _to_board(self, write: Callable[[Any], object]) -> None:
        """TensorBoard's numbers are all in metrics.jsonl: a failure to write them is a warning and never ends a run."""
        if not self.writes or self._board is False:
            return
        try:
            if self._board is None:
                from torch.utils.tensorboard.writer import SummaryWriter  # deferred: start-up time

                purge = self._resume_step + 1
                self._board = SummaryWriter(str(self._board_folder), purge_step=purge)  # type: ignore[no-untyped-call]
                self._describe_run(self._board)
            write(self._board)
        except OSError as error:
            self._board = False
            logger.warning("%s could not be written (%s): training continues without it", self._board_folder, error)

    def _describe_run(self, board: Any) -> None:
        """What TensorBoard shows besides scalars: configuration and hyperparameters, and the first samples."""
        import cv2  # deferred: start-up time
        from torch.utils.tensorboard.summary import hparams  # as above

        board.add_text("configuration", table(["key", "value"], self.settings.items(), texts=2))
        # Into this run; the writer's own method would make another one, named after the time.
        plain = {key: value if isinstance(value, float | int) else str(value) for key, value in self.settings.items()}
        for part in hparams(plain, {"epoch/loss": 0.0, "epoch/iou": 0.0}):  # type: ignore[no-untyped-call]
            board.file_writer.add_summary(part)
        if self.samples is not None and (image := cv2.imread(str(self.samples))) is not None:
            board.add_image("samples", image[..., ::-1].copy(), dataformats="HWC")

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
            if self._board:
                self._to_board(lambda board: board.close())


def _line(record: Record) -> bytes:
    return (json.dumps({"type": record.type, **record.model_dump()}, allow_nan=False) + "\n").encode()

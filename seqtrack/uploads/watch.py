"""The sidecar's life: takes the lock, goes round until all is done or somebody stops it, tells how it is.

The signal handler sets a flag; what becomes of a batch under way is decided between its events. Ends with 0 when
everything is verified, with 3 when something is left.
"""

import fcntl
import json
import logging
import os
import random
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.errors import UserError
from seqtrack.uploads.backoff import Clock
from seqtrack.uploads.journal import Journal
from seqtrack.uploads.plan import UploadQueue
from seqtrack.uploads.recovery import Recovery
from seqtrack.uploads.runner import ChildRunner, Runner
from seqtrack.uploads.settings import TargetSettings, UploadSettings
from seqtrack.uploads.staging import Staging
from seqtrack.uploads.status import state_folder, write_status
from seqtrack.uploads.sync import Sync

logger = logging.getLogger(__name__)

EXIT_ALL_UPLOADED, EXIT_INCOMPLETE = 0, 3
_DRAIN_FAILURES = 3
_QUIET = 3.0  # times the settling of a file: what a finished run still writes comes in pieces


@dataclass
class Stop:
    """Set by SIGTERM and SIGINT."""

    asked: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Install the handlers; main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked.set()


class Watch:
    """One sidecar on one output folder. Use as a context manager: it holds the volume's lock.

    Args:
        root: the output folder; need not exist yet.
        runner: None for a child process for each batch.
        stop: asked to end early.
    """

    def __init__(
        self,
        root: Path,
        target: TargetSettings,
        settings: UploadSettings,
        *,
        clock: Clock | None = None,
        runner: Runner | None = None,
        rng: random.Random | None = None,
        stop: Stop | None = None,
    ) -> None:
        self._root, self._target, self._settings = root, target, settings
        self._stop = stop or Stop()
        # Asked to stop, the sidecar must not sleep on.
        self._clock = clock or Clock(sleep=lambda seconds: void(self._stop.asked.wait(seconds)))
        self._folder = state_folder(root)
        if self._folder.parent != root:
            logger.warning("nothing can be written to %s; journal and copies go to %s", root, self._folder)
        self._lock = _take_lock(self._folder)
        try:
            self.sync = Sync(
                root,
                target,
                settings,
                journal=Journal(self._folder, target.key),
                staging=Staging(root, self._folder / "staging"),
                runner=runner or ChildRunner(self._folder, self._lock),
                recovery=Recovery(settings, self._clock, rng or random.Random(), use_xet=_may_use_xet(target)),
                clock=self._clock,
                tick=self._tick,
            )
        except BaseException:
            os.close(self._lock)
            raise
        self._began = self._clock.monotonic()
        self._end = float("inf")
        self._told: tuple[float, str] = (float("-inf"), "")
        self._state = "watching"

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self.sync.journal.close()
        os.close(self._lock)

    # ---- the three ways to run
    def watch(self) -> int:
        """Continue until every run in the folder is complete and verified, or until asked to stop."""
        self._say_state("watching")
        while not self._stop.asked.is_set():
            wait = self.sync.step()
            self._tell()
            if self._is_finished():
                logger.info("every run is complete and every file is verified")
                return self._close(EXIT_ALL_UPLOADED)
            self._clock.sleep(min(max(wait, 0.0), self._settings.poll_s))
        return self.drain()

    def once(self) -> int:
        """One pass: everything that is there now, with patience for faults that may pass by themselves."""
        self._say_state("sending")
        self.sync.with_logs = True
        self.sync.forget_pace()
        first = {unit.files[0].path for unit in self._let_settle().units}
        progress, since = -1, self._clock.monotonic()
        while not self._stop.asked.is_set():
            wait = self.sync.step()
            self._tell()
            self.sync.look_around()
            left = [unit for unit in self.sync.agenda.units if unit.files[0].path in first]
            left = [unit for unit in left if not (unit.files[0].grows and self.sync.was_sent(unit))]
            if not left and not self.sync.problems:
                return self._close(EXIT_ALL_UPLOADED)
            if self.sync.num_arrived != progress:
                progress, since = self.sync.num_arrived, self._clock.monotonic()
            fault = self.sync.recovery.fault
            hopeless = fault is not None and fault.permanent and fault.kind != "refused" and wait > 0.0
            # One failure after an hour of sending is no reason to give up.
            late = self._clock.monotonic() + wait - since > self._settings.patience_s
            late = late and self.sync.recovery.failures != 1
            if hopeless or late or not (set(left) - self.sync.out_of_reach()):
                break
            self._clock.sleep(min(max(wait, 0.01), self._settings.poll_s))
        return self._close(self._left_over())

    def _let_settle(self) -> UploadQueue:
        """Give what lies there the time to count as still, so that all of it can go in one commit."""
        end = self._clock.monotonic() + 2.0 * self._settings.settle_s
        while True:
            agenda = self.sync.look_around()
            settling = set(agenda.held) - self.sync.out_of_reach()
            if not settling or self._stop.asked.is_set() or self._clock.monotonic() >= end:
                return agenda
            self._clock.sleep(min(self._settings.poll_s, self._settings.settle_s))

    def drain(self) -> int:
        """Asked to stop: send what can be sent before the grace is over, the newest checkpoint first."""
        logger.info("asked to stop; sending what is left within %.0f s", self._settings.grace_s)
        self._say_state("draining")
        self._end = min(self._end, self._clock.monotonic() + self._settings.grace_s)
        self.sync.with_logs = self.sync.unpaced = True
        recovery = self.sync.recovery
        if recovery.fault is None or recovery.fault.kind not in ("commits", "rate"):
            recovery.until = float("-inf")  # a last try does not wait for a back-off to end
        before = recovery.failures
        while True:
            wait = self.sync.step()
            self._tell()
            agenda = self.sync.look_around()
            if not agenda.units and not self.sync.problems:
                return self._close(EXIT_ALL_UPLOADED)
            unreachable = not (set(agenda.units) - self.sync.out_of_reach())
            if unreachable or recovery.failures - before >= _DRAIN_FAILURES:
                break
            if self._clock.monotonic() + max(wait, 0.01) >= self._end:
                break
            # The stop flag is set, so the clock's own sleep would return at once.
            threading.Event().wait(min(max(wait, 0.01), self._settings.poll_s))
        return self._close(self._left_over())

    # ---- when is it over
    def _is_finished(self) -> bool:
        """Whether nothing more is to be expected: all runs complete, all files verified, and quiet for a while."""
        now, changed = self._clock.monotonic(), self.sync.observer.changed_at
        if self.sync.agenda.units or self.sync.problems or not _all_runs_complete(self._root):
            return False
        if changed is None or _verdict_is_missing(self._root):
            # A finished phase 1 says nothing of a phase 2 that is only just starting, and comparing two finished runs
            # takes the time to read all their checkpoints.
            return now - (changed or self._began) >= self._settings.start_grace_s
        return now - changed >= _QUIET * self._settings.settle_s

    def _left_over(self) -> int:
        agenda = self.sync.look_around()
        names = [unit.files[0].path for unit in agenda.units] + list(self.sync.problems)
        if not names:
            return EXIT_ALL_UPLOADED
        fault = self.sync.recovery.fault
        reason = f" ({fault.kind}: {fault.line})" if fault is not None else ""
        logger.error("%d files are not on the target: %s%s", len(names), ", ".join(sorted(set(names))[:5]), reason)
        for line in list(self.sync.problems.values())[:20]:
            logger.error("%s", line)
        return EXIT_INCOMPLETE

    # ---- telling
    def _tick(self) -> bool:
        """Called while a batch is under way: keep the heartbeat, and end the batch when the grace is over."""
        if self._stop.asked.is_set() and self._end == float("inf"):
            self._end = self._clock.monotonic() + self._settings.grace_s
        self._tell(sending=True)
        return self._clock.monotonic() >= self._end

    def _say_state(self, state: str) -> None:
        self._state = state
        self._tell()

    def _close(self, code: int) -> int:
        self._say_state("done" if code == EXIT_ALL_UPLOADED else "stopped")
        return code

    def _tell(self, *, sending: bool = False) -> None:
        """Write the status file when it says something new, and as a heartbeat."""
        values = self._status(sending=sending)
        gist = json.dumps({name: value for name, value in values.items() if name not in ("time", "oldest_age_s")})
        now = self._clock.monotonic()
        if gist == self._told[1] and now - self._told[0] < self._settings.heartbeat_s / 6.0:
            return
        try:
            write_status(self._folder, values)
        except OSError as error:
            logger.debug("the status cannot be written (%s)", error)  # a full disk; the heartbeat goes stale, rightly
        self._told = (now, gist)

    def _status(self, *, sending: bool) -> dict[str, Any]:
        sync, fault = self.sync, self.sync.recovery.fault
        rows = list(sync.journal.rows.values())
        return {
            "state": "sending" if sending and self._state == "watching" else self._state,
            "time": self._clock.wall(),
            "pid": os.getpid(),
            "target": self._target.shown,
            "queue": sum(len(unit.files) for unit in sync.agenda.units),
            "queue_bytes": sync.agenda.num_bytes,
            "verified": sum(row.state == "verified" for row in rows),
            "oldest_age_s": round(sync.oldest_age_s(), 1),
            "last_success": sync.last_success,
            "failures": sync.recovery.failures,
            "fault": None if fault is None else {**fault.to_json(), "permanent": fault.permanent},
            "local_fault": sync.local_fault or sync.journal.failing,
            "problems": dict(sorted(sync.problems.items())[:20]),
        }


def _may_use_xet(target: TargetSettings) -> bool:
    switched_off = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
    return target.kind == "huggingface" and not switched_off


def void(_: object) -> None:
    """Throw a result away where a function without one is wanted."""


def _take_lock(folder: Path) -> int:
    """One sidecar a volume.

    Raises:
        BlockingIOError: another one holds it.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise
    return lock


def _verdict_is_missing(root: Path) -> bool:
    """Whether two runs are there and the verdict on them is not."""
    return len(list(root.glob("phase_*/run.json"))) > 1 and not (root / "comparison" / "certificate.json").exists()


def _all_runs_complete(root: Path) -> bool:
    folders = list(root.glob("phase_*"))
    return bool(folders) and all(map(_is_complete, folders))


def _is_complete(folder: Path) -> bool:
    try:
        run = read_run(folder)
    except UserError:
        return False  # a damaged record is no end: training may write it again
    return run is not None and run.state == "complete"

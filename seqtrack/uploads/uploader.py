"""The uploader: one loop that scans the output folder, uploads what the target lacks, and asks it what it holds.

The scan is the truth about what there is, the target's listing about what arrived. The loop ends by one of three rules:
`watch` when every run is complete and everything verified, `once` after one pass, `drain` when asked to stop. Every
failure leads to one of four actions (`errors.ACTIONS`). Exit code 0 means that the target listed every file with its
size and digest during this call.
"""

import errno
import fcntl
import logging
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.errors import UserError
from seqtrack.run_dir import CERTIFICATE_FILE, COMPARISON
from seqtrack.uploads.backoff import Backoff, Clock
from seqtrack.uploads.client import ChildRunner, Runner, bounded
from seqtrack.uploads.errors import Fault
from seqtrack.uploads.scan import FileInfo, UploadUnit, scan
from seqtrack.uploads.settings import TargetSettings, UploadSettings
from seqtrack.uploads.state import UploadState, VerifiedFile, load_state, state_folder, write_state
from seqtrack.uploads.target import ChangedError, FileError, Remote, Staged, Stamp, digest_of, git_digest, stamp_of

logger = logging.getLogger(__name__)

EXIT_ALL_UPLOADED, EXIT_INCOMPLETE = 0, 3
_NEVER, _ALWAYS = float("-inf"), float("inf")
_DRAIN_FAILURES = 3
_QUIET = 3.0  # times settle_s: what a finished run still writes comes in pieces
_COPY_LIMIT = 64 * 1024 * 1024  # a larger file is sent from where it is: a copy could fill the disk
_ALONE_BYTES = 256 * 1024 * 1024  # a checkpoint this large does not wait for another
_MAX_FILES = 5000


class DamagedError(FileError):
    """A checkpoint's bytes are not those of its manifest."""


@dataclass
class Stop:
    """Set by SIGTERM and SIGINT."""

    asked: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Install the handlers; main thread only."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._set)

    def _set(self, number: int, frame: FrameType | None) -> None:
        self.asked.set()


@dataclass
class Trouble:
    """Failures of one unit with these stamps; before `retry_at` (monotonic) it is quarantined."""

    stamps: tuple[Stamp, ...]
    attempts: int = 0
    retry_at: float = _NEVER
    line: str = ""


class Uploader:
    """One uploader on one output folder. Use as a context manager: it holds the folder's lock.

    Args:
        root: the output folder; need not exist yet.
        runner: None for a child process per order.
        stop: asked to end early.

    Raises:
        BlockingIOError: another uploader holds the lock.
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
        self._clock = clock or Clock(sleep=self._stop_aware_sleep)
        self._folder = state_folder(root)
        if self._folder.parent != root:
            logger.warning("nothing can be written to %s; status and copies go to %s", root, self._folder)
        self._lock = _take_lock(self._folder)
        shutil.rmtree(self._folder / "staging", ignore_errors=True)  # of a process that died
        stored = load_state(self._folder)
        if stored is None or stored.target_key != target.key:
            stored = UploadState(target_key=target.key)
        self.state = UploadState(
            target=target.label, target_key=target.key, files=stored.files, last_commit=stored.last_commit
        )
        self._runner = runner or ChildRunner(self._folder, self._lock)
        off = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
        xet = target.kind == "huggingface" and not off
        self.backoff = Backoff(settings, self._clock, rng or random.Random(), xet_allowed=xet)

        now = self._clock.monotonic()
        self._began, self._progress_at, self._end = now, now, _ALWAYS
        # A clock that was set back counts as a commit just now.
        age = None if stored.last_commit is None else max(0.0, self._clock.wall() - stored.last_commit)
        self._last_commit = _NEVER if age is None else now - age
        self._prepared = False
        self._must_list = True  # the target must be asked for what is taken for verified
        self._final = False  # the listing before the end was asked for
        self._ends: Callable[[float], int | None] = self._watch_ends
        self._wanted: set[str] | None = None  # what one pass must upload
        self._seen: dict[str, tuple[Stamp, float]] | None = None  # stamp, and since when it is this one
        self._changed_at: float | None = None
        self._trouble: dict[str, Trouble] = {}
        self._num_copies = 0
        self._digests: dict[str, Staged] = {}
        self._log_sent: dict[str, float] = {}
        self._waiting_since: dict[str, float] = {}
        self._failures_before = 0  # when the drain began
        self._written: tuple[float, dict[str, Any]] = (_NEVER, {})
        self.ready: list[UploadUnit] = []
        self._growing: list[UploadUnit] = []
        self._settling: list[UploadUnit] = []
        self._quarantined: list[UploadUnit] = []

    def __enter__(self) -> "Uploader":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._lock)

    # ---- the loop and its three stop rules
    def run(self, *, once: bool = False) -> int:
        """Upload until a stop rule ends it; returns the exit code."""
        if once:
            self._ends, self._last_commit = self._once_ends, _NEVER
        self._report("sending" if once else "watching")
        while True:
            if self._stop.asked.is_set() and not self._is_draining:
                self._begin_drain()
            wait = self.step()
            self._report()
            code = self._ends(wait)
            if code is not None:
                return self._close(code)
            self._clock.sleep(min(max(wait, 0.01), self._settings.poll_s))

    @property
    def _queue(self) -> list[UploadUnit]:
        return self.ready + self._growing + self._settling + self._quarantined

    @property
    def _is_draining(self) -> bool:
        return self._ends == self._drain_ends

    @property
    def _is_watching(self) -> bool:
        return self._ends == self._watch_ends

    def _watch_ends(self, wait: float) -> int | None:
        """When nothing more is to be expected: all runs complete, all files verified, and quiet for a while."""
        now = self._clock.monotonic()
        quiet_s = now - (self._changed_at if self._changed_at is not None else self._began)
        # A finished phase 1 means nothing for a phase 2 that just starts, and comparing two finished runs takes
        # the time to read all their checkpoints.
        expecting = self._changed_at is None or _certificate_is_missing(self._root)
        needed_s = self._settings.start_grace_s if expecting else _QUIET * self._settings.settle_s
        if self._queue or self.state.problems or quiet_s < needed_s or not _all_runs_complete(self._root):
            self._final = False
            return None
        if not self._final:
            self._final = self._must_list = True
        if self._must_list:
            return None
        logger.info("every run is complete and every file is verified")
        return EXIT_ALL_UPLOADED

    def _once_ends(self, wait: float) -> int | None:
        """When what was there at the start is verified, or no progress is to be expected."""
        if self._is_settling_at_start():
            return None
        if self._wanted is None:
            self._wanted = {unit.path for unit in self._queue}
        sent_logs = [unit for unit in self._growing if unit.path in self._log_sent]  # complete up to this call
        left = [unit for unit in self._queue if unit.path in self._wanted and unit not in sent_logs]
        if not left and not self.state.problems and not self._must_list:
            return EXIT_ALL_UPLOADED
        backoff = self.backoff
        hopeless = backoff.fault is not None and backoff.fault.action == "person" and wait > 0.0
        # One failure after an hour of uploading is no reason to give up.
        since = max(self._progress_at, backoff.since) if backoff.failures else self._progress_at
        late = self._clock.monotonic() + wait - since > self._settings.patience_s
        unreachable = all(unit in self._quarantined for unit in left) and not self._must_list
        return EXIT_INCOMPLETE if hopeless or late or unreachable else None

    def _drain_ends(self, wait: float) -> int | None:
        """When everything is verified, the grace is over, or the target fails again and again."""
        if not self._queue and not self.state.problems and not self._must_list:
            return EXIT_ALL_UPLOADED
        unreachable = all(unit in self._quarantined for unit in self._queue) and not self._must_list
        failing = self.backoff.failures - self._failures_before >= _DRAIN_FAILURES
        late = self._clock.monotonic() + max(wait, 0.01) >= self._end
        return EXIT_INCOMPLETE if unreachable or failing or late else None

    def _begin_drain(self) -> None:
        logger.info("asked to stop; uploading what is left within %.0f s", self._settings.grace_s)
        self._ends, self._must_list = self._drain_ends, True
        self._end = min(self._end, self._clock.monotonic() + self._settings.grace_s)
        self._last_commit = _NEVER
        self._failures_before = self.backoff.failures
        if self.backoff.fault is None or self.backoff.fault.action != "wait":
            self.backoff.until = _NEVER  # a last try does not wait for a back-off to end
        self._report("draining")

    def _stop_aware_sleep(self, seconds: float) -> None:
        if self._is_draining:
            time.sleep(seconds)
        else:
            self._stop.asked.wait(seconds)

    def _close(self, code: int) -> int:
        if code == EXIT_INCOMPLETE:
            names = sorted({unit.path for unit in self._queue} | set(self.state.problems))
            fault = self.backoff.fault
            reason = f" ({fault.kind}: {fault.line})" if fault is not None else ""
            logger.error("%d files are not on the target: %s%s", len(names), ", ".join(names[:5]), reason)
            for line in list(self.state.problems.values())[:20]:
                logger.error("%s", line)
        self._report("done" if code == EXIT_ALL_UPLOADED else "stopped")
        return code

    # ---- one round
    def step(self) -> float:
        """One round; returns the seconds until the next is worth while."""
        self.look_around()
        wait = self.backoff.wait_s()
        if wait > 0.0 or self._is_settling_at_start():
            return wait or self._settings.poll_s
        batch = self._choose_batch()
        # After a stop request the grace is too short to pace commits.
        pause_s = 0.0 if self._is_draining else self._settings.min_commit_interval_s
        paced = self._last_commit + pause_s - self._clock.monotonic()
        if paced > 0.0:
            batch = []
        staged = self._stage(batch)
        if staged or self._must_list:
            self._exchange(staged)
            self.look_around()
            return self.backoff.wait_s()
        return max(self.backoff.wait_s(), paced if self.ready and not batch else self._settings.poll_s)

    def look_around(self) -> None:
        """Walk the folder and sort its units by what is to be done with them."""
        found, now = scan(self._root), self._clock.monotonic()
        before, self._seen = self._seen, {}
        for item in (item for unit in found.units for item in unit.files):
            known = before.get(item.path) if before is not None else None
            self._seen[item.path] = known if known is not None and known[0] == item.stamp else (item.stamp, now)
        if before is None:
            self._began = now  # a slow first walk is no time in which files settled
        elif before != self._seen:
            self._changed_at = now
        self.state.problems = dict(sorted(found.problems.items())[:20])
        self.ready, self._growing, self._settling, self._quarantined = [], [], [], []
        for unit in found.units:
            if all(self._is_verified(item) for item in unit.files):
                continue
            trouble = self._trouble_of(unit)
            if trouble.retry_at > now:
                self._quarantined.append(unit)
                self.state.problems[unit.path] = trouble.line
            elif unit.is_checkpoint or now - self._seen[unit.path][1] >= self._settings.settle_s:
                self.ready.append(unit)
            else:
                (self._growing if unit.files[0].grows else self._settling).append(unit)
        waiting = {unit.path for unit in self.ready + self._settling + self._quarantined}
        self._waiting_since = {path: self._waiting_since.get(path, now) for path in waiting}

    def oldest_age_s(self) -> float:
        """Seconds for which the oldest file that does not grow has waited."""
        now = self._clock.monotonic()
        return max((now - since for since in self._waiting_since.values()), default=0.0)

    def _is_verified(self, item: FileInfo) -> bool:
        known = self.state.files.get(item.path)
        return known is not None and known.stamp == item.stamp

    def _trouble_of(self, unit: UploadUnit) -> Trouble:
        stamps = tuple(item.stamp for item in unit.files)
        trouble = self._trouble.get(unit.path)
        if trouble is None or trouble.stamps != stamps:
            trouble = self._trouble[unit.path] = Trouble(stamps)
        return trouble

    def _is_settling_at_start(self) -> bool:
        """One pass gives existing files the time to settle, so that all of it can go in one commit."""
        early = self._clock.monotonic() - self._began < 2.0 * self._settings.settle_s
        return self._ends == self._once_ends and self._wanted is None and bool(self._settling) and early

    def _choose_batch(self) -> list[UploadUnit]:
        now, interval = self._clock.monotonic(), self._settings.log_interval_s
        every_log = not self._is_watching or any(unit.is_checkpoint for unit in self.ready)
        logs = [u for u in self._growing if every_log or now - self._log_sent.get(u.path, self._began) >= interval]
        if not self._is_watching:  # a log that still grows goes once
            logs = [unit for unit in logs if self._is_draining or unit.path not in self._log_sent]
        suspects = {path for path, one in self._trouble.items() if one.attempts >= self._settings.tries_per_file}
        return choose_batch(
            self.ready,
            logs,
            max_bytes=self._settings.batch_mb * 2**20,
            unit_limit=self.backoff.unit_limit,
            suspects=suspects,
        )

    def _stage(self, batch: Sequence[UploadUnit]) -> list[tuple[UploadUnit, list[Staged]]]:
        """Hash the files of a batch, and copy those that may change; units that cannot be had are left out."""
        staged: list[tuple[UploadUnit, list[Staged]]] = []
        for unit in batch:
            try:
                staged.append((unit, self._stage_unit(unit)))
                self.state.local_fault = None
            except ChangedError as error:
                logger.debug("%s; looked at again later", error)
            except DamagedError as error:
                logger.error("%s; it is not uploaded", error)
                self._trouble_of(unit).line, self._trouble_of(unit).retry_at = str(error), _ALWAYS
            except FileNotFoundError:
                continue  # superseded or removed since the walk
            except OSError as error:
                line = f"{unit.path} cannot be staged ({error.strerror or error})"
                if self.state.local_fault != line:
                    logger.error("%s", line)
                self.state.local_fault = line
                if not staged:
                    self.backoff.record_failure(Fault("local", line), num_units=0)
                break
        return staged

    def _stage_unit(self, unit: UploadUnit) -> list[Staged]:
        """The unit's files, hashed.

        Raises:
            ChangedError: a file is no longer the one that was found; look again later.
            DamagedError: the bytes are not those of the manifest.
            OSError: no space, no permission, file gone.
        """
        if unit.expected is not None and unit.files[0].size != unit.expected[0]:
            raise DamagedError(unit.path, f"{unit.files[0].size} bytes, where its manifest has {unit.expected[0]}")
        files = [
            self._stage_file(item, copy=not unit.is_checkpoint and item.size <= _COPY_LIMIT) for item in unit.files
        ]
        if unit.expected is not None and files[0].sha256 != unit.expected[1]:
            raise DamagedError(unit.path, "its sha256 is not that of its manifest")
        return files

    def _stage_file(self, item: FileInfo, *, copy: bool) -> Staged:
        """Hash a file, or a copy of one that may be written over.

        A checkpoint has its final name for good and is sent from where it is; its stamp is compared before anything
        becomes visible.
        """
        source = place = self._root / item.path
        if copy:
            self._num_copies += 1
            place = self._folder / "staging" / str(self._num_copies)
            place.parent.mkdir(exist_ok=True)
            _copy_head(source, place, item.size)
            if not item.grows and stamp_of(source) != item.stamp:
                raise ChangedError(item.path)
        elif (known := self._digests.get(item.path)) is not None and known.stamp == item.stamp:
            return known  # a second try need not read a gigabyte again
        stamp = stamp_of(place)
        staged = Staged(item.path, str(place), stamp[0], digest_of(place), git_digest(place, stamp[0]), stamp)
        if stamp_of(place) != stamp or stamp[0] != item.size or not (copy or stamp == item.stamp):
            raise ChangedError(item.path)
        if not copy:
            self._digests[item.path] = staged
        return staged

    # ---- one order
    def _exchange(self, units: list[tuple[UploadUnit, list[Staged]]]) -> None:
        """Have the target list what is taken for verified, where that is due, and take a batch."""
        files = [staged for _, group in units for staged in group]
        listing = sorted(self.state.files.keys() & (self._seen or {}).keys()) if self._must_list else []
        confirmed: set[str] = set()
        commit: str | None = None

        def on_event(event: dict[str, Any]) -> None:
            nonlocal commit
            kind = event["event"]
            if kind == "prepared":
                logger.info("uploading to %s as %s", event["place"], event["name"])
                self._prepared = True
            elif kind == "listed":
                self._compare(listing, {item["path"]: Remote(**item) for item in event["remotes"]})
            elif kind == "committed":
                commit = event["commit"]
                self._last_commit, self.state.last_commit = self._clock.monotonic(), self._clock.wall()
                self._report(durable=True)
            else:
                confirmed.update(event["paths"])

        message = f"Add {files[0].path}" + (f" and {len(files) - 1} more" if len(files) > 1 else "") if files else ""
        order = {"operation": "push", "files": [asdict(item) for item in files], "message": message, "look": listing}
        if not self._prepared:
            order["prepare"] = "make"
        num_bytes = sum(item.size for item in files)
        whole, deadline_s = bounded(
            {**order, "use_xet": self.backoff.use_xet},
            self._target,
            self._settings,
            num_bytes=num_bytes,
            timeout_factor=self.backoff.timeout_factor,
        )
        outcome = self._runner.run(whole, deadline_s=deadline_s, on_event=on_event, tick=self._tick)
        shutil.rmtree(self._folder / "staging", ignore_errors=True)
        if confirmed:
            self._record(units, confirmed, commit)
            logger.info("%d files (%.1f MB) are on the target and verified", len(confirmed), num_bytes / 1e6)
        if outcome.fault is not None:
            # Trouble with the account or the listing is no file's.
            self._react(outcome.fault, units if self._prepared and not self._must_list else [])
        else:
            self._must_list = False
            self.backoff.record_success()

    def _compare(self, paths: Sequence[str], remotes: dict[str, Remote]) -> None:
        """Forget what the target does not hold any longer: it is uploaded again."""
        lost = []
        for path in paths:
            known = self.state.files[path]
            if path not in remotes or not remotes[path].holds(known.stamp[0], known.sha256, known.git_sha1):
                lost.append(path)
                del self.state.files[path]
        if lost:
            logger.warning("%d files are missing or differ on the target, such as %s", len(lost), lost[0])
            self._report(durable=True)
        self._must_list = False

    def _record(self, units: list[tuple[UploadUnit, list[Staged]]], confirmed: set[str], commit: str | None) -> None:
        for unit, group in units:
            for item, staged in zip(unit.files, group, strict=True):
                if item.path in confirmed:
                    self.state.files[item.path] = VerifiedFile(
                        stamp=item.stamp, sha256=staged.sha256, git_sha1=staged.git_sha1, commit=commit
                    )
                    self._digests.pop(item.path, None)
                    self._log_sent[item.path] = self._clock.monotonic()
            if unit.path in confirmed:
                self._trouble.pop(unit.path, None)
        self.state.last_success, self._progress_at = self._clock.wall(), self._clock.monotonic()
        self._report(durable=True)

    def _react(self, fault: Fault, units: list[tuple[UploadUnit, list[Staged]]]) -> None:
        """Act on a failed order; a unit that is refused again and again is quarantined."""
        self.backoff.record_failure(fault, num_units=len(units))
        if fault.kind == "repository":
            # What was verified may be gone with the repo.
            self._prepared, self.state.files = False, {}
            self._report(durable=True)
        guilty = [unit for unit, group in units if fault.path in {staged.path for staged in group}]
        if not guilty and len(units) == 1 and fault.kind in ("refused", "died"):
            guilty = [units[0][0]]
        for unit in guilty:
            trouble = self._trouble_of(unit)
            trouble.attempts, trouble.line = trouble.attempts + 1, fault.line
            if fault.action == "quarantine" and trouble.attempts >= self._settings.tries_per_file:
                logger.error("%s is quarantined: %s", unit.path, fault.line)
                pause_s = max(self._settings.slow_retry_s, self._settings.backoff_cap_s)
                trouble.retry_at = self._clock.monotonic() + pause_s
                self.backoff.unit_limit, self.backoff.until = None, _NEVER

    # ---- the status file
    def _tick(self) -> bool:
        """Called while an order is carried out: keep the heartbeat, and end the order when the grace is over."""
        if self._stop.asked.is_set() and self._end == _ALWAYS:
            self._end = self._clock.monotonic() + self._settings.grace_s
        self._report()
        return self._clock.monotonic() >= self._end

    def _report(self, phase: str | None = None, *, durable: bool = False) -> None:
        """Write the status file when it has news, and as a heartbeat."""
        state, now = self.state, self._clock.monotonic()
        state.state, state.time = phase or state.state, self._clock.wall()
        state.queue = sum(len(unit.files) for unit in self._queue)
        state.queue_bytes = sum(unit.size for unit in self._queue)
        state.verified = len(state.files)
        state.oldest_age_s = round(self.oldest_age_s(), 1)
        state.failures, state.fault = self.backoff.failures, self.backoff.fault
        news = state.model_dump(exclude={"time", "oldest_age_s", "files"})
        if not durable and news == self._written[1] and now - self._written[0] < self._settings.heartbeat_s / 6.0:
            return
        try:
            write_state(self._folder, state, durable=durable)
        except OSError as error:
            # A full disk is when uploads matter most: continue from memory.
            line = f"{self._folder} cannot be written ({error.strerror or error})"
            if durable and state.local_fault is None:
                state.local_fault = line
                logger.warning("%s", line)
        self._written = (now, news)


def choose_batch(
    ready: Iterable[UploadUnit],
    logs: Iterable[UploadUnit],
    *,
    max_bytes: float,
    unit_limit: int | None,
    suspects: set[str],
) -> list[UploadUnit]:
    """The next batch: the newest checkpoint first, small files with it, and growing logs.

    Suspects, named in failure after failure, go only when there are no others.
    """
    units = sorted(ready, key=lambda unit: (not unit.is_checkpoint, -max(f.stamp[1] for f in unit.files), unit.path))
    batch: list[UploadUnit] = []
    size, checkpoint_bytes = 0, 0
    for unit in [unit for unit in units if unit.path not in suspects] or units:
        crowded = unit.is_checkpoint and checkpoint_bytes and checkpoint_bytes + unit.size >= _ALONE_BYTES
        if batch and (crowded or size + unit.size > max_bytes):
            continue
        checkpoint_bytes += unit.size if unit.is_checkpoint else 0
        batch.append(unit)
        size += unit.size
        if len(batch) >= (unit_limit or _MAX_FILES):
            return batch
    return batch + [unit for unit in logs if unit_limit is None]


def _copy_head(source: Path, place: Path, size: int) -> None:
    """Copy the first `size` bytes: what is added to a log meanwhile belongs to the next copy."""
    with source.open("rb") as reader, place.open("wb") as writer:
        while size > 0 and (piece := reader.read(min(size, 1 << 20))):
            writer.write(piece)
            size -= len(piece)


def _take_lock(folder: Path) -> int:
    """One uploader per output folder.

    Raises:
        BlockingIOError: another one holds it.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            logger.warning("%s cannot be locked (%s); start no second uploader", folder, error.strerror)
            return lock
        os.close(lock)
        raise
    return lock


def _certificate_is_missing(root: Path) -> bool:
    """Whether there are two runs and no certificate of their comparison yet."""
    return len(list(root.glob("phase_*/run.json"))) > 1 and not (root / COMPARISON / CERTIFICATE_FILE).exists()


def _all_runs_complete(root: Path) -> bool:
    folders = list(root.glob("phase_*"))
    return bool(folders) and all(map(_is_complete, folders))


def _is_complete(folder: Path) -> bool:
    try:
        run = read_run(folder)
    except UserError:
        return False  # a damaged record is no end: training may write it again
    return run is not None and run.state == "complete"

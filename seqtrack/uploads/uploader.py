"""The uploader: one loop that scans the output folder, uploads what the target lacks, and asks it what it holds.

The scan is the truth about what there is, the target's listing about what arrived. The loop ends by one of three rules:
"watch" when every run is complete and everything verified, "once" after one pass, "drain" when asked to stop. Exit code
0 means that the target listed every file with its size and digest during this call.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.errors import UserError
from seqtrack.run_dir import STATUS_FILE, UPLOADS
from seqtrack.uploads.client import TargetClient
from seqtrack.uploads.identity import markers_of
from seqtrack.uploads.scan import NEVER, UploadUnit, scan
from seqtrack.uploads.state import UploadState, VerifiedFile, read_state
from seqtrack.uploads.target import ChangedError, Digests, Fault, Order, stage, stamp_of

logger = logging.getLogger(__name__)

EXIT_ALL_UPLOADED, EXIT_INCOMPLETE = 0, 3
_FATAL = ("other_run", "overlap")  # kinds of fault that end a watching uploader
_UNVERIFIED = ("ready", "growing", "settling", "quarantined")
_ALWAYS = float("inf")
_COPY_LIMIT = 64 << 20  # a larger file is sent from where it is: a copy could fill the disk
_ALONE_BYTES = 256 << 20  # a checkpoint this large does not wait for another
_INLINE_BYTES, _INLINE_LIMIT = 10_000_000, 32_000_000  # smaller files travel inside the commit: so much in one
_MAX_FILES, _LFS_SHARE = 5000, 0.75  # in one batch; of the grace after a stop
_LOG_INTERVAL_S = _QUARANTINE_S = 600.0  # the first: longest wait of a growing log when no checkpoint takes it along


class Uploader:
    """One uploader on one output folder, whose lock it holds, else a BlockingIOError. `stop` is set to end it early."""

    def __init__(self, root: Path, client: TargetClient, stop: threading.Event) -> None:
        self._root, self.client, self._stop = root, client, stop
        self._settings, self._clock, label = client.settings, client.clock, client.target.label
        self._folder, self._lock = _own_folder(root)
        self._copies = self._folder / "staging"
        shutil.rmtree(self._copies, ignore_errors=True)  # of a process that died
        stored = read_state(root)
        self.state = UploadState(target=label, files=stored.files if stored and stored.target == label else {})
        self.units: dict[str, UploadUnit] = {}
        self._mode: Literal["watch", "once", "drain"] = "watch"
        self._began: float | None = None  # end of the first walk: a slow one is no time in which files settled
        self._changed_at: float | None = None
        self._deadline = _ALWAYS  # of "drain", and of "once" without progress
        self._last_commit = NEVER
        self._prepared = self._sent_over_xet = False
        self._must_list = True  # the target must be asked for what is taken for verified
        self._final = False  # the listing before the end was asked for
        self._unit_limit = _MAX_FILES  # halves while a batch is refused, until the file at fault is alone
        self._written = NEVER

    def __enter__(self) -> "Uploader":
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._lock)
        if self._folder.parent != self._root:
            shutil.rmtree(self._folder, ignore_errors=True)

    # ---- the loop and its three stop rules
    def run(self, *, once: bool = False) -> int:
        """Upload until a stop rule ends it; returns the exit code. A UserError for a fault that ends it at once."""
        if once:
            self._mode, self._deadline = "once", self._clock.monotonic() + self._settings.patience_s
        self._report("sending" if once else "watching")
        while True:
            self._handle_stop_request()
            wait = self.step()
            self._report()
            if (code := self._exit_code(wait)) is not None:
                return self._close(code)
            self._clock.sleep(min(max(wait, 0.01), self._settings.poll_s))

    def _in(self, *states: str) -> list[UploadUnit]:
        return [unit for unit in self.units.values() if unit.state in (states or _UNVERIFIED)]

    def _exit_code(self, wait: float) -> int | None:
        """None while there is something to do or to expect; `wait` seconds are until the next try."""
        now, left, fault = self._clock.monotonic(), self._in(), self.client.fault
        if fault is not None and fault.kind in _FATAL:
            return EXIT_INCOMPLETE
        if self._mode == "once":  # a log that grows is complete up to this call
            left = [unit for unit in left if unit.state != "growing" or unit.sent_at == NEVER]
        if self._mode != "watch":
            if not left and not self.state.problems and not self._must_list:
                return EXIT_ALL_UPLOADED
            needs_a_person = fault is not None and fault.action == "person" and wait > 0.0
            is_stuck = not self._must_list and all(unit.state == "quarantined" for unit in left)
            return EXIT_INCOMPLETE if needs_a_person or is_stuck or now + wait >= self._deadline else None
        if left or self.state.problems or not self._is_over(now):
            self._final = False
            return None
        if not self._final:
            self._final = self._must_list = True
        return None if self._must_list else EXIT_ALL_UPLOADED

    def _is_over(self, now: float) -> bool:
        """Whether all runs are complete, and nothing has happened for a while: phase 2 or `verify` may follow."""
        try:
            runs = [read_run(folder) for folder in self._root.glob("phase_*")]
        except UserError:
            return False  # a damaged record is no end: training may write it again
        is_quiet = self._changed_at is not None and now - self._changed_at >= self._settings.start_grace_s
        return is_quiet and bool(runs) and all(run is not None and run.state == "complete" for run in runs)

    def _handle_stop_request(self) -> None:
        if not self._stop.is_set():
            return
        self._stop.clear()
        if self._mode == "drain":
            return
        logger.info("asked to stop; uploading what is left within %.0f s", self._settings.grace_s)
        self._mode, self._must_list, self._last_commit = "drain", True, NEVER
        self._deadline = self._clock.monotonic() + self._settings.grace_s
        self.client.xet_from = self._deadline  # no time for it
        if self.client.fault is None or self.client.fault.action != "wait":
            self.client.until = NEVER  # a last try does not wait for a back-off to end
        self._report("draining")

    def _close(self, code: int) -> int:
        fault = self.client.fault
        if code == EXIT_ALL_UPLOADED:
            logger.info("every file is verified")
        else:
            problems = self.state.problems | {unit.path: unit.problem for unit in self._in()}
            logger.error("%d files are not on the target: %s", len(problems), fault.line if fault is not None else "")
            for path, line in sorted(problems.items(), key=lambda item: (not item[1], item))[:20]:
                logger.error("%s %s", path, line)
        self._report("done" if code == EXIT_ALL_UPLOADED else "stopped")
        if fault is not None and (fault.kind in _FATAL or (self._mode == "once" and fault.kind == "setup")):
            raise UserError(fault.line, code=f"upload.{fault.kind}")
        return code

    # ---- one round
    def step(self) -> float:
        """One round; returns the seconds until the next one is worthwhile."""
        self.rescan()
        settings, now = self._settings, self._clock.monotonic()
        if (wait := self.client.wait_s()) > 0.0:
            return wait
        is_early = self._began is not None and now - self._began < 2.0 * settings.settle_s
        if self._mode == "once" and is_early and self._in("settling"):
            return settings.poll_s  # so that all of it can go in one commit
        paced = 0.0 if self._mode == "drain" else self._last_commit + settings.min_commit_interval_s - now
        staged = [unit for unit in self._choose_batch() if self._stage(unit)] if paced <= 0.0 else []
        if staged or self._must_list:
            self._exchange(staged)
            self.rescan()
            return self.client.wait_s()
        return max(paced, settings.poll_s) if self._in("ready") else settings.poll_s

    def rescan(self) -> None:
        """Walk the folder, and decide for each unit what is to be done with it."""
        found, problems = scan(self._root)
        now, before, self.units = self._clock.monotonic(), self.units, {}
        is_news = before.keys() != {unit.path for unit in found}
        for unit in found:
            known = before.get(unit.path)
            if known is not None and known.files == unit.files:
                unit = known
            else:
                is_news = True
                unit.since = unit.waiting_since = now
                if known is not None:
                    unit.sent_at, unit.waiting_since = known.sent_at, known.waiting_since
            self.units[unit.path] = unit
            known_stamps = [one and one.stamp for one in map(self.state.files.get, unit.files)]
            if known_stamps == list(unit.files.values()):
                unit.state = "verified"
            elif unit.retry_at > now:
                unit.state, problems[unit.path] = "quarantined", unit.problem
            elif unit.is_checkpoint or now - unit.since >= self._settings.settle_s:
                unit.state = "ready"
            else:
                unit.state = "growing" if unit.grows else "settling"
            if unit.state in ("verified", "growing"):
                unit.waiting_since = now
        if is_news or self._began is None:
            self._changed_at = now
        self._began = self._began or now
        self.state.problems = dict(sorted(problems.items())[:20])

    def _choose_batch(self) -> list[UploadUnit]:
        now, ready, logs = self._clock.monotonic(), self._in("ready"), self._in("growing")
        if self._mode != "watch":  # a log that still grows goes once
            logs = [unit for unit in logs if unit.sent_at == NEVER]
        elif not any(unit.is_checkpoint for unit in ready):
            logs = [unit for unit in logs if now - max(unit.sent_at, self._began or now) >= _LOG_INTERVAL_S]
        untroubled = [unit for unit in ready if unit.attempts < self._settings.tries_per_file]
        max_bytes = self._settings.batch_mb * 2**20
        return choose_batch(untroubled or ready, logs, max_bytes=max_bytes, unit_limit=self._unit_limit)

    def _stage(self, unit: UploadUnit) -> bool:
        """Hash a unit's files, and copy one that may change (a checkpoint does not); whether it can be sent now."""
        try:
            if unit.grows or (not unit.is_checkpoint and unit.size <= _COPY_LIMIT):
                source, copy = self._root / unit.path, self._copies / unit.path
                copy.parent.mkdir(parents=True, exist_ok=True)
                with source.open("rb") as reader, copy.open("wb") as writer:
                    left = unit.size  # what is added meanwhile belongs to the next copy
                    while left > 0 and (piece := reader.read(min(left, 1 << 20))):
                        left -= writer.write(piece)
                unit.staged = [stage(unit.path, copy)]
                found = [unit.files[unit.path] if unit.grows else stamp_of(source)]
            else:
                # Another try need not read a gigabyte again.
                unit.staged = unit.staged or [stage(path, self._root / path) for path in unit.files]
                found = [item.stamp for item in unit.staged]
        except (ChangedError, FileNotFoundError):
            return False  # looked at again later
        except OSError as error:
            self._quarantine(unit, f"cannot be staged ({error.strerror or error})", self._settings.slow_retry_s)
            return False
        if found != list(unit.files.values()):
            unit.staged = []
            return False
        first = unit.staged[0]
        if unit.expected is not None and (first.size, first.sha256) != unit.expected:
            text = f"{first.size} bytes of sha256 {first.sha256} are not those of its manifest"
            self._quarantine(unit, text, _ALWAYS)
            return False
        return True

    def _quarantine(self, unit: UploadUnit, problem: str, pause_s: float) -> None:
        logger.error("%s is not uploaded: %s", unit.path, problem)
        unit.problem, unit.retry_at = problem, self._clock.monotonic() + pause_s

    # ---- one order
    def _exchange(self, units: list[UploadUnit]) -> None:
        """Have the target list what is taken for verified, where that is due, and take a batch."""
        files = [staged for unit in units for staged in unit.staged]
        here = {path for unit in self.units.values() for path in unit.files}
        known = sorted(self.state.files.keys() & here)  # retention relies on them
        must_list, self._sent_over_xet = self._must_list, self.client.use_xet()
        make: Literal["make"] | None = None if self._prepared else "make"
        message = f"Add {files[0].path}" + f" and {len(files) - 1} more" * (len(files) > 1) if files else ""
        markers = markers_of(self._root) if files else {}
        order = Order(prepare=make, look=tuple(known), files=tuple(files), markers=markers, message=message)
        reply = self.client.send(order, sum(item.size for item in files), self._tick)
        shutil.rmtree(self._copies, ignore_errors=True)
        if reply.account and not self._prepared:
            logger.info("uploading to %s", reply.account)
            self._prepared = True
        held = reply.remotes or {}
        lost = [path for path in known if not self.state.files[path].equals(held.get(path))]
        if lost and reply.remotes is not None:  # uploaded again
            logger.warning("%d files are missing or differ on the target, such as %s", len(lost), lost[0])
            self.state.files = {path: file for path, file in self.state.files.items() if path not in set(lost)}
        if reply.commit is not None:
            self._last_commit = self._clock.monotonic()
        for unit in units if reply.verified else ():
            for item in unit.staged:
                if item.path in reply.verified:
                    values = item.model_dump(include={*Digests.model_fields})
                    file = VerifiedFile(**values | {"stamp": unit.files[item.path], "commit": reply.commit})
                    self.state.files[item.path], self.state.last_success = file, self._clock.wall()
                    unit.attempts, unit.sent_at = 0, self._clock.monotonic()
        if reply.verified:
            logger.info("%d files are on the target and verified", len(reply.verified))
        if reply.fault is None:
            self._must_list = self._must_list and not must_list
            self._unit_limit = min(_MAX_FILES, 2 * self._unit_limit)
        else:
            is_about_files = self._prepared and (reply.remotes is not None or not known)
            self._react(reply.fault, units if is_about_files else [])
        if self._mode == "once" and (reply.verified or self.client.failures == 1):
            self._deadline = self._clock.monotonic() + self._settings.patience_s

    def _react(self, fault: Fault, units: list[UploadUnit]) -> None:
        """A unit that is named in a failure again and again is quarantined."""
        if fault.kind == "repository":  # what was verified may be gone with it
            self._prepared, self.state.files = False, {}
        suspects = [unit for unit in units if fault.path in unit.files]
        if not suspects and fault.kind == "refused":
            self._unit_limit = max(1, len(units) // 2)
            suspects = units if len(units) == 1 else []
        for unit in suspects:
            unit.attempts += 1
            if fault.action == "quarantine" and unit.attempts >= self._settings.tries_per_file:
                self._quarantine(unit, fault.line, _QUARANTINE_S)
                self._unit_limit, self.client.until = _MAX_FILES, NEVER

    # ---- the status file
    def _tick(self) -> bool:
        """Called while an order is carried out: keep the heartbeat, and end the order when the grace is over."""
        self._handle_stop_request()
        self._report()
        # Most of the grace is for LFS, if what is under way over Xet does not end soon.
        kept_s = _LFS_SHARE * self._settings.grace_s if self._sent_over_xet else 0.0
        return self._mode == "drain" and self._clock.monotonic() >= self._deadline - kept_s

    def _report(self, phase: str | None = None) -> None:
        """Write the status file, at most once per second unless the phase changes."""
        state, moment, left = self.state, self._clock.monotonic(), self._in()
        if phase is None and moment - self._written < 1.0:
            return
        self._written = moment
        ages = [moment - unit.waiting_since for unit in self.units.values()]
        state.state, state.time = phase or state.state, self._clock.wall()
        state.queue, state.queue_bytes = sum(len(unit.files) for unit in left), sum(unit.size for unit in left)
        state.verified, state.oldest_age_s = len(state.files), round(max(ages, default=0.0), 1)
        state.failures, state.fault = self.client.failures, self.client.fault
        # A full disk is when uploads matter most: continue from memory. The health check sees the old heartbeat.
        with contextlib.suppress(OSError):
            temporary = self._folder / f".{STATUS_FILE}.tmp"
            temporary.write_text(state.model_dump_json(indent=1) + "\n")
            temporary.replace(self._folder / STATUS_FILE)


def choose_batch(
    ready: Sequence[UploadUnit], logs: Sequence[UploadUnit], *, max_bytes: float, unit_limit: int
) -> list[UploadUnit]:
    """The next batch: the newest checkpoint first, small files with it, and growing logs."""
    units = sorted(ready, key=lambda u: (not u.is_checkpoint, -max(s[1] for s in u.files.values()), u.path))
    batch: list[UploadUnit] = []
    size = checkpoint_bytes = inline = 0
    for unit in [*units, *logs]:
        own_inline = sum(stamp[0] for stamp in unit.files.values() if stamp[0] <= _INLINE_BYTES)
        is_crowded = unit.is_checkpoint and checkpoint_bytes and checkpoint_bytes + unit.size >= _ALONE_BYTES
        if batch and (is_crowded or size + unit.size > max_bytes or inline + own_inline > _INLINE_LIMIT):
            continue
        checkpoint_bytes += unit.size if unit.is_checkpoint else 0
        size, inline = size + unit.size, inline + own_inline
        batch.append(unit)
    return batch[:unit_limit]


def _own_folder(root: Path) -> tuple[Path, int]:
    """The uploader's own folder, or else a temporary one, and its lock; a BlockingIOError if another one holds that."""
    problems: list[str] = []
    for own in (True, False):
        try:
            folder = root / UPLOADS if own else Path(tempfile.mkdtemp(prefix="seqtrack-uploads-"))
            folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            problems.append(f"no folder for status and copies: {error}")
            logger.warning("%s", problems[-1])
            continue
        os.set_inheritable(lock, True)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        except OSError as error:
            logger.warning("%s cannot be locked (%s); start no second uploader", folder, error.strerror)
        return folder, lock
    raise UserError(problems, code="upload.state_folder")

"""One round: look at the folder, choose a batch, stage it, have it sent, write down what the target confirms.

Owns no loop and no signal: `watch` calls `step` again and again. Every decision is in the journal before it is
acted on, and only what the target lists counts as arrived.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from seqtrack.uploads.backoff import Clock, monotonic_of, pace
from seqtrack.uploads.errors import Fault
from seqtrack.uploads.journal import Journal, Row
from seqtrack.uploads.orders import bounded
from seqtrack.uploads.plan import StabilityTracker, UploadQueue, choose_batch, make_agenda
from seqtrack.uploads.recovery import Recovery
from seqtrack.uploads.runner import Outcome, Runner
from seqtrack.uploads.scan import FileInfo, UploadUnit, scan, stat_key
from seqtrack.uploads.settings import TargetSettings, UploadSettings
from seqtrack.uploads.staging import Copy, DamagedError, Staging
from seqtrack.uploads.target import ChangedError

logger = logging.getLogger(__name__)

_LAST_COMMIT = "last_commit"


class Sync:
    """The state of one sidecar between rounds.

    Args:
        root: the output folder.
        tick: called often while a batch is under way; returning True ends the batch.
    """

    def __init__(
        self,
        root: Path,
        target: TargetSettings,
        settings: UploadSettings,
        *,
        journal: Journal,
        staging: Staging,
        runner: Runner,
        recovery: Recovery,
        clock: Clock,
        tick: Callable[[], bool] = lambda: False,
    ) -> None:
        self._root, self._target, self._settings = root, target, settings
        self.journal, self._staging, self._runner, self.recovery = journal, staging, runner, recovery
        self._clock, self._tick = clock, tick
        self.observer = StabilityTracker()
        self.problems: dict[str, str] = {}
        self.local_fault: str | None = None
        self.prepared = False
        self.unpaced = False  # at the end: do not wait for the next commit's turn
        self.with_logs = False  # one pass, or the end: send logs as they are now
        self.num_arrived = 0
        self._suspect: set[str] = set()  # named in failure after failure: sent when there is nothing else
        self.last_success: float | None = None
        stored = journal.facts.get(_LAST_COMMIT)
        self._last_commit = None if stored is None else monotonic_of(float(stored), clock)
        self._began = clock.monotonic()
        self._log_sent: dict[str, float] = {}
        self._waiting_since: dict[str, float] = {}
        self.agenda = UploadQueue((), (), ())

    def look_around(self) -> UploadQueue:
        """Walk the folder and bring the journal up to it."""
        found = scan(self._root)
        now = self._clock.monotonic()
        self.observer.look(found, now)
        self.problems = dict(found.problems)
        rows = self.journal.rows
        self.agenda = make_agenda(found, rows, settled=self._settled, blocked=self._blocked)
        changed: list[Row] = []
        ready = set(self.agenda.ready)
        for unit in self.agenda.units:
            state = "stable" if unit in ready else "seen"
            for item in unit.files:
                row = rows.get(item.path)
                if row is None or row.key != item.key:
                    changed.append(Row(item.path, item.key, item.size, state=state))
                elif row.state == "seen" and state == "stable":
                    row.state = state
                    changed.append(row)
                elif row.state in ("damaged", "apart") and row.error:
                    self.problems[item.path] = row.error
        self.journal.write(changed)
        waiting = {unit.files[0].path for unit in self.agenda.ready + self.agenda.held}
        self._waiting_since = {path: self._waiting_since.get(path, now) for path in waiting}
        here = {item.path for unit in found.units for item in unit.files}
        self.journal.forget([path for path, row in rows.items() if path not in here and row.state != "verified"])
        return self.agenda

    def oldest_age_s(self) -> float:
        """Seconds for which the oldest file that is still has waited to arrive."""
        now = self._clock.monotonic()
        return max((now - since for since in self._waiting_since.values()), default=0.0)

    def _settled(self, found: FileInfo) -> bool:
        return self.observer.age(found.path, self._clock.monotonic()) >= self._settings.settle_s

    def _blocked(self, row: Row) -> bool:
        # A wait longer than we ever ask for means that the wall clock was set back.
        return row.state == "apart" and 0.0 < row.next_try - self._clock.wall() <= self._apart_s

    @property
    def _apart_s(self) -> float:
        return max(self._settings.slow_retry_s, self._settings.backoff_cap_s)

    def step(self) -> float:
        """One round. Returns the seconds until the next is worth while."""
        self.look_around()
        opportunistic_files = [unit for unit in self.agenda.growing if self.with_logs or self._log_is_due(unit)]
        if not self.agenda.ready and not opportunistic_files:
            return self._settings.poll_s
        wait = self.recovery.wait_s()
        if wait > 0.0:
            return wait
        if not self.prepared and not self._prepare():
            return self.recovery.wait_s()
        if not self.unpaced:
            wait = pace(self._clock.monotonic(), self._last_commit, self._settings.min_commit_interval_s)
            if wait > 0.0:
                return wait
        if any(unit.is_checkpoint for unit in self.agenda.ready):
            opportunistic_files = list(self.agenda.growing)
        apart = {path for path, row in self.journal.rows.items() if row.state == "apart"}
        batch = choose_batch(
            self.agenda.ready,
            opportunistic_files,
            most_bytes=self._settings.batch_mb * 2**20,
            unit_limit=self.recovery.unit_limit,
            is_apart=apart | self._suspect,
        )
        copies = self._stage(batch)
        if not copies:
            return max(self.recovery.wait_s(), self._settings.poll_s)
        self._push(copies)
        return self.recovery.wait_s()

    def forget_pace(self) -> None:
        """Let the next commit come at once, whatever an earlier process did."""
        self._last_commit = None

    def was_sent(self, unit: UploadUnit) -> bool:
        """Whether some state of a log has arrived in this process's life."""
        return unit.files[0].path in self._log_sent

    def out_of_reach(self) -> set[UploadUnit]:
        """Units that only a person or a long wait can help: damaged, or set apart."""
        rows = self.journal.rows
        return {unit for unit in self.agenda.held if rows[unit.files[0].path].state in ("damaged", "apart")}

    def _log_is_due(self, unit: UploadUnit) -> bool:
        sent = self._log_sent.get(unit.files[0].path, self._began)
        return self._clock.monotonic() - sent >= self._settings.log_interval_s

    def _prepare(self) -> bool:
        outcome = self._order({"operation": "prepare"}, 0, lambda event: None)
        if outcome.done is None:
            if outcome.fault is not None:
                self._suffer(outcome.fault, [])
            return False
        logger.info("uploading to %s as %s", outcome.done["place"], outcome.done["name"])
        self.prepared = True
        return True

    def _stage(self, batch: Sequence[UploadUnit]) -> list[list[Copy]]:
        """Private copies of a batch; units that cannot be had are left out and said."""
        copies: list[list[Copy]] = []
        for unit in batch:
            try:
                copies.append(self._staging.take(unit))
                self.local_fault = None
            except ChangedError as error:
                logger.debug("%s; looked at again later", error)
            except DamagedError as error:
                logger.error("%s; it is not sent", error)
                self._mark(self._as_it_is_now(unit), "damaged", error=str(error))
            except FileNotFoundError:
                continue  # superseded or removed since the walk
            except OSError as error:
                line = f"{unit.files[0].path} cannot be staged ({error.strerror or error})"
                if self.local_fault != line:
                    logger.error("%s", line)
                self.local_fault = line
                if not copies:
                    self._suffer(Fault("local", line), [])
                break
        return copies

    def _as_it_is_now(self, unit: UploadUnit) -> list[FileInfo]:
        """The unit's files with the stat keys that hashing left behind: a link taken and given back moves the ctime."""
        files: list[FileInfo] = []
        for found in unit.files:
            with contextlib.suppress(FileNotFoundError):
                files.append(replace(found, key=stat_key((self._root / found.path).stat())))
        return files

    def _push(self, units: list[list[Copy]]) -> None:
        copies = [copy for unit in units for copy in unit]
        num_bytes = sum(copy.staged.size for copy in copies)
        self._mark([copy.found for copy in copies], "uploading", copies=copies)
        confirmed: set[str] = set()
        commits: list[str] = []

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "committed":
                commits.append(event["commit"])
                self._note_commit()
                paths = set(event["paths"])
                self._mark([c.found for c in copies if c.staged.path in paths], "committed", commit=event["commit"])
            elif event["event"] in ("verified", "already"):
                confirmed.update(event["paths"])

        names = [unit[0].staged.path for unit in units]
        message = f"Add {names[0]}" + (f" and {len(copies) - 1} more" if len(copies) > 1 else "")
        order = {"operation": "push", "message": message, "files": [asdict(copy.staged) for copy in copies]}
        outcome = self._order(order, num_bytes, on_event)
        self._staging.release(copies)
        self._record(copies, confirmed, commits[-1] if commits else None)
        if outcome.fault is not None:
            self._suffer(outcome.fault, units)
        else:
            self.recovery.arrived()
        if confirmed:
            self.last_success = self._clock.wall()
            logger.info("%d files (%.1f MB) are on the target and verified", len(confirmed), num_bytes / 1e6)

    def _order(self, order: dict[str, Any], num_bytes: int, on_event: Callable[[dict[str, Any]], None]) -> Outcome:
        whole, deadline_s = bounded(
            {**order, "use_xet": self.recovery.use_xet},
            self._target,
            self._settings,
            num_bytes=num_bytes,
            timeout_factor=self.recovery.timeout_factor,
        )
        return self._runner.run(whole, deadline_s=deadline_s, on_event=on_event, tick=self._tick)

    def _note_commit(self) -> None:
        self._last_commit = self._clock.monotonic()
        self.journal.set_facts({_LAST_COMMIT: repr(self._clock.wall())})

    def _record(self, copies: Sequence[Copy], confirmed: set[str], commit: str | None) -> None:
        rows: list[Row] = []
        for copy in copies:
            row = self.journal.rows[copy.staged.path]
            row.key = copy.key
            if copy.staged.path in confirmed:
                row.state, row.attempts, row.error = "verified", 0, None
                row.commit = commit or row.commit
                self._log_sent[copy.staged.path] = self._clock.monotonic()
                self._suspect.discard(copy.staged.path)
                self.num_arrived += 1
            elif row.state != "apart":
                row.state = "stable"
            rows.append(row)
        self.journal.write(rows)

    def _suffer(self, fault: Fault, units: list[list[Copy]]) -> None:
        """React to a failed batch; one file that fails alone again and again is set apart from the others."""
        self.recovery.record_failure(fault, num_units=len(units))
        if fault.kind == "repository":
            # What was verified may be gone with the repo.
            self.prepared = False
            self.journal.mark_unverified()
        guilty = next((unit for unit in units if fault.path in [copy.staged.path for copy in unit]), None)
        if guilty is None and len(units) == 1 and fault.kind in ("refused", "died"):
            guilty = units[0]
        if guilty is None:
            return
        first = self.journal.rows[guilty[0].staged.path]
        first.attempts += 1
        if first.attempts >= self._settings.tries_before_apart:
            self._suspect.add(first.path)
        if fault.kind not in ("refused", "died", "server", "mismatch"):
            self.journal.write([first])
            return
        # A refusal is about the file; other trouble is more often the server's, which meets some file first.
        tries = self._settings.tries_before_apart * (1 if fault.kind == "refused" else 3)
        if first.attempts >= tries:
            logger.error("%s is set apart: %s", first.path, fault.line)
            self._mark([replace(copy.found, key=copy.key) for copy in guilty], "apart", error=fault.line)
            soon = min(self._apart_s, self._settings.backoff_s * 2.0 ** min(first.attempts, 30))
            first.next_try = self._clock.wall() + (self._apart_s if fault.kind == "refused" else soon)
            self.recovery.unit_limit = None
            self.recovery.until = float("-inf")
        self.journal.write([first])

    def _mark(
        self,
        files: Sequence[FileInfo],
        state: str,
        *,
        copies: Sequence[Copy] = (),
        commit: str | None = None,
        error: str | None = None,
    ) -> None:
        digests = {copy.staged.path: copy for copy in copies}
        rows: list[Row] = []
        for found in files:
            row = self.journal.rows.get(found.path) or Row(found.path, found.key, found.size)
            row.key, row.state, row.commit, row.error = found.key, state, commit or row.commit, error
            if found.path in digests:
                row.key, row.size = digests[found.path].key, digests[found.path].staged.size
                row.sha256 = digests[found.path].staged.sha256
            rows.append(row)
        self.journal.write(rows)

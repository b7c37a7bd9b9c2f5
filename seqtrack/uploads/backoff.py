"""What the uploader does after a failure: wait, allow more time, send less at once, or wait for a person.

Monotonic seconds for everything inside one life of the process, since the wall clock may jump.
"""

import hashlib
import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from seqtrack.uploads.errors import Fault
from seqtrack.uploads.settings import UploadSettings

logger = logging.getLogger(__name__)

_MAX_TIMEOUT_FACTOR = 64.0
_TIMEOUTS_OF_XET = 3  # its client can be busy with trouble of its own for longer than any deadline
_XET_PAUSE_S = 3600.0


@dataclass(frozen=True)
class Clock:
    """The three things a loop needs of time; a test brings its own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def jittered(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Seconds to wait after the n-th failure in a row (from 1): full jitter, so that many clients spread out.

    Uniform in [0, min(cap_s, base_s * 2^(n-1))].
    """
    return rng.uniform(0.0, min(cap_s, base_s * 2.0 ** min(attempt - 1, 60)))


def token_fingerprint() -> str:
    """Changes when the token's file does. A digest: the token itself is not kept."""
    path = os.environ.get("HF_TOKEN_PATH", "").strip()
    if not path:
        return ""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        return type(error).__name__


@dataclass
class Backoff:
    """The state of trouble.

    Attributes:
        fault: the last one; None once a batch arrived.
        failures: in a row.
        since: monotonic time of the first of them.
        until: monotonic time before which nothing is tried.
        timeout_factor: on deadlines and read timeouts; doubles with every timeout, so that a slow line that needs an
            hour gets it in the end.
        unit_limit: most units in a batch; halves while a batch is refused, until the one at fault is alone.
    """

    settings: UploadSettings
    clock: Clock
    rng: random.Random
    xet_allowed: bool = True
    fault: Fault | None = None
    failures: int = 0
    since: float = float("-inf")
    until: float = float("-inf")
    timeout_factor: float = 1.0
    unit_limit: int | None = None
    _same_kind: int = 0
    _xet_from: float = float("-inf")
    _token: str = field(default="", repr=False)

    @property
    def use_xet(self) -> bool:
        """Whether large files go over Xet now; LFS serves as well."""
        return self.xet_allowed and self.clock.monotonic() >= self._xet_from

    def wait_s(self) -> float:
        """Seconds until the next try; 0 as soon as a refused token was replaced."""
        if self.fault is not None and self.fault.kind == "token" and token_fingerprint() != self._token:
            logger.info("the token has changed; trying again")
            self.until = float("-inf")
        return max(0.0, self.until - self.clock.monotonic())

    def record_success(self) -> None:
        """An order was carried out."""
        if self.fault is not None:
            logger.info("the target answers again after %d failures", self.failures)
        self.fault, self.until = None, float("-inf")
        self.timeout_factor, self.failures, self._same_kind = 1.0, 0, 0
        if self.unit_limit is not None:
            self.unit_limit *= 2  # what was refused or too much is not in what is left, or shows again

    def record_failure(self, fault: Fault, *, num_units: int) -> None:
        """Decide when to try a batch of `num_units` again, and how."""
        now = self.clock.monotonic()
        if self.failures == 0:
            self.since = now
        self.failures += 1
        if self.fault is None or self.fault.kind != fault.kind:  # one line per kind; the status has the rest
            self._same_kind = 0
            level = logging.ERROR if fault.action in ("person", "quarantine") else logging.WARNING
            logger.log(level, "%s: %s", fault.kind, fault.line)
        self._same_kind += 1
        self.fault, self._token = fault, token_fingerprint()
        if fault.kind == "timeout":
            self.timeout_factor = min(_MAX_TIMEOUT_FACTOR, self.timeout_factor * 2.0)
        silent = fault.kind == "timeout" and self._same_kind >= _TIMEOUTS_OF_XET
        if self.use_xet and (fault.kind == "xet" or silent):
            self._xet_from = now + _XET_PAUSE_S
            logger.warning("Xet storage does not work here; large files go over LFS for an hour")
        if num_units > 1 and fault.path is None and fault.kind in ("refused", "died"):
            self.unit_limit = (num_units + 1) // 2
        self.until = now + self._wait_after(fault)

    def _wait_after(self, fault: Fault) -> float:
        settings = self.settings
        if fault.kind == "commits":
            # The window slides, so places come free before the hour is over.
            longest = settings.commit_limit_wait_s
            return max(fault.wait_s, min(longest, longest / 4.0 * 2.0 ** min(self._same_kind - 1, 60)))
        made_again = fault.kind == "repository" and self._same_kind == 1
        if fault.action == "person" and not made_again:
            return settings.slow_retry_s
        wait = jittered(self.failures, base_s=settings.backoff_s, cap_s=settings.backoff_cap_s, rng=self.rng)
        return max(wait, fault.wait_s)

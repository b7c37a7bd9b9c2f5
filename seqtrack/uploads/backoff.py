"""What follows a failure: when to try again, with how much time, and whether over Xet.

Monotonic seconds for everything inside one life of the process, since the wall clock may jump.
"""

import logging
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from seqtrack.uploads.settings import UploadSettings
from seqtrack.uploads.target import Fault

logger = logging.getLogger(__name__)

NEVER = float("-inf")
_MAX_TIMEOUT_FACTOR = 64.0
_XET_PAUSE_S = 3600.0
_LONGEST_S = 600.0


@dataclass(frozen=True)
class Clock:
    """The three things a loop needs of time; a test brings its own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def xet_is_allowed() -> bool:
    """Whether the user left Xet on, by the variable of the Hub's client."""
    return os.environ.get("HF_HUB_DISABLE_XET", "").upper() not in ("1", "ON", "YES", "TRUE")


@dataclass
class Backoff:
    """The state of trouble; times are monotonic."""

    settings: UploadSettings
    clock: Clock
    rng: random.Random
    fault: Fault | None = None  # the last one; None once an order was carried out
    failures: int = 0  # in a row
    until: float = NEVER  # nothing is tried before
    timeout_factor: float = 1.0  # doubles with every timeout: a slow line that needs an hour gets it in the end
    _xet_from: float = NEVER

    @property
    def use_xet(self) -> bool:
        """Whether large files go over Xet now; LFS and plain HTTP serve as well."""
        return xet_is_allowed() and self.clock.monotonic() >= self._xet_from

    def wait_s(self) -> float:
        """Seconds until the next try."""
        return max(0.0, self.until - self.clock.monotonic())

    def record_success(self) -> None:
        """An order was carried out."""
        if self.fault is not None:
            logger.info("the target answers again after %d failures", self.failures)
        self.fault, self.until, self.timeout_factor, self.failures = None, NEVER, 1.0, 0

    def record_failure(self, fault: Fault) -> None:
        """Decide when to try again, and how: full jitter, so that many clients spread out."""
        now, settings = self.clock.monotonic(), self.settings
        is_news = self.fault is None or self.fault.kind != fault.kind
        if is_news:  # one line per kind; the status has the rest
            logger.log(logging.WARNING if fault.action in ("retry", "wait") else logging.ERROR, "%s", fault.line)
        self.failures, self.fault = self.failures + 1, fault
        if fault.kind == "timeout":
            self.timeout_factor = min(_MAX_TIMEOUT_FACTOR, self.timeout_factor * 2.0)
        if fault.kind in ("xet", "timeout") and self.use_xet:  # trouble of Xet can take longer than any deadline
            self._xet_from = now + _XET_PAUSE_S
            logger.warning("Xet storage may be the cause; large files go over LFS and plain HTTP for an hour")
        made_again = fault.kind == "repository" and is_news
        if fault.action == "person" and not made_again:
            self.until = now + settings.slow_retry_s
        else:
            longest = min(_LONGEST_S, settings.backoff_s * 2.0 ** min(self.failures - 1, 60))
            self.until = now + max(fault.wait_s, self.rng.uniform(0.0, longest))

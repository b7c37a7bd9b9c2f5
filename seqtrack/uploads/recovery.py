"""What the sidecar does after a failure: wait, be more patient, send less at once, or ask a person.

Holds the state of trouble and nothing of files. A fault that may pass by itself waits with full jitter; one that a
person must fix waits long and is tried at once when the token file changes.
"""

import hashlib
import logging
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from seqtrack.uploads.backoff import Clock, commit_limit_wait, jittered
from seqtrack.uploads.errors import Fault
from seqtrack.uploads.settings import UploadSettings

logger = logging.getLogger(__name__)

_MOST_PATIENT = 64.0
_SILENCES_OF_XET = 3  # its client can be busy with trouble of its own for longer than any deadline


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
class Recovery:
    """Trouble as it is.

    Attributes:
        fault: the last one; None once a batch arrived.
        until: monotonic time before which nothing is tried.
        patience: factor on deadlines and read timeouts; doubles with every silence, so that a slow line that needs an
            hour gets it in the end.
        unit_limit: units in a batch at most; halves while a batch is refused, until the one at fault is alone.
    """

    settings: UploadSettings
    clock: Clock
    rng: random.Random
    fault: Fault | None = None
    until: float = float("-inf")
    timeout_factor: float = 1.0
    unit_limit: int | None = None
    use_xet: bool = True
    failures: int = 0
    kind_failures: int = 0
    _token: str = field(default="", repr=False)

    def wait_s(self) -> float:
        """Seconds until the next try; 0 as soon as a refused token was exchanged."""
        if self.fault is not None and self.fault.kind in ("token", "permission") and token_fingerprint() != self._token:
            logger.info("the token has changed; trying again")
            self.until = float("-inf")
        return max(0.0, self.until - self.clock.monotonic())

    def arrived(self) -> None:
        """A batch reached the target."""
        if self.fault is not None:
            logger.info("the target answers again after %d failures", self.failures)
        self.fault, self.until = None, float("-inf")
        self.timeout_factor, self.failures, self.kind_failures = 1.0, 0, 0
        if self.unit_limit is not None:
            self.unit_limit *= 2  # what was refused or too much is not in what is left, or shows again

    def record_failure(self, fault: Fault, *, num_units: int) -> None:
        """Take note of a failure of a batch of `num_units` and decide when to try again, and how."""
        self.failures += 1
        self.kind_failures = self.kind_failures + 1 if self.fault is not None and self.fault.kind == fault.kind else 1
        self._say(fault)
        self.fault = fault
        self._token = token_fingerprint()
        if fault.kind == "deadline":
            self.timeout_factor = min(_MOST_PATIENT, self.timeout_factor * 2.0)
        silent = fault.kind == "deadline" and self.kind_failures >= _SILENCES_OF_XET
        if self.use_xet and (fault.kind == "xet" or silent):
            self.use_xet = False
            logger.warning("Xet storage does not work here; large files go over LFS from now on")
        if num_units > 1 and fault.path is None and fault.kind in ("refused", "died"):
            self.unit_limit = (num_units + 1) // 2
        wait = self._wait_after(fault)
        self.until = self.clock.monotonic() + wait
        logger.debug("next try in %.1f s", wait)

    def _wait_after(self, fault: Fault) -> float:
        chosen = self.settings
        if fault.kind == "commits":
            longest = chosen.commit_limit_wait_s
            return commit_limit_wait(self.kind_failures, longest_s=longest, asked_s=fault.wait_s)
        if fault.permanent and fault.kind != "refused" and not (fault.kind == "repository" and self.kind_failures == 1):
            return chosen.slow_retry_s
        wait = jittered(self.failures, base_s=chosen.backoff_s, cap_s=chosen.backoff_cap_s, rng=self.rng)
        return max(wait, fault.wait_s)

    def _say(self, fault: Fault) -> None:
        """One line for each new kind of trouble; what continues being the same is in the status file."""
        if self.fault is None or self.fault.kind != fault.kind:
            level = logging.ERROR if fault.permanent else logging.WARNING
            logger.log(level, "%s: %s", fault.kind, fault.line)

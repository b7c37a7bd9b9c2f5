"""Orders to the process that speaks to a target: the one place that knows what every order carries besides its purpose.

An order names the target and the bounds of its requests, and has a deadline from the bytes that it moves. The watching
sidecar goes its own way after a failure; `Orders` is for whoever waits for an answer: helper commands and downloads.
"""

import logging
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqtrack.errors import UserError
from seqtrack.uploads.backoff import jittered
from seqtrack.uploads.runner import ChildRunner
from seqtrack.uploads.settings import TargetSettings, UploadSettings

logger = logging.getLogger(__name__)

_TRIES = 4


def bounded(
    order: dict[str, Any], target: TargetSettings, settings: UploadSettings, *, num_bytes: int, timeout_factor: float
) -> tuple[dict[str, Any], float]:
    """The whole of an order, and the seconds that it may take.

    Args:
        num_bytes: how much it moves.
        patience: factor on the deadline and on the time an answer may take; at least 1.
    """
    limits = {"connect_s": settings.connect_timeout_s, "read_s": settings.read_timeout_s * timeout_factor}
    tries = {"tries": settings.request_tries}
    deadline_s = (settings.deadline_s + num_bytes / (settings.least_rate_kb_s * 1024.0)) * timeout_factor
    return {**order, **tries, "target": {**asdict(target), **limits, **tries}}, deadline_s


class TargetClient:
    """Orders that are tried again, more patiently, while the fault may pass by itself.

    Args:
        folder: for the child's own files; exists.
    """

    def __init__(self, target: TargetSettings, settings: UploadSettings, folder: Path) -> None:
        self.target, self._settings = target, settings
        self._runner = ChildRunner(folder)

    def request(self, order: dict[str, Any], num_bytes: int = 0) -> dict[str, Any]:
        """The values of the order's last event.

        Raises:
            UserError: what the target said, or that it said nothing.
        """
        settings, fault, use_xet = self._settings, None, True
        for attempt in range(_TRIES):
            if fault is not None:
                wait = jittered(attempt, base_s=settings.backoff_s, cap_s=settings.backoff_cap_s, rng=random.Random())
                wait = max(wait, fault.wait_s)
                logger.warning("%s: %s; trying again in %.0f s", fault.kind, fault.line, wait)
                time.sleep(wait)
                use_xet = use_xet and fault.kind != "xet"
            whole, deadline_s = bounded(
                {**order, "nice": 0, "use_xet": use_xet},
                self.target,
                settings,
                num_bytes=num_bytes,
                timeout_factor=2.0**attempt,
            )
            outcome = self._runner.run(whole, deadline_s=deadline_s, on_event=lambda event: None, tick=lambda: False)
            if outcome.done is not None:
                return outcome.done
            fault = outcome.fault
            if fault is None or fault.permanent:
                break
        raise UserError(f"{self.target.shown}: {fault.line if fault is not None else 'no answer'}")

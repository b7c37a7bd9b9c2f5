"""Stopping on request or in time: a signal sets a flag, and the training loop checks it between steps."""

import contextlib
import signal
import time
from types import FrameType

from seqtrack.process import stop_signals


class StopRequest(contextlib.ExitStack):
    """Whether a stop was requested by a signal; leaving the block restores the signal handlers.

    Args:
        after_s: seconds from now after which it counts as requested.
    """

    signal_name: str | None = None

    def __init__(self, after_s: float | None = None) -> None:
        super().__init__()
        self._end = float("inf") if after_s is None else time.monotonic() + after_s

    @property
    def is_set(self) -> bool:
        if self.signal_name is None and time.monotonic() > self._end:
            self.signal_name = "STOP_AFTER_S"
        return self.signal_name is not None

    def _set(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        for number in stop_signals():
            self.callback(signal.signal, number, signal.signal(number, self._set))
        return self

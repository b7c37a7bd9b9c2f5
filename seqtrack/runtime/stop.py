"""Stopping on request: a signal sets a flag, and the training loop checks it between steps."""

import contextlib
import signal
from types import FrameType

from seqtrack.process import stop_signals


class StopRequest(contextlib.ExitStack):
    """Whether a stop was requested by a signal; leaving the block restores the signal handlers."""

    signal_name: str | None = None

    @property
    def is_set(self) -> bool:
        return self.signal_name is not None

    def _set(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        for number in stop_signals():
            self.callback(signal.signal, number, signal.signal(number, self._set))
        return self

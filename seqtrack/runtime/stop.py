"""Stopping on request: a signal sets a flag, and the training loop checks it between steps."""

import signal
from types import FrameType

from seqtrack.process import stop_signals


class StopRequest:
    """Whether a stop was requested by a signal; a context manager that restores the signal handlers."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[int, object] = {}

    @property
    def is_set(self) -> bool:
        return self.signal_name is not None

    def _set(self, number: int, _frame: FrameType | None) -> None:
        self.signal_name = signal.Signals(number).name

    def __enter__(self) -> "StopRequest":
        for number in stop_signals():
            self._previous[number] = signal.signal(number, self._set)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

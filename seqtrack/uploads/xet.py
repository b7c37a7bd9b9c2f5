"""Limits for transfers over Xet, whose client waits indefinitely in some calls.

It reports progress to the library's progress bars. `Progress` takes their place and remembers when bytes last moved;
the process that speaks to a target asks it and gives the transfer up.
"""

import time

import huggingface_hub.utils
from huggingface_hub.utils import _xet_progress_reporting


class Progress:
    """In place of the library's reporters, for uploads and downloads."""

    moved_at = float("inf")  # monotonic; no transfer is running

    def __init__(self, **_: object) -> None:
        self._seen: tuple[int, int] | None = None
        Progress.moved_at = time.monotonic()

    def update_progress(self, report: object, _: object = None) -> None:
        """Called several times per second; a call is no progress."""
        seen = (getattr(report, "total_bytes_completed", 0), getattr(report, "total_transfer_bytes_completed", 0))
        if seen != self._seen:
            self._seen, Progress.moved_at = seen, time.monotonic()

    def close(self, *_: object) -> None:
        Progress.moved_at = float("inf")

    def __enter__(self) -> "Progress":
        return self

    __exit__ = close


def watch_transfers() -> None:
    """Make the library report to `Progress` from now on, in this process."""
    for name in ("XetUploadProgressReporter", "XetDownloadProgressReporter"):
        setattr(_xet_progress_reporting, name, Progress)
    vars(huggingface_hub.utils)["are_progress_bars_disabled"] = lambda *_: False  # asked before an upload reports


def is_stalled(limit_s: float) -> bool:
    """Whether a transfer is running and nothing has moved for so long."""
    return time.monotonic() - Progress.moved_at > limit_s

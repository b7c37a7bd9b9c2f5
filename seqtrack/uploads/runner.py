"""The parent's side of a child process: starts it, hears its events, ends it when its time is over.

Started by `subprocess` with the order on stdin: nothing is inherited but the environment and the lock, nothing can be
seen in the process list. Knows nothing of what the orders mean.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, BinaryIO, Protocol

from seqtrack.uploads.errors import Fault, scrub

logger = logging.getLogger(__name__)

OnEvent = Callable[[dict[str, Any]], None]
_TICK_S = 0.2
_NICE = 19  # training comes first wherever both want the same core


@dataclass(frozen=True)
class Outcome:
    """How an order ended: `done` holds the last event's values, or `fault` says why there is none."""

    done: dict[str, Any] | None = None
    fault: Fault | None = None


class Runner(Protocol):
    """Carries out one order; a seam, so that the loop can be driven with another clock and no process."""

    def run(self, order: dict[str, Any], *, deadline_s: float, on_event: OnEvent, tick: Callable[[], bool]) -> Outcome:
        """Carry out `order` within `deadline_s` seconds; `tick` is called often, and ends it by returning True."""
        ...


class ChildRunner:
    """One process an order.

    Args:
        folder: where the child's stderr and the Xet cache go.
        lock: descriptor of the volume's lock; the child keeps it while it lives, so that no second sidecar begins
            while an orphan may still commit.
    """

    def __init__(self, folder: Path, lock: int | None = None) -> None:
        self._folder, self._lock = folder, lock

    def run(self, order: dict[str, Any], *, deadline_s: float, on_event: OnEvent, tick: Callable[[], bool]) -> Outcome:
        end = time.monotonic() + deadline_s
        with self._open_log() as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "seqtrack.uploads.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=() if self._lock is None else (self._lock,),
                env=child_environment(dict(os.environ), use_xet=bool(order.get("use_xet", True)), state=self._folder),
                start_new_session=True,  # a terminal's Ctrl-C is for the parent, which decides what becomes of a batch
            )
        try:
            return self._communicate(child, {"nice": _NICE, **order}, end, deadline_s, on_event, tick)
        finally:
            if child.poll() is None:
                child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def _communicate(
        self,
        child: "subprocess.Popen[bytes]",
        order: dict[str, Any],
        end: float,
        deadline_s: float,
        on_event: OnEvent,
        tick: Callable[[], bool],
    ) -> Outcome:
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps(order).encode() + b"\n")
            child.stdin.flush()
        except BrokenPipeError:
            return Outcome(fault=Fault("died", f"the sending process did not start: {self._stderr_tail()}"))
        lines: Queue[bytes | None] = Queue()
        threading.Thread(target=_listen, args=(child.stdout, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=_TICK_S)
            except Empty:
                line = b""
            if line is None:
                code = child.wait()
                return Outcome(fault=Fault("died", f"the sending process ended with {code}: {self._stderr_tail()}"))
            if line:
                event = json.loads(line)
                if event["event"] == "done":
                    return Outcome(done=event)
                if event.pop("event") == "fault":
                    return Outcome(fault=Fault(**event))
                on_event(json.loads(line))
            if tick():
                return Outcome(fault=Fault("deadline", "ended because the sidecar was asked to stop"))
            if time.monotonic() > end:
                return Outcome(fault=Fault("deadline", f"the batch did not end within {deadline_s:.0f} s"))

    def _open_log(self) -> BinaryIO:
        try:
            return (self._folder / "child.log").open("wb")
        except OSError:  # a full disk; its last words are the least of our worries
            return Path(os.devnull).open("wb")

    def _stderr_tail(self) -> str:
        try:
            text = (self._folder / "child.log").read_text(errors="replace").strip()
        except OSError:
            return "nothing was said"
        return scrub(text.splitlines()[-1])[:300] if text else "nothing was said; out of memory?"


def _listen(pipe: Any, lines: "Queue[bytes | None]") -> None:
    try:
        for line in pipe:
            lines.put(line)
    except (OSError, ValueError):  # closed from the other side, because the child was ended
        pass
    lines.put(None)


def child_environment(environ: dict[str, str], *, use_xet: bool, state: Path) -> dict[str, str]:
    """Environment of a process that loads the Hub's client: quiet, bounded, and without empty settings.

    Compose hands on empty variables, and the client takes an empty HF_ENDPOINT for an address. What the user set
    wins over the bounds of Xet.
    """
    chosen = {name: value for name, value in environ.items() if value or not name.startswith("HF_")}
    bounds = {
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "3",
        "HF_XET_CLIENT_RETRY_MAX_DURATION": "30s",
        "HF_XET_CLIENT_READ_TIMEOUT": "45s",
        "HF_XET_CLIENT_CONNECT_TIMEOUT": "10s",
        "HF_XET_CACHE": str(state / "xet"),
    }
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_VERBOSITY": "error",
    }
    if not use_xet:
        quiet["HF_HUB_DISABLE_XET"] = "1"
    return {**bounds, **chosen, **quiet}

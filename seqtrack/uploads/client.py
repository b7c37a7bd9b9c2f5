"""The parent's side of the process that speaks to a target: starts it, reads its events, ends it at its deadline.

Started by `subprocess` with the order on stdin: nothing is inherited but the environment and the lock, and nothing can
be seen in the process list.
"""

import contextlib
import json
import logging
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, Queue
from typing import Any, Protocol

from seqtrack.errors import UserError
from seqtrack.uploads.backoff import jittered
from seqtrack.uploads.errors import Fault, scrub
from seqtrack.uploads.settings import TargetSettings, UploadSettings

logger = logging.getLogger(__name__)

Event = dict[str, Any]
_TICK_S = 0.2
_NICE = 19  # training comes first wherever both want the same core
_TRIES = 4
_LOG_NAME = "child.log"


@dataclass(frozen=True)
class Outcome:
    """How an order ended: `done` holds the last event's values, or `fault` why there is none."""

    done: Event | None = None
    fault: Fault | None = None


class Runner(Protocol):
    """Carries out one order; an interface, so that the loop can be driven with another clock and no process."""

    def run(
        self, order: Event, *, deadline_s: float, on_event: Callable[[Event], None], tick: Callable[[], bool]
    ) -> Outcome:
        """Carry out `order` within `deadline_s` seconds; `tick` is called often, and ends it by returning True."""
        ...


class ChildRunner:
    """One process per order.

    Args:
        folder: for the child's stderr and the Xet cache.
        lock: descriptor of the output folder's lock; the child keeps it while it lives, so that no second uploader
            begins while an orphan may still commit.
    """

    def __init__(self, folder: Path, lock: int | None = None) -> None:
        self._folder, self._lock = folder, lock

    def run(
        self, order: Event, *, deadline_s: float, on_event: Callable[[Event], None], tick: Callable[[], bool]
    ) -> Outcome:
        end = time.monotonic() + deadline_s
        with contextlib.ExitStack() as stack:
            try:
                errors = stack.enter_context((self._folder / _LOG_NAME).open("wb"))
            except OSError:  # a full disk: do without
                errors = stack.enter_context(Path(os.devnull).open("wb"))
            child = subprocess.Popen(
                [sys.executable, "-m", "seqtrack.uploads.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=() if self._lock is None else (self._lock,),
                env=child_environment(dict(os.environ), use_xet=bool(order.get("use_xet", True)), state=self._folder),
                start_new_session=True,  # a terminal's Ctrl-C is for the parent, which decides what becomes of a batch
            )
        with child:
            try:
                return self._communicate(child, {"nice": _NICE, **order}, end, deadline_s, on_event, tick)
            finally:
                child.kill()

    def _communicate(
        self,
        child: "subprocess.Popen[bytes]",
        order: Event,
        end: float,
        deadline_s: float,
        on_event: Callable[[Event], None],
        tick: Callable[[], bool],
    ) -> Outcome:
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it ended at once; its end of the pipe tells
            child.stdin.write(json.dumps(order).encode() + b"\n")
            child.stdin.flush()
        lines: Queue[bytes | None] = Queue()
        threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=_TICK_S)
            except Empty:
                line = b""
            if line is None:
                return Outcome(fault=Fault("died", f"the upload process ended with {child.wait()}: {self._log_tail()}"))
            if line:
                event = json.loads(line)
                kind = event["event"]
                if kind == "done":
                    return Outcome(done=event)
                if kind == "fault":
                    return Outcome(fault=Fault(**{name: value for name, value in event.items() if name != "event"}))
                on_event(event)
            if tick():
                return Outcome(fault=Fault("timeout", "ended because the uploader was asked to stop"))
            if time.monotonic() > end:
                return Outcome(fault=Fault("timeout", f"the batch did not end within {deadline_s:.0f} s"))

    def _log_tail(self) -> str:
        try:
            text = (self._folder / _LOG_NAME).read_text(errors="replace").strip()
        except OSError:
            text = ""
        return scrub(text.splitlines()[-1])[:300] if text else "without a message; out of memory?"


def _read_lines(pipe: Any, lines: "Queue[bytes | None]") -> None:
    with contextlib.suppress(OSError, ValueError):  # closed from the other side, because the child was ended
        for line in pipe:
            lines.put(line)
    lines.put(None)


def child_environment(environ: dict[str, str], *, use_xet: bool, state: Path) -> dict[str, str]:
    """Environment of a process that loads the Hub's client: quiet, bounded, and without empty settings.

    Compose passes on empty variables, and the client takes an empty HF_ENDPOINT for an address. What the user set
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
    return {**bounds, **chosen, **quiet, **({} if use_xet else {"HF_HUB_DISABLE_XET": "1"})}


def bounded(
    order: Event, target: TargetSettings, settings: UploadSettings, *, num_bytes: int, timeout_factor: float
) -> tuple[Event, float]:
    """The order with its target and the bounds of its requests, and the seconds that it may take.

    Args:
        num_bytes: how much it moves.
        timeout_factor: on the deadline and on the time an answer may take; at least 1.
    """
    limits = {
        "connect_s": settings.connect_timeout_s,
        "read_s": settings.read_timeout_s * timeout_factor,
        "tries": settings.request_tries,
    }
    deadline_s = (settings.deadline_s + num_bytes / (settings.least_rate_kb_s * 1024.0)) * timeout_factor
    return {**order, "tries": settings.request_tries, "target": {**asdict(target), **limits}}, deadline_s


class TargetClient:
    """Orders of whoever waits for the answer (helper commands, downloads): tried again while the fault may pass.

    Args:
        folder: for the child's own files; exists.
    """

    def __init__(self, target: TargetSettings, settings: UploadSettings, folder: Path) -> None:
        self.target, self._settings = target, settings
        self._runner = ChildRunner(folder)

    def request(self, order: Event, num_bytes: int = 0) -> Event:
        """The values of the order's last event, with those of "prepared".

        Raises:
            UserError: the target refused or did not answer.
        """
        settings, fault, use_xet = self._settings, None, True
        prepared: Event = {}

        def on_event(event: Event) -> None:
            if event["event"] == "prepared":
                prepared.update(event)

        for attempt in range(_TRIES):
            if fault is not None:
                # Xet's own trouble can take longer than any timeout; plain HTTP serves the same files.
                use_xet = use_xet and fault.kind not in ("xet", "timeout")
                wait = jittered(attempt, base_s=settings.backoff_s, cap_s=settings.backoff_cap_s, rng=random.Random())
                wait = max(wait, fault.wait_s)
                logger.warning("%s: %s; trying again in %.0f s", fault.kind, fault.line, wait)
                time.sleep(wait)
            whole, deadline_s = bounded(
                {**order, "nice": 0, "use_xet": use_xet},
                self.target,
                settings,
                num_bytes=num_bytes,
                timeout_factor=2.0**attempt,
            )
            outcome = self._runner.run(whole, deadline_s=deadline_s, on_event=on_event, tick=lambda: False)
            if outcome.done is not None:
                return {**prepared, **outcome.done}
            fault = outcome.fault
            assert fault is not None  # an outcome has one of the two
            if fault.action in ("person", "quarantine"):
                break
        assert fault is not None  # the loop ran at least once
        raise UserError(f"{self.target.label}: {fault.line}", code=f"upload.{fault.kind}")

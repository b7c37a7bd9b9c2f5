"""The parent's side of the process that speaks to a target: starts it, waits for its reply, ends it at its deadline.

Started by `subprocess` with the call on stdin: nothing is inherited but the environment and the lock, and nothing can
be seen in the process list.
"""

import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from seqtrack.errors import UserError
from seqtrack.uploads.backoff import Backoff, Clock
from seqtrack.uploads.settings import TargetSettings, UploadSettings
from seqtrack.uploads.target import Bounds, Call, Fault, Order, Reply, scrub

logger = logging.getLogger(__name__)

_TICK_S = 0.2
_TRIES = 4
_LEAST_RATE = 50_000.0  # bytes per second
_XET_BOUNDS = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "3",
    "HF_XET_CLIENT_RETRY_MAX_DURATION": "30s",
    "HF_XET_CLIENT_READ_TIMEOUT": "45s",
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "10s",
}
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}


class Runner(Protocol):
    """Carries out one call; an interface, so that the loop can be driven with another clock and no process."""

    def run(self, call: Call, *, deadline_s: float, tick: Callable[[], bool]) -> Reply:
        """Carry out `call` within `deadline_s` seconds; `tick` is called often, and ends it by returning True."""


class ChildRunner:
    """One process per call.

    Args:
        folder: for the Xet cache.
        lock: descriptor of the output folder's lock; the child keeps it while it lives, so that no second uploader
            begins while an orphan may still commit.
    """

    def __init__(self, folder: Path, lock: int | None = None) -> None:
        self._folder, self._lock = folder, lock

    def run(self, call: Call, *, deadline_s: float, tick: Callable[[], bool]) -> Reply:
        end = time.monotonic() + deadline_s
        with subprocess.Popen(
            [sys.executable, "-m", "seqtrack.uploads.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=() if self._lock is None else (self._lock,),
            env=child_environment(os.environ, use_xet=call.bounds.use_xet, state=self._folder),
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which decides what becomes of a batch
        ) as child:
            payload: bytes | None = call.model_dump_json().encode()
            try:
                while True:
                    try:
                        out, err = child.communicate(payload, timeout=_TICK_S)
                        break
                    except subprocess.TimeoutExpired:
                        payload = None  # given already
                    if tick() or time.monotonic() > end:
                        return Reply(fault=Fault(kind="timeout", line=f"not done within {deadline_s:.0f} s"))
            finally:
                child.kill()
        if out:
            return Reply.model_validate_json(out)
        last = "".join(err.decode(errors="replace").strip().splitlines()[-1:]) or "without a message; out of memory?"
        return Reply(
            fault=Fault(kind="network", line=f"the upload process ended with {child.returncode}: {scrub(last)}")
        )


def child_environment(environ: Mapping[str, str], *, use_xet: bool, state: Path) -> dict[str, str]:
    """Environment of a process that loads the Hub's client: quiet, bounded, and without empty settings.

    Compose passes on empty variables, and the client takes an empty HF_ENDPOINT for an address. What the user set
    wins over the bounds of Xet.
    """
    chosen = {name: value for name, value in environ.items() if value or not name.startswith("HF_")}
    xet = {} if use_xet else {"HF_HUB_DISABLE_XET": "1"}
    return {**_XET_BOUNDS, "HF_XET_CACHE": str(state / "xet"), **chosen, **_QUIET, **xet}


class TargetClient:
    """Sends orders to a target.

    Args:
        backoff: decides how much time an order gets, and whether it may use Xet.
        nice: what the process adds to its niceness.
    """

    def __init__(
        self, target: TargetSettings, settings: UploadSettings, runner: Runner, backoff: Backoff, *, nice: int = 0
    ) -> None:
        self.target, self._settings, self._runner, self._backoff = target, settings, runner, backoff
        self._nice = nice

    def send(self, order: Order, num_bytes: int = 0, tick: Callable[[], bool] = lambda: False) -> Reply:
        """Have an order carried out once, which moves `num_bytes`."""
        settings, factor = self._settings, self._backoff.timeout_factor
        bounds = Bounds(
            read_s=settings.read_timeout_s * factor,
            tries=settings.request_tries,
            nice=self._nice,
            use_xet=self._backoff.use_xet,
        )
        deadline_s = (settings.deadline_s + num_bytes / _LEAST_RATE) * factor
        call = Call(target=self.target, bounds=bounds, order=order, parent=os.getpid())
        return self._runner.run(call, deadline_s=deadline_s, tick=tick)

    def request(self, order: Order, num_bytes: int = 0) -> Reply:
        """For whoever waits for the answer (helper commands, downloads): tried again while the fault may pass.

        Raises:
            UserError: the target refused or did not answer.
        """
        while True:
            reply = self.send(order, num_bytes)
            if reply.fault is None:
                return reply
            self._backoff.record_failure(reply.fault)
            if reply.fault.action in ("person", "quarantine") or self._backoff.failures >= _TRIES:
                raise UserError(f"{self.target.label}: {reply.fault.line}", code=f"upload.{reply.fault.kind}")
            time.sleep(self._backoff.wait_s())


def target_client(target: TargetSettings, settings: UploadSettings, folder: Path) -> TargetClient:
    """A client of its own, for one command; `folder` takes the process's files."""
    backoff = Backoff(settings, Clock(), random.Random())
    return TargetClient(target, settings, ChildRunner(folder), backoff)

"""The parent's side of a target: the process that carries out an order, and what follows when one fails.

The process inherits nothing but the environment and the lock. Times are monotonic, since the wall clock may jump.
"""

import contextlib
import logging
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from seqtrack.errors import UserError
from seqtrack.uploads.scan import NEVER
from seqtrack.uploads.target import Call, Fault, Order, Reply, TargetSettings, UploadSettings, scrub

logger = logging.getLogger(__name__)

# Carries out a call within so many seconds; the last argument is called often, and ends it by returning True.
Runner = Callable[[Call, float, Callable[[], bool]], Reply]
_TICK_S = 0.2
_TRIES = 4
_LEAST_RATE = 50_000.0  # bytes per second
_MAX_TIMEOUT_FACTOR = 64.0
_LONGEST_S, _XET_PAUSE_S = 600.0, 3600.0  # of back-off; after trouble of Xet
_XET_BOUNDS = {
    "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2",
    "HF_XET_CLIENT_RETRY_MAX_DURATION": "10s",
    "HF_XET_CLIENT_READ_TIMEOUT": "45s",
    "HF_XET_CLIENT_CONNECT_TIMEOUT": "8s",
    "HF_XET_CLIENT_AC_MAX_UPLOAD_CONCURRENCY": "2",  # each holds 64 MB in memory
    "HF_XET_TELEMETRY_ENABLED": "false",
    "HF_XET_DEDUPLICATION_GLOBAL_DEDUP_QUERY_ENABLED": "false",  # weights are never there already, and it can hang
}
_QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_VERBOSITY": "error"}


@dataclass(frozen=True)
class Clock:
    """The three things a loop needs of time; a test brings its own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], object] = time.sleep


def run_child(call: Call, deadline_s: float, tick: Callable[[], bool]) -> Reply:
    """Carry out one call in a process that keeps the folder's lock: no second uploader begins next to an orphan."""
    end = time.monotonic() + deadline_s
    # Not a pipe: after its first timeout `communicate` forgets what the pipe has not taken of a large call.
    with os.fdopen(os.memfd_create("call"), "w+b") as given:
        given.write(call.model_dump_json().encode())
        given.seek(0)
        with subprocess.Popen(
            [sys.executable, "-m", "seqtrack.uploads.child"],
            stdin=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            close_fds=False,  # only the lock's can be inherited
            env=child_environment(os.environ, use_xet=call.use_xet),
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which decides what becomes of a batch
        ) as child:  # fmt: skip
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        out, err = child.communicate(timeout=_TICK_S)
                        break
                    if tick() or time.monotonic() > end:
                        return Reply(fault=Fault(kind="timeout", line=f"not done within {deadline_s:.0f} s"))
            finally:
                child.kill()
    if out:
        return Reply.model_validate_json(out)
    last = err.decode(errors="replace").strip().splitlines()[-1:] or ["without a message; out of memory?"]
    return Reply(fault=Fault(kind="network", line=f"the process ended with {child.returncode}: {scrub(last[0])}"))


def child_environment(environ: Mapping[str, str], *, use_xet: bool) -> dict[str, str]:
    """Environment of a process that loads the Hub's client: quiet, with bounds of Xet, without compose's empty ones."""
    chosen = {name: value for name, value in environ.items() if value}
    if "REQUESTS_CA_BUNDLE" in chosen:  # the name that other clients read
        chosen.setdefault("SSL_CERT_FILE", chosen["REQUESTS_CA_BUNDLE"])
    xet = {} if use_xet else {"HF_HUB_DISABLE_XET": "1"}
    return {**_XET_BOUNDS, **chosen, **_QUIET, **xet}


@dataclass
class TargetClient:
    """Sends orders to a target, and decides what follows a failure. `nice` is what the process adds to its niceness."""

    target: TargetSettings
    settings: UploadSettings
    runner: Runner = field(default_factory=lambda: run_child)
    clock: Clock = Clock()
    rng: random.Random = field(default_factory=random.Random)
    nice: int = 0
    fault: Fault | None = None  # the last one; None once an order was carried out
    failures: int = 0  # in a row, without progress
    stored: int = 0  # objects, since an order was carried out
    until: float = NEVER  # nothing is tried before
    timeout_factor: float = 1.0  # doubles with every timeout: a slow line that needs an hour gets it in the end
    xet_from: float = NEVER  # until then large files go over LFS and plain HTTP

    def use_xet(self) -> bool:
        """Whether large files go over Xet now; the variable is the Hub client's own."""
        is_disabled = os.environ.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE")
        return not is_disabled and self.clock.monotonic() >= self.xet_from

    def leave_xet(self) -> None:
        """Use LFS and plain HTTP from now on."""
        self.xet_from = self.clock.monotonic() + _XET_PAUSE_S
        logger.warning("Xet storage may be the cause; large files go over LFS and plain HTTP for an hour")

    def wait_s(self) -> float:
        """Seconds until the next try."""
        return max(0.0, self.until - self.clock.monotonic())

    def send(self, order: Order, num_bytes: int = 0, tick: Callable[[], bool] = lambda: False) -> Reply:
        """Have an order that moves `num_bytes` carried out once, and decide when to try again, and how."""
        settings, factor = self.settings, self.timeout_factor
        scaled = settings.model_copy(update={"read_timeout_s": settings.read_timeout_s * factor})
        call = Call(target=self.target, settings=scaled, order=order, parent=os.getpid(), nice=self.nice)
        call = call.model_copy(update={"use_xet": self.use_xet()})
        reply = self.runner(call, (settings.deadline_s + num_bytes / _LEAST_RATE) * factor, tick)
        now, fault = self.clock.monotonic(), reply.fault
        if fault is None:
            if self.fault is not None:
                logger.info("the target answers again after %d failures", self.failures)
            self.fault, self.until, self.timeout_factor, self.failures, self.stored = None, NEVER, 1.0, 0, 0
            return reply
        is_news = self.fault is None or self.fault.kind != fault.kind
        self.stored += reply.num_stored  # on a bad line fewer files are left each time; none needs to be stored twice
        is_progress = 0 < reply.num_stored <= self.stored <= len(order.files)
        self.failures, self.fault = 1 if is_progress else self.failures + 1, fault
        if fault.kind == "timeout":
            self.timeout_factor = min(_MAX_TIMEOUT_FACTOR, self.timeout_factor * 2.0)
        if fault.kind in ("xet", "timeout") and self.use_xet():  # trouble of Xet can take longer than any deadline
            self.leave_xet()
        if fault.action == "person" and not (fault.kind == "repository" and is_news):  # which is made again
            self.until = now + settings.slow_retry_s
        else:
            # Full jitter, so that many clients spread out.
            longest = min(_LONGEST_S, settings.backoff_s * 2.0 ** min(self.failures - 1, 60))
            self.until = now + max(fault.wait_s, self.rng.uniform(0.0, longest))
        if is_news:  # one line per kind; the status has the rest
            logger.warning("%s; next try in %.0f s", fault.line, self.wait_s())
        return reply

    def request(self, order: Order, num_bytes: int = 0) -> Reply:
        """For whoever waits for the answer: tried again while the fault may pass, and then a UserError."""
        while (fault := (reply := self.send(order, num_bytes)).fault) is not None:
            if fault.action in ("person", "quarantine") or self.failures >= _TRIES:
                raise UserError(f"{self.target.label}: {fault.line}", code=f"upload.{fault.kind}")
            self.clock.sleep(self.wait_s())
        return reply

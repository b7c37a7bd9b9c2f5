"""What the uploader's tests share: an output folder as training writes it, the uploader in a thread or as a process.

Times are scaled by UPLOAD_TUNING. Where processes are not the subject the uploader runs in a thread and its orders in
this process: the real loop, the real client, a real server. `process=True` starts it as users do.
"""

import contextlib
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from uploads.hub_server import Hub

from seqtrack.checkpoints.safetensors_io import TensorBytes
from seqtrack.checkpoints.store import write_checkpoint
from seqtrack.config.environment import read_environment
from seqtrack.uploads.backoff import Clock
from seqtrack.uploads.child import perform
from seqtrack.uploads.client import Outcome
from seqtrack.uploads.errors import Fault
from seqtrack.uploads.settings import choose_target, read_settings
from seqtrack.uploads.uploader import Stop, Uploader

REPO = "me/run"
TOKEN = "hf_writewritewritewrite"
PATIENCE_S = 120.0  # no test is about time: a loaded machine may take as long as this
ROOT = Path(__file__).resolve().parents[2]
FAST: dict[str, float] = {
    "min_commit_interval_s": 0.2,
    "poll_s": 0.05,
    "settle_s": 0.2,
    "start_grace_s": 0.5,
    "grace_s": 120,
    "patience_s": 20,
    "deadline_s": 20,
    "read_timeout_s": 5,
    "connect_timeout_s": 5,
    "request_tries": 1,
    "backoff_s": 0.05,
    "backoff_cap_s": 0.5,
    "slow_retry_s": 0.5,
    "commit_limit_wait_s": 1,
    "heartbeat_s": 5,
}


def environ(hub: Hub, output: Path, *, variables: dict[str, str] | None = None, **tuning: float) -> dict[str, str]:
    """Environment of an uploader that talks to `hub`; `tuning` has fields of `UploadSettings`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "UPLOAD_", "SEQTRACK_"))}
    token = output.parent / "token"
    if not token.exists():
        token.write_text(TOKEN + "\n")
    mine = {
        "OUTPUT_DIR": str(output),
        "HF_REPO": REPO,
        "HF_TOKEN_PATH": str(token),
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(output.parent / "hf"),
        "PYTHONPATH": str(ROOT),
        "UPLOAD_TUNING": json.dumps({**FAST, **tuning}),
    }
    return {**kept, **mine, **(variables or {})}


def content(size: int, seed: object) -> bytes:
    """Bytes that differ from all others of a test."""
    return random.Random(repr(seed)).randbytes(size)


def checkpoint(output: Path, epoch: int, *, size: int = 20_000, phase: int = 1) -> tuple[Path, Path]:
    """A checkpoint as training leaves it, with one tensor of `size` bytes."""
    folder = output / f"phase_{phase}" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"epoch": epoch, "step": epoch * 10, "sample": 0}
    others = {"parent_sha256": None, "config_digest": None, "data_digest": None, "created": "2026-01-01T00:00:00Z"}
    manifest = write_checkpoint(
        folder / f"SEQTRACK_ep{epoch:04d}.safetensors",
        {"model/w": TensorBytes("U8", (size,), memoryview(content(size, (epoch, phase))))},
        facts,
        describe={**facts, **others, "kind": "epoch", "loss": 1.0, "iou": 0.5},
    )
    return manifest.path, manifest.manifest_path


def put(path: Path, data: bytes) -> Path:
    """Temp, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)
    return path


def finish(output: Path, phase: int = 1, state: str = "complete") -> Path:
    """Training's own word that a run is over."""
    values = {
        "format": "seqtrack-run/1", "state": state, "phase": phase, "config": "demo", "resume_epoch": None, "epochs": 4,
        "config_digest": "0" * 64, "data_digest": "1" * 64, "starts": [], "started": "", "updated": "",
    }  # fmt: skip
    return put(output / f"phase_{phase}" / "run.json", json.dumps(values).encode())


class InlineRunner:
    """Carries out orders in this process; made as a `ChildRunner` is."""

    def __init__(self, folder: Path | None = None) -> None:
        pass

    def run(
        self,
        order: dict[str, Any],
        *,
        deadline_s: float,
        on_event: Callable[[dict[str, Any]], None],
        tick: Callable[[], bool],
    ) -> Outcome:
        last: dict[str, Any] = {}

        def emit(event: dict[str, Any]) -> None:
            last.clear()
            last.update(json.loads(json.dumps(event)))
            if event["event"] not in ("done", "fault"):
                on_event(dict(last))
            tick()

        perform({**order, "nice": 0}, emit)
        if last["event"] == "done":
            return Outcome(done=last)
        return Outcome(fault=Fault(**{name: value for name, value in last.items() if name != "event"}))


class Running:
    """The uploader at work; its log is kept."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def said(self) -> str:
        return self.log.read_text()


class UploaderProcess(Running):
    """The uploader as users start it."""

    def __init__(self, env: dict[str, str], *arguments: str, log: Path) -> None:
        super().__init__(log)
        with log.open("ab") as lines:
            command = [sys.executable, "-m", "seqtrack", "upload", *arguments]
            self.process = subprocess.Popen(command, env=env, stdout=lines, stderr=lines, cwd=log.parent)

    def wait(self, timeout: float = PATIENCE_S) -> int:
        return self.process.wait(timeout)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)


class UploaderThread(Running):
    """The uploader in a thread; `wait` returns its exit code or raises what it raised."""

    def __init__(self, env: dict[str, str], *, once: bool, log: Path, clock: Clock | None = None) -> None:
        super().__init__(log)
        self.stop = Stop()
        environment = read_environment(env)
        target = choose_target(environment)
        assert target is not None

        def made() -> Uploader | None:
            try:
                return Uploader(
                    environment.output_dir,
                    target,
                    read_settings(env),
                    clock=clock,
                    runner=InlineRunner(),
                    stop=self.stop,
                )
            except BlockingIOError:  # the child of one that was killed is just ending
                return None

        self.uploader = until(made, what="the lock")
        self._pool = ThreadPoolExecutor(1)
        self._result = self._pool.submit(self._run, once)

    def _run(self, once: bool) -> int:
        with self.uploader:
            return self.uploader.run(once=once)

    def wait(self, timeout: float = PATIENCE_S) -> int:
        return self._result.result(timeout)

    @property
    def has_ended(self) -> bool:
        return self._result.done()


@contextlib.contextmanager
def uploader_process(env: dict[str, str], *arguments: str, log: Path | None = None) -> Iterator[UploaderProcess]:
    """`seqtrack upload` as a process, killed at the end."""
    running = UploaderProcess(env, *arguments, log=log or Path(env["OUTPUT_DIR"]).parent / "uploader.log")
    try:
        yield running
    finally:
        running.kill()


@contextlib.contextmanager
def uploader(env: dict[str, str], *, once: bool = False, clock: Clock | None = None) -> Iterator[UploaderThread]:
    """The uploader in a thread, asked to stop at the end."""
    log = Path(env["OUTPUT_DIR"]).parent / "uploader.log"
    handler = logging.FileHandler(log)
    logger = logging.getLogger("seqtrack")
    level, saved, endpoint = logger.level, dict(os.environ), constants.ENDPOINT
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    os.environ.update(env)  # the token is read from there at each order
    constants.HF_HUB_DISABLE_XET, constants.ENDPOINT = True, env["HF_ENDPOINT"]
    disable_progress_bars()
    running = UploaderThread(env, once=once, log=log, clock=clock)
    try:
        yield running
    finally:
        running.stop.asked.set()
        with contextlib.suppress(Exception):
            running.wait()
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)
        os.environ.clear()
        os.environ.update(saved)
        constants.ENDPOINT = endpoint


def once(env: dict[str, str], *, clock: Clock | None = None) -> int:
    """One pass; returns its exit code."""
    with uploader(env, once=True, clock=clock) as running:
        return running.wait()


def until(condition: Callable[[], Any], timeout: float = PATIENCE_S, what: str = "the condition") -> Any:
    """Wait for something that another process does."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {timeout} s")


def files_of(output: Path) -> dict[str, str]:
    """Digest of every file that must arrive: path in the repo to sha256."""
    found: dict[str, str] = {}
    for path in sorted(output.rglob("*")):
        relative = path.relative_to(output)
        hidden = any(part.startswith(".") for part in relative.parts)
        if path.is_file() and not path.is_symlink() and not hidden and not path.name.endswith((".tmp", ".partial")):
            found[relative.as_posix()] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def on_hub(hub: Hub) -> dict[str, str]:
    """Digest of every file the server holds, less what it made itself."""
    return {path: entry.sha256 for path, entry in hub.tree(REPO).items() if path != ".gitattributes"}


def assert_arrived(hub: Hub, output: Path, *, commits_each: int | None = 1) -> None:
    """Every file arrived with its own digest, in exactly one commit, and nothing was ever seen in a wrong order."""
    assert on_hub(hub) == files_of(output)
    assert hub.violations == []
    if commits_each is not None:
        assert {path: len(hub.commits_of(path)) for path in files_of(output)} == dict.fromkeys(
            files_of(output), commits_each
        )


def status(output: Path) -> dict[str, Any]:
    """The uploader's status file, {} if there is none yet."""
    try:
        return dict(json.loads((output / ".uploads" / "status.json").read_text()))
    except (OSError, ValueError):
        return {}

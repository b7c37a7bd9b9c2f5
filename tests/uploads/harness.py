"""What the uploader's tests share: a Hub, an output folder as training writes it, and the uploader at work.

Where processes are not the subject, the uploader runs in the test itself: the real loop, the real client and a real
server, but a clock that only moves when the loop sleeps. `uploader_process` starts it as users do.
"""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from huggingface_hub.utils._xet import XET_CONNECTION_INFO_CACHE
from uploads.hub_server import Hub
from uploads.xet_server import XetHub

from seqtrack.checkpoints.safetensors_io import TensorBytes
from seqtrack.checkpoints.store import write_checkpoint
from seqtrack.config.environment import read_environment
from seqtrack.uploads.child import perform
from seqtrack.uploads.client import Clock, TargetClient
from seqtrack.uploads.identity import MARKER
from seqtrack.uploads.target import Call, Reply, choose_target, read_settings
from seqtrack.uploads.uploader import Uploader

REPO = "me/run"
TOKEN = "hf_writewritewritewrite"
PATIENCE_S = 120.0  # no test is about time: a loaded machine may take as long as this
ROOT = Path(__file__).resolve().parents[2]
# Of processes, which have a real clock.
FAST: dict[str, float] = {
    "min_commit_interval_s": 0.2,
    "poll_s": 0.05,
    "settle_s": 0.2,
    "start_grace_s": 0.5,
    "patience_s": 20,
    "deadline_s": 20,
    "backoff_s": 0.05,
    "slow_retry_s": 0.5,
}
# Of the uploader in the test: what is real time there.
REAL: dict[str, float] = {"read_timeout_s": 5, "request_tries": 1}


# For tests whose outcome could depend on the way that large files go, and for those of a way's own calls.
BOTH_WAYS = pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
LFS = pytest.mark.parametrize("hub", ["lfs"], indirect=True)


@pytest.fixture
def hub(request: pytest.FixtureRequest) -> Iterator[Hub]:
    """A running server of its own for each test; with Xet storage where it, or SEQTRACK_TEST_HUB=xet, asks for it."""
    kind = getattr(request, "param", os.environ.get("SEQTRACK_TEST_HUB", "lfs"))
    server = (XetHub() if kind == "xet" else Hub()).start()
    yield server
    server.clear()
    server.stop()
    server.discard()


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads in this process: the real client without the process around it."""
    monkeypatch.setattr("seqtrack.uploads.client.run_child", run_inline)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    disable_progress_bars()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder as training leaves it in the middle of a run: seven files."""
    folder = tmp_path / "output"
    checkpoint(folder, 1)
    checkpoint(folder, 2)
    put(folder / "phase_1" / "logs" / "metrics.jsonl", b'{"type": "epoch", "epoch": 1}\n')
    put(folder / "phase_1" / "plots" / "phase_1_loss.png", b"\x89PNG" + bytes(range(256)))
    put(folder / "phase_1" / "config.yaml", b"TRAIN:\n  EPOCH: 2\n")
    return folder


def content(size: int, seed: object) -> bytes:
    """Bytes that differ from all others of a test."""
    return random.Random(repr(seed)).randbytes(size)


def checkpoint(
    output: Path, epoch: int, *, size: int = 20_000, phase: int = 1, kind: str = "epoch"
) -> tuple[Path, Path]:
    """A checkpoint as training leaves it, with one tensor of `size` bytes."""
    folder = output / f"phase_{phase}" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"epoch": epoch, "step": epoch * 10, "sample": 0}
    others = {"parent_sha256": None, "config_digest": None, "data_digest": None, "created": "2026-01-01T00:00:00Z"}
    manifest = write_checkpoint(
        folder / f"SEQTRACK_ep{epoch:04d}.safetensors",
        {"model/w": TensorBytes("U8", (size,), memoryview(content(size, (epoch, phase))))},
        facts,
        describe={**facts, **others, "kind": kind, "loss": 1.0, "iou": 0.5},
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
        "HF_HUB_DISABLE_XET": "" if isinstance(hub, XetHub) else "1",
        "HF_XET_TELEMETRY_ENABLED": "false",
        "HF_XET_XORB_COMPRESSION_POLICY": "none",
        "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1",
        "HF_XET_CLIENT_RETRY_BASE_DELAY": "50ms",
        "HF_XET_DEDUPLICATION_GLOBAL_DEDUP_QUERY_ENABLED": "false",
        "HF_HOME": str(output.parent / "hf"),
        "PYTHONPATH": str(ROOT),
        "UPLOAD_TUNING": json.dumps({**REAL, **tuning}),
    }
    return {**kept, **mine, **(variables or {})}


class FakeTime:
    """Sleeping moves it; nothing else does. `skew` is how far the wall clock was set by hand, in seconds."""

    def __init__(self) -> None:
        self.now, self.skew = 1_000_000.0, 0.0
        self.stop = threading.Event()
        self._alarms: list[tuple[float, Callable[[], object]]] = []

    @property
    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, wall=lambda: self.now + self.skew, sleep=self.sleep)

    def after(self, seconds: float, action: Callable[[], object]) -> None:
        """Do something that many seconds from now, between two rounds of the loop."""
        self._alarms.append((self.now + seconds, action))
        self._alarms.sort(key=lambda alarm: alarm[0])

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)
        while self._alarms and self._alarms[0][0] <= self.now:
            self._alarms.pop(0)[1]()


def run_inline(call: Call, deadline_s: float, tick: Callable[[], bool]) -> Reply:
    """Carries out a call in this process, with what a new one has of earlier calls: nothing."""
    XET_CONNECTION_INFO_CACHE.clear()  # by the server's address, and two tests can get the same port
    constants.HF_HUB_DISABLE_XET = not call.use_xet
    reply = perform(Call.model_validate_json(call.model_dump_json()))
    tick()
    return Reply.model_validate_json(reply.model_dump_json())


class InlineRunner:
    """The same, and keeps when it was called."""

    def __init__(self, time: FakeTime) -> None:
        self._time = time
        self.called_at: list[float] = []

    def __call__(self, call: Call, deadline_s: float, tick: Callable[[], bool]) -> Reply:
        self.called_at.append(self._time.now)
        return run_inline(call, deadline_s, tick)


@contextlib.contextmanager
def uploader(
    hub: Hub, output: Path, *, time: FakeTime | None = None, variables: dict[str, str] | None = None, **tuning: float
) -> Iterator[tuple[Uploader, InlineRunner]]:
    """The uploader in this process, by a clock of its own."""
    env, time = environ(hub, output, variables=variables, **tuning), time or FakeTime()
    runner, environment = InlineRunner(time), read_environment(env)
    target = choose_target(environment)
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - env.keys():
            patch.delenv(name)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # and so again at the end
        disable_progress_bars()
        client = TargetClient(target, read_settings(env), runner, time.clock, random.Random(7))
        with Uploader(output, client, time.stop) as at_work:
            yield at_work, runner


def once(hub: Hub, output: Path, *, time: FakeTime | None = None, **tuning: Any) -> int:
    """One pass; returns its exit code."""
    with uploader(hub, output, time=time, **tuning) as (at_work, _):
        return at_work.run(once=True)


def watch(hub: Hub, output: Path, *, time: FakeTime | None = None, **tuning: Any) -> int:
    """Watch until it ends by itself; returns its exit code."""
    with uploader(hub, output, time=time, **tuning) as (at_work, _):
        return at_work.run()


class UploaderProcess(subprocess.Popen[bytes]):
    """The uploader as users start it; its log is kept."""

    def __init__(self, env: dict[str, str], *arguments: str, log: Path) -> None:
        self.log = log
        with log.open("ab") as lines:
            command = [sys.executable, "-m", "seqtrack", "upload", *arguments]
            super().__init__(command, env=env, stdout=lines, stderr=lines, cwd=log.parent)

    def said(self) -> str:
        return self.log.read_text()

    def end(self) -> int:
        """Its exit code."""
        return self.wait(PATIENCE_S)


@contextlib.contextmanager
def uploader_process(
    hub: Hub, output: Path, *arguments: str, variables: dict[str, str] | None = None, log: Path | None = None,
    **tuning: float,
) -> Iterator[UploaderProcess]:  # fmt: skip
    """`seqtrack upload` as a process, killed at the end."""
    env = environ(hub, output, variables=variables, **{**FAST, **tuning})
    running = UploaderProcess(env, *arguments, log=log or output.parent / "uploader.log")
    try:
        yield running
    finally:
        running.kill()
        running.wait(10)


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
    """Digest of every file the server holds, less its own and the markers of runs."""
    own = (".gitattributes", MARKER)
    return {path: entry.sha256 for path, entry in hub.tree(REPO).items() if not path.endswith(own)}


def assert_arrived(hub: Hub, output: Path, *, commits_each: int | None = 1) -> None:
    """Every file arrived with its own digest, in exactly one commit, and nothing was ever seen in a wrong order."""
    here = files_of(output)
    assert on_hub(hub) == here
    assert hub.violations == []
    if commits_each is not None:
        assert {path: len(hub.commits_of(path)) for path in here} == dict.fromkeys(here, commits_each)
        assert set(hub.puts.values()) <= {1}


def status(output: Path) -> dict[str, Any]:
    """The uploader's status file, {} if there is none yet."""
    try:
        return dict(json.loads((output / ".uploads" / "status.json").read_text()))
    except (OSError, ValueError):
        return {}


def fault_kind(output: Path) -> str | None:
    return (status(output).get("fault") or {}).get("kind")

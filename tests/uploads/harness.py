"""What the uploader's tests share: an output folder as training writes it, the sidecar as a process, one hub server.

Times are scaled by the sidecar's own variables; nothing in the sidecar knows that it is tested.
"""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from uploads.hub_server import Hub

from seqtrack.checkpoints.safetensors_io import TensorBytes
from seqtrack.checkpoints.store import write_checkpoint

REPO = "me/run"
TOKEN = "hf_writewritewritewrite"
ROOT = Path(__file__).resolve().parents[2]
FAST = {
    "UPLOAD_MIN_COMMIT_INTERVAL_S": "0.2",
    "UPLOAD_POLL_S": "0.05",
    "UPLOAD_SETTLE_S": "0.2",
    "UPLOAD_START_GRACE_S": "0.5",
    "UPLOAD_GRACE_S": "10",
    "UPLOAD_PATIENCE_S": "20",
    "UPLOAD_DEADLINE_S": "20",
    "UPLOAD_READ_TIMEOUT_S": "3",
    "UPLOAD_CONNECT_TIMEOUT_S": "2",
    "UPLOAD_REQUEST_TRIES": "1",
    "UPLOAD_BACKOFF_S": "0.05",
    "UPLOAD_BACKOFF_CAP_S": "0.5",
    "UPLOAD_SLOW_RETRY_S": "0.5",
    "UPLOAD_COMMIT_LIMIT_WAIT_S": "1",
    "UPLOAD_HEARTBEAT_S": "5",
}


def environ(hub: Hub, output: Path, **more: str) -> dict[str, str]:
    """Environment of a sidecar that talks to `hub`."""
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
    }
    return {**kept, **FAST, **mine, **more}


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


class Sidecar:
    """The sidecar as a process; its log is kept."""

    def __init__(self, env: dict[str, str], *arguments: str, log: Path) -> None:
        self.log = log
        with log.open("ab") as lines:
            command = [sys.executable, "-m", "seqtrack", "upload", *arguments]
            self.process = subprocess.Popen(command, env=env, stdout=lines, stderr=lines, cwd=log.parent)

    def __enter__(self) -> "Sidecar":
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def wait(self, timeout: float = 40.0) -> int:
        return self.process.wait(timeout)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """End it without a word, and wait until its child is gone, too."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def said(self) -> str:
        return self.log.read_text()


@contextlib.contextmanager
def sidecar(env: dict[str, str], *arguments: str) -> Iterator[Sidecar]:
    """A running sidecar, ended at the end."""
    with Sidecar(env, *arguments, log=Path(env["OUTPUT_DIR"]).parent / "sidecar.log") as running:
        yield running


def once(env: dict[str, str], timeout: float = 60.0) -> int:
    """`seqtrack upload --once`; returns its exit code."""
    with sidecar(env, "--once") as running:
        return running.wait(timeout)


def until(condition: Callable[[], Any], timeout: float = 30.0, what: str = "the condition") -> Any:
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
    """Every file is there with its own digest, in exactly one commit, and nothing was ever seen in a wrong order."""
    assert on_hub(hub) == files_of(output)
    assert hub.violations == []
    if commits_each is not None:
        assert {path: len(hub.commits_of(path)) for path in files_of(output)} == dict.fromkeys(
            files_of(output), commits_each
        )


def status(output: Path) -> dict[str, Any]:
    """What the sidecar says of itself, {} if nothing yet."""
    try:
        return dict(json.loads((output / ".uploads" / "status.json").read_text()))
    except (OSError, ValueError):
        return {}

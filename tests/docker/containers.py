"""Docker for tests: run its commands, copy the repository as a clone would have it, control a compose project."""

import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CANARY = "hf_canaryThatMustNotBeInAnyLayer"
# A run of twenty steps, for tests that only need a start and an end.
SMALL = {"EPOCHS": "2", "OVERRIDES": "DATA.TRAIN.SAMPLE_PER_EPOCH 160"}


def command(words: Sequence[str | Path], *, timeout: float = 120, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and capture its output."""
    kwargs = {"capture_output": True, "text": True, **kwargs}
    return subprocess.run([str(word) for word in words], timeout=timeout, check=False, **kwargs)


def docker(*words: str, timeout: float = 120) -> str:
    """Output of a docker command that must succeed."""
    answer = command(["docker", *words], timeout=timeout)
    assert answer.returncode == 0, f"docker {' '.join(words)}:\n{answer.stdout[-3000:]}\n{answer.stderr[-3000:]}"
    return answer.stdout


@dataclass
class Project:
    """A clone with its own compose project."""

    folder: Path
    image: str
    files: tuple[str, ...] = ("compose.yaml", "compose.cpu.yaml")
    variables: dict[str, str] = field(default_factory=dict)
    name: str = field(default_factory=lambda: f"seqtrack-test-{uuid.uuid4().hex[:8]}")

    @property
    def output(self) -> Path:
        return self.folder / "output"

    def compose(self, *words: str, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        """`docker compose WORDS` in the clone."""
        return command(timeout=timeout, **self._command(words, variables))

    def start(self, *words: str, **variables: str) -> subprocess.Popen[str]:
        """The same, without waiting."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        arguments = self._command(words, variables)
        return subprocess.Popen(arguments.pop("words"), text=True, **streams, **arguments)

    def container(self, service: str) -> dict[str, Any]:
        """The engine's description of a service's container."""
        name = self.compose("ps", "--all", "--quiet", service).stdout.strip()
        assert name, f"no container of {service}: {self.compose('ps', '--all').stdout}"
        details: dict[str, Any] = json.loads(docker("inspect", name))[0]
        return details

    def exit_code(self, service: str) -> int:
        state = self.container(service)["State"]
        assert state["Status"] == "exited", state
        return int(state["ExitCode"])

    def checkpoints(self, phase: int = 1, kind: str = "ep") -> list[str]:
        return sorted(path.stem for path in (self.output / f"phase_{phase}/checkpoints").glob(f"SEQTRACK_{kind}*.json"))

    def records(self) -> list[dict[str, Any]]:
        """The lines of phase 1's metrics.jsonl so far."""
        path = self.output / "phase_1/logs/metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def down(self) -> None:
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "0")

    def _command(self, words: Sequence[str], variables: dict[str, str]) -> dict[str, Any]:
        options = [word for file in self.files for word in ("-f", file)]
        base = ["docker", "compose", "--project-directory", ".", "--project-name", self.name, "--ansi", "never"]
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "DOCKER_HOST", "TMPDIR") if name in os.environ}
        env = {**kept, "IMAGE": self.image, **self.variables, **variables}
        return {"words": [*base, *options, *words], "cwd": self.folder, "env": env, "stdin": subprocess.DEVNULL}


def wait_until(what: str, done: Callable[[], Any], *, seconds: float = 60) -> Any:
    """Poll until `done()` returns something true."""
    end = time.monotonic() + seconds
    while not (answer := done()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.1)
    return answer

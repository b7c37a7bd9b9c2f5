"""Kaggle's notebook in containers like Kaggle's machines: no network inside, read-only input, a small disk, SIGKILL.

Three sessions end as one that was never stopped, in every bit.
"""

import re
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts.test_notebooks import KAGGLE_SETTINGS, KILLED_AT, assert_sessions_equal, program, write_substitutes

from docker.containers import command, docker, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.long, pytest.mark.timeout(1500)]
DISK = "120m"  # in place of 20 GB: data, two phases, their evaluation and a copy of the session before


class Machine:
    """The disk of one session, which outlives its container: a tmpfs that another container keeps mounted."""

    def __init__(self, image: str, program_folder: Path, inputs: Path) -> None:
        self.image, self.name = image, f"seqtrack-test-{uuid.uuid4().hex[:8]}"
        self.mounts = ["-v", f"{self.name}:/kaggle/working", "-v", f"{inputs}:/kaggle/input:ro",
                       "-v", f"{program_folder}:/notebook:ro"]  # fmt: skip
        options = [word for one in ("type=tmpfs", "device=tmpfs", f"o=size={DISK}") for word in ("--opt", one)]
        docker("volume", "create", "--driver", "local", *options, self.name)
        docker("run", "-d", "--name", f"{self.name}-disk", *self.mounts, "--entrypoint", "sleep", image, "1500")

    def start(self, log: Path) -> "subprocess.Popen[bytes]":
        variables = {"PYTHONPATH": "/app:/notebook", "PATH": "/notebook/bin:/opt/venv/bin:/usr/bin:/bin"}
        words = [word for pair in variables.items() for word in ("-e", "=".join(pair))]
        words += ["-e", "DEVICE=cpu", "--network", "none", "--shm-size", "1g", "-w", "/tmp", "--entrypoint", "python"]
        words = ["docker", "run", "--name", self.name, *self.mounts, *words, self.image, "/notebook/program.py"]
        with log.open("w") as file:  # a pipe that nobody reads would fill up and stop the session
            return subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT)

    def has(self, path: str) -> bool:
        return command(["docker", "exec", f"{self.name}-disk", "test", "-e", f"/kaggle/working/{path}"]).returncode == 0

    def copy_to(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        docker("cp", f"{self.name}-disk:/kaggle/working/.", str(folder))

    def remove(self) -> None:
        command(["docker", "rm", "--force", self.name, f"{self.name}-disk"])
        command(["docker", "volume", "rm", "--force", self.name])


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    made: list[Machine] = []
    yield made
    for one in made:
        one.remove()


def test_three_sessions_killed_without_a_signal_end_as_one(image: str, machines: list[Machine], tmp_path: Path) -> None:
    write_substitutes(tmp_path / "program", python="/opt/venv/bin/python")
    (tmp_path / "program" / "program.py").write_text(program("kaggle", KAGGLE_SETTINGS))
    inputs = tmp_path / "empty"
    inputs.mkdir()

    def new_machine() -> Machine:
        machines.append(Machine(image, tmp_path / "program", inputs))
        return machines[-1]

    log = tmp_path / "log"
    whole = new_machine()
    whole.start(log).wait(600)
    said = log.read_text()
    assert re.search(r"codes \[[01], 0\]", said), said[-5000:]  # `doctor` calls the disk small, which it is
    whole.copy_to(tmp_path / "whole")
    for number, seen in enumerate(KILLED_AT):
        machine = new_machine()
        with machine.start(log) as process:
            wait_until(
                seen, lambda m=machine, s=seen, p=process: m.has(f"output/{s}") or p.poll() is not None, seconds=300
            )
            docker("kill", "--signal", "KILL", machine.name)
            assert process.wait(60) == 137
        inputs = tmp_path / f"input_{number}"
        machine.copy_to(inputs / "earlier")
        machine.remove()
    last = new_machine()
    last.start(log).wait(600)
    said = log.read_text()
    assert re.search(r"codes \[[01], 0\]", said), said[-5000:]  # `doctor` calls the disk small, which it is
    last.copy_to(tmp_path / "parts")
    assert_sessions_equal(tmp_path / "parts" / "output", tmp_path / "whole" / "output")

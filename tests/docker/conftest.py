"""Containers for tests: the image, built once from the files as they would be committed, and compose projects.

Everything that a test starts is removed again: containers, networks, volumes, and at the end the image.
"""

import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import copy_of_the_repository
from uploads.harness import hub
from uploads.http_proxy import proxy

from docker.containers import CANARY, Project, command

__all__ = ["hub", "image", "make_project", "proxy"]


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image, built from a repository that also contains a token and a run's output."""
    if shutil.which("docker") is None or command(["docker", "info"], timeout=30).returncode != 0:
        pytest.skip("no Docker engine answers")
    folder = copy_of_the_repository(tmp_path_factory.mktemp("build"))
    (folder / ".env").write_text(f"HF_TOKEN={CANARY}\n")
    for name in ("output/phase_1/token", "data/token", "hf_token", ".hf_token", "secrets/hf_token"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CANARY)
    tag = f"seqtrack-test:{uuid.uuid4().hex[:8]}"
    digest = command(["sha256sum", folder / "requirements.lock"]).stdout.split()[0]
    arguments = ["--build-arg", "COMMIT=0123abcd", "--build-arg", f"LOCK_DIGEST={digest}"]
    answer = command(["docker", "build", "--target", "image", "-t", tag, *arguments, folder], timeout=900)
    assert answer.returncode == 0, answer.stderr[-5000:]
    shutil.rmtree(folder)
    yield tag
    command(["docker", "image", "rm", "--force", tag])


@pytest.fixture
def make_project(image: str, tmp_path: Path) -> Iterator[Callable[..., Project]]:
    """Make clones with compose projects; all are removed afterwards."""
    made: list[Project] = []

    def make(**options: Any) -> Project:
        folder = copy_of_the_repository(tmp_path / f"clone-{len(made)}")
        made.append(Project(folder, image, **options))
        return made[-1]

    yield make
    for project in made:
        project.down()

"""Copies of real runs for all tests of this folder."""

import shutil
from pathlib import Path

import pytest
from runs import Ended, demo_data, environment, finished, resumed, start, uninterrupted

__all__ = ["demo_data", "finished", "resumed", "uninterrupted"]


def run_command(output: Path, data: Path, *arguments: str, **variables: object) -> Ended:
    with start(environment(output, data, **variables), *arguments) as running:
        return running.end()


@pytest.fixture
def pair(resumed: Path, tmp_path: Path) -> Path:
    """A copy of `resumed`, which a test may change."""
    return Path(shutil.copytree(resumed, tmp_path / "pair"))


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "output"))

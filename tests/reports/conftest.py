"""Copies of real runs for all tests of this folder."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def pair(resumed: Path, tmp_path: Path) -> Path:
    """A copy of `resumed`, which a test may change."""
    return Path(shutil.copytree(resumed, tmp_path / "pair"))


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "output"))

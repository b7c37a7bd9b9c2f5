"""Copies of real runs for all tests of this folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqtrack import plotting


@pytest.fixture(autouse=True, scope="session")
def _coarse_plots() -> Iterator[None]:
    """Plots of a quarter of the pixels: half of the time of these tests is the writing of images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "_DPI", plotting._DPI // 2)
        yield


@pytest.fixture
def pair(resumed: Path, tmp_path: Path) -> Path:
    """A copy of `resumed`, which a test may change."""
    return Path(shutil.copytree(resumed, tmp_path / "pair"))


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "output"))

"""Copies of real runs for all tests of this folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from seqtrack import plotting


@pytest.fixture(autouse=True, scope="module")
def _quick_plots() -> Iterator[None]:
    """Plots with half the resolution and without a layout, which would take most of the time of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plotting, "_DPI", plotting._DPI // 2)
        patch.setattr(Figure, "get_layout_engine", lambda self: None)
        yield


@pytest.fixture
def pair(resumed: Path, tmp_path: Path) -> Path:
    """A copy of `resumed`, which a test may change."""
    return Path(shutil.copytree(resumed, tmp_path / "pair"))


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "output"))

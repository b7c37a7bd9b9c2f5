"""Fixtures shared by the tests of data: a small data set by names of sequences."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.makers import write_sequence

Make = Callable[..., Path]


@pytest.fixture
def make_lasot(tmp_path: Path) -> Make:
    """Write sequences of these names under a root and return it."""

    def make(*names: str) -> Path:
        for name in names:
            write_sequence(tmp_path / "data" / name.rsplit("-", 1)[0] / name)
        return tmp_path / "data"

    return make

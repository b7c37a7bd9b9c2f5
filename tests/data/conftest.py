"""What tests of data share: a cache folder of their own, and a small data set by names of sequences."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.makers import write_sequence

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _caches_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the annotation cache of the person who runs it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def make_lasot(tmp_path: Path) -> Make:
    """Write sequences of these names under a root and return it."""

    def make(*names: str, root: str = "data", frames: int = 24, **options: int | bool) -> Path:
        for name in names:
            write_sequence(tmp_path / root / name.rsplit("-", 1)[0] / name, frames, **options)
        return tmp_path / root

    return make

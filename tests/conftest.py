"""Fixtures for all tests: the folders of real data and reference outputs, and CI's rule about skipping.

A test that needs something which is missing is skipped. In CI everything is available, so a skip fails the run there.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from runs import demo_data, finished, quicken_plots, resumed, uninterrupted

from seqtrack import plotting

__all__ = ["demo_data", "finished", "resumed", "uninterrupted"]

# `nohup` and some CI systems start programs with SIGHUP ignored, which children would inherit.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# So that a test's subprocesses and loader workers share two cores instead of fighting for them.
os.environ.setdefault("OMP_NUM_THREADS", "1" if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1 else "2")


def _folder(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set")
    folder = Path(value).resolve()
    if not folder.is_dir():
        pytest.fail(f"{variable}={value}: there is no such folder")
    return folder


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real frames, annotations and trackers' boxes."""
    return _folder("SEQTRACK_TEST_DATA")


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of reference outputs."""
    return _folder("SEQTRACK_GOLDENS")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "none", str(folder)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One compute thread while a test runs.

    A model as small as the tests' is slower on two, and many times slower where another process wants the cores.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# What takes longest, in the order in which it is begun, so that no process is left alone with one at the end.
_LONGEST = [
    "docker",
    "uploads",
    "test_local.py",
    "test_golden_model.py",
    "test_several_processes.py",
    "reports",
    "test_interrupted_runs.py",
    "test_failing_ranks.py",
    "test_gpu_check.py",
    "test_golden_tracker.py",
    "test_signals_and_screen.py",
    "test_doctor.py",
]


def _group(item: pytest.Item) -> str:
    """Tests of one group run in one process.

    A file's fixtures are made once per process. Everything that needs Docker shares an image. Uploads mostly wait: they
    fill the pauses of the others. The reports' tests share a long run.
    """
    if item.get_closest_marker("docker"):
        return "docker"
    if item.path.parent.name == "uploads" or item.path.name.startswith("test_uploads_"):
        return "uploads"
    is_report = item.path.parent.name == "reports" or item.path.name == "test_formats.py"
    return "reports" if is_report else item.path.name


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests have an hour. With several processes: keep groups together, and start the longest first."""
    for item in items:
        if item.get_closest_marker("long") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(3600))
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    groups = {item: _group(item) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(groups[item], len(places)))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI, turn skips, which `-ra` lists, into exit code 1."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and exitstatus == 0 and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


_layout_engine, _dpi = Figure.get_layout_engine, plotting._DPI


@pytest.fixture(autouse=True, scope="session")
def quick_plots() -> Iterator[None]:
    """In this process too, as in the forked ones."""
    with pytest.MonkeyPatch.context() as patch:
        quicken_plots(patch)
        yield


@pytest.fixture
def real_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots as users see them after all."""
    monkeypatch.setattr(plotting, "_DPI", _dpi)
    monkeypatch.setattr(Figure, "get_layout_engine", _layout_engine)


@pytest.fixture(autouse=True)
def environment_and_hub_client_of_its_own() -> Iterator[None]:
    """Undo what a test leaves in its process: variables set by a command, the Hub library's client factory."""
    variables = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(variables)
    if http := sys.modules.get("huggingface_hub.utils._http"):
        http.set_client_factory(http.default_client_factory)

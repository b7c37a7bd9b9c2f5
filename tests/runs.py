"""Whole training runs as processes of their own, for the tests that kill, fill, starve and compare them.

A run is started in one of two ways. `command` is what a user types, with an interpreter of its own (seconds, for torch
has to be imported). `start` forks a process that has everything imported already and calls the same `main`: real
signals, real exit codes, real files, a tenth of the time.
"""

import fcntl
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from seqtrack import plotting
from seqtrack.checkpoints.side_files import read_metrics
from seqtrack.checkpoints.store import Manifest, list_checkpoints, write_checkpoint
from seqtrack.config.environment import VARIABLES
from seqtrack.run_dir import epoch_name
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 900.0
# What training and models of the tests run on; "cuda" on a machine with a GPU.
TEST_DEVICE = os.environ.get("SEQTRACK_TEST_DEVICE", "cpu")

# Small enough that a whole run takes about a second, with dropout, so that the seed of each step matters.
TINY = {
    "MODEL.HIDDEN_DIM": "32",
    "MODEL.ENCODER.EMBED_DIM": "32",
    "MODEL.ENCODER.DEPTH": "1",
    "MODEL.ENCODER.NUM_HEADS": "2",
    "MODEL.DECODER.NHEADS": "2",
    "MODEL.DECODER.DEC_LAYERS": "1",
    "MODEL.DECODER.DIM_FEEDFORWARD": "64",
    "MODEL.DECODER.DROPOUT": "0.1",
    "TRAIN.LR": "1e-3",
    "TRAIN.NUM_WORKER": "0",
    "TRAIN.SCHEDULER.WARMUP_STEPS": "4",
    "TRAIN.PRINT_INTERVAL": "16",
    "DATA.TRAIN.SAMPLE_PER_EPOCH": "88",
}


@dataclass(frozen=True)
class Ended:
    """How a process ended, and its output."""

    code: int
    said: str

    @property
    def codes(self) -> list[str]:
        """The codes of the errors that it reported, in order."""
        return re.findall(r"^error \[([a-z0-9_.]+)\]: ", self.said, re.MULTILINE)


def environment(
    output: Path, data: Path, keys: Mapping[str, object] | None = None, **variables: object
) -> dict[str, str]:
    """Environment of a run: TINY with `keys` laid over it, nothing of the caller's own settings, then `variables`."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES and name != "CI"}
    overrides = {**TINY, **(keys or {})}
    return {
        **kept,
        "PYTHONPATH": str(ROOT),
        "OUTPUT_DIR": str(output),
        "DATA_DIR": str(data),
        "DATASET": "demo",
        "DEVICE": TEST_DEVICE,
        "EPOCHS": "3",
        "OVERRIDES": " ".join(f"{key} {value}" for key, value in overrides.items()),
        **{name: str(value) for name, value in variables.items()},
    }


def command(*words: str, env: Mapping[str, str], cwd: Path | None = None, timeout: float = PATIENCE_S) -> Ended:
    """Run `python -m seqtrack WORDS` as a user would."""
    done = subprocess.run(
        [sys.executable, "-m", "seqtrack", *words],
        env=dict(env),
        cwd=cwd or tempfile.gettempdir(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ended(done.returncode, done.stdout)


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "seqtrack.train",
        "seqtrack.commands.train",
        "seqtrack.cli",
        "seqtrack.reports.plots",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "seqtrack.commands.evaluate",
        "seqtrack.evaluation.run",
        "seqtrack.commands.audit",
        "seqtrack.proof.audit",
        "torch.utils.tensorboard",
    ]
)


def quicken_plots(patch: pytest.MonkeyPatch) -> None:
    """Half the resolution and no layout, which would take most of the time of the tests that draw."""
    patch.setattr(plotting, "_DPI", plotting._DPI // 2)
    patch.setattr(Figure, "get_layout_engine", lambda self: None)


def _become(words: list[str], env: dict[str, str], log: str, prepare: Callable[[], None] | None) -> None:
    from seqtrack.cli import main

    os.environ.clear()
    os.environ.update(env)
    os.chdir(tempfile.gettempdir())
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    quicken_plots(pytest.MonkeyPatch())
    if prepare is not None:
        prepare()
    sys.exit(main(words))


class Running:
    """A run in progress."""

    def __init__(self, process: BaseProcess, log: Path, env: Mapping[str, str]) -> None:
        self.process = process
        self.env = env
        self.log = log

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def signal(self, number: int) -> None:
        if self.process.is_alive() and self.process.pid:
            os.kill(self.process.pid, number)

    def until(self, happened: Callable[[], bool], *, every_s: float = 0.002) -> bool:
        """Watch for something; False if the run ended before it happened."""
        end = time.monotonic() + PATIENCE_S
        while not happened():
            if not self.process.is_alive():
                return happened()
            if time.monotonic() > end:
                raise AssertionError(f"it did not happen within {PATIENCE_S:.0f} s; the run said:\n{self.said()}")
            time.sleep(every_s)
        return True

    def end(self, *, within_s: float = PATIENCE_S) -> Ended:
        """Wait for the end."""
        self.process.join(within_s)
        code = self.process.exitcode
        if code is None:
            self.signal(signal.SIGKILL)
            self.process.join()
            raise AssertionError(f"the run did not end within {within_s:.0f} s; it said:\n{self.said()}")
        return Ended(code, self.said())


@contextmanager
def start(env: Mapping[str, str], *words: str, prepare: Callable[[], None] | None = None) -> Iterator[Running]:
    """Fork a run; it is killed if the block leaves it behind. `prepare` is called in it first, to plant a fault."""
    handle, log = tempfile.mkstemp(suffix=".log")
    os.close(handle)
    process = _FORKS.Process(target=_become, args=(list(words or ("train",)), dict(env), log, prepare))
    process.start()
    running = Running(process, Path(log), env)
    try:
        yield running
    finally:
        running.signal(signal.SIGKILL)
        process.join()
        Path(log).unlink(missing_ok=True)


def train(env: Mapping[str, str]) -> Ended:
    """A forked run to its end."""
    with start(env) as running:
        return running.end()


def completed(env: Mapping[str, str]) -> Ended:
    """A forked run that must end well."""
    ended = train(env)
    assert ended.code == 0, ended.said
    return ended


def children(pid: int) -> list[int]:
    """Process ids of the processes that this one started; none if it ended."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def log_of(output: Path) -> str:
    """The human-readable log of phase 1."""
    (path,) = (output / "phase_1" / "logs").glob("*.log")
    return path.read_text()


def epochs(folder: Path) -> dict[int, Manifest]:
    """A run folder's checkpoints by epoch."""
    return {item.epoch: item for item in list_checkpoints(folder / "checkpoints", kinds=("epoch",))}


def numbers(folder: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` in their order, without what depends on the clock."""
    return [
        record.model_dump(exclude=set(WALL_CLOCK_FIELDS))
        for record in read_metrics(folder / "logs" / "metrics.jsonl").records
    ]


def assert_same_run(ours: Path, uninterrupted: Path) -> None:
    """Every checkpoint's bytes, every manifest's fields but the date, every number of the log, in order."""
    mine, theirs = epochs(ours), epochs(uninterrupted)
    assert sorted(mine) == sorted(theirs)
    for epoch, manifest in mine.items():
        assert manifest.path.read_bytes() == theirs[epoch].path.read_bytes(), f"epoch {epoch}"
        for name, value in manifest.model_dump().items():
            if name not in ("created", "config"):  # the configuration may differ where it need not match
                assert value == theirs[epoch].model_dump()[name], (epoch, name)
    assert numbers(ours) == numbers(uninterrupted)


def save_epoch(output: Path, epoch: int, model: Any, config: Any) -> None:
    """A checkpoint of phase 1 with a model's weights and, unless it is None, its configuration."""
    from seqtrack.checkpoints.tensors import tensor_bytes
    from seqtrack.config.loader import config_digest

    folder = output / "phase_1" / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        "kind": "epoch", "epoch": epoch, "step": 10 * epoch, "sample": 0, "loss": None, "iou": None,
        "parent_sha256": None, "data_digest": None, "created": "2026-01-01T00:00:00Z",
        "config_digest": config and config_digest(config), "config": config and config.model_dump(mode="json"),
    }  # fmt: skip
    tensors = {f"model/{name}": tensor_bytes(value) for name, value in model.state_dict().items()}
    write_checkpoint(folder / epoch_name(epoch), tensors, {"epoch": epoch}, describe=described)


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder below `folder` with its time of change and its bytes: equal before and after means that
    nothing was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def copy_of_the_repository(folder: Path) -> Path:
    """The files that a clone of the working tree would have, and no others."""
    words = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    listing = subprocess.run(words, capture_output=True, text=True, check=True)
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def _made_once(name: str, factory: pytest.TempPathFactory, make: Callable[[Path], object]) -> Path:
    """A folder that `make` fills, once for all processes and test folders of a session. Change nothing in it."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, done = shared / name, shared / f"{name}.done"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data set."""
    from seqtrack.data.demo import demo_set

    if drawn := os.environ.get("TEST_DEMO_DATA"):  # set where many sessions follow each other
        demo_set().ensure(Path(drawn))
        return Path(drawn)
    return _made_once("data", tmp_path_factory, demo_set().ensure)


@pytest.fixture(scope="session")
def uninterrupted(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an uninterrupted run of TINY; a copy of this process, for a run locks its folder."""
    made = _made_once("uninterrupted", tmp_path_factory, lambda output: completed(environment(output, demo_data)))
    return Path(shutil.copytree(made, tmp_path_factory.mktemp("uninterrupted") / "output"))


@pytest.fixture(scope="session")
def resumed(uninterrupted: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`uninterrupted` with a phase 2 that resumed after epoch 1."""

    def make(output: Path) -> None:
        shutil.copytree(uninterrupted, output)
        completed(environment(output, demo_data, PHASE=2, RESUME_EPOCH=1))

    return _made_once("resumed", tmp_path_factory, make)


@pytest.fixture(scope="session")
def finished(uninterrupted: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with every file that commands write.

    Phase 2 logs at another interval than phase 1, and validates, which phase 1 did not.
    """

    def make(output: Path) -> None:
        shutil.copytree(uninterrupted, output)
        keys = {"TRAIN.PRINT_INTERVAL": 32, "TRAIN.VALIDATION_INTERVAL": 2, "TRAIN.VALIDATION_SEQUENCES": 1}
        completed(environment(output, demo_data, keys, PHASE=2, RESUME_EPOCH=1))
        target = f"folder:{output.parent / 'target'}"
        env = environment(output, demo_data, UPLOAD_TARGET=target, UPLOAD_TUNING='{"settle_s": 0.2}')
        for words in (
            ("audit", "phase_1", "--steps", "2"),
            ("evaluate", "--phase", "1", "--sequences", "disk-21,tile-21", "--untrained"),
            ("upload", "--once"),
            ("report", "--html"),
        ):
            with start(env, *words) as running:
                ended = running.end()
            assert ended.code == 0, (words, ended.said)

    return _made_once("finished", tmp_path_factory, make)

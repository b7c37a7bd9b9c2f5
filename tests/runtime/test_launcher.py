"""The launcher with small processes that end in every way that a process of a run can end."""

import signal
import sys
from pathlib import Path

import pytest

from seqtrack.config.environment import Environment
from seqtrack.errors import RunError, UserError
from seqtrack.runtime import launcher
from seqtrack.runtime.launcher import launch

# Each records its process id and the start of the run that it belongs to; `wait` never returns.
PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from seqtrack.runtime.launcher import Ending, leave_ending, mark_joined
from seqtrack.errors import Problem
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
(folder / f"start {os.getpid()} {Path(os.environ['_SEQTRACK_LAUNCH_FOLDER']).name}").touch()
def wait():
    while True:
        signal.pause()
def met():  # as a collective would hold them until all have arrived
    (folder / f"met {os.getpid()}").touch()
    while len(list(folder.glob("met *"))) % int(os.environ["WORLD_SIZE"]):
        time.sleep(0.001)
    mark_joined()
def end(code, *problems):
    leave_ending(Ending(code, [Problem(*problem) for problem in problems]))
    os._exit(code)
"""
LOST_PEER = "end(1, ('a peer ended', 'run.peer_lost'))"
DIES = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_GRACE_S", 0.3)
    monkeypatch.delenv(launcher.LAUNCH_FOLDER, raising=False)


def run(tmp_path: Path, script: str, processes: int = 3, *, restarts: int = 0) -> tuple[int | str, int]:
    """The exit code of the run or the code of its error, and how often the run was started. None may be left."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        words = [sys.executable, "-c", PREAMBLE + script, str(tmp_path)]
        ended: int | str = launch(words, processes, Environment(max_restarts=restarts))
    except (RunError, UserError) as error:
        ended = error.code
    started = [path.name.split() for path in tmp_path.glob("start *")]
    assert [process for _, process, _ in started if Path("/proc", process).exists()] == []
    assert signal.getsignal(signal.SIGTERM) is before
    return ended, len({folder for _, _, folder in started})


@pytest.mark.parametrize("joined", ["met()", ""], ids=["met", "before they met"])
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ("end(1, ('no memory', 'device.out_of_memory'))", "device.out_of_memory"),
        (DIES, "run.process_died"),
        ("os._exit(9)", "run.process_died"),
    ],
)
def test_one_failure_ends_processes_that_no_signal_reaches_and_is_the_reason_given(
    joined: str, failure: str, code: str, tmp_path: Path
) -> None:
    script = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{joined}\nif rank == 1: {failure}\nwait()"
    assert run(tmp_path, script) == (code, 1)


def test_each_process_knows_its_place_and_how_many_share_the_machine(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    script = f"(folder / f'place {{rank}}').write_text(' '.join(os.environ[name] for name in {names})); met(); end(0)"
    assert run(tmp_path, script) == (0, 1)
    assert [path.read_text() for path in sorted(tmp_path.glob("place *"))] == ["0 0 3 3", "1 1 3 3", "2 2 3 3"]


# The reason comes last; both others have ended before.
REASON_LAST = f"""
met()
if rank != 2: {LOST_PEER}
while len(list(Path(os.environ["_SEQTRACK_LAUNCH_FOLDER"]).glob("ending*"))) < 2: time.sleep(0.001)
end(1, ("the loss is nan", "train.not_finite"))
"""
STOP = "if rank == 0: os.kill(os.getppid(), signal.SIGTERM)\nwait()"


@pytest.mark.parametrize(
    ("script", "restarts", "expected"),
    [
        ("met(); end(0)", 2, (0, 1)),
        ("met()\nif rank == 0: time.sleep(1.0)\nend(0)", 0, (0, 1)),
        (REASON_LAST, 0, ("train.not_finite", 1)),
        (f"met(); {LOST_PEER}", 0, ("run.peer_lost", 1)),
        ("met(); end(int(rank == 2))", 2, (1, 1)),
        ("met(); end(2, ('no such key', 'config.unknown_key'))", 2, ("config.unknown_key", 1)),
        ("end(2, ('no such key', 'config.unknown_key'))", 2, ("config.unknown_key", 1)),
        (f"met(); {DIES}", 2, ("run.process_died", 3)),
        ("met()\nif len(list(folder.glob('start *'))) == 3: os._exit(9)\nend(0)", 2, (0, 2)),
        (f"signal.signal(signal.SIGTERM, lambda *_: end(75))\nmet()\n{STOP}", 2, (75, 1)),
        (f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{STOP}", 0, (75, 1)),
        ("if rank == 1: os._exit(75)\nwait()", 0, (75, 1)),
    ],
    ids=[
        "complete", "a slow one is waited for", "the cause and not a lost peer", "a peer of another machine",
        "a verdict", "a user error", "a user error before they met", "restarts are limited", "a restart helps", "stop",
        "a stop before they met waits for nobody", "one stopped before it had handlers",
    ],
)  # fmt: skip
def test_how_a_run_ends(script: str, restarts: int, expected: tuple[int | str, int], tmp_path: Path) -> None:
    assert run(tmp_path, script, restarts=restarts) == expected

"""The launcher with small processes that end in every way that a process of a run can end."""

import os
import signal
import sys
from pathlib import Path

import pytest

from seqtrack.errors import RunError, UserError
from seqtrack.runtime import launcher
from seqtrack.runtime.launcher import Launch, launch

# Each records its start, its process id and the start of the run that it belongs to; `wait` never returns.
PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
from seqtrack.runtime.launcher import Ending, leave_ending, mark_joined
from seqtrack.errors import Problem
rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
(folder / f"{time.monotonic_ns()} {os.getpid()} {Path(os.environ['_SEQTRACK_LAUNCH_FOLDER']).name}").touch()
def wait():
    while True:
        signal.pause()
def met():  # as a collective would hold them until all have arrived
    (folder / f"met {os.getpid()}").touch()
    while len(list(folder.glob("met *"))) % int(os.environ["WORLD_SIZE"]):
        time.sleep(0.001)
    mark_joined()
def end(code, *problems, **how):
    leave_ending(Ending(code, [Problem(*problem) for problem in problems], **how))
    os._exit(code)
"""


def run(tmp_path: Path, script: str, how: Launch | None = None) -> int:
    os.environ.pop(launcher.LAUNCH_FOLDER, None)
    return launch([sys.executable, "-c", PREAMBLE + script, str(tmp_path)], how or Launch(3))


def starts(tmp_path: Path) -> list[int]:
    """Process ids of everything that was started."""
    return [int(path.name.split()[1]) for path in tmp_path.glob("[0-9]*")]


def starts_of_the_run(tmp_path: Path) -> int:
    """How often the processes were started: each time has a folder of its own."""
    return len({path.name.split()[2] for path in tmp_path.glob("[0-9]*")})


def assert_none_left(tmp_path: Path) -> None:
    assert starts(tmp_path)
    assert [process for process in starts(tmp_path) if Path("/proc", str(process)).exists()] == []


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_GRACE_S", 0.3)


def test_a_run_whose_processes_all_complete(tmp_path: Path) -> None:
    assert run(tmp_path, "met(); end(0, designed=True)") == 0
    assert len(starts(tmp_path)) == 3


@pytest.mark.parametrize("joined", ["met()", ""], ids=["met", "before they met"])
@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ("end(1, ('no memory', 'device.out_of_memory'))", "device.out_of_memory"),
        ("end(1, ('process 1: ValueError: x', 'run.unexpected_error'))", "run.unexpected_error"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "run.process_died"),
        ("os._exit(9)", "run.process_died"),
    ],
)
def test_one_failure_ends_processes_that_no_signal_reaches_and_is_the_reason_given(
    joined: str, failure: str, code: str, tmp_path: Path
) -> None:
    script = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{joined}\nif rank == 1: {failure}\nwait()"
    with pytest.raises(RunError) as caught:
        run(tmp_path, script)
    assert caught.value.code == code
    assert_none_left(tmp_path)


def test_the_reason_is_the_failure_and_not_a_lost_peer_that_ended_first(tmp_path: Path) -> None:
    script = """
met()
if rank != 2: end(1, ("a peer ended", "run.peer_lost"), lost_peer=True)
while len(list(Path(os.environ["_SEQTRACK_LAUNCH_FOLDER"]).glob("ending*"))) < 2: time.sleep(0.001)
end(1, ("the loss is nan", "train.not_finite"))
"""
    with pytest.raises(RunError) as caught:
        run(tmp_path, script)
    assert caught.value.code == "train.not_finite"


def test_where_all_lost_a_peer_on_another_machine_that_is_the_reason(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        run(tmp_path, "met(); end(1, ('a peer ended', 'run.peer_lost'), lost_peer=True)")
    assert caught.value.code == "run.peer_lost"


@pytest.mark.parametrize("rank", [0, 2])
def test_a_verdict_is_the_exit_code_and_nothing_starts_again(rank: int, tmp_path: Path) -> None:
    assert run(tmp_path, f"met(); end(int(rank == {rank}), designed=True)", Launch(3, max_restarts=2)) == 1
    assert len(starts(tmp_path)) == 3


@pytest.mark.parametrize("joined", ["met()", ""], ids=["met", "before they met"])
def test_what_the_user_can_fix_is_reported_once_and_nothing_starts_again(joined: str, tmp_path: Path) -> None:
    script = f"{joined}\nend(2, ('no such key', 'config.unknown_key'), designed=True)"
    with pytest.raises(UserError) as caught:
        run(tmp_path, script, Launch(3, max_restarts=2))
    assert [problem.code for problem in caught.value.problems] == ["config.unknown_key"]
    assert starts_of_the_run(tmp_path) == 1


def test_a_failed_run_starts_again_as_often_as_allowed(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        run(tmp_path, "met(); os.kill(os.getpid(), signal.SIGKILL)", Launch(2, max_restarts=2))
    assert caught.value.code == "run.process_died"
    assert len(starts(tmp_path)) == 6
    once = "met()\nif len(list(folder.glob('[0-9]*'))) == 2: os._exit(9)\nend(0, designed=True)"
    again = tmp_path / "again"
    again.mkdir()
    assert run(again, once, Launch(2, max_restarts=2)) == 0
    assert len(starts(again)) == 4


def test_a_stop_reaches_every_process_and_is_75(tmp_path: Path) -> None:
    script = """
signal.signal(signal.SIGTERM, lambda *_: end(75, designed=True))
met()
if rank == 0: os.kill(os.getppid(), signal.SIGTERM)
wait()
"""
    assert run(tmp_path, script, Launch(3, max_restarts=2)) == 75
    assert len(starts(tmp_path)) == 3


def test_a_stop_before_they_met_waits_for_nobody(tmp_path: Path) -> None:
    script = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nif rank == 0: os.kill(os.getppid(), signal.SIGTERM)\nwait()"
    )
    assert run(tmp_path, script) == 75
    assert_none_left(tmp_path)


def test_a_process_stopped_before_it_had_handlers_ends_the_run_with_75(tmp_path: Path) -> None:
    assert run(tmp_path, "if rank == 1: os._exit(75)\nwait()") == 75
    assert_none_left(tmp_path)


def test_one_that_ended_well_waits_for_a_slow_one_without_a_limit(tmp_path: Path) -> None:
    assert run(tmp_path, "met()\nif rank == 0: time.sleep(1.0)\nend(0, designed=True)") == 0


def test_signal_handlers_are_restored(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    run(tmp_path, "met(); end(0, designed=True)")
    assert signal.getsignal(signal.SIGTERM) is before

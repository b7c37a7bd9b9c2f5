"""Tasks in several processes: their results, and every way in which a process or the whole can end."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from seqtrack.errors import RunError, UserError
from seqtrack.runtime.workers import run_tasks

Progress = Callable[[int], object]


def square(task: int, process: int, on_progress: Progress) -> tuple[int, int, int]:
    on_progress(task)
    return task * task, process, os.getpid()


def fail(error: Exception | None, task: int, process: int, on_progress: Progress) -> None:
    """Task 1 fails or dies, another never ends."""
    if task != 1:
        signal.pause()
    if error:
        raise error
    os.kill(os.getpid(), signal.SIGKILL)


def wait(task: int, process: int, on_progress: Progress) -> int:
    """Task 0 ends at once, the others never."""
    on_progress(os.getpid())
    while task:
        signal.pause()
    return os.getpid()


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("processes", "used"), [(1, 1), (2, 2), (8, 3)])
def test_every_task_is_done_once(processes: int, used: int) -> None:
    progress = list[int]()
    found = dict(run_tasks(square, 3, processes, progress.append))
    assert {task: value for task, (value, _, _) in found.items()} == {0: 0, 1: 1, 2: 4}
    assert sorted(progress) == [0, 1, 2]
    own = {pid for *_, pid in found.values()}
    assert len(own) <= used and (os.getpid() in own) == (processes == 1)
    assert {process for _, process, _ in found.values()} <= set(range(used))


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (None, RunError, "run.process_died"),
        (MemoryError(), RunError, "limits.memory"),
        (RunError("planted", "device.out_of_memory"), RunError, "device.out_of_memory"),
        (UserError("planted", "data.planted"), UserError, "data.planted"),
        (KeyError("planted"), RunError, "run.unexpected_error"),
    ],
)
def test_a_failure_of_one_ends_all_with_its_error(
    error: Exception | None, kind: type[RunError | UserError], code: str
) -> None:
    with pytest.raises(kind) as caught:
        list(run_tasks(partial(fail, error), 3, 3, lambda count: None))
    assert caught.value.code == code


def test_closing_ends_the_processes() -> None:
    pids = list[int]()
    with closing(run_tasks(wait, 3, 2, pids.append)) as tasks:
        assert next(tasks)[0] == 0
    assert pids and not any(map(alive, pids))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_a_signal(number: signal.Signals) -> None:
    """SIGINT reaches all of them, as from a terminal; only the first answers it."""
    words = [sys.executable, __file__]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True) as first:
        assert first.stdout is not None
        pids = {int(first.stdout.readline()) for _ in range(3)}
        assert len(pids) == 2 and all(map(alive, pids))
        (os.killpg if number == signal.SIGINT else os.kill)(first.pid, number)
        assert first.stdout.read() == ""  # all that could write have ended
        assert first.wait() == (75 if number == signal.SIGINT else -number)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
    try:
        list(run_tasks(wait, 3, 2, partial(print, flush=True)))
    except KeyboardInterrupt:
        sys.exit(75)

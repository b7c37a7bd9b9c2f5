"""Independent tasks in several processes of this machine, for example one per GPU.

The processes are spawned, because CUDA does not survive a fork. Each has a pipe of its own, which ends with it, so that
a dead one is noticed and nothing is waited for that cannot come. Needs no torch.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from seqtrack.errors import Problem, RunError, UserError
from seqtrack.process import end_with_parent, exit_reason, limit_problem

T = TypeVar("T")
Work = Callable[[int, int, Callable[[int], object]], T]
_GRACE_S = 5.0  # to remove temporary files, as of a download


def run_tasks(
    work: Work[T], tasks: int, processes: int, on_progress: Callable[[int], object]
) -> Generator[tuple[int, T]]:
    """Do the tasks 0 to `tasks` - 1 and yield (task, result) as they end; closing the generator ends the processes.

    Args:
        work: called with the task, the number of the process from 0, and a function that takes progress. One task
            or process needs no other process than this; for several, `work` and its results are pickled.
        on_progress: called in this process with what the tasks report.

    Raises:
        UserError, RunError: of a task; `run.process_died`; `run.unexpected_error`, whose traceback is printed.
    """
    if min(processes, tasks) < 2:
        yield from ((task, work(task, 0, on_progress)) for task in range(tasks))
        return
    spawn, waiting = multiprocessing.get_context("spawn"), deque(range(tasks))
    workers, busy = list[BaseProcess](), dict[Any, BaseProcess]()  # by this process's end of the pipe
    try:
        for number in range(min(processes, tasks)):
            ours, theirs = spawn.Pipe()
            worker: BaseProcess = spawn.Process(target=_serve, args=(theirs, number, os.getpid()), daemon=True)
            worker.start()
            workers.append(worker)
            theirs.close()
            busy[ours] = worker
            with contextlib.suppress(OSError):  # one that died is noticed below
                ours.send(waiting.popleft())
                ours.send(work)
        while busy:
            ready: list[Any] = connection.wait([*busy])
            for pipe in ready:
                worker = busy[pipe]
                try:
                    task, value = pipe.recv()
                    if task is not None and waiting:
                        pipe.send(waiting.popleft())
                    elif task is not None:
                        del busy[pipe]
                except (EOFError, OSError) as error:
                    worker.join()
                    how = exit_reason(worker.exitcode or 0)
                    text = f"process {workers.index(worker)} of {len(workers)} died ({how}). Most often memory ran out:"
                    raise RunError(f"{text} lower NPROC; the same command continues", "run.process_died") from error
                if isinstance(value, Exception):
                    raise value
                if task is None:
                    on_progress(value)
                else:
                    yield task, value
    finally:
        for worker in workers:
            worker.terminate()
        end = time.monotonic() + _GRACE_S
        for worker in workers:
            worker.join(max(0.0, end - time.monotonic()))
            worker.kill()
            worker.join()


def _serve(pipe: Any, number: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all, and the parent ends the others
    end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it died before the call above took effect
    work = None
    with contextlib.suppress(EOFError):  # no task is left
        while True:
            task, answer = pipe.recv(), None
            try:
                work = work or pipe.recv()  # imports what it needs, such as torch
                signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # not before: an import may suppress it
                answer = work(task, number, lambda count: pipe.send((None, count)))
            except Exception as error:  # noqa: BLE001 - raised again by the parent
                problem = None if isinstance(error, RunError) else limit_problem(error)
                if problem is None and not isinstance(error, UserError | RunError):
                    traceback.print_exc()
                    problem = Problem(f"process {number}: {type(error).__name__}: {error}", "run.unexpected_error")
                answer = RunError(problem) if problem else error
            pipe.send((task, answer))

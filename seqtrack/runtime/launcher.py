"""Start the processes of one run on this machine, watch them, and report how the run ended.

Each process writes its ending (exit code and problems) to a file in a folder that the launcher reads. A run on one
machine also has its rendezvous in that folder, so that no port is opened. Needs no torch on one machine.
"""

import json
import logging
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from seqtrack.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, Problem, RunError, UserError
from seqtrack.parsing import parse_json
from seqtrack.runtime.stop import StopRequest

logger = logging.getLogger(__name__)

# Environment variables for the processes: the folder, and "host:port START" of the rendezvous of several machines.
LAUNCH_FOLDER, MEETING = "_SEQTRACK_LAUNCH_FOLDER", "_SEQTRACK_MEETING"
_JOINED = "joined"
_POLL_S = 0.05
# After one process has failed, for the others to end by themselves: rank 0 may have a checkpoint to finish. Those that
# are inside a GPU collective do not end at all.
_GRACE_S = 10.0


@dataclass(frozen=True)
class Launch:
    """How many processes to start here, and the rendezvous with other machines ("host:port", or "")."""

    processes: int
    machines: int = 1
    machine: int = 0
    rendezvous: str = ""
    max_restarts: int = 0


@dataclass(frozen=True)
class Ending:
    """How one process of a run ended.

    Args:
        code: its exit code; negative for a signal.
        problems: for the user.
        lost_peer: it ended only because another process did.
        designed: a restart changes nothing: complete, stopped, a verdict, or a user error.
    """

    code: int
    problems: list[Problem] = field(default_factory=list)
    lost_peer: bool = False
    designed: bool = False


def leave_ending(ending: Ending) -> bool:
    """Write this process's ending for its launcher; False when there is none."""
    folder = os.environ.get(LAUNCH_FOLDER)
    if folder is None:
        return False
    values = {**ending.__dict__, "problems": [(problem, problem.code) for problem in ending.problems]}
    Path(folder, f"ending {os.environ['RANK']}").write_text(json.dumps(values))
    return True


def mark_joined() -> None:
    """Signal the launcher of this process that the rendezvous is complete: from now on a stop saves."""
    if LAUNCH_FOLDER in os.environ:
        Path(os.environ[LAUNCH_FOLDER], _JOINED).touch()


def launch(command: Sequence[str], how: Launch) -> int:
    """Run `command` as the processes of one run, and start all of them again when one fails.

    Returns:
        the run's exit code: 0 complete, 1 for a verdict, 75 stopped on request.

    Raises:
        UserError: a user error of a process.
        RunError: a process failed more often than allowed, with its own message.
    """
    store = None
    if how.machines > 1 and how.machine == 0:
        # Held here, so that restarted processes find it. Deferred: one machine needs no torch.
        from seqtrack.runtime.distributed import hold_store

        store = hold_store(how.rendezvous)
    with StopRequest() as stop:
        endings = _run_once(command, how, 0, stop)
        for restart in range(1, how.max_restarts + 1):
            if stop.is_set or all(ending.designed for ending in endings):
                break
            logger.error("%s; starting again (%d of %d)", _cause(endings), restart, how.max_restarts)
            endings = _run_once(command, how, restart, stop)
    del store
    return _conclude(endings, stopped=stop.is_set)


def _run_once(command: Sequence[str], how: Launch, restart: int, stop: StopRequest) -> list[Ending]:
    """Start every process and wait for all. Returns their endings in order."""
    with tempfile.TemporaryDirectory(prefix="seqtrack-") as name:
        folder = Path(name)
        shared = {
            **os.environ,
            LAUNCH_FOLDER: name,
            "WORLD_SIZE": str(how.machines * how.processes),
            # The cores divided by the processes, unless set; the configuration may override it in the processes.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // how.processes)),
            MEETING: f"{how.rendezvous} {restart}" if how.machines > 1 else "",
        }
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for local in range(how.processes):
                rank = how.machine * how.processes + local
                places = {"RANK": str(rank), "LOCAL_RANK": str(local)}
                running[rank] = subprocess.Popen(command, env={**shared, **places})
            return _watch(running, folder, stop)
        finally:
            for process in running.values():
                process.kill()
            for process in running.values():
                process.wait()


def _watch(running: dict[int, "subprocess.Popen[bytes]"], folder: Path, stop: StopRequest) -> list[Ending]:
    endings: list[Ending] = []
    failed_at, stopped = 0.0, False
    while running:
        ended = [rank for rank, process in running.items() if process.poll() is not None]
        joined = (folder / _JOINED).exists()  # checked last: one that completed had joined before
        for rank in ended:
            endings.append(_ending(folder, rank, running.pop(rank).returncode))
        failed = any(ending.code not in (0, STOPPED_EXIT_CODE) for ending in endings)
        failed_at = failed_at or (time.monotonic() if failed else 0.0)
        # Before the rendezvous nothing is written, so nothing is lost.
        if (endings or stop.is_set) and not joined:
            break
        if failed and time.monotonic() - failed_at > _GRACE_S:
            break
        if stop.is_set and not stopped:
            stopped = True
            for process in running.values():
                process.terminate()
        if not ended:
            time.sleep(_POLL_S)
    return endings


def _ending(folder: Path, rank: int, code: int) -> Ending:
    path = folder / f"ending {rank}"
    if path.exists():
        values = parse_json(path.read_text())
        problems = [Problem(text, code) for text, code in values.pop("problems")]
        return Ending(problems=problems, **values)
    if code in (0, STOPPED_EXIT_CODE):  # stopped before it had a signal handler
        return Ending(code, designed=True)
    how = f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    text = (
        f"process {rank} of the run died ({how}). The checkpoints are not affected: start again to continue from the "
        "latest, or set MAX_RESTARTS"
    )
    return Ending(code, [Problem(text, "run.process_died")])


def _cause(endings: Sequence[Ending]) -> Problem:
    """Why the run ended: the first problem that was not caused by another process."""
    own = [problem for ending in endings if not ending.lost_peer for problem in ending.problems]
    return (own or [problem for ending in endings for problem in ending.problems])[0]


def _conclude(endings: Sequence[Ending], *, stopped: bool) -> int:
    codes = {ending.code for ending in endings}
    if USER_ERROR_EXIT_CODE in codes:
        problems = [one for ending in endings if ending.code == USER_ERROR_EXIT_CODE for one in ending.problems]
        raise UserError(list(dict.fromkeys(problems)))
    if any(not ending.designed for ending in endings):
        cause = _cause(endings)
        raise RunError(cause, code=cause.code)
    if stopped or STOPPED_EXIT_CODE in codes:
        return STOPPED_EXIT_CODE
    return max(codes, default=0)

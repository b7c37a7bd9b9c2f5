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
from seqtrack.runtime.stop import StopRequest

logger = logging.getLogger(__name__)

# Environment variables of the processes.
LAUNCH_FOLDER, RENDEZVOUS_URL = "_SEQTRACK_LAUNCH_FOLDER", "_SEQTRACK_RENDEZVOUS"
PEER_LOST = "run.peer_lost"  # code of a process that ended only because another did
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
    """How one process of a run ended: its exit code (negative for a signal), and problems for the user."""

    code: int
    problems: list[Problem] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        """Whether a restart may help; not after completion, a stop, a verdict or a user error."""
        return bool(self.problems) and self.code != USER_ERROR_EXIT_CODE


def leave_ending(ending: Ending) -> bool:
    """Write this process's ending for its launcher; False when there is none."""
    folder = os.environ.get(LAUNCH_FOLDER)
    if folder is None:
        return False
    values = [ending.code, [(problem, problem.code) for problem in ending.problems]]
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
        # Held here, so that restarted processes find it.
        from seqtrack.runtime.distributed import hold_store  # deferred: one machine needs no torch

        store = hold_store(how.rendezvous)
    with StopRequest() as stop:
        endings = _run_once(command, how, 0, stop)
        for restart in range(1, how.max_restarts + 1):
            if stop.is_set or not any(ending.failed for ending in endings):
                break
            logger.error("%s; starting again (%d of %d)", _cause(endings), restart, how.max_restarts)
            endings = _run_once(command, how, restart, stop)
    del store
    if problems := [one for ending in endings if ending.code == USER_ERROR_EXIT_CODE for one in ending.problems]:
        raise UserError(list(dict.fromkeys(problems)))
    if any(ending.failed for ending in endings):
        raise RunError(_cause(endings))
    if stop.is_set or any(ending.code == STOPPED_EXIT_CODE for ending in endings):
        return STOPPED_EXIT_CODE
    return max((ending.code for ending in endings), default=0)


def _run_once(command: Sequence[str], how: Launch, restart: int, stop: StopRequest) -> list[Ending]:
    with tempfile.TemporaryDirectory(prefix="seqtrack-") as folder:
        # The cores divided by the processes, unless set; the configuration may override it in the processes.
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // how.processes))
        shared = {LAUNCH_FOLDER: folder, "OMP_NUM_THREADS": threads, "WORLD_SIZE": str(how.machines * how.processes)}
        if how.machines > 1:  # as torchrun's agents do
            host, _, port = how.rendezvous.rpartition(":")
            shared |= {"MASTER_ADDR": host.strip("[]"), "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
            shared |= {RENDEZVOUS_URL: "env://", "TORCHELASTIC_RESTART_COUNT": str(restart)}
        else:  # nothing listens beyond this machine
            shared[RENDEZVOUS_URL] = f"file://{folder}/store"
            shared |= {name: os.environ.get(name, "lo") for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for local in range(how.processes):
                rank = how.machine * how.processes + local
                env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(local)}
                running[rank] = subprocess.Popen(command, env=env)
            return _watch(running, Path(folder), stop)
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
            endings.append(_ending(folder / f"ending {rank}", rank, running.pop(rank).returncode))
        if not failed_at and any(ending.code not in (0, STOPPED_EXIT_CODE) for ending in endings):
            failed_at = time.monotonic()
        # Before the rendezvous nothing is written, so nothing is lost.
        if ((endings or stop.is_set) and not joined) or (failed_at and time.monotonic() - failed_at > _GRACE_S):
            break
        if stop.is_set and not stopped:
            stopped = True
            for process in running.values():
                process.terminate()
        if not ended:
            time.sleep(_POLL_S)
    return endings


def _ending(path: Path, rank: int, code: int) -> Ending:
    if path.exists():
        code, problems = json.loads(path.read_text())
        return Ending(code, [Problem(text, name) for text, name in problems])
    if code in (0, STOPPED_EXIT_CODE):  # stopped before it had a signal handler
        return Ending(code)
    how = f"signal {-code}, {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    text = (
        f"process {rank} of the run died ({how}). The checkpoints are not affected: start again to continue from the "
        "latest, or set MAX_RESTARTS"
    )
    return Ending(code, [Problem(text, "run.process_died")])


def _cause(endings: Sequence[Ending]) -> Problem:
    """Why the run ended: the first problem that was not caused by another process."""
    problems = [problem for ending in endings for problem in ending.problems]
    return next((problem for problem in problems if problem.code != PEER_LOST), problems[0])

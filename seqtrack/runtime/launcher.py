"""Start the processes of one run on this machine, watch them, and report how the run ended.

Each process writes its ending (exit code and problems) to a file in a folder that the launcher reads. A run on one
machine also has its rendezvous in that folder, so that no port is opened. Needs no torch on one machine.
"""

import json
import logging
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from seqtrack.config.environment import Environment
from seqtrack.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, Problem, RunError, UserError
from seqtrack.process import exit_reason
from seqtrack.runtime.stop import StopRequest

logger = logging.getLogger(__name__)

# Environment variables of the processes.
LAUNCH_FOLDER, RENDEZVOUS_URL = "_SEQTRACK_LAUNCH_FOLDER", "_SEQTRACK_RENDEZVOUS"
PEER_LOST = "run.peer_lost"  # code of a process that ended only because another did
_JOINED = "joined"
# After one process has failed, for the others to end by themselves: rank 0 may have a checkpoint to finish. Those that
# are inside a GPU collective do not end at all.
_GRACE_S = 10.0


class Ending(NamedTuple):
    """How one process of a run ended: its exit code (negative for a signal), and problems for the user."""

    code: int
    problems: Sequence[Problem] = ()


def leave_ending(ending: Ending) -> bool:
    """Write this process's ending for its launcher; False when there is none."""
    if folder := os.environ.get(LAUNCH_FOLDER):
        values = [ending.code, [(problem, problem.code) for problem in ending.problems]]
        Path(folder, f"ending {os.environ['RANK']}").write_text(json.dumps(values))
    return bool(folder)


def mark_joined() -> None:
    """Signal the launcher of this process that the rendezvous is complete: from now on a stop saves."""
    if LAUNCH_FOLDER in os.environ:
        Path(os.environ[LAUNCH_FOLDER], _JOINED).touch()


def launch(command: Sequence[str], processes: int, run: Environment) -> int:
    """Run `command` as the processes of one run, and start all of them again when one fails, `run.max_restarts` times.

    Returns:
        the run's exit code: 0 complete, 1 for a verdict, 75 stopped on request.

    Raises:
        UserError: a user error of a process.
        RunError: a process failed more often than allowed, with its own message.
    """
    host, _, port = (run.rendezvous or "").rpartition(":")
    host, store = host.strip("[]"), None
    if run.nnodes > 1 and run.node_rank == 0:  # held here, so that restarted processes find it
        from seqtrack.runtime.distributed import hold_store  # deferred: one machine needs no torch

        store = hold_store(host, int(port))
    # The cores divided by the processes, unless set; the configuration may override it in the processes.
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // processes))
    shared = {"OMP_NUM_THREADS": threads, "WORLD_SIZE": str(run.nnodes * processes)}
    with StopRequest() as stop:
        for restart in range(run.max_restarts + 1):
            with tempfile.TemporaryDirectory(prefix="seqtrack-") as folder:
                shared[LAUNCH_FOLDER] = folder
                if run.nnodes > 1:  # as torchrun's agents do
                    shared |= {"MASTER_ADDR": host, "MASTER_PORT": port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
                    shared |= {RENDEZVOUS_URL: "env://", "TORCHELASTIC_RESTART_COUNT": str(restart)}
                else:  # nothing listens beyond this machine
                    shared[RENDEZVOUS_URL] = f"file://{folder}/store"
                    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                        shared[name] = os.environ.get(name, "lo")
                endings = _run_once(command, shared, processes, run.node_rank * processes, stop)
            # A restart may help; not after completion, a stop, a verdict or a user error.
            failed = [one for ending in endings if ending.code != USER_ERROR_EXIT_CODE for one in ending.problems]
            cause = next((one for one in failed if one.code != PEER_LOST), failed[0] if failed else None)
            if cause is None or stop.is_set or restart == run.max_restarts:
                break
            logger.error("%s; starting again (%d of %d)", cause, restart + 1, run.max_restarts)
    del store
    if problems := [one for ending in endings if ending.code == USER_ERROR_EXIT_CODE for one in ending.problems]:
        raise UserError(list(dict.fromkeys(problems)))
    if cause is not None:
        raise RunError(cause)
    if stop.is_set or any(ending.code == STOPPED_EXIT_CODE for ending in endings):
        return STOPPED_EXIT_CODE
    return max((ending.code for ending in endings), default=0)


def _run_once(
    command: Sequence[str], shared: dict[str, str], processes: int, first_rank: int, stop: StopRequest
) -> list[Ending]:
    running: dict[int, subprocess.Popen[bytes]] = {}
    folder, endings, failed_at, stopped = Path(shared[LAUNCH_FOLDER]), list[Ending](), 0.0, False
    try:
        for local in range(processes):
            place = {"RANK": first_rank + local, "LOCAL_RANK": local, "LOCAL_WORLD_SIZE": processes}
            own = {**os.environ, **shared, **{name: str(value) for name, value in place.items()}}
            running[first_rank + local] = subprocess.Popen(command, env=own)
        while running:
            ended = [rank for rank, process in running.items() if process.poll() is not None]
            joined = (folder / _JOINED).exists()  # checked last: one that completed had joined before
            for rank in ended:
                code, problems, left = running.pop(rank).returncode, list[tuple[str, str]](), folder / f"ending {rank}"
                if left.exists():
                    code, problems = json.loads(left.read_text())
                elif code not in (0, STOPPED_EXIT_CODE):  # 75: stopped before it had a signal handler
                    text = f"process {rank} of the run died ({exit_reason(code)}). The checkpoints are not affected:"
                    advice = "start again to continue from the latest, or set MAX_RESTARTS"
                    problems = [(f"{text} {advice}", "run.process_died")]
                endings.append(Ending(code, [Problem(*problem) for problem in problems]))
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
                time.sleep(0.05)
    finally:
        for process in running.values():
            process.kill()
        for process in running.values():
            process.wait()
    return endings

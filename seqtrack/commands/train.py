"""`seqtrack train`: one phase, in one process or several."""

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from seqtrack.config.environment import asks_for_latest_epoch, configure, read_token
from seqtrack.data.sources import prepare_data
from seqtrack.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, Problem, RunError, UserError
from seqtrack.process import end_with_parent, limit_problem, stop_signals
from seqtrack.runtime.launcher import LAUNCH_FOLDER, PEER_LOST, Ending, launch, leave_ending

logger = logging.getLogger(__name__)


def run(_args: argparse.Namespace) -> int:
    """Train as the environment describes; exit 0 complete, 75 stopped on request, 2 user error."""
    # Importing torch takes seconds; until training handles signals, a stop request ends the process here.
    for number in stop_signals():
        signal.signal(number, _stop_early)
    if asks_for_latest_epoch(os.environ):
        text = "RESUME_EPOCH: found latest, expected a number; `seqtrack run` finds the newest epoch on the target"
        raise UserError(text, "variable.invalid_value")
    if "RANK" in os.environ:
        one_of_several(_train)
    given, config = configure(os.environ)
    if given.hf_repo and read_token(os.environ) is None:
        text = f"HF_REPO is {given.hf_repo}, but neither HF_TOKEN_PATH nor HF_TOKEN: set one, or leave HF_REPO empty"
        raise UserError(text, "token.missing")
    for line in prepare_data(given, config, os.environ):
        logger.info("%s", line)
    processes: int | str = given.nproc
    if processes == "auto" and given.device == "cpu":
        processes = 1
    elif processes != 1 and given.device != "cpu":
        from seqtrack.device import device_plan  # torch, only needed to count GPUs

        plan = device_plan(given.device, processes)
        processes, os.environ["DEVICE"] = plan.processes, plan.device
        given = given.model_copy(update={"device": plan.device})
    if (processes, given.nnodes, given.max_restarts) == (1, 1, 0):
        from seqtrack.train import train  # torch, after the signal handlers; a launcher never loads it

        return train(given, config)
    if given.nnodes > 1 and not (given.rendezvous and given.node_rank < given.nnodes):
        found = f"found {given.rendezvous or 'nothing'} and {given.node_rank}"
        text = "every machine needs the same RENDEZVOUS=host:port of machine 0, and its own NODE_RANK from 0"
        raise UserError(f"NNODES is {given.nnodes}: {text}; {found}", code="launch.no_rendezvous")
    return launch([sys.executable, "-m", "seqtrack", "train"], int(processes), given)


def _stop_early(*_: object) -> NoReturn:
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"stopped on request before the first step; the same command starts again\n")
    os._exit(STOPPED_EXIT_CODE)  # not `sys.exit`: this may interrupt an import, which must not treat it as an error


def _train() -> int:
    from seqtrack.train import train  # torch, as in `run`

    return train(*configure(os.environ))


def one_of_several(work: Callable[[], int]) -> NoReturn:
    """End this process of several with `work`'s exit code; its end is reported to the launcher, or on stderr."""
    rank = os.environ["RANK"]
    if rank != "0":
        logging.getLogger("seqtrack").setLevel(logging.ERROR)  # what every process logs is logged by rank 0
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter(f"[rank {rank}] %(message)s"))
    from seqtrack.runtime.distributed import end_process, is_lost_peer  # torch, as in `run`

    if LAUNCH_FOLDER in os.environ:
        end_with_parent(signal.SIGTERM)  # a request to stop and save
    try:
        ending = Ending(work())
    except UserError as error:
        ending = Ending(USER_ERROR_EXIT_CODE, error.problems)
    except RunError as error:
        ending = Ending(1, [error.problem])
    except Exception as error:  # noqa: BLE001 - printed here, and it ends the run
        problem = limit_problem(error)
        if is_lost_peer(error):
            reason = str(error).splitlines()[0][:150]
            problem = Problem(f"another process of this run ended, so this one cannot continue ({reason})", PEER_LOST)
        elif problem is None:
            traceback.print_exc()
            problem = Problem(f"process {rank}: {type(error).__name__}: {error}", "run.unexpected_error")
        ending = Ending(1, [problem])
    if not leave_ending(ending):
        for problem in ending.problems:
            print(problem.line, file=sys.stderr)
    end_process(ending.code)

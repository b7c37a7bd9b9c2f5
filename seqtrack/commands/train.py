"""`seqtrack train`: one phase, in one process or several."""

import argparse
import json
import logging
import os
import signal
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import NoReturn

from seqtrack.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, Problem, RunError, UserError

# Where the processes of one run leave the exit code that the run as a whole should have: the launcher that starts
# them knows success and failure only, and would start a run again that was asked to stop.
_EXIT_FOLDER = "_SEQTRACK_EXIT_FOLDER"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nearly nothing: a run is described by environment variables, the same in a container and without one."""
    parser.add_argument(
        "--max-restarts",
        metavar="N",
        help="times that the run starts again from its newest checkpoint when a process dies (default: MAX_RESTARTS)",
    )
    parser.epilog = "Settings are environment variables: PHASE, RESUME_EPOCH, SEED, CONFIG, DATASET, ..."


def run(args: argparse.Namespace) -> int:
    """Train as the environment says; exit 0 complete, 75 stopped on request, 2 for what the user can mend."""
    # Importing torch takes seconds; a request to stop that comes before training listens ends it here.
    signal.signal(signal.SIGTERM, _stop_before_start)
    signal.signal(signal.SIGINT, _stop_before_start)
    from seqtrack.config.environment import read_variable
    from seqtrack.engine.devices import device_plan

    if args.max_restarts is not None:
        os.environ["MAX_RESTARTS"] = args.max_restarts
    if "RANK" in os.environ:
        _one_of_several()
    processes = read_variable(os.environ, "NPROC")
    if processes != 1:
        plan = device_plan(read_variable(os.environ, "DEVICE"), processes)
        processes, os.environ["DEVICE"] = plan.processes, plan.device
    if processes == 1 and read_variable(os.environ, "NNODES") == 1 and read_variable(os.environ, "MAX_RESTARTS") == 0:
        from seqtrack.train import train

        return train(os.environ)
    return _start_several(processes)


def _stop_before_start(_number: int, _frame: FrameType | None) -> None:
    # Not `sys.exit`: this may come in the middle of an import, whose handlers must not take it for an error.
    os._exit(STOPPED_EXIT_CODE)


def _start_several(processes: int) -> int:
    from seqtrack.config.environment import read_variable
    from seqtrack.engine.ranks import Launch, launch

    how = Launch(
        processes,
        machines=read_variable(os.environ, "NNODES"),
        machine=read_variable(os.environ, "NODE_RANK"),
        rendezvous=read_variable(os.environ, "RENDEZVOUS") or "",
        max_restarts=read_variable(os.environ, "MAX_RESTARTS"),
    )
    if how.machines > 1 and not (how.rendezvous and how.machine < how.machines):
        raise UserError(
            f"NNODES is {how.machines}: every machine needs the same RENDEZVOUS=host:port of machine 0 (found "
            f"{how.rendezvous or 'nothing'}) and its own NODE_RANK from 0 to {how.machines - 1} (found {how.machine})"
        )
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # it would print a page about every exit
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_EXIT_FOLDER] = folder
        # The launcher gives every process one thread unless told; the configuration decides that here.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        died: RunError | None = None
        try:
            ended = launch([sys.executable, "-m", "seqtrack", "train"], how)
        except RunError as error:
            ended, died = False, error
        codes, problems = _endings(Path(folder))
    if USER_ERROR_EXIT_CODE in codes:  # of one process, after which the others could not go on
        raise UserError(problems)
    if died is not None:
        raise died
    return STOPPED_EXIT_CODE if codes or not ended else 0


def _endings(folder: Path) -> tuple[set[int], list[Problem]]:
    """The designed exit codes that the processes left, and their problems, each once."""
    endings = [json.loads(path.read_text()) for path in sorted(folder.iterdir())]
    problems = [Problem(text, code) for ending in endings for text, code in ending["problems"]]
    return {ending["code"] for ending in endings}, list(dict.fromkeys(problems))


def _one_of_several() -> NoReturn:
    """One process of a run. A designed exit code other than 0 is left in a file: see `_EXIT_FOLDER`."""
    if os.environ["RANK"] != "0":
        logging.getLogger("seqtrack").setLevel(logging.ERROR)  # what all processes find, one of them says
    from seqtrack.engine.ranks import end_process, peers_needed
    from seqtrack.processes import end_with_parent
    from seqtrack.train import train

    folder = os.environ.get(_EXIT_FOLDER)
    problems: list[Problem] = []
    if folder is not None:
        end_with_parent(signal.SIGTERM)  # a request to stop and save
    try:
        with peers_needed():
            code = train(os.environ)
    except UserError as error:
        if folder is None:
            raise
        code, problems = USER_ERROR_EXIT_CODE, error.problems
    if folder is not None and code in (USER_ERROR_EXIT_CODE, STOPPED_EXIT_CODE):
        Path(folder, os.environ["RANK"]).write_text(
            json.dumps({"code": code, "problems": [(problem, problem.code) for problem in problems]})
        )
        code = 0
    end_process(code)

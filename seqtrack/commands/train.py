"""`seqtrack train`: one phase, in one process or several."""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

# Where the processes of one run leave the exit code that the run as a whole should have: the launcher that starts
# them knows success and failure only, and would start a run again that was asked to stop.
_EXIT_FOLDER = "_SEQTRACK_EXIT_FOLDER"
_DESIGNED = (2, 75)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "Settings are environment variables: PHASE, RESUME_EPOCH, SEED, CONFIG, DATASET, ..."


def run(_args: argparse.Namespace) -> int:
    """Train as the environment says; exit 0 complete, 75 stopped on request, 2 for what the user can mend."""
    from seqtrack.config.environment import load_dotenv_file, read_variable

    load_dotenv_file(Path.cwd())
    if "RANK" in os.environ:
        return _one_of_several()
    processes = read_variable(os.environ, "NPROC")
    if processes == "auto":
        import torch

        processes = max(1, torch.cuda.device_count())
    if processes == 1 and read_variable(os.environ, "NNODES") == 1:
        from seqtrack.train import train

        return train(os.environ)
    return _start_several(processes)


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
    logging.getLogger("torch.distributed").setLevel(logging.ERROR)  # it would print a page about every exit
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_EXIT_FOLDER] = folder
        # The launcher gives every process one thread unless told; the configuration decides that here.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        ended = launch([sys.executable, "-m", "seqtrack", "train"], how)
        codes = {int(path.read_text()) for path in Path(folder).iterdir()}
    if codes:
        return max(codes)
    return 0 if ended else 1


def _one_of_several() -> int:
    """One process of a run. A designed exit code other than 0 is left in a file: see `_EXIT_FOLDER`."""
    from seqtrack.errors import UserError
    from seqtrack.train import train

    folder = os.environ.get(_EXIT_FOLDER)
    try:
        code = train(os.environ)
    except UserError as error:
        if folder is None:
            raise
        code = 2
        if os.environ["RANK"] == "0":
            for problem in error.problems:
                print(f"error: {problem}", file=sys.stderr)
    if folder is None or code not in _DESIGNED:
        return code
    Path(folder, os.environ["RANK"]).write_text(str(code))
    return 0

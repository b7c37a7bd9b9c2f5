"""The command line: commands, error messages and exit codes.

A command's module is imported only when the command runs, so that `--help` is fast and the sidecar never imports
torch. Exit codes: 0 done, 2 user error (all problems listed), 3 uploads incomplete, or an audit or reproduction
undecided, 75 stopped on request, 1 anything else.
"""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from seqtrack.commands.parsers import parse_command, variables_of
from seqtrack.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, Problem, RunError, UserError
from seqtrack.process import TerminalFormatter, limit_problem, protect_screen, unwritten_output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    protect_screen()
    try:
        code = _run(arguments)
    except KeyboardInterrupt:
        print("stopped on request; the same command starts again", file=sys.stderr)
        return STOPPED_EXIT_CODE
    except Exception as error:
        problem = limit_problem(error)
        if problem is None:
            raise
        print(problem.line, file=sys.stderr)
        return 1
    lost = unwritten_output()
    if lost is not None:
        print(Problem(f"the output could not be written: {lost.strerror}", "output.unwritten").line, file=sys.stderr)
    return code or int(lost is not None)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        args = parse_command(sys.argv[1:] if arguments is None else arguments)
        if not logging.getLogger().handlers:
            logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
            if sys.stderr.isatty():
                logging.getLogger().handlers[0].setFormatter(TerminalFormatter())
            logging.getLogger("huggingface_hub").propagate = False  # it has a handler of its own
            logging.getLogger("matplotlib").setLevel(logging.WARNING)
        # In the current folder, for every command, so that training and reading its output agree on the place.
        if Path(".env").is_file():
            from seqtrack.config.environment import load_dotenv_file  # start-up time of --help

            load_dotenv_file(Path.cwd())
        os.environ.update(variables_of(args))
        # compose passes on empty variables, but the Hub's client would use an empty HF_ENDPOINT as an address.
        for name in [name for name, value in os.environ.items() if name.startswith("HF_") and not value.strip()]:
            del os.environ[name]
        # Only now, because libraries read the environment when they are imported.
        name = "authors" if args.command in ("export", "import") else args.command
        module = importlib.import_module(f"seqtrack.commands.{name}")
        return int(module.run(args))
    except UserError as error:
        if limit_problem(error) is not None:  # a file that cannot be opened because of a limit is not a user error
            raise
        return _refuse(error.problems)
    except RunError as error:
        print(error.problem.line, file=sys.stderr)
        return 1


def _refuse(problems: Sequence[Problem]) -> int:
    for problem in problems:
        print(problem.line, file=sys.stderr)
    return USER_ERROR_EXIT_CODE

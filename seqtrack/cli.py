"""The command line: which commands there are, and how an error ends.

Knows each command only by the module that holds it, and imports that module when the command is chosen: `--help`
answers at once, and the sidecar never meets torch. Exit codes: 0 done, 2 a mistake in configuration or data (all of
them listed), 75 stopped on request, 1 anything else, with its traceback.
"""

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from seqtrack import __version__
from seqtrack.errors import USER_ERROR_EXIT_CODE, Problem, RunError, UserError
from seqtrack.process import limit_problem, protect_screen, unwritten_output

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "train one phase; settings come from environment variables"),
    "verify": ("verify", "prove that two runs are the same run, or say where they part"),
    "report": ("report", "write the report of a run from its measured files"),
    "evaluate": ("evaluate", "score checkpoints or result files by LaSOT's protocol"),
    "track": ("track", "follow one object through a video, a folder of frames or a camera"),
    "data": ("data", "download, check and look at training data"),
    "upload": ("upload", "push new files of the output folder to their target, and keep watching"),
    "hub": ("hub", "helper commands for the Hugging Face Hub: create, check, upload, download, card"),
    "plan": ("plan", "parameters, tokens, memory and disk that a configuration needs"),
    "doctor": ("doctor", "check this machine: GPU, memory, disk, data, token"),
    "export": ("export", "write a checkpoint as the authors' .pth.tar"),
    "import": ("import_", "read the authors' .pth.tar into a checkpoint"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seqtrack",
        description="Train the SeqTrack tracker reproducibly.",
        epilog="`seqtrack COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=f"seqtrack {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (_, summary) in COMMANDS.items():
        # The real parser is made once the command is known; this entry only lists the name.
        commands.add_parser(name, help=summary, add_help=False)
    return parser


def _read_dotenv() -> None:
    """Every command has the settings of `.env` in the current folder: one that trains and one that looks for what was
    trained must not disagree about where that is."""
    if Path(".env").is_file():
        from seqtrack.config.environment import load_dotenv_file

        load_dotenv_file(Path.cwd())


def _drop_empty_hub_settings() -> None:
    """compose hands on variables that are set and empty; to us that means not set, but the Hub's client would take an
    empty HF_ENDPOINT for an address."""
    for name in [name for name, value in os.environ.items() if name.startswith("HF_") and not value.strip()]:
        del os.environ[name]


def _join_negative_values(words: Sequence[str]) -> list[str]:
    """`--box -20,-10,60,60` as `--box=-20,-10,60,60`: argparse takes a word with a minus in front for an option, unless
    it is a single number. No option of ours begins with a digit."""
    joined: list[str] = []
    for at, word in enumerate(words):
        if "--" in words[:at]:
            joined.append(word)
        elif joined and re.match(r"-\.?[0-9]", word) and re.fullmatch(r"--[a-z][a-z0-9-]*", joined[-1]):
            joined[-1] += "=" + word
        elif joined and re.match(r"-\.?[0-9]", word) and re.fullmatch(r"-[a-zA-Z]", joined[-1]):
            joined[-1] += word
        else:
            joined.append(word)
    return joined


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    protect_screen()
    try:
        code = _run(arguments)
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
    words = _join_negative_values(sys.argv[1:] if arguments is None else arguments)
    chosen, _ = _parser().parse_known_args(words[:1])
    module_name, summary = COMMANDS[chosen.command]
    module = importlib.import_module(f"seqtrack.commands.{module_name}")
    parser = argparse.ArgumentParser(prog=f"seqtrack {chosen.command}", description=summary)
    module.add_arguments(parser)
    args = parser.parse_args(words[1:])
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        _read_dotenv()
        _drop_empty_hub_settings()
        return int(module.run(args))
    except UserError as error:
        if limit_problem(error) is not None:  # a file that cannot be opened for that is no mistake of the user's
            raise
        for problem in error.problems:
            print(problem.line, file=sys.stderr)
        return USER_ERROR_EXIT_CODE
    except RunError as error:
        print(error.problem.line, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

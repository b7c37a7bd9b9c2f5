"""Generate the tables of `docs/commands.md`: `python -m seqtrack.commands.docs docs/commands.md`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from seqtrack.commands.parsers import COMMANDS, command_parsers
from seqtrack.config.docs import replace_between, table
from seqtrack.config.environment import VARIABLES
from seqtrack.config.fields import reader


def parsers() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Every command and sub-command: the words after `seqtrack`, its summary, its parser."""
    for command, parser in command_parsers()[1].items():
        yield command, COMMANDS[command][0], parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                for name, below in action.choices.items():
                    yield f"{command} {name}", helps[name], below


def arguments_of(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Each argument except --help as (syntax, meaning)."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        meaning = parser._get_formatter()._expand_help(action) if action.help else ""
        choices = "|".join(map(str, action.choices or ()))
        name = action.metavar if isinstance(action.metavar, str) else None
        if action.option_strings:
            value = f" {name or action.dest.upper()}" if action.nargs != 0 else ""
            found.append((", ".join(action.option_strings) + value,
                          f"one of {choices.replace('|', ', ')}; {meaning}" if choices else meaning))  # fmt: skip
        else:
            name = name or choices or action.dest
            found.append((f"[{name}]" if action.nargs in ("?", "*") else name, meaning))
    return found


def render(document: str) -> str:
    """The document with one section per command: its arguments and the variables that it reads.

    Raises:
        ValueError: a marker is missing.
    """
    parts: list[str] = []
    for words, summary, parser in parsers():
        parts += [f"{'####' if ' ' in words else '###'} `seqtrack {words}`", f"{summary[:1].upper()}{summary[1:]}."]
        rows = [(f"`{written}`", meaning) for written, meaning in arguments_of(parser)]
        if rows:
            parts.append(table(("argument", "meaning"), rows))
        # The uploader's settings are listed in docs/configuration.md only.
        read = [name for name, field in VARIABLES.items() if words in reader(field).split(", ")]
        shown = dict.fromkeys(
            "`UPLOAD_*`" if name.startswith("UPLOAD_") and name != "UPLOAD_TARGET" else f"`{name}`" for name in read
        )
        if shown:
            parts.append(f"Variables: {', '.join(shown)}.")
    return replace_between(document, "commands", "\n\n".join(parts), "seqtrack.commands.docs")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")

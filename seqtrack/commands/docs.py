"""Generate the tables of `docs/commands.md`: `python -m seqtrack.commands.docs docs/commands.md`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from seqtrack.commands.parsers import COMMANDS, command_parsers
from seqtrack.config.docs import cell, replace_between
from seqtrack.config.environment import VARIABLES
from seqtrack.config.fields import reader

_START, _END = "<!-- commands: made by python -m seqtrack.commands.docs -->", "<!-- end of commands -->"


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
    formatter = parser._get_formatter()
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        meaning = formatter._expand_help(action) if action.help else ""
        if action.choices is not None and action.option_strings:
            meaning = f"one of {', '.join(map(str, action.choices))}; {meaning}"
        found.append((_written(action), meaning))
    return found


def _written(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    if not action.option_strings:
        choices = "|".join(map(str, action.choices)) if action.choices is not None else None
        name = metavar or choices or action.dest
        return f"[{name}]" if action.nargs in ("?", "*") else name
    takes_value = action.nargs != 0
    value = f" {metavar or action.dest.upper()}" if takes_value else ""
    return ", ".join(action.option_strings) + value


def commands_text() -> str:
    """One section per command with its arguments and the variables that it reads."""
    parts: list[str] = []
    for words, summary, parser in parsers():
        level = "###" if " " not in words else "####"
        parts += [f"{level} `seqtrack {words}`", "", summary[:1].upper() + summary[1:] + ".", ""]
        rows = [f"| `{cell(written)}` | {cell(meaning)} |" for written, meaning in arguments_of(parser)]
        if rows:
            parts += ["| argument | meaning |", "|---|---|", *rows, ""]
        readers = list(dict.fromkeys(_shown(name) for name, one in VARIABLES.items() if _reads(reader(one), words)))
        if readers:
            parts += [f"Variables: {', '.join(readers)}.", ""]
    return "\n".join(parts).rstrip()


def _reads(reader: str, command: str) -> bool:
    return command in [word.strip() for word in reader.split(",")]


def _shown(variable: str) -> str:
    """The name; the uploader's settings are listed in docs/configuration.md only."""
    return "`UPLOAD_*`" if variable.startswith("UPLOAD_") and variable != "UPLOAD_TARGET" else f"`{variable}`"


def render(document: str) -> str:
    """The document with its tables generated again.

    Raises:
        ValueError: a marker is missing.
    """
    return replace_between(document, _START, _END, commands_text())


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")

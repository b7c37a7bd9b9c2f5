"""Generate the tables of docs/configuration.md and docs/commands.md: `python scripts/reference.py`."""

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from seqtrack.commands.parsers import COMMANDS, command_parsers  # noqa: E402 - needs the path above
from seqtrack.config.environment import VARIABLES  # noqa: E402
from seqtrack.config.fields import expected, fact  # noqa: E402
from seqtrack.config.schema import KEYS  # noqa: E402


def render_configuration(document: str) -> str:
    """docs/configuration.md with its tables of variables and keys.

    Raises:
        ValueError: a marker is missing.
    """
    variables = [
        (f"`{name}`", f"`{_written(field.default)}`" if field.default not in (None, (), "") else "-",
         field.description or "", fact(field, "reader"))
        for name, field in VARIABLES.items()
    ]  # fmt: skip
    keys = [
        (f"`{name}`", f"`{_written(field.default)}`", expected(field.annotation, field.metadata),
         field.description or "", "equal" if fact(field, "must_match") else "may differ")
        for name, field in KEYS.items()
    ]  # fmt: skip
    document = _replace(document, "variables", _table(("variable", "default", "meaning", "read by"), variables))
    return _replace(document, "keys", _table(("key", "default", "value", "meaning", "resume"), keys))


def render_commands(document: str) -> str:
    """docs/commands.md with one section per command: its arguments and the variables that it reads.

    Raises:
        ValueError: a marker is missing.
    """
    parts: list[str] = []
    training = list(_arguments_of(command_parsers()[1]["train"]))
    for words, summary, parser in parsers():
        parts += [f"{'####' if ' ' in words else '###'} `seqtrack {words}`", f"{summary[:1].upper()}{summary[1:]}."]
        rows = list(_arguments_of(parser))
        if words != "train" and rows[: len(training)] == training:
            parts.append(f"All arguments and variables of `seqtrack train`{', and:' if rows[len(training) :] else '.'}")
            rows = rows[len(training) :]
        if rows:
            parts.append(_table(("argument", "meaning"), rows))
        # The uploader's settings are listed in docs/configuration.md only.
        read = [name for name, field in VARIABLES.items() if words in fact(field, "reader").split(", ")]
        shown = dict.fromkeys(
            "`UPLOAD_*`" if name.startswith("UPLOAD_") and name != "UPLOAD_TARGET" else f"`{name}`" for name in read
        )
        if shown:
            parts.append(f"Variables: {', '.join(shown)}.")
    return _replace(document, "commands", "\n\n".join(parts))


def parsers() -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Every command and sub-command: the words after `seqtrack`, its summary, its parser."""
    for command, parser in command_parsers()[1].items():
        yield command, COMMANDS[command][0], parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
                for name, below in action.choices.items():
                    yield f"{command} {name}", helps[name], below


def _arguments_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Each argument except --help as (syntax, meaning)."""
    parser.format_help()  # fills in the meanings of variables
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
            continue
        meaning = parser._get_formatter()._expand_help(action) if action.help else ""
        choices = [str(one) for one in action.choices or ()]
        name = action.metavar if isinstance(action.metavar, str) else None
        if action.option_strings:
            value = f" {name or action.dest.upper()}" if action.nargs != 0 else ""
            meaning = f"one of {', '.join(choices)}; {meaning}" if choices else meaning
            yield f"`{', '.join(action.option_strings)}{value}`", meaning
        else:
            name = name or "|".join(choices) or action.dest
            yield f"`[{name}]`" if action.nargs in ("?", "*") else f"`{name}`", meaning


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _replace(document: str, name: str, text: str) -> str:
    """Replace the text between the two markers of `name`, which stay."""
    start, end = f"<!-- {name}: made by scripts/reference.py -->", f"<!-- end of {name} -->"
    new, count = re.subn(f"{start}.*?{end}", lambda _: f"{start}\n\n{text}\n\n{end}", document, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected once in the document: {start} ... {end}")
    return new


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


PAGES = {
    ROOT / "docs/configuration.md": render_configuration,
    ROOT / "docs/commands.md": render_commands,
}

if __name__ == "__main__":
    for page, render in PAGES.items():
        page.write_text(render(page.read_text(encoding="utf-8")), encoding="utf-8")

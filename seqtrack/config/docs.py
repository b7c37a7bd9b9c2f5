"""Generate the tables of `docs/configuration.md`: `python -m seqtrack.config.docs docs/configuration.md`."""

import re
import sys
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from seqtrack.config.environment import VARIABLES
from seqtrack.config.fields import expected, must_match, reader
from seqtrack.config.schema import KEYS


def variables_table() -> str:
    """One row per variable."""
    rows = ["| variable | default | meaning | read by |", "|---|---|---|---|"]
    for name, field in VARIABLES.items():
        default = f"`{_written(field.default)}`" if field.default not in (None, (), "") else "-"
        rows.append(f"| `{name}` | {default} | {cell(field.description or '')} | {reader(field)} |")
    return "\n".join(rows)


def keys_tables() -> str:
    """One table for each of MODEL, TRAIN, DATA and TEST, one row per key."""
    parts: list[str] = []
    for top in dict.fromkeys(name.split(".")[0] for name in KEYS):
        parts += [f"### {top}", "", "| key | default | value | meaning | resume |", "|---|---|---|---|---|"]
        parts += [*(_row(name, field) for name, field in KEYS.items() if name.startswith(top + ".")), ""]
    return "\n".join(parts).rstrip()


def render(document: str) -> str:
    """The document with its tables generated again.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in (("variables", variables_table()), ("keys", keys_tables())):
        start, end = f"<!-- {name}: made by python -m seqtrack.config.docs -->", f"<!-- end of {name} -->"
        document = replace_between(document, start, end, table)
    return document


def replace_between(document: str, start: str, end: str, text: str) -> str:
    """Replace the text between two markers, which stay.

    Raises:
        ValueError: the markers do not occur exactly once.
    """
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"expected once in the document: {start} ... {end}")
    return pattern.sub(lambda _: f"{start}\n\n{text}\n\n{end}", document)


def _row(name: str, field: FieldInfo) -> str:
    resume = "equal" if must_match(field) else "may differ"
    meaning = cell(field.description or "")
    return f"| `{name}` | `{_written(field.default)}` | {cell(expected(field))} | {meaning} | {resume} |"


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_written(element) for element in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def cell(text: str) -> str:
    """Text for a cell of a Markdown table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")

"""The tables of `docs/configuration.md`, made from the schema and the table of variables.

`python -m seqtrack.config.document docs/configuration.md` writes them anew between their markers; a test says when
that was forgotten. Knows no prose.
"""

import re
import sys
from pathlib import Path

from seqtrack.config.fields import Key, Value
from seqtrack.config.schema import KEYS
from seqtrack.config.variables import VARIABLES


def variables_table() -> str:
    """One row a variable."""
    rows = ["| variable | default | meaning | read by |", "|---|---|---|---|"]
    for name, variable in VARIABLES.items():
        default = f"`{variable.default}`" if variable.default else "-"
        rows.append(f"| `{name}` | {default} | {cell(variable.meaning)} | {variable.reader} |")
    return "\n".join(rows)


def keys_tables() -> str:
    """One table for each of MODEL, TRAIN, DATA and TEST, one row a key."""
    parts: list[str] = []
    for top in dict.fromkeys(name.split(".")[0] for name in KEYS):
        parts += [
            f"### {top}",
            "",
            "| key | default | value | meaning | resume |",
            "|---|---|---|---|---|",
            *(_row(key) for name, key in KEYS.items() if name.startswith(top + ".")),
            "",
        ]
    return "\n".join(parts).rstrip()


def render(document: str) -> str:
    """The document with its tables made anew; everything outside the markers stays.

    Raises:
        ValueError: a marker is missing.
    """
    for name, table in (("variables", variables_table()), ("keys", keys_tables())):
        start, end = f"<!-- {name}: made by python -m seqtrack.config.document -->", f"<!-- end of {name} -->"
        document = replace_between(document, start, end, table)
    return document


def replace_between(document: str, start: str, end: str, text: str) -> str:
    """The document with other text between two markers, which stay.

    Raises:
        ValueError: the markers do not stand there once.
    """
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(document)) != 1:
        raise ValueError(f"expected once in the document: {start} ... {end}")
    return pattern.sub(lambda _: f"{start}\n\n{text}\n\n{end}", document)


def _row(key: Key) -> str:
    resume = "equal" if key.must_match else "may differ"
    return f"| `{key.name}` | `{_written(key.default)}` | {cell(key.expected)} | {cell(key.meaning)} | {resume} |"


def _written(value: Value) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(_written(element) for element in value) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def cell(text: str) -> str:
    """Text as it may stand in a cell of a Markdown table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")

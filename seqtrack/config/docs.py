"""Generate the tables of `docs/configuration.md`: `python -m seqtrack.config.docs docs/configuration.md`."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from seqtrack.config.environment import VARIABLES
from seqtrack.config.fields import expected, must_match, reader
from seqtrack.config.schema import KEYS


def render(document: str) -> str:
    """The document with its tables generated again.

    Raises:
        ValueError: a marker is missing.
    """
    variables = [
        (f"`{name}`", f"`{_written(field.default)}`" if field.default not in (None, (), "") else "-",
         field.description or "", reader(field))
        for name, field in VARIABLES.items()
    ]  # fmt: skip
    keys = ""
    for top in dict.fromkeys(name.split(".")[0] for name in KEYS):
        rows = [
            (f"`{name}`", f"`{_written(field.default)}`", expected(field), field.description or "",
             "equal" if must_match(field) else "may differ")
            for name, field in KEYS.items() if name.startswith(f"{top}.")
        ]  # fmt: skip
        keys += f"### {top}\n\n{table(('key', 'default', 'value', 'meaning', 'resume'), rows)}\n\n"
    document = replace_between(document, "variables", table(("variable", "default", "meaning", "read by"), variables))
    return replace_between(document, "keys", keys.rstrip())


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines).replace("| --- |", "|---|").replace(" --- |", "---|")


def replace_between(document: str, name: str, text: str, by: str = "seqtrack.config.docs") -> str:
    """Replace the text between the two markers of `name`, which stay.

    Raises:
        ValueError: the markers do not occur exactly once.
    """
    start, end = f"<!-- {name}: made by python -m {by} -->", f"<!-- end of {name} -->"
    new, count = re.subn(f"{start}.*?{end}", lambda _: f"{start}\n\n{text}\n\n{end}", document, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"expected once in the document: {start} ... {end}")
    return new


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(render(path.read_text(encoding="utf-8")), encoding="utf-8")

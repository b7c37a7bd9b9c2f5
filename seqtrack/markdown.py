"""Write Markdown: every value is escaped unless it is already `Markdown`.

The report, the comparison and the model card quote names and lines from files that anybody may have written.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

# Characters that can start or end markup: an underscore only outside a word, list and heading markers only at the start
# of a line. Control characters, line ends and characters that change the writing direction are removed.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w)")
_LINE_START = re.compile(r"^(\d*)([#+=.)-])(?=[\s#=.-]|$)")
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def escape(value: object) -> Markdown:
    """A value as literal text on one line."""
    if isinstance(value, Markdown):
        return value
    flat = _SPECIAL.sub(lambda match: "\\" + match[0], _INVISIBLE.sub(" ", str(value))).strip()
    return Markdown(_LINE_START.sub(r"\1\\\2", flat))


def code(value: object) -> Markdown:
    """A value as a code span; as escaped text if it has a bar, which would end a table cell."""
    flat = _INVISIBLE.sub(" ", str(value))
    if "|" in flat or not flat.strip():
        return escape(value)
    fence = _fence(flat, 1)
    pad = " " if "`" in (flat[0], flat[-1]) else ""
    return Markdown(f"{fence}{pad}{flat}{pad}{fence}")


def code_block(lines: Iterable[str]) -> Markdown:
    """Unchanged lines in a fence that none of them can close."""
    text = "\n".join(_INVISIBLE.sub(" ", line) for line in lines)
    fence = _fence(text, 3)
    return Markdown(f"{fence}\n{text}\n{fence}\n")


def _fence(text: str, least: int) -> str:
    return "`" * max(least, 1 + max(map(len, re.findall("`+", text)), default=0))


def image(path: Path | str, alt: object) -> Markdown:
    """An image by its path relative to the document."""
    return Markdown(f"![{escape(alt)}]({quote(str(path))})")


def table(heading: Sequence[object], rows: Iterable[Sequence[object]], *, texts: int = 1) -> Markdown:
    """A table whose columns are as wide on a terminal; the first `texts` are aligned left, the others right."""
    cells: list[list[str]] = [[escape(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(4, *map(len, column)) for column in zip(*cells, strict=True)]
    ruler = ["-" * width if place < texts else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    lines = [
        " | ".join(f"{cell:{'<' if place < texts else '>'}{widths[place]}}" for place, cell in enumerate(row))
        for row in (cells[0], ruler, *cells[1:])
    ]
    return Markdown("".join(f"| {line} |\n" for line in lines))


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals; a dash if it was not measured."""
    return "–" if value is None else f"{value:.{digits}f}"

"""Write Markdown: every value is escaped unless it is already `Markdown`.

The report, the comparison and the model card quote names and lines from files that anybody may have written.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, urlsplit

# Characters that can start or end markup: an underscore only outside a word, list and heading markers only at the start
# of a line. Control characters, line ends and characters that change the writing direction are removed.
_SPECIAL = re.compile(r"[\\`*\[\]<>|~]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w)")
_LINE_START = re.compile(r"^(\d*)([#+=.)-])(?=[\s#=.-]|$)")
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]*)\)")


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""


def escape(value: object) -> Markdown:
    """A value as literal text on one line."""
    if isinstance(value, Markdown):
        return value
    flat = _escape(str(value)).strip()
    return Markdown(_LINE_START.sub(r"\1\\\2", flat))


def _escape(text: str) -> str:
    return _SPECIAL.sub(lambda match: "\\" + match[0], _INVISIBLE.sub(" ", text))


def escape_with_links(text: str) -> Markdown:
    """Like `escape`, but `[label](address)` stays a link where `is_safe_link` allows the address."""
    parts: list[str] = []
    end = 0
    for match in _LINK.finditer(text):
        if is_safe_link(match[2]):
            parts += [_escape(text[end : match.start()]), f"[{_escape(match[1])}]({match[2]})"]
            end = match.end()
    whole = "".join([*parts, _escape(text[end:])]).strip()
    return Markdown(_LINE_START.sub(r"\1\\\2", whole))


def is_safe_link(address: str) -> bool:
    """Whether an address may be a link: https with a host and no user, or a relative path."""
    if not address or any(not letter.isprintable() or letter in ' \\"<>`|' for letter in address):
        return False
    try:
        parts = urlsplit(address)
        if parts.scheme or parts.netloc:
            return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        return False
    return not address.startswith("/") and ":" not in address.split("/", 1)[0]


def code(value: object) -> Markdown:
    """A value as a code span; as escaped text if it has a bar, which would end a table cell."""
    flat = _INVISIBLE.sub(" ", str(value))
    if "|" in flat or not flat.strip():
        return escape(value)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", flat)), default=0))
    pad = " " if "`" in (flat[0], flat[-1]) else ""
    return Markdown(f"{fence}{pad}{flat}{pad}{fence}")


def code_block(lines: Iterable[str]) -> Markdown:
    """Unchanged lines in a fence that none of them can close."""
    text = "\n".join(_INVISIBLE.sub(" ", line) for line in lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markdown(f"{fence}\n{text}\n{fence}\n")


def bold(value: object) -> Markdown:
    return Markdown(f"**{escape(value)}**")


def image(path: Path | str, alt: object) -> Markdown:
    """An image by its path relative to the document."""
    return Markdown(f"![{escape(alt)}]({quote(str(path))})")


def table(heading: Sequence[object], rows: Iterable[Sequence[object]], *, texts: int = 1) -> Markdown:
    """A table; the first `texts` columns are aligned left, the others right."""
    lines = [[escape(cell) for cell in row] for row in (heading, *rows)]
    ruler = "|" + "---|" * texts + "---:|" * (len(heading) - texts)
    written = ["| " + " | ".join(line) + " |" for line in lines]
    return Markdown("\n".join([written[0], ruler, *written[1:]]) + "\n")


def number(value: float | None, digits: int = 3) -> str:
    """A number with fixed decimals; a dash if it was not measured."""
    return "–" if value is None else f"{value:.{digits}f}"

"""Forms of words in environment variables: each reads a text or raises ValueError with what it expected.

Knows no variable by name. The messages never repeat the text, which may be a secret.
"""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from seqtrack.config.fields import NAME_PATTERN

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}", re.ASCII)
_TARGET = re.compile(r"[a-z][a-z0-9_]*:.+")


def text(value: str) -> str:
    """Anything on one line."""
    if not value.isprintable():
        raise ValueError("text on one line")
    return value


def path(value: str) -> Path:
    """A file or folder, there or not; a ~ at its start is the home folder, as it would be in a shell."""
    try:
        return Path(text(value)).expanduser()
    except (RuntimeError, ValueError):
        raise ValueError("a path on one line, below a home folder that exists if it starts with ~") from None


def one_of(*choices: str) -> Callable[[str], str]:
    """One of some words, in any case."""

    def read(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return value.lower()

    return read


def whole(low: int, high: int = 1_000_000_000) -> Callable[[str], int]:
    """A whole number from `low` to `high`, both allowed."""

    def read(value: str) -> int:
        if re.fullmatch(r"[0-9]{1,12}", value, re.ASCII) is None or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    """A decimal number from `low` to `high`, both allowed."""

    def read(value: str) -> float:
        if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", value, re.ASCII) is None or not low <= float(value) <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(value)

    return read


def host_port(value: str) -> str:
    """`host:port`."""
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError("host:port with a port from 1 to 65535")
    return value


def count_or_auto(value: str) -> int | str:
    """A number of processes, or auto."""
    if value.lower() == "auto":
        return "auto"
    try:
        return whole(1, 4096)(value)
    except ValueError:
        raise ValueError("auto or a whole number from 1 to 4096") from None


def switch(value: str) -> bool:
    """true or false, or another usual spelling of them."""
    if value.lower() in ("true", "1", "yes", "on"):
        return True
    if value.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("true or false")


def names(value: str) -> tuple[str, ...]:
    """Names separated by commas."""
    found = tuple(name.strip() for name in value.split(","))
    if any(re.fullmatch(NAME_PATTERN, name) is None for name in found) or len(set(found)) != len(found):
        raise ValueError("different names separated by commas")
    return found


def words(text: str | None) -> tuple[str, ...]:
    """What stands between the commas of a command's option; nothing for none."""
    return tuple(word for word in (part.strip() for part in (text or "").split(",")) if word)


def pairs(value: str) -> tuple[tuple[str, str], ...]:
    """`KEY VALUE KEY VALUE`, with a shell's quotes."""
    try:
        words = shlex.split(value)
    except ValueError:
        raise ValueError("KEY VALUE KEY VALUE; a quotation mark is left open") from None
    if len(words) % 2:
        joined = next((word for word in words if "=" in word), None)
        hint = " with a blank between, not =" if joined else f"; {len(words)} words are no pairs"
        raise ValueError(f"KEY VALUE KEY VALUE{hint}")
    return tuple(zip(words[::2], words[1::2], strict=True))


def repository(value: str) -> str:
    """A repository of the Hub."""
    good = _REPOSITORY.fullmatch(value) is not None and "--" not in value and ".." not in value
    if not good or value.endswith((".git", "-", ".")) or "./" in value or "-/" in value:
        raise ValueError("owner/name, as in the repository's address")
    return value


def token(value: str) -> str:
    """An access token: one printable word."""
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("one word of ASCII letters")
    return value


def address(value: str) -> str:
    """An http or https address without credentials; a slash at its end is dropped."""
    expected = "http:// or https:// and a host, without a user name or password"
    try:
        parts = urlsplit(value)
        port_is_good = parts.port is None or parts.port > 0
    except ValueError:
        raise ValueError(expected) from None
    good = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc and port_is_good
    if not good or parts.query or parts.fragment or not value.isprintable() or " " in value:
        raise ValueError(expected)
    return value.rstrip("/")


def target(value: str) -> str:
    """`kind:place`, such as folder:/mnt/backup."""
    if _TARGET.fullmatch(value) is None or not value.isprintable():
        raise ValueError("kind:place, such as folder:/mnt/backup")
    return value

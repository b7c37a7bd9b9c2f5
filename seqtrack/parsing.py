"""Strict parsing of text files, JSON and numbers.

Python's `int()`, `float()` and `json.loads` accept more than a data file may contain (`1_000`, `inf`, duplicate keys,
NaN) and raise unexpected errors (RecursionError). Every reader of the package uses these functions instead and adds
file and line to the message.
"""

import json
import re
from pathlib import Path
from typing import Any, NoReturn

LARGEST_TEXT_FILE = 256 * 1024 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,24})?|\.[0-9]{1,24})(?:[eE][+-]?[0-9]{1,3})?")


class ParseError(ValueError):
    """Invalid text; the message has what was found and what was expected."""


def short_repr(text: object, limit: int = 60) -> str:
    """A value for messages: on one line, shortened to `limit` characters."""
    shown = text if isinstance(text, str) else repr(text)
    return repr(shown if len(shown) <= limit else shown[: limit - 3] + "...")


def parse_int(text: str) -> int:
    """An integer in plain digits; surrounding blanks are ignored.

    Raises:
        ParseError: anything else, including `1_000`, `1.0` and digits of other alphabets.
    """
    if not _INTEGER.fullmatch(text.strip(" \t")):
        raise ParseError(f"found {short_repr(text)}, expected a whole number")
    return int(text)


def parse_float(text: str) -> float:
    """A finite decimal number in plain digits with an optional exponent; surrounding blanks are ignored.

    Raises:
        ParseError: anything else, including `nan`, `inf`, `1e999`, `1_000` and hexadecimal.
    """
    if not _NUMBER.fullmatch(text.strip(" \t")):
        raise ParseError(f"found {short_repr(text)}, expected a number")
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ParseError(f"found {short_repr(text)}, expected a finite number")
    return value


def split_commas(text: str | None) -> tuple[str, ...]:
    """The parts of a comma-separated option; empty for None."""
    return tuple(part for part in (item.strip() for item in (text or "").split(",")) if part)


def decode_text(data: bytes) -> str:
    """Decode UTF-8, ignore a byte order mark, and normalise line ends.

    Raises:
        ParseError: UTF-16 or other bytes that are not UTF-8, or a zero byte.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ParseError("the file is UTF-16; save it as UTF-8")
    try:
        text = data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ParseError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if "\0" in text:
        raise ParseError(f"byte {text.index(chr(0))} is zero; this is not a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: Path) -> str:
    """`decode_text` of a file.

    Raises:
        OSError: it cannot be read.
        ParseError: as for `decode_text`, or the file is too large for a text file.
    """
    if (size := path.stat().st_size) > LARGEST_TEXT_FILE:
        raise ParseError(f"{size} bytes are too many for a text file")
    return decode_text(path.read_bytes())


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ParseError: not JSON, NaN or Infinity, a number beyond float64, a duplicate key, or nested too deeply.
    """
    try:
        return json.loads(
            decode_text(text) if isinstance(text, bytes) else text,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
            parse_float=_parse_json_float,
            parse_int=_parse_json_int,
        )
    except ParseError:
        raise
    except RecursionError:
        raise ParseError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise ParseError(f"not JSON: {error}") from error


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ParseError(f"the key {short_repr(key)} is duplicated")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ParseError(f"found {name}, expected a finite number")


def _parse_json_float(text: str) -> float:
    # The syntax is checked already; only a number beyond float64 is left.
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ParseError(f"found {short_repr(text)}, expected a finite number")
    return value


def _parse_json_int(text: str) -> int:
    # 20 digits hold every 64-bit seed; Python refuses to convert thousands of digits.
    if len(text) > 20:
        raise ParseError(f"found {short_repr(text)}, expected a whole number of at most 20 digits")
    return int(text)

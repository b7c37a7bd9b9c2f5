"""Strict parsing of text files, JSON, YAML and numbers.

Python's `int()`, `float()`, `json.loads` and `yaml.safe_load` accept more than a data file may contain (`1_000`, `inf`,
duplicate keys, NaN) and raise unexpected errors (RecursionError). Every reader of the package uses these functions
instead and adds file and line to the message.
"""

import difflib
import json
import math
import re
from collections.abc import Iterable
from typing import Any

import yaml

NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"


class ParseError(ValueError):
    """Invalid text; the message has what was found and what was expected."""


def short_repr(text: object, limit: int = 60) -> str:
    """A value for messages: on one line, shortened to `limit` characters."""
    shown = text if isinstance(text, str) else repr(text)
    return repr(shown if len(shown) <= limit else shown[: limit - 3] + "...")


def parse_int(text: str, digits: int = 18) -> int:
    """An integer in plain digits that fits 64 bits; surrounding blanks are ignored.

    Raises:
        ParseError: anything else, including `1_000`, `1.0` and digits of other alphabets.
    """
    if not re.fullmatch(rf"[+-]?[0-9]{{1,{digits}}}", text.strip(" \t")):
        raise ParseError(f"found {short_repr(text)}, expected a whole number of at most {digits} digits")
    return int(text)


def parse_float(text: str) -> float:
    """A finite decimal number in plain digits with an optional exponent; surrounding blanks are ignored.

    Raises:
        ParseError: anything else, including `nan`, `inf`, `1e999`, `1_000` and hexadecimal.
    """
    if not re.fullmatch(NUMBER, text.strip(" \t")) or not math.isfinite(value := float(text)):
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
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ParseError(f"byte {error.start} is not UTF-8; save the file as UTF-8") from error
    if "\0" in text:
        raise ParseError(f"byte {text.index(chr(0))} is zero; this is not a text file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON document.

    Raises:
        ParseError: not JSON, NaN or Infinity, a number beyond float64, a duplicate key, or nested too deeply.
    """
    try:
        return json.loads(
            decode_text(text) if isinstance(text, bytes) else text,
            object_pairs_hook=_object_without_duplicates,
            parse_constant=parse_float,
            parse_float=parse_float,
            parse_int=lambda digits: parse_int(digits, 20),  # 64-bit seeds are unsigned
        )
    except ParseError:
        raise
    except (RecursionError, ValueError) as error:
        raise ParseError(f"not JSON: {error}") from error


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [key for key, _ in pairs]
    if len(set(names)) < len(names):
        raise ParseError(f"the key {short_repr(next(key for key in names if names.count(key) > 1))} is duplicated")
    return dict(pairs)


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ParseError: not YAML, a duplicate key, or nested too deeply.
    """
    try:
        return yaml.load(text, Loader=_LoaderWithoutDuplicates)
    except ParseError:
        raise
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:  # a date such as 2024-13-01
        raise ParseError(f"not YAML: {error}") from error


class _LoaderWithoutDuplicates(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """As read, before `<<` adds the keys of another mapping."""
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in first:
                text = f"the key {short_repr(key.value)} is duplicated, first in line {first[name]}"
                raise ParseError(f"line {line}: {text}")
            first[name] = line
        return node


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the most similar known name, or an empty string."""
    whole = {one.upper(): one for one in known}
    last = {one.rsplit(".", 1)[-1]: whole[one] for one in whole}  # `LR` is not similar to `TRAIN.LR`
    for names, word, cutoff in ((whole, name.upper(), 0.6), (last, name.upper().rsplit(".", 1)[-1], 0.8)):
        for close in difflib.get_close_matches(word, names, n=1, cutoff=cutoff):
            return f"; did you mean {names[close]}?"
    return ""

"""Words to values: one entry against the description of its key.

Knows the types a key can have. Stricter than YAML and yacs where they guess (null, octal numbers, quoted numbers,
elements of lists), and kinder where nothing can be lost (`LR: 1`, `1e-4`, `Step` for `step`).
"""

import math
import re

from seqtrack.config.fields import Key, Value
from seqtrack.config.text import Entry, Scalar, nearest, shown

_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)", re.ASCII)
_NUMBER = re.compile(r"[-+]?([0-9]+(_[0-9]+)*)?\.?[0-9]*([eE][-+]?[0-9]+)?", re.ASCII)
# Python refuses to read a whole number of thousands of digits, with an error of its own; no limit is that far away.
_MAX_DIGITS = 30
_TRUE = {"true", "yes", "on"}
_FALSE = {"false", "no", "off"}
_NULL = {"", "~", "null"}


class _WrongWordError(Exception):
    """A word cannot be read; the text says what was found, where `shown` is not enough."""


def convert(key: Key, entry: Entry) -> tuple[Value | None, list[str]]:
    """Read an entry as its key's type.

    Returns:
        The value and no problems, or None and each problem as a sentence.
    """
    if key.is_list:
        return _convert_list(key, entry)
    if not isinstance(entry.value, Scalar):
        return None, [f"{key.name} ({entry.where}): found a list, expected {key.expected}"]
    try:
        return _convert_word(key, entry.value), []
    except _WrongWordError as error:
        return None, [f"{key.name} ({entry.where}): found {error}, expected {key.expected}{_hint(key, entry.value)}"]


def _convert_list(key: Key, entry: Entry) -> tuple[Value | None, list[str]]:
    if isinstance(entry.value, Scalar):
        return None, [f"{key.name} ({entry.where}): found {_found(entry.value)}, expected {key.expected}"]
    values: list[int | float | bool | str] = []
    problems: list[str] = []
    for index, word in enumerate(entry.value):
        try:
            values.append(_convert_word(key, word))
        except _WrongWordError as error:
            problems.append(f"{key.name}[{index}] ({entry.where}): found {error}, expected {key.expected}")
    if key.length is not None and len(entry.value) != key.length:
        problems.append(f"{key.name} ({entry.where}): found {len(entry.value)} elements, expected {key.expected}")
    if problems:
        return None, problems
    # All elements went through the same conversion, which the type checker cannot see.
    return tuple(values), []  # type: ignore[return-value]


def _convert_word(key: Key, word: Scalar) -> int | float | bool | str:
    if not word.quoted and word.text.lower() in _NULL:
        raise _WrongWordError("nothing" if not word.text else f"{word.text} (nothing)")
    kind = key.element_kind
    if kind == "int or auto":
        if word.text.lower() == "auto":
            return "auto"
        kind = "int"
    if kind == "str":
        return _name(key, word)
    if word.quoted:
        raise _WrongWordError(f"the quoted text {shown(word.text)}")
    if kind == "bool":
        return _switch(word)
    number = _number(kind, word)
    _check_limits(key, number, word)
    if key.choices and number not in key.choices:
        raise _WrongWordError(word.text)
    return number


def _name(key: Key, word: Scalar) -> str:
    if not key.choices:
        if re.fullmatch(key.pattern, word.text) is None or len(word.text) > 100:
            raise _WrongWordError(shown(word.text))
        return word.text
    for choice in key.choices:
        if isinstance(choice, str) and choice.lower() == word.text.lower():
            return choice
    raise _WrongWordError(shown(word.text))


def _switch(word: Scalar) -> bool:
    if word.text.lower() in _TRUE:
        return True
    if word.text.lower() in _FALSE:
        return False
    raise _WrongWordError(shown(word.text))


def _number(kind: str, word: Scalar) -> int | float:
    if kind == "int":
        if _WHOLE.fullmatch(word.text) is None or len(word.text) > _MAX_DIGITS:
            raise _WrongWordError(_found(word))
        return int(word.text)
    if _NUMBER.fullmatch(word.text) is None or not any(letter.isdigit() for letter in word.text.lower().split("e")[0]):
        raise _WrongWordError(_found(word))
    number = float(word.text)
    if not math.isfinite(number):
        raise _WrongWordError(f"{shown(word.text)}, which is too large")
    return number + 0.0  # -0.0 equals 0.0 but is written otherwise, and would change the digest


def _check_limits(key: Key, number: int | float, word: Scalar) -> None:
    low = key.low is not None and number < key.low
    above = key.above is not None and number <= key.above
    high = key.high is not None and number > key.high
    if low or above or high:
        raise _WrongWordError(word.text[:60])


def _found(word: Scalar) -> str:
    return f"the quoted text {shown(word.text)}" if word.quoted else shown(word.text)


def _hint(key: Key, word: Scalar) -> str:
    names = [choice for choice in key.choices if isinstance(choice, str)]
    return nearest(word.text, names) if names else ""

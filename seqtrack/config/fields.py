"""How a key of the configuration is described: type, default, limits, meaning, and whether a resumed run must agree.

The schema is written as nested frozen dataclasses whose fields carry these descriptions, so that a key cannot exist
without one. Knows nothing of any particular key, and reads no file.
"""

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

Value = int | float | bool | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
T = TypeVar("T")

# A name becomes part of a path or of a log line: it may not climb out of a folder or break the line.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.+-]*"

_KINDS: dict[Any, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    str: "str",
    int | str: "int or auto",
    tuple[int, ...]: "list of int",
    tuple[float, ...]: "list of float",
    tuple[str, ...]: "list of str",
}


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    `low` and `high` are inclusive, `above` is exclusive; for a list they and `pattern` hold for each element. `length`
    is the exact number of elements of a list. `must_match` is true where another value makes it another experiment.
    """

    name: str
    kind: str
    default: Value
    meaning: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[Value, ...] = ()
    length: int | None = None
    pattern: str = NAME_PATTERN
    must_match: bool = True

    @property
    def is_list(self) -> bool:
        """Whether the value is a list; `element_kind` then names the type of its elements."""
        return self.kind.startswith("list of ")

    @property
    def element_kind(self) -> str:
        """The kind itself, or that of a list's elements."""
        return self.kind.removeprefix("list of ")

    @property
    def expected(self) -> str:
        """What a value has to be, in words for messages and for the documentation."""
        words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a name"}
        words["int or auto"] = "a whole number or auto"
        if self.is_list:
            plural = {"int": "whole numbers", "float": "numbers", "str": "names"}[self.element_kind]
            text = f"a list of {'' if self.length is None else f'{self.length} '}{plural}"
        elif self.choices:
            return "one of " + ", ".join(str(choice) for choice in self.choices)
        else:
            text = words[self.kind]
        limits = []
        if self.above is not None:
            limits.append(f"above {_written(self.above)}")
        if self.low is not None:
            limits.append(f"at least {_written(self.low)}")
        if self.high is not None:
            limits.append(f"at most {_written(self.high)}")
        return f"{text}, {' and '.join(limits)}" if limits else text


def _written(number: float) -> str:
    # A limit such as 2**32 - 1 must be readable to its last digit.
    return str(int(number)) if number == int(number) else f"{number:g}"


def key(
    default: T,
    meaning: str,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[Value, ...] = (),
    length: int | None = None,
    must_match: bool = True,
) -> T:
    """A field of the schema that holds a value. See `Key` for the arguments."""
    description = {
        "meaning": meaning,
        "low": low,
        "high": high,
        "above": above,
        "choices": choices,
        "length": length,
        "must_match": must_match,
    }
    field: T = dataclasses.field(default=default, metadata={"key": description})
    return field


def section(kind: type[T]) -> T:
    """A field of the schema that holds further keys."""
    field: T = dataclasses.field(default_factory=kind)
    return field


def walk(schema: type[Any], prefix: str = "") -> Iterator[Key]:
    """Every key below a dataclass of the schema, in the order in which it is written."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        name = prefix + field.name
        description = field.metadata.get("key")
        if description is None:
            yield from walk(hints[field.name], name + ".")
        else:
            default = typing.cast(Value, field.default)
            yield Key(name=name, kind=_KINDS[hints[field.name]], default=default, **description)

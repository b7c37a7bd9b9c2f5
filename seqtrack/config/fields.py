"""How a key or an environment variable is described, and how its text becomes a value.

Settings are written as pydantic models whose fields carry type, limits, default and meaning, so that a setting cannot
exist without them. There is one grammar for YAML, environment variables and `KEY VALUE` pairs: all of them are read as
text, and the type of the field says what the text means. Knows no particular key, and reads no file.
"""

import difflib
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from seqtrack.parsing import ParseError, parse_float, parse_int

# A name becomes part of a path or of a log line: it may not climb out of a folder or break the line.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Expected(str):
    """Metadata of a field: what its text has to be, where the type alone does not say it."""


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, and text read as the fields' types say."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        # A field with a reader of its own is given the text.
        own = any(isinstance(item, BeforeValidator) for item in field.metadata)
        return value if own else from_text(value, field.annotation)


def setting(default: Any, meaning: str, *, must_match: bool = True, reader: str = "", **limits: Any) -> Any:
    """A field with its meaning.

    Args:
        default: the value where none is given.
        meaning: one line for the documentation, with the unit.
        must_match: whether another value makes it another experiment, which cannot be resumed.
        reader: the commands that read an environment variable.
        limits: pydantic's `ge`, `gt`, `le`, `min_length`, `max_length`.
    """
    return Field(default, description=meaning, json_schema_extra={"must_match": must_match, "reader": reader}, **limits)


def section(kind: type[Settings]) -> Any:
    """A field that holds further keys."""
    return Field(default_factory=kind)


def must_match(field: FieldInfo) -> bool:
    """Whether a resumed run must have the same value of this key."""
    return bool(typing.cast(dict[str, Any], field.json_schema_extra)["must_match"])


def reader(field: FieldInfo) -> str:
    """The commands that read an environment variable, separated by commas."""
    return str(typing.cast(dict[str, Any], field.json_schema_extra)["reader"])


def from_text(value: Any, annotation: Any) -> Any:
    """The value that a text means for a type; what cannot be read is returned as it is, for validation to refuse."""
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is Annotated:
        return from_text(value, arguments[0])
    if kind in (typing.Union, types.UnionType):
        candidates = (from_text(value, one) for one in arguments if one is not type(None))
        return next(
            (one for one in candidates if not isinstance(one, str)), value.lower() if _is_text(value) else value
        )
    if kind is tuple:
        parts = _elements(value) if _is_text(value) else value
        return tuple(from_text(part, arguments[0]) for part in parts) if isinstance(parts, list | tuple) else value
    if not _is_text(value):
        return value
    if kind is Literal:
        names = {str(one).lower(): one for one in arguments}
        return names.get(value.strip().lower(), value)
    if annotation is bool:
        return _SWITCH.get(value.strip().lower(), value)
    if annotation is Path:
        return _path(value)
    try:
        if annotation is int:
            return value if _is_octal(value) else parse_int(value)
        if annotation is float:
            return parse_float(value) + 0.0  # -0.0 equals 0.0 but is written otherwise, and would change the digest
    except ParseError:
        pass
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_octal(text: str) -> bool:
    """`010` is ten for a person and eight for YAML."""
    digits = text.strip().lstrip("+-")
    return len(digits) > 1 and digits.startswith("0")


def _path(text: str) -> Path | str:
    try:
        return Path(text).expanduser() if text.isprintable() else text
    except RuntimeError:  # `~nobody/x`
        return text


def _elements(text: str) -> Any:
    """`[a, b]` or `a,b` as a list of texts."""
    if not text.strip().startswith("["):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)  # makes texts, lists and mappings only
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return text


def expected(field: FieldInfo) -> str:
    """What a value of a field has to be, for messages and the documentation."""
    return _expected(field.annotation, field.metadata)


def _expected(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is Annotated:
        return _expected(arguments[0], [*arguments[1:], *metadata])
    for item in metadata:
        if isinstance(item, Expected):
            return str(item)
    if kind in (typing.Union, types.UnionType):
        texts = [_expected(one, metadata) for one in arguments if one is not type(None)]
        return " or ".join(text.removeprefix("one of ") for text in texts)
    if kind is Literal:
        return "one of " + ", ".join(str(one) for one in arguments)
    if kind is tuple:
        length = next((item.min_length for item in metadata if isinstance(item, annotated_types.MinLen)), None)
        words = _expected(arguments[0]).replace("a whole number", "whole numbers").replace("a number", "numbers")
        return f"a list of {f'{length} ' if length else ''}{words.replace('a name', 'names')}"
    words_of = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", Path: "a path"}
    names = {annotated_types.Gt: ("gt", "above"), annotated_types.Ge: ("ge", "at least")}
    names[annotated_types.Le] = ("le", "at most")
    limits = [
        f"{names[type(item)][1]} {_number(getattr(item, names[type(item)][0]))}"
        for item in metadata
        if type(item) in names
    ]
    return f"{words_of[annotation]}{', ' if limits else ''}{' and '.join(limits)}"


def _number(number: float) -> str:
    # A limit such as 2**32 - 1 must be readable to its last digit.
    return str(int(number)) if number == int(number) else f"{number:g}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name that looks most like `name`, or nothing."""
    by_upper = {one.upper(): one for one in known}
    close = difflib.get_close_matches(name.upper(), by_upper, n=1, cutoff=0.6)
    if not close:
        # A right name in a wrong place (`LR` for `TRAIN.LR`) looks unlike the full name.
        tails = {one.rsplit(".", 1)[-1]: one for one in by_upper}
        close = [tails[one] for one in difflib.get_close_matches(name.upper().rsplit(".", 1)[-1], tails, 1, 0.8)]
    return f"; did you mean {by_upper[close[0]]}?" if close else ""

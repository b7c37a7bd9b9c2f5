"""Describe keys and environment variables as pydantic fields, and convert their text to values.

YAML, environment variables and `KEY VALUE` pairs have one grammar: all are read as text, which the type of the field
interprets.
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

# A name becomes part of paths and log lines: it must not leave a folder or break a line.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class Expected(str):
    """Metadata of a field: a description of valid values where the type does not give one."""


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, text converted by the fields' types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        # A field with its own validator gets the text.
        own = any(isinstance(item, BeforeValidator) for item in field.metadata)
        return value if own else from_text(value, field.annotation)


def setting(default: Any, meaning: str, *, must_match: bool = True, reader: str = "", **limits: Any) -> Any:
    """A field with its documentation.

    Args:
        default: the default value.
        meaning: one line with the unit.
        must_match: whether a resumed run must have the same value.
        reader: the commands that read the environment variable.
        limits: pydantic's `ge`, `gt`, `le`, `min_length`, `max_length`.
    """
    return Field(default, description=meaning, json_schema_extra={"must_match": must_match, "reader": reader}, **limits)


def section(kind: type[Settings]) -> Any:
    """A field with further keys."""
    return Field(default_factory=kind)


def must_match(field: FieldInfo) -> bool:
    """Whether a resumed run must have the same value."""
    return bool(typing.cast(dict[str, Any], field.json_schema_extra)["must_match"])


def reader(field: FieldInfo) -> str:
    """The commands that read an environment variable, separated by commas."""
    return str(typing.cast(dict[str, Any], field.json_schema_extra)["reader"])


def from_text(value: Any, annotation: Any) -> Any:
    """Convert a text to a type; invalid text is returned unchanged, for validation to refuse."""
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
            return parse_float(value) + 0.0  # -0.0 is written differently and would change the digest
    except ParseError:
        pass
    return value


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_octal(text: str) -> bool:
    """`010` is ambiguous: ten, or eight in YAML."""
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
        return yaml.load(text, Loader=yaml.BaseLoader)  # only strings, lists and mappings
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        return text


def expected(field: FieldInfo) -> str:
    """A description of a field's valid values, for messages and the documentation."""
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
    # A limit such as 2**32 - 1 needs all its digits.
    return str(int(number)) if number == int(number) else f"{number:g}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the most similar known name, or an empty string."""
    by_upper = {one.upper(): one for one in known}
    close = difflib.get_close_matches(name.upper(), by_upper, n=1, cutoff=0.6)
    if not close:
        # `LR` is not similar to `TRAIN.LR`.
        tails = {one.rsplit(".", 1)[-1]: one for one in by_upper}
        close = [tails[one] for one in difflib.get_close_matches(name.upper().rsplit(".", 1)[-1], tails, 1, 0.8)]
    return f"; did you mean {by_upper[close[0]]}?" if close else ""

"""Fields of keys and environment variables: their facts as pydantic metadata, and the one grammar of their texts.

YAML, environment variables and `KEY VALUE` pairs are all read as text, which the type of the field interprets.
"""

import shlex
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import annotated_types as at
import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from seqtrack.parsing import parse_float, parse_int

# A name becomes part of paths and log lines: it must not leave a folder or break a line.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=100)]
Pairs = tuple[tuple[str, str], ...]  # written as in a shell: KEY VALUE KEY VALUE
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_UNIONS = (typing.Union, types.UnionType)
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name", Path: "a path"}
_LIMITS = {at.Gt: ("gt", "above"), at.Ge: ("ge", "at least"), at.Le: ("le", "at most")}


class Expected(str):
    """Metadata of a field: a description of valid values where the type does not give one."""


class Settings(BaseModel):
    """Base of every section: frozen, no unknown keys, text converted by the fields' types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_text(cls, value: Any, info: ValidationInfo) -> Any:
        return _from_text(value, cls.model_fields[str(info.field_name)].annotation)


def setting(default: Any, meaning: str, reader: str = "", *, must_match: bool = True, **limits: Any) -> Any:
    """A field with its documentation.

    Args:
        default: the default value.
        meaning: one line with the unit.
        reader: the commands that read the environment variable, separated by commas.
        must_match: whether a resumed run must have the same value.
        limits: pydantic's `ge`, `gt`, `le`, `min_length`, `max_length`.
    """
    return Field(default, description=meaning, json_schema_extra={"must_match": must_match, "reader": reader}, **limits)


def fact(field: FieldInfo, name: Literal["must_match", "reader"]) -> Any:
    """What `setting` was given for a field."""
    return typing.cast(Mapping[str, object], field.json_schema_extra)[name]


def _from_text(value: Any, kind: Any) -> Any:
    """Convert text to the type `kind`; invalid text is returned unchanged, for validation to refuse."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _from_text(value, arguments[0])
    try:
        if origin is tuple:
            parts = _elements(value, kind) if isinstance(value, str) else value
            return tuple(_from_text(part, arguments[0]) for part in parts) if isinstance(parts, list | tuple) else value
        if not isinstance(value, str):
            return value
        if origin in _UNIONS:
            return next((one for one in (_from_text(value, each) for each in arguments) if one != value), value)
        text = value.strip().lower()
        if origin is Literal:
            return {str(one).lower(): one for one in arguments}.get(text, value)
        if kind is bool:
            return _SWITCH.get(text, value)
        if kind is int:  # `010` is ambiguous: ten, or eight in YAML
            return value if len(digits := text.lstrip("+-")) > 1 and digits.startswith("0") else parse_int(value)
        if kind is float:
            return parse_float(value) + 0.0  # -0.0 is written differently and would change the digest
        return Path(value).expanduser() if kind is Path else value
    # RuntimeError: `~nobody/x`, and a RecursionError of YAML; ParseError is a ValueError
    except (yaml.YAMLError, ValueError, OverflowError, RuntimeError):
        return value


def _elements(text: str, kind: Any) -> Any:
    """`[a, b]` or `a,b` as a list of texts; for pairs, `a b c d`."""
    if kind == Pairs:
        words = shlex.split(text)
        return list(zip(words[::2], words[1::2], strict=True))
    if text.strip().startswith("["):
        return yaml.load(text, Loader=yaml.BaseLoader)  # only strings, lists and mappings
    return [part.strip() for part in text.split(",")] if text.strip() else []


def expected(kind: Any, metadata: Iterable[Any] = ()) -> str:
    """A description of the valid values of a type with its metadata, for messages and the documentation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return expected(arguments[0], [*arguments[1:], *metadata])
    if texts := [str(item) for item in metadata if isinstance(item, Expected)]:
        return texts[0]
    if origin in _UNIONS:
        texts = [expected(one, metadata) for one in arguments if one is not type(None)]
        return " or ".join(text.removeprefix("one of ") for text in texts)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple:
        length = next((f"{item.min_length} " for item in metadata if isinstance(item, at.MinLen)), "")
        return f"a list of {length}values, each {expected(arguments[0])}"
    limits = [(*_LIMITS[type(item)], item) for item in metadata if type(item) in _LIMITS]
    texts = [f"{word} {getattr(item, name):.10g}" for name, word, item in limits]  # 2**32 - 1 needs all its digits
    return f"{_WORDS[kind]}{', ' if texts else ''}{' and '.join(texts)}"

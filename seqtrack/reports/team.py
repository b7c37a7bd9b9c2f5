"""Who hands the report in: from a small YAML file, or from options. Every field may be empty."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from seqtrack.errors import UserError


def _text(value: object) -> object:
    """YAML's numbers and dates as text; nested values are left for the type check to refuse."""
    if value is None:
        return ""
    return value if isinstance(value, dict | list) else str(value)


def _person(value: object) -> object:
    return ", ".join(map(str, value.values())) if isinstance(value, dict) else _text(value)


_Text = Annotated[str, BeforeValidator(_text)]


class Team(BaseModel):
    """The head of a report. A member is one text per person, such as "Ada Lovelace, 12345"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: _Text = ""
    team: _Text = ""
    number: _Text = ""
    course: _Text = ""
    members: tuple[Annotated[str, BeforeValidator(_person)], ...] = ()
    repository: _Text = ""
    hub: _Text = ""
    notes: _Text = ""


def read_team(path: Path | None, *, flags: dict[str, str | None], members: Sequence[str]) -> Team:
    """The team of a YAML file, with options taking precedence.

    Args:
        path: a mapping with fields of `Team`; a member is a text, or a mapping whose values are joined.
        flags: values given on the command line; None was not given.
        members: given on the command line; empty leaves the file's.

    Raises:
        UserError: unreadable, not a mapping, unknown keys, wrong types.
    """
    values = _read(path) if path is not None else {}
    given = {key: value for key, value in flags.items() if value is not None}
    if members:
        given["members"] = list(members)  # type: ignore[assignment]
    try:
        return Team.model_validate({**{str(key): value for key, value in values.items() if value is not None}, **given})
    except ValidationError as error:
        known = ", ".join(Team.model_fields)
        problems = [
            f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r:.80} (known keys: {known})"
            for one in error.errors()
        ]
        raise UserError(problems, code="report.team") from error


def _read(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", code="file.unreadable") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}", code="report.team") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines: {', '.join(Team.model_fields)}", code="report.team")
    return values

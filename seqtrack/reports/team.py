"""Who hands the report in: from a small YAML file, or from flags. Knows the form; asks for nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from seqtrack.errors import UserError

KEYS = ("title", "team", "number", "course", "members", "repository", "hub", "notes")


@dataclass(frozen=True)
class Team:
    """What is at the head of a report; every field may be empty.

    Attributes:
        members: one text a person, such as "Ada Lovelace, 12345".
    """

    title: str = ""
    team: str = ""
    number: str = ""
    course: str = ""
    members: tuple[str, ...] = ()
    repository: str = ""
    hub: str = ""
    notes: str = ""


def read_team(path: Path | None, *, flags: dict[str, str | None], members: Sequence[str]) -> Team:
    """Team data of a YAML file, with flags winning over it.

    Args:
        path: a mapping with any of `KEYS`; `members` is a list of texts, or of mappings whose values are joined.
        flags: values given on the command line; None was not given.
        members: given on the command line; empty leaves the file's.

    Raises:
        UserError: unreadable, no mapping, unknown keys, values of another form.
    """
    values: dict[str, Any] = _read(path) if path is not None else {}
    problems = [
        f"{path}: unknown key {key!r}; known are {', '.join(KEYS)}" for key in sorted(set(map(str, values)) - set(KEYS))
    ]
    found: dict[str, Any] = {}
    for key in KEYS:
        value = values.get(key)
        if key == "members":
            people = value if isinstance(value, list) else []
            if value is not None and not isinstance(value, list):
                problems.append(f"{path}: members must be a list, found {value!r:.80}")
            found[key] = tuple(_person(one) for one in people)
        elif isinstance(value, dict | list):
            problems.append(f"{path}: {key} must be a text, found {value!r:.80}")
        elif value is not None:
            found[key] = str(value)
    if problems:
        raise UserError(problems)
    found |= {key: value for key, value in flags.items() if value is not None}
    if members:
        found["members"] = tuple(members)
    return Team(**found)


def _person(value: object) -> str:
    return ", ".join(str(part) for part in value.values()) if isinstance(value, dict) else str(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected `key: value` lines with any of {', '.join(KEYS)}")
    return values

"""Who hands the report in: from a small YAML file, or from options. Every field may be empty."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from seqtrack.errors import UserError

# A member is a text such as "Ada Lovelace, 12345", or a mapping whose values are joined to one.
_Person = Annotated[
    str, BeforeValidator(lambda one: ", ".join(map(str, one.values())) if isinstance(one, dict) else one)
]


class Team(BaseModel):
    """The head of a report."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    title: str = ""
    team: str = ""
    number: str = ""
    course: str = ""
    members: tuple[_Person, ...] = ()
    repository: str = ""
    hub: str = ""
    notes: str = ""


def read_team(path: Path | None, given: Mapping[str, object]) -> Team:
    """The team of a YAML file with fields of `Team`; values of `given` that are not empty take precedence.

    Raises:
        UserError: unreadable, not a mapping, unknown keys, wrong types.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) if path is not None else {}
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected `key: value` lines: {', '.join(Team.model_fields)}", "report.team")
        merged = {**values, **{key: value for key, value in given.items() if value}}
        return Team.model_validate({str(key): value for key, value in merged.items() if value is not None})
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", code="file.unreadable") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not YAML: {error}", code="report.team") from error
    except ValidationError as error:
        known = ", ".join(Team.model_fields)
        problems = [
            f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}, found {one['input']!r:.80} (known keys: {known})"
            for one in error.errors()
        ]
        raise UserError(problems, code="report.team") from error

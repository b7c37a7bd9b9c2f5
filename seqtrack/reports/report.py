"""The report that users hand in, made from measured files only.

Every number is read from a file of the run or computed from such numbers; what has no file was not run, and the report
states that. Prose and tables are in `templates/report.md.j2`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from seqtrack.checkpoints.safetensors_io import sha256_file, utc_now, write_atomic
from seqtrack.checkpoints.side_files import EnvironmentRecord, problems_of
from seqtrack.config.loader import compare_configs, config_digest, load_config
from seqtrack.errors import UserError, as_typed
from seqtrack.evaluation.tables import (
    COLUMNS,
    COURSE_COLUMNS,
    HEADINGS,
    compare_evaluations,
    epochs_by_group,
    static_sentence,
)
from seqtrack.markdown import Markdown, code, image
from seqtrack.parsing import ParseError, parse_yaml
from seqtrack.reports.rendering import render_markdown
from seqtrack.reports.requirements import REQUIREMENTS, find
from seqtrack.reports.run_files import OutputFiles
from seqtrack.run_dir import CERTIFICATE_FILE, COMPARISON, PHASES
from seqtrack.runtime.metrics_log import RATE_NAMES
from seqtrack.uploads.state import VerifiedFile

# Folders of many small files, which the table of uploads lists in one row each.
_GROUPED = re.compile(r".*/(?:evaluation/boxes|logs/tensorboard)/")
_FACTS = {"lock_sha256": "lock of the packages (sha256)", "cpu": "CPU", "cpu_count": "CPU cores", "tf32": "TF32"}
_FACTS |= {"world_size": "processes", "threads": "threads per process", "cpu_capability": "CPU instructions"}
# A member is a text such as "Ada Lovelace, 12345", or a mapping whose values are joined to one.
_Person = Annotated[
    str, BeforeValidator(lambda one: ", ".join(map(str, one.values())) if isinstance(one, dict) else one)
]


class Team(BaseModel):
    """Who hands the report in. Every field may be empty."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)

    title: str = ""
    team: str = ""
    number: str = ""
    course: str = ""
    members: tuple[_Person, ...] = ()
    repository: str = ""
    hub: str = ""
    notes: str = ""
    reflections: dict[str, str] = {}  # by member


def read_document(path: Path, code: str) -> Any:
    """The content of a YAML file; `code` is that of an error in it.

    Raises:
        UserError: unreadable, not YAML, a key given twice.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})", code="file.unreadable") from error
    except ParseError as error:
        raise UserError(f"{path}: {error}", code=code) from error


def read_team(path: Path | None, given: Mapping[str, object]) -> Team:
    """The team of a YAML file with fields of `Team`; values of `given` that are not empty take precedence.

    Raises:
        UserError: unreadable, not a mapping, unknown keys, wrong types.
    """
    values = read_document(path, "report.team") if path is not None else {}
    try:
        if isinstance(values, dict):
            values = values["team"] if isinstance(values.get("team"), dict) else values  # as in the file of a course
            values = {**values, **{key: value for key, value in given.items() if value}}
            values = {key: value for key, value in values.items() if value is not None}
        return Team.model_validate(values)
    except ValidationError as error:
        known = f"{path}, of `key: value` lines with {', '.join(Team.model_fields)}"
        raise UserError(problems_of(known, error, "report.team")) from error


def write_report(output_dir: Path, team: Team) -> list[Path]:
    """Write `report.md` into the output folder and, with its links adjusted, into each phase's folder.

    Returns:
        the files written, the output folder's first.

    Raises:
        UserError: nothing to report, or invalid files.
    """
    files = OutputFiles(output_dir)
    written = [folder / "report.md" for folder in (output_dir, *(phase.folder for phase in files.phases))]
    for path in written:
        write_atomic(path, as_typed(_report_text(files, team, place=path.parent)).encode())
    return written


def _report_text(files: OutputFiles, team: Team, *, place: Path) -> str:
    """The whole report, with links relative to the folder `place`."""

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, place)).as_posix()

    certificate = files.folder / COMPARISON / CERTIFICATE_FILE
    pictures = [path for phase in files.phases for path in phase.plots]
    by_name = {phase.name: phase for phase in files.phases}
    return render_markdown(
        "report.md.j2",
        files=files,
        phases={name: by_name.get(name) for name in PHASES},
        team=team,
        team_rows=_team_rows(team),
        date=utc_now()[:10],
        main_plots=files.comparison_plots or pictures[:2],
        environment=_environment_rows(files),
        functions={requirement: map(find, names) for requirement, names in REQUIREMENTS.items()},
        certificate_link=Markdown(f"[`certificate.json`]({link(certificate)})"),
        certificate_sha256=sha256_file(certificate) if files.certificate else None,
        upload_rows=_upload_rows(files.uploads.files) if files.uploads else [],
        headings={key: HEADINGS[key] for key in COLUMNS},
        course_columns=COURSE_COLUMNS,
        epochs_by_group=epochs_by_group,
        static_sentence=static_sentence,
        evaluated_pairs=compare_evaluations([phase.evaluation for phase in files.phases if phase.evaluation]),
        authors="seqtrack_b256",
        rate_names=RATE_NAMES,
        load_config=load_config,
        compare_configs=compare_configs,
        config_digest=config_digest,
        images=lambda paths: Markdown("\n".join(image(link(path), path.stem) for path in paths)),
        not_run=Markdown("**Not run.**"),
    )


def _team_rows(team: Team) -> list[tuple[str, str]]:
    members = [(f"Member {index}", person) for index, person in enumerate(team.members, start=1)]
    rows = [("Team", team.team), ("Number", team.number), ("Course", team.course), *members]
    rows += [("Repository", team.repository), ("Hub", team.hub), ("Notes", team.notes)]
    # A whole address becomes a link that shows where it leads.
    address = re.compile(r"https://[\w./~%#?&=+-]+")
    return [(name, Markdown(f"<{text}>") if address.fullmatch(text) else text) for name, text in rows if text]


def _environment_rows(files: OutputFiles) -> tuple[list[str], list[list[object]], list[list[object]]]:
    """Names of the phases; rows of what they share, with one value; rows of what differs, with one per phase."""
    columns = {phase.name: _facts(phase.environment) for phase in files.phases if phase.environment}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name) for column in columns.values())] for name in names]
    rows = [row for row in rows if any(value is not None for value in row[1:])]
    same = [row[:2] for row in rows if all(value == row[1] for value in row[2:])]
    return [*columns], same, [row for row in rows if any(value != row[1] for value in row[2:])]


def _facts(record: EnvironmentRecord) -> Mapping[str, object]:
    own = {**record.model_dump(exclude={"fingerprint", "versions"}), **dict(sorted(record.fingerprint.items()))}
    facts: dict[str, object] = {}
    for name, value in own.items():
        shown: object = code(value) if name == "lock_sha256" else value
        if isinstance(value, bool):
            shown = "yes" if value else "no"
        elif name.endswith("_bytes") and value is not None:
            shown = f"{value / 2**30:.1f} GiB"
        facts[_FACTS.get(name, name.replace("_", " ").removesuffix(" bytes"))] = shown
    return facts | {f"package {name}": version for name, version in sorted(record.versions.items())}


def _upload_rows(files: Mapping[str, VerifiedFile]) -> list[list[object]]:
    """One row per file with its commit's first digits, and one per folder of small files."""
    groups: dict[str, list[VerifiedFile]] = {}
    for path, file in sorted(files.items()):
        found = _GROUPED.match(path)
        groups.setdefault(found[0] if found else path, []).append(file)
    rows: list[list[object]] = []
    for path, members in groups.items():
        name, digest, commit = code(path), code(members[0].sha256), members[0].commit or ""
        if path.endswith("/"):
            name, digest, commit = Markdown(f"{code(path)}: {len(members)} files"), Markdown(""), ""
        shown = code(commit[:12]) if re.fullmatch("[0-9a-f]{12,}", commit) else "–"
        rows.append([name, sum(one.stamp[0] for one in members), digest, "verified", shown])
    return rows

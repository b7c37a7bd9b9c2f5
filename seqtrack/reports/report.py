"""The report that users hand in, made from measured files only.

Every number is read from a file of the run or computed from such numbers; what has no file was not run, and the report
states that. Prose and tables are in `templates/report.md.j2`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import sha256_file, write_atomic
from seqtrack.checkpoints.side_files import EnvironmentRecord
from seqtrack.config.loader import compare_configs, config_digest, load_config
from seqtrack.evaluation.tables import COLUMNS, HEADINGS
from seqtrack.markdown import Markdown, code, image
from seqtrack.reports.rendering import render_markdown
from seqtrack.reports.requirements import REQUIREMENTS, find
from seqtrack.reports.run_files import OutputFiles, read_output
from seqtrack.reports.team import Team
from seqtrack.run_dir import CERTIFICATE_FILE, COMPARISON, PHASES
from seqtrack.uploads.state import VerifiedFile

AUTHORS = "seqtrack_b256"
# Folders of many small files, which the table of uploads lists in one row each.
_GROUPED = re.compile(r".*/(?:evaluation/boxes|logs/tensorboard)/")


def write_report(output_dir: Path, team: Team) -> list[Path]:
    """Write `report.md` into the output folder and, with its links adjusted, into each phase's folder.

    Returns:
        the files written, the output folder's first.

    Raises:
        UserError: nothing to report, or invalid files.
    """
    files = read_output(output_dir)
    written = [folder / "report.md" for folder in (output_dir, *(phase.folder for phase in files.phases))]
    for path in written:
        write_atomic(path, _report_text(files, team, place=path.parent).encode())
    return written


def _report_text(files: OutputFiles, team: Team, *, place: Path) -> str:
    """The whole report, with links relative to the folder `place`."""

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, place)).as_posix()

    certificate = files.folder / COMPARISON / CERTIFICATE_FILE
    by_name = {phase.name: phase for phase in files.phases}
    return render_markdown(
        "report.md.j2",
        files=files,
        phases={name: by_name.get(name) for name in PHASES},
        team=team,
        team_rows=_team_rows(team),
        environment_rows=_environment_rows(files),
        functions={requirement: map(find, names) for requirement, names in REQUIREMENTS.items()},
        certificate_link=Markdown(f"[`certificate.json`]({link(certificate)})"),
        certificate_sha256=sha256_file(certificate) if files.certificate else None,
        upload_rows=_upload_rows(files.uploads.files) if files.uploads else [],
        headings={key: HEADINGS[key] for key in COLUMNS},
        authors=AUTHORS,
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
    links = [
        (name, Markdown(f"<{text}>") if re.fullmatch(r"https://[\w./~%#?&=+-]+", text) else text) for name, text in rows
    ]
    return [row for row in links if row[1]]


def _environment_rows(files: OutputFiles) -> list[list[object]]:
    """A heading and rows with one column per phase, so that a difference between them is visible."""
    columns = {phase.name: _facts(phase.environment) for phase in files.phases if phase.environment}
    names = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [[name, *(column.get(name) for column in columns.values())] for name in names]
    return [["", *columns], *(row for row in rows if any(row[1:]))] if columns else []


def _facts(record: EnvironmentRecord) -> dict[str, object]:
    return {
        "commit": record.commit,
        "requirements.lock, sha256": code(record.lock_sha256),
        "system": record.platform,
        "CPU": record.cpu,
        "CPU cores": record.cpu_count,
        "memory (bytes)": record.memory_bytes,
        "GPU memory (bytes)": record.gpu_memory_bytes,
        **{key: value for key, value in sorted(record.fingerprint.items()) if key != "cpu"},
        **{f"package {key}": value for key, value in sorted(record.versions.items())},
    }


def _upload_rows(files: Mapping[str, VerifiedFile]) -> list[list[object]]:
    """One row per file with its commit's first digits, and one per folder of small files."""
    groups: dict[str, list[VerifiedFile]] = {}
    for path, file in sorted(files.items()):
        found = _GROUPED.match(path)
        groups.setdefault(found[0] if found else path, []).append(file)
    rows: list[list[object]] = []
    for path, members in groups.items():
        name: object = code(path)
        digest, commit = code(members[0].sha256), members[0].commit or ""
        if path.endswith("/"):
            name, digest, commit = Markdown(f"{code(path)}: {len(members)} files"), Markdown(""), ""
        shown = code(commit[:12]) if re.fullmatch("[0-9a-f]{12,}", commit) else "–"
        rows.append([name, sum(one.stamp[0] for one in members), digest, "verified", shown])
    return rows

"""The report that users hand in, made from measured files only.

Every number is read from a file of the run or computed from such numbers; what has no file was not run, and the report
states that. Prose and tables are in `templates/report.md.j2`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.safetensors_io import sha256_file, write_atomic
from seqtrack.checkpoints.side_files import EnvironmentRecord
from seqtrack.config.loader import compare_configs, config_digest, load_config
from seqtrack.evaluation.tables import COLUMNS, HEADINGS
from seqtrack.markdown import Markdown, code, image
from seqtrack.reports.rendering import render_markdown
from seqtrack.reports.requirements import find_places
from seqtrack.reports.run_files import OutputFiles, Upload, read_output
from seqtrack.reports.team import Team
from seqtrack.run_dir import CERTIFICATE_FILE, COMPARISON, PHASES

AUTHORS = "seqtrack_b256"
# Folders of many small files, which the table of uploads lists in one row each.
_GROUPED = ("/evaluation/boxes/", "/logs/tensorboard/")


def write_report(output_dir: Path, team: Team) -> list[Path]:
    """Write `report.md` into the output folder and, with its links adjusted, into each phase's folder.

    Returns:
        the files written, the output folder's first.

    Raises:
        UserError: nothing to report, or invalid files.
    """
    files = read_output(output_dir)
    written = []
    for folder in (output_dir, *(phase.folder for phase in files.phases)):
        path = folder / "report.md"
        write_atomic(path, report_text(files, team, place=folder).encode())
        written.append(path)
    return written


def report_text(files: OutputFiles, team: Team, *, place: Path) -> str:
    """The whole report.

    Args:
        place: the folder that it is for; links to plots and files are relative to it.
    """

    def link(path: Path) -> str:
        return Path(os.path.relpath(path, place)).as_posix()

    certificate = files.folder / COMPARISON / CERTIFICATE_FILE
    return render_markdown(
        "report.md.j2",
        files=files,
        phases={name: files.phase(name) for name in PHASES},
        team=team,
        team_rows=_team_rows(team),
        environment=_environment(files),
        functions=find_places(),
        certificate_link=Markdown(f"[`certificate.json`]({link(certificate)})"),
        certificate_sha256=sha256_file(certificate) if files.certificate else None,
        uploads=_grouped(files.uploads),
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
    return [row for row in [*rows, ("Repository", team.repository), ("Hub", team.hub), ("Notes", team.notes)] if row[1]]


def _environment(files: OutputFiles) -> dict[str, Any] | None:
    """One column per phase, so that a difference between them is visible."""
    records = {phase.name: phase.environment for phase in files.phases if phase.environment}
    columns = [_facts(record) for record in records.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name) for column in columns)] for name in names]
    return {"phases": list(records), "rows": [row for row in rows if any(row[1:])]} if records else None


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


def _grouped(uploads: Iterable[Upload]) -> list[tuple[Upload, int]]:
    """Files with 0, and folders of small files in the same state with their number of files."""
    groups: dict[tuple[str, str], list[Upload]] = {}
    for one in uploads:
        word = next((word for word in _GROUPED if word in one.path), None)
        path = one.path.split(word)[0] + word if word else one.path
        groups.setdefault((path, one.state), []).append(one)
    return [
        (Upload(path=path, size=sum(one.size for one in members), sha256=None, state=state, commit=None), len(members))
        if path.endswith("/")
        else (members[0], 0)
        for (path, state), members in groups.items()
    ]

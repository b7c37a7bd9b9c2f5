"""The report that users hand in: one Markdown text from measured files only.

Every number is read from a file of the run or counted over such numbers; what has no file was not run, and the report
says so. Knows the files through `run_files` and writes prose and tables; measures nothing itself.
"""

from collections.abc import Callable
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.checkpoints.side_files import EnvironmentRecord
from seqtrack.config.loader import compare_configs, config_digest, load_config
from seqtrack.config.schema import Config
from seqtrack.markdown import code, escape, escape_with_links, number, table
from seqtrack.reports.requirements import find_places
from seqtrack.reports.run_files import OutputFiles, RunFiles, read_output
from seqtrack.reports.sections import (
    NOT_RUN,
    checkpoints_section,
    epochs_section,
    evaluation_section,
    proof_section,
    time_section,
    uploads_section,
)
from seqtrack.reports.team import Team

AUTHORS = "seqtrack_b256"


def write_report(output_dir: Path, team: Team) -> list[Path]:
    """Write `report.md` into the output folder and, with its links adjusted, into each phase's folder.

    Returns:
        the files written, the output folder's first.

    Raises:
        UserError: nothing to report, or damaged files.
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
        place: the folder it will are in; links to plots and files are relative to it.
    """
    sections: list[tuple[str, Callable[[], str]]] = [
        ("Team", lambda: _team(team)),
        ("Environment", lambda: _environment(files)),
        ("Data", lambda: _data(files)),
        ("Configuration", lambda: _configuration(files)),
        ("Functions behind each requirement", _functions),
        ("Training, epoch by epoch", lambda: _each_phase(files, lambda phase: epochs_section(phase, place))),
        ("Time", lambda: time_section(files)),
        ("Is the resumed run the same run?", lambda: proof_section(files, place)),
        (
            "Evaluation on held-out sequences",
            lambda: _each_phase(files, lambda phase: evaluation_section(phase, place)),
        ),
        ("Checkpoints", lambda: checkpoints_section(files)),
        ("Uploaded files", lambda: uploads_section(files)),
    ]
    parts = [f"# {escape(team.title or 'SeqTrack: training report')}\n", _opening(files)]
    parts += [f"## {index}. {title}\n\n{write()}" for index, (title, write) in enumerate(sections, start=1)]
    return "\n".join(parts)


def _opening(files: OutputFiles) -> str:
    synthetic = any(source.synthetic for phase in files.phases if phase.dataset for source in phase.dataset.sources)
    lines = []
    for phase in files.phases:
        last = phase.epochs[-1] if phase.epochs else None
        told = f", epoch {last.epoch}: loss {last.loss:.5f}, IoU {last.iou:.5f}" if last else ""
        lines.append(f"- **{phase.name}**: {phase.run.state if phase.run else 'no run.json'}{told}")
    lines.append(f"- **Comparison of the phases**: {files.certificate.verdict if files.certificate else 'not run'}")
    lines.append(f"- **Evaluation**: {_best_line(files)}")
    if synthetic:
        lines.append("- **The data are synthetic**, drawn by code: numbers here show that the system works, no more.")
    return "\n".join(lines) + "\n"


def _best_line(files: OutputFiles) -> str:
    for phase in files.phases:
        for one in reversed(phase.evaluation.trackers if phase.evaluation else ()):
            if one.kind == "checkpoint":
                auc = number(one.mean.get("auc"))
                return f"{phase.name}, {escape(one.name)}: AUC {auc} on held-out sequences"
    return "not run"


def _each_phase(files: OutputFiles, write: Callable[[RunFiles], str]) -> str:
    there = {phase.name: phase for phase in files.phases}
    return "\n".join(
        f"### {name}\n\n{write(there[name]) if name in there else NOT_RUN + chr(10)}" for name in ("phase_1", "phase_2")
    )


def _team(team: Team) -> str:
    rows = [
        ("Team", team.team),
        ("Number", team.number),
        ("Course", team.course),
        *((f"Member {index}", person) for index, person in enumerate(team.members, start=1)),
        ("Repository", team.repository),
        ("Hub", team.hub),
        ("Notes", team.notes),
    ]
    given = [(name, escape_with_links(value)) for name, value in rows if value]
    if not given:
        return "Not given (`--team team.yaml`, or `--member`, `--course`, ...).\n"
    return table(["", ""], given, texts=2)


def _environment(files: OutputFiles) -> str:
    """One column a phase, so that a difference between them is seen."""
    records = {phase.name: phase.environment for phase in files.phases if phase.environment}
    if not records:
        return NOT_RUN + "\n"

    def facts(record: EnvironmentRecord) -> dict[str, object]:
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

    columns = [facts(record) for record in records.values()]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = [[name, *(column.get(name) for column in columns)] for name in names]
    return table(["", *records], [row for row in rows if any(row[1:])], texts=1 + len(records))


def _data(files: OutputFiles) -> str:
    phase = next((one for one in files.phases if one.dataset), None)
    if phase is None or phase.dataset is None:
        return NOT_RUN + "\n"
    keys = ("sequences", "frames", "visible", "absent", "missing")
    rows = [
        [source.name, source.split, name, *(getattr(counts, key) for key in keys)]
        for source in phase.dataset.sources
        for name, counts in source.classes.items()
    ]
    parts = ["Trained on:\n", table(["data set", "split", "class", *keys], rows, texts=3)]
    digests = {one.name: one.dataset.digest for one in files.phases if one.dataset}
    parts.append("\n".join(f"- {name}: digest of lists and annotations {code(one)}" for name, one in digests.items()))
    evaluation = next((one.evaluation for one in files.phases if one.evaluation), None)
    if evaluation is None:
        return "\n".join(parts) + "\n\nHeld-out sequences: not evaluated.\n"
    held_out = [[one.name, one.class_name, one.frames, one.absent] for one in evaluation.sequences]
    told = f"{evaluation.conditions.get('dataset')}, {evaluation.conditions.get('split')}"
    parts += [f"\nEvaluated on ({escape(told)}):\n"]
    parts.append(table(["sequence", "class", "frames", "absent"], held_out, texts=2))
    return "\n".join(parts)


def _configuration(files: OutputFiles) -> str:
    phase = next((one for one in files.phases if one.config), None)
    if phase is None or phase.config is None:
        return NOT_RUN + "\n"
    name = code(phase.run.config if phase.run else "?")
    parts = [f"Experiment {name}, digest `{config_digest(phase.config)}`, whole in `{phase.name}/config.yaml`."]
    for other in files.phases:
        if other.config is not None and other is not phase:
            parts.append(f"{other.name} against {phase.name}: {_config_difference(phase.config, other.config)}")
    rows = [
        [code(one.key), _listed(one.a), _listed(one.b)] for one in compare_configs(load_config(AUTHORS), phase.config)
    ]
    parts.append(f"Differences from the authors' `{AUTHORS}`:" if rows else f"Equal to the authors' `{AUTHORS}`.")
    if rows:
        parts.append(table(["key", "authors", "here"], rows, texts=3))
    return "\n\n".join(parts) + "\n"


def _config_difference(a: Config, b: Config) -> str:
    differences = [code(one) for one in compare_configs(a, b)]
    return ", ".join(differences) if differences else "the same in every key"


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _functions() -> str:
    rows = [
        [requirement if index == 0 else "", code(place.function), code(f"{place.file}:{place.line}")]
        for requirement, places in find_places().items()
        for index, place in enumerate(places)
    ]
    return table(["requirement", "function", "file and line"], rows, texts=3)

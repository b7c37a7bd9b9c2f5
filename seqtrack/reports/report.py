"""The report that users hand in, made from measured files only.

Every number is read from a file of the run or computed from such numbers; what has no file was not run, and the report
states that. The prose is in `templates/report.md.j2`; this module prepares its tables.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from seqtrack.checkpoints.safetensors_io import sha256_file, write_atomic
from seqtrack.checkpoints.side_files import Certificate, EnvironmentRecord, EvaluationRecord
from seqtrack.config.loader import compare_configs, config_digest, load_config
from seqtrack.evaluation.tables import COLUMNS, HEADINGS
from seqtrack.markdown import Markdown, code, escape_with_links, image, number
from seqtrack.reports.rendering import render_markdown
from seqtrack.reports.requirements import find_places
from seqtrack.reports.run_files import OutputFiles, RunFiles, Upload, read_output
from seqtrack.reports.team import Team
from seqtrack.runtime.metrics_log import clock

AUTHORS = "seqtrack_b256"
NOT_RUN = Markdown("**Not run.**")
_COUNTS = ["sequences", "frames", "visible", "absent", "missing"]
_EPOCH_HEADING = [
    "epoch",
    "loss",
    "IoU",
    "samples",
    "steps",
    "time",
    "samples/s",
    "waiting for data",
    "LR",
    "checkpoint",
]
_VALIDATION = ("auc", "op50", "p20", "p_norm", "mean_iou")
# The log lines about interruption and resumption, which are quoted unchanged.
_RESUME_WORDS = (
    "resumes after step",
    "starts from",
    "promise",
    "stopped on request",
    "moved aside",
    "first difference",
)
# Folders of many small files: the upload table has one row per folder instead of one per file.
_GROUPED = ("/evaluation/boxes/", "/logs/tensorboard/")
_FIRST_PLOTS = ("epochs", "epochs_by_class", "success", "precision", "norm_precision")


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
    phases = {name: next((one for one in files.phases if one.name == name), None) for name in ("phase_1", "phase_2")}
    evaluation = next((one.evaluation for one in files.phases if one.evaluation), None)

    def images(paths: Iterable[Path]) -> Markdown:
        return Markdown("\n".join(image(_link(path, place), path.stem) for path in paths))

    return render_markdown(
        "report.md.j2",
        files=files,
        phases=phases,
        team=team,
        team_rows=_team_rows(team),
        best=_best_result(files),
        environment=_environment(files),
        data=_data(files, evaluation),
        evaluation=evaluation,
        configuration=_configuration(files),
        functions=[
            [requirement if index == 0 else "", code(place.function), code(f"{place.file}:{place.line}")]
            for requirement, places in find_places().items()
            for index, place in enumerate(places)
        ],
        training={
            "heading": _EPOCH_HEADING,
            "rows": {phase.name: _epoch_rows(phase) for phase in files.phases},
            "validation": {
                "headings": [HEADINGS[key] for key in _VALIDATION],
                "rows": {
                    phase.name: [
                        [one.epoch, *(number(getattr(one, key)) for key in _VALIDATION)] for one in phase.validations
                    ]
                    for phase in files.phases
                },
            },
        },
        times=[_time_row(phase) for phase in files.phases if phase.epochs],
        certificate=_certificate(files, files.certificate, place) if files.certificate else None,
        resume_lines={
            phase.name: [
                f"{line.file.name}:{line.number}: {line.text}"
                for line in phase.log
                if any(word in line.text for word in _RESUME_WORDS)
            ]
            for phase in files.phases
        },
        evaluations={phase.name: _evaluation(phase, phase.evaluation) for phase in files.phases if phase.evaluation},
        checkpoints=[
            [phase.name, one.file, one.epoch, one.step, one.bytes, code(one.sha256), code(one.weights_sha256)]
            for phase in files.phases
            for one in phase.manifests
        ],
        verified=sum(one.state == "verified" for one in files.uploads),
        uploads=_upload_rows(files.uploads),
        images=images,
        not_run=NOT_RUN,
    )


def _link(path: Path, place: Path) -> str:
    return Path(os.path.relpath(path, place)).as_posix()


def _team_rows(team: Team) -> list[tuple[str, Markdown]]:
    members = [(f"Member {index}", person) for index, person in enumerate(team.members, start=1)]
    rows = [("Team", team.team), ("Number", team.number), ("Course", team.course), *members]
    rows += [("Repository", team.repository), ("Hub", team.hub), ("Notes", team.notes)]
    return [(name, escape_with_links(value)) for name, value in rows if value]


def _best_result(files: OutputFiles) -> str:
    """The score of the last checkpoint that was evaluated."""
    for phase in files.phases:
        for one in reversed(phase.evaluation.trackers if phase.evaluation else ()):
            if one.kind == "checkpoint":
                return f"{phase.name}, {one.name}: AUC {number(one.mean.get('auc'))} on held-out sequences"
    return "not run"


def _environment(files: OutputFiles) -> dict[str, Any] | None:
    """One column per phase, so that a difference between them is visible."""
    records = {phase.name: phase.environment for phase in files.phases if phase.environment}
    if not records:
        return None

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
    rows = [[name, *(column.get(name) for column in columns)] for name in dict.fromkeys(n for c in columns for n in c)]
    return {"phases": list(records), "rows": [row for row in rows if any(row[1:])]}


def _data(files: OutputFiles, evaluation: EvaluationRecord | None) -> dict[str, Any] | None:
    dataset = next((phase.dataset for phase in files.phases if phase.dataset), None)
    if dataset is None:
        return None
    rows = [
        [source.name, source.split, name, *(getattr(counts, key) for key in _COUNTS)]
        for source in dataset.sources
        for name, counts in source.classes.items()
    ]
    sequences = evaluation.sequences if evaluation else ()
    held_out = [[one.name, one.class_name, one.frames, one.absent] for one in sequences]
    return {"counts": _COUNTS, "rows": rows, "held_out": held_out}


def _configuration(files: OutputFiles) -> dict[str, Any] | None:
    phase = next((one for one in files.phases if one.config), None)
    if phase is None or phase.config is None:
        return None
    others = {
        other.name: Markdown(
            ", ".join(code(one) for one in compare_configs(phase.config, other.config)) or "no difference"
        )
        for other in files.phases
        if other.config is not None and other is not phase
    }
    return {
        "phase": phase.name,
        "name": phase.run.config if phase.run else "?",
        "digest": config_digest(phase.config),
        "file": f"{phase.name}/config.yaml",
        "others": others,
        "authors": AUTHORS,
        "rows": [
            [code(one.key), _listed(one.a), _listed(one.b)]
            for one in compare_configs(load_config(AUTHORS), phase.config)
        ],
    }


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _epoch_rows(phase: RunFiles) -> list[list[object]]:
    digests = {manifest.epoch: manifest.sha256 for manifest in phase.manifests}
    return [
        [
            one.epoch,
            number(one.loss, 5),
            number(one.iou, 5),
            one.samples,
            one.steps,
            clock(one.time_s),
            number(one.samples_per_s, 1),
            f"{100 * one.data_wait_share:.1f} %",
            " ".join(f"{rate:.3g}" for rate in one.lr),
            code(digests[one.epoch][:12]) if one.epoch in digests else "none",
        ]
        for one in phase.epochs
    ]


def _time_row(phase: RunFiles) -> list[object]:
    times = [one.time_s for one in phase.epochs]
    total, waited = sum(times), sum(one.data_wait_s for one in phase.epochs)
    return [
        phase.name,
        len(times),
        clock(total),
        *(number(value, 1) for value in (mean(times), min(times), max(times))),
        number(sum(one.samples for one in phase.epochs) / total, 1),
        f"{100 * waited / total:.1f} %",
    ]


def _certificate(files: OutputFiles, certificate: Certificate, place: Path) -> dict[str, Any]:
    path = files.folder / "comparison" / "certificate.json"
    names = [run.folder for run in certificate.runs]
    return {
        "link": Markdown(f"[`certificate.json`]({_link(path, place)})"),
        "sha256": sha256_file(path),
        "heading": [
            "epoch",
            *(f"loss {name}" for name in names),
            *(f"IoU {name}" for name in names),
            "sha256",
            "verdict",
        ],
        "rows": [
            [
                one.epoch,
                *(number(value, 6) for value in (*one.loss, *one.iou)),
                Markdown(" / ".join(code(digest[:12]) for digest in dict.fromkeys(one.sha256))),
                "same" if one.same else ", ".join(one.differences),
            ]
            for one in certificate.epochs
        ],
        # The third plot there shows these two together.
        "plots": [plot for plot in files.comparison_plots if not plot.stem.startswith("training")],
    }


def _evaluation(phase: RunFiles, evaluation: EvaluationRecord) -> dict[str, Any]:
    trackers, conditions = evaluation.trackers, evaluation.conditions
    classes = sorted({one.class_name for one in evaluation.sequences})
    plots = {path.stem: path for path in sorted((phase.folder / "evaluation" / "plots").glob("*.png"))}
    return {
        "conditions": ", ".join(
            f"{key} {conditions[key]}" for key in ("device", "precision", "concurrent") if key in conditions
        ),
        "headings": [HEADINGS[key] for key in COLUMNS],
        "rows": [[one.name, *(number(one.mean.get(key)) for key in COLUMNS)] for one in trackers],
        "classes": classes,
        "by_class": [
            [one.name, *(number(one.classes.get(name, {}).get("auc")) for name in classes)] for one in trackers
        ],
        "plots": [plots[name] for name in dict.fromkeys((*_FIRST_PLOTS, *plots)) if name in plots],
    }


def _upload_rows(uploads: Iterable[Upload]) -> list[list[object]]:
    """One row per file, or per folder of small files in the same state."""
    rows: list[list[object]] = []
    groups: dict[tuple[str, str], list[Upload]] = {}
    for one in uploads:
        word = next((word for word in _GROUPED if word in one.path), None)
        if word:
            groups.setdefault((one.path.split(word)[0] + word, one.state), []).append(one)
        else:
            rows.append([code(one.path), one.size, code(one.sha256 or "none"), one.state, _commit(one)])
    for (folder, state), members in groups.items():
        label = Markdown(f"{code(folder)}: {len(members)} files")
        rows.append([label, sum(one.size for one in members), "", state, ""])
    return rows


def _commit(upload: Upload) -> str:
    """The start of the commit's hash; a folder target has none and records what it did instead."""
    commit = upload.commit or ""
    return code(commit[:12]) if len(commit) >= 12 and set(commit) <= set("0123456789abcdef") else "–"

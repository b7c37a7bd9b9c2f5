"""The report's sections about what came out: epochs, time, proof, evaluation, checkpoints, uploads.

Each function turns files of the run into Markdown; what has no file is said to be not run.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from seqtrack.checkpoints.safetensors_io import sha256_file
from seqtrack.checkpoints.side_files import Certificate
from seqtrack.evaluation.tables import COLUMNS, HEADINGS
from seqtrack.markdown import Markdown, bold, code, code_block, escape, image, number, table
from seqtrack.reports.run_files import LogLine, OutputFiles, RunFiles, Upload
from seqtrack.runtime.metrics_log import clock

NOT_RUN = Markdown("**Not run.**")
# Words by which the human log tells that a run was cut and continued; the lines are quoted as they are.
_EVIDENCE = ("resumes after step", "starts from", "guarantee", "stopped on request", "moved aside", "first difference")
# One line a file would bury the rest: an evaluation writes a box file a sequence and tracker.
_GROUPED = ("/evaluation/boxes/", "/logs/tensorboard/")


def epochs_section(phase: RunFiles, place: Path) -> str:
    """One row an epoch, with plots, and validation where it was asked for."""
    if not phase.epochs:
        return NOT_RUN + "\n"
    digests = {manifest.epoch: manifest.sha256 for manifest in phase.manifests}
    rows = [
        [
            str(one.epoch),
            f"{one.loss:.5f}",
            f"{one.iou:.5f}",
            str(one.samples),
            str(one.steps),
            clock(one.time_s),
            f"{one.samples_per_s:.1f}",
            f"{100 * one.data_wait_share:.1f} %",
            " ".join(f"{rate:.3g}" for rate in one.lr),
            code(digests[one.epoch][:12]) if one.epoch in digests else "none",
        ]
        for one in phase.epochs
    ]
    heading = ["epoch", "loss", "IoU", "samples", "steps", "time", "samples/s", "waiting for data", "LR", "checkpoint"]
    parts = [table(heading, rows), _images(phase.plots, place)]
    if phase.validations:
        columns = ("auc", "op50", "p20", "p_norm", "mean_iou")
        checked = [[str(one.epoch), *(number(getattr(one, key)) for key in columns)] for one in phase.validations]
        parts += [
            "Validation while training:\n",
            table(["epoch", *(HEADINGS[key] for key in columns)], checked),
        ]
    return "\n".join(parts)


def _images(paths: Sequence[Path], place: Path) -> str:
    return "\n".join(image(_link(path, place), path.stem) for path in paths) + "\n"


def _link(path: Path, place: Path) -> str:
    return Path(os.path.relpath(path, place)).as_posix()


def time_section(files: OutputFiles) -> str:
    """How long the phases took, and how much of it went in waiting for data."""
    rows = []
    for phase in files.phases:
        if not phase.epochs:
            continue
        times = [one.time_s for one in phase.epochs]
        waited = sum(one.data_wait_s for one in phase.epochs)
        rows.append(
            [
                phase.name,
                str(len(times)),
                clock(sum(times)),
                *(f"{value:.1f}" for value in (mean(times), min(times), max(times))),
                f"{sum(one.samples for one in phase.epochs) / sum(times):.1f}",
                f"{100 * waited / sum(times):.1f} %",
            ]
        )
    heading = ["", "epochs", "in all", "mean (s)", "shortest (s)", "longest (s)", "samples/s", "waiting for data"]
    return table(heading, rows) if rows else NOT_RUN + "\n"


def proof_section(files: OutputFiles, place: Path) -> str:
    """The verdict with what it rests on, and what the logs say of cuts and resumes."""
    certificate = files.certificate
    if certificate is None:
        parts = [NOT_RUN + " (`seqtrack verify phase_1 phase_2`, after both phases)\n"]
    else:
        file = files.folder / "comparison" / "certificate.json"
        parts = [
            f"Verdict: {bold(certificate.verdict)}. "
            f"First difference: {escape(certificate.first_difference or 'none')}.\n",
            f"Certificate: [`certificate.json`]({_link(file, place)}), sha256 `{sha256_file(file)}`.\n",
            _certificate_table(certificate),
            "\n".join(f"- {escape(remark)}" for remark in certificate.remarks) + "\n",
            # The third plot there holds these two in one picture.
            _images([path for path in files.comparison_plots if not path.stem.startswith("training")], place),
        ]
    parts.append("Resume, as the logs tell it:\n")
    for phase in files.phases:
        lines = [line for line in phase.log if any(word in line.text for word in _EVIDENCE)]
        parts.append(_quoted(phase, lines) if lines else f"- {phase.name}: its log tells of no resume.\n")
    return "\n".join(parts)


def _certificate_table(certificate: Certificate) -> str:
    rows = [
        [
            one.epoch,
            *(number(value, 6) for value in (*one.loss, *one.iou)),
            Markdown(" / ".join(code(digest[:12]) for digest in dict.fromkeys(one.sha256))),
            "same" if one.same else ", ".join(one.differences),
        ]
        for one in certificate.epochs
    ]
    names = [run.folder for run in certificate.runs]
    heading = ["epoch", *(f"loss {name}" for name in names), *(f"IoU {name}" for name in names), "sha256", "verdict"]
    return table(heading, rows)


def _quoted(phase: RunFiles, lines: Sequence[LogLine]) -> str:
    quoted = code_block(f"{line.file.name}:{line.number}: {line.text}" for line in lines)
    return f"{phase.name}:\n\n{quoted}"


def evaluation_section(phase: RunFiles, place: Path) -> str:
    """Scores on held-out sequences, as `evaluate` wrote them."""
    evaluation = phase.evaluation
    if evaluation is None:
        return f"{NOT_RUN} (`seqtrack evaluate --phase {phase.name[-1]}`)\n"
    trackers, conditions = evaluation.trackers, evaluation.conditions
    rows = [[one.name, *(number(one.mean.get(key)) for key in COLUMNS)] for one in trackers]
    told = ", ".join(f"{key} {conditions[key]}" for key in ("device", "precision", "concurrent") if key in conditions)
    classes = sorted({one.class_name for one in evaluation.sequences})
    by_class = [[one.name, *(number(one.classes.get(name, {}).get("auc")) for name in classes)] for one in trackers]
    plots = sorted((phase.folder / "evaluation" / "plots").glob("*.png"), key=_plot_order)
    return "\n".join(
        [
            f"{escape(evaluation.protocol)} Measured with {escape(told)}.\n",
            table(["tracker", *(HEADINGS[key] for key in COLUMNS)], rows),
            "AUC by class:\n",
            table(["tracker", *classes], by_class),
            _images(plots, place),
        ]
    )


def _plot_order(path: Path) -> tuple[int, str]:
    """Epochs first, then the curves, then bars."""
    first = ("epochs", "epochs_by_class", "success", "precision", "norm_precision")
    return (first.index(path.stem) if path.stem in first else len(first), path.stem)


def checkpoints_section(files: OutputFiles) -> str:
    """Every epoch's checkpoint with its digests."""
    rows = [
        [phase.name, one.file, one.epoch, one.step, one.bytes, code(one.sha256), code(one.weights_sha256)]
        for phase in files.phases
        for one in phase.manifests
    ]
    heading = ["", "file", "epoch", "step", "bytes", "sha256 of the file", "sha256 of the weights"]
    return table(heading, rows, texts=2) if rows else NOT_RUN + "\n"


def uploads_section(files: OutputFiles) -> str:
    """What the sidecar says is on the target."""
    if not files.uploads and files.uploader is None:
        return f"{NOT_RUN} (nothing was uploaded from this folder)\n"
    target, state = files.uploader or ("unknown", "unknown")
    verified = sum(one.state == "verified" for one in files.uploads)
    told = (
        f"Target {escape(target)}, uploader {escape(state)}: "
        f"{verified} of {len(files.uploads)} files verified there by size and digest.\n"
    )
    shown = [one for one in files.uploads if not any(word in one.path for word in _GROUPED)]
    rows = [[code(one.path), one.size, code(one.sha256 or "none"), one.state, _commit(one)] for one in shown]
    rows += _grouped([one for one in files.uploads if one not in shown])
    return f"{told}\n{table(['file', 'bytes', 'sha256', 'state', 'commit'], rows)}"


def _commit(upload: Upload) -> str:
    """The commit's digest, shortened; a folder has none and names what it did instead."""
    commit = upload.commit or ""
    return code(commit[:12]) if len(commit) >= 12 and set(commit) <= set("0123456789abcdef") else "–"


def _grouped(uploads: Sequence[Upload]) -> list[list[object]]:
    """A line for all files of a folder that are in the same state."""
    groups: dict[tuple[str, str], list[Upload]] = {}
    for one in uploads:
        word = next(word for word in _GROUPED if word in one.path)
        groups.setdefault((one.path.split(word)[0] + word, one.state), []).append(one)
    return [
        [Markdown(f"{code(place)}: {len(members)} files"), sum(one.size for one in members), "", state, ""]
        for (place, state), members in groups.items()
    ]

"""Evaluations of several runs next to each other: one table, one CSV, and curves over the epochs in one plot."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.checkpoints.side_files import EvaluatedTracker, EvaluationRecord, read_side_file
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.plots import draw_overlaid
from seqtrack.evaluation.tables import COURSE_COLUMNS, HEADINGS, best_epoch, checkpoints, static_sentence
from seqtrack.markdown import escape, image, number, table
from seqtrack.plotting import save_figure
from seqtrack.run_dir import EVALUATION, EVALUATION_FILE, PHASES

_CURVES = ("mean_iou", "p20", "auc", "fps")


def read_evaluations(runs: list[Path]) -> dict[str, EvaluationRecord]:
    """The evaluation of each run by a name that tells it from the others.

    Args:
        runs: each a phase's folder, or an output folder, of which phase 1 is taken.

    Raises:
        UserError: a run without evaluated checkpoints, or one that is named twice.
    """
    folders = [one / PHASES[0] if (one / PHASES[0]).is_dir() else one for one in runs]
    found, problems = dict[str, EvaluationRecord](), list[Problem]()
    paths = [one.resolve() for one in folders]
    names = [path.parent.name if path.name in PHASES else path.name for path in paths]
    for depth in range(2, max(len(path.parts) for path in paths)):
        if len(set(names)) < len(set(paths)):
            names = ["/".join(path.parts[-depth:]) for path in paths]
    for name, folder in zip(names, folders, strict=True):
        record = read_side_file(folder / EVALUATION / EVALUATION_FILE, EvaluationRecord)
        if record is None or not checkpoints(record):
            text = f"{folder}: no checkpoint of it is evaluated; `seqtrack evaluate` does it"
            problems.append(Problem(text, "compare.not_evaluated"))
        elif name in found:
            problems.append(Problem(f"{folder}: named twice", "compare.twice"))
        else:
            found[name] = record
    if problems:
        raise UserError(problems)
    return found


def _row(name: str, what: str, one: EvaluatedTracker) -> list[object]:
    return [name, f"{what}{one.name}", *(number(one.mean[key]) for key in COURSE_COLUMNS)]


def comparison_table(records: Mapping[str, EvaluationRecord]) -> str:
    """The best (by AUC) and the last checkpoint of each run, and a box that never moves on its sequences."""
    rows = []
    for name, record in records.items():
        best, static = best_epoch(record), [one for one in record.trackers if one.kind == "static_box"]
        rows += [_row(name, "best, ", best)] if best else []
        rows += [_row(name, "last, ", checkpoints(record)[-1]), *(_row(name, "", one) for one in static)]
    return table(["run", "checkpoint", *(HEADINGS[key] for key in COURSE_COLUMNS)], rows, texts=2)


def write_comparison(records: Mapping[str, EvaluationRecord], folder: Path) -> list[Path]:
    """Write compare.md, compare.csv (a row per run and epoch) and compare.png; returns their paths.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"compare.{suffix}" for suffix in ("md", "csv", "png")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["run", "epoch", *COURSE_COLUMNS])
    for name, record in records.items():
        for one in checkpoints(record):
            values = (one.mean[key] for key in COURSE_COLUMNS)
            writer.writerow([name, one.epoch, *("" if value is None else f"{value:.4f}" for value in values)])
    write_atomic(paths[1], stream.getvalue().encode())
    series = {name: [(one.epoch or 0, one.mean) for one in checkpoints(record)] for name, record in records.items()}
    save_figure(draw_overlaid("Runs by epoch", series, _CURVES), paths[2])
    write_atomic(paths[0], _markdown(records, paths[2].name).encode())
    return paths


def _markdown(records: Mapping[str, EvaluationRecord], plot: str) -> str:
    parts = ["# Comparison of runs\n", comparison_table(records)]
    if len({tuple(one.name for one in record.sequences) for record in records.values()}) > 1:
        parts.append(
            "**The runs were evaluated on different sequences**: a difference between them may be one between their "
            "sequences. Compare each with the box that never moves.\n"
        )
    parts += [
        f"- {escape(name)}: {len(one.sequences)} sequences. {static_sentence(one)}\n" for name, one in records.items()
    ]
    parts += ["## By epoch\n"]
    rows = [_row(name, "", one) for name, record in records.items() for one in checkpoints(record)]
    parts += [
        table(["run", "checkpoint", *(HEADINGS[key] for key in COURSE_COLUMNS)], rows, texts=2),
        image(plot, "compare"),
    ]
    return "\n".join(parts) + "\n"

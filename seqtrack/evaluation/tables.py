"""An evaluation as files: JSON with everything, CSV with every row, Markdown to read, boxes in the official format."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.data.annotations import write_boxes
from seqtrack.evaluation.metrics import METRICS, NORM_PRECISION_THRESHOLDS, PRECISION_THRESHOLDS, SUCCESS_THRESHOLDS
from seqtrack.evaluation.results import Evaluation, TrackerResult
from seqtrack.markdown import Markdown, escape, image, number, table
from seqtrack.run_dir import EVALUATION_FILE

FORMAT = "seqtrack-evaluation/1"
HEADINGS = {name: metric.heading for name, metric in METRICS.items()} | {"fps": "FPS", "ms_a_frame": "ms per frame"}
COLUMNS = tuple(HEADINGS)
PROTOCOL = (
    "LaSOT's protocol: success is IoU above 21 thresholds from 0 to 1, AUC their mean; P20 is a centre error up to "
    "20 px, P_norm up to 0.2 of the annotation's width and height; absent frames count as failures, every sequence has "
    "the same weight, the first frame is given. All but FPS and ms are percent. Mean IoU is over visible frames."
)


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """The whole evaluation as one JSON object (docs/formats.md)."""
    return {
        "format": FORMAT,
        "protocol": PROTOCOL,
        "conditions": evaluation.conditions,
        "sequences": [
            {"name": one.name, "class": one.class_name, "frames": one.num_frames, "absent": int(one.absent.sum())}
            for one in evaluation.annotations
        ],
        "thresholds": {
            "success": SUCCESS_THRESHOLDS.tolist(),
            "precision_px": PRECISION_THRESHOLDS.tolist(),
            "norm_precision": NORM_PRECISION_THRESHOLDS.tolist(),
        },
        "trackers": [_tracker_json(evaluation, result) for result in evaluation.results],
    }


def _tracker_json(evaluation: Evaluation, result: TrackerResult) -> dict[str, Any]:
    mean = result.mean(evaluation.names)
    return {
        "name": result.name,
        "kind": result.kind,
        "epoch": result.epoch,
        "source": result.source,
        "notes": list(result.notes),
        "mean": evaluation.metrics(result, evaluation.names),
        "classes": {name: evaluation.metrics(result, members) for name, members in evaluation.classes.items()},
        "sequences": {name: evaluation.metrics(result, [name]) for name in evaluation.names},
        "curves": {
            "success": mean.success.tolist(),
            "precision": mean.precision.tolist(),
            "norm_precision": mean.norm_precision.tolist(),
        },
    }


def to_csv(evaluation: Evaluation) -> str:
    """One row per tracker for all sequences, one per class, one per sequence."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["tracker", "kind", "epoch", "level", "name", "sequences", "frames", *COLUMNS])
    frames = {one.name: one.num_frames for one in evaluation.annotations}
    levels = [("all", "all", evaluation.names)]
    levels += [("class", name, members) for name, members in evaluation.classes.items()]
    levels += [("sequence", name, [name]) for name in evaluation.names]
    for result in evaluation.results:
        for level, name, members in levels:
            metrics = evaluation.metrics(result, members)
            row = ["" if metrics[column] is None else f"{metrics[column]:.4f}" for column in COLUMNS]
            head = [result.name, result.kind, "" if result.epoch is None else result.epoch]
            writer.writerow([*head, level, name, len(members), sum(frames[one] for one in members), *row])
    return stream.getvalue()


def summary_table(evaluation: Evaluation) -> str:
    """Every tracker's mean over all sequences."""
    rows = []
    for result in evaluation.results:
        metrics = evaluation.metrics(result, evaluation.names)
        rows.append([result.name, *(number(metrics[name]) for name in COLUMNS)])
    return table(["tracker", *(HEADINGS[name] for name in COLUMNS)], rows)


def to_markdown(evaluation: Evaluation, plots: Sequence[str]) -> str:
    """The conditions, the means, AUC by class and sequence, the last tracker in full, and plots.

    Args:
        plots: paths relative to the Markdown file.
    """
    conditions = evaluation.conditions
    frames = sum(one.num_frames for one in evaluation.annotations)
    title = f"{conditions.get('dataset') or 'annotations'}, {conditions.get('split') or 'given'}"
    parts = [f"# Evaluation on {escape(title)}: {len(evaluation.names)} sequences, {frames} frames\n"]
    if conditions.get("synthetic"):
        parts.append(
            "**The data set is synthetic**: these numbers show that the system works, and nothing about real video.\n"
        )
    parts.append(PROTOCOL + "\n")
    shown = {key: value for key, value in conditions.items() if value not in (None, "", [], False)}
    parts.append("".join(f"- {escape(key.replace('_', ' '))}: {escape(value)}\n" for key, value in shown.items()))
    parts += ["## All sequences\n", summary_table(evaluation)]
    parts += ["## AUC by class\n", _auc_table(evaluation, "class", evaluation.classes)]
    parts += ["## AUC by sequence\n", _auc_table(evaluation, "sequence", {name: [name] for name in evaluation.names})]
    main = evaluation.epochs[-1] if evaluation.epochs else evaluation.results[0]
    parts += [f"## {escape(main.name)}, by class and sequence\n", _full_table(evaluation, main)]
    if plots:
        parts += ["## Plots\n", "\n".join(image(plot, Path(plot).stem) for plot in plots) + "\n"]
    notes = [f"- {escape(result.name)}: {escape(note)}" for result in evaluation.results for note in result.notes]
    if notes:
        parts += ["## Notes\n", "\n".join(notes) + "\n"]
    return "\n".join(parts)


def _auc_table(evaluation: Evaluation, what: str, groups: dict[str, list[str]]) -> str:
    frames = {one.name: one.num_frames for one in evaluation.annotations}
    rows = []
    for name, members in groups.items():
        aucs = [number(result.mean(members).auc) for result in evaluation.results]
        rows.append([name, str(sum(frames[one] for one in members)), *aucs])
    return table([what, "frames", *(result.name for result in evaluation.results)], rows)


def _full_table(evaluation: Evaluation, result: TrackerResult) -> str:
    rows = []
    groups: list[tuple[str, list[str]]] = [
        (Markdown(f"**{escape(name)}**"), members) for name, members in evaluation.classes.items()
    ]
    for name, members in groups + [(name, [name]) for name in evaluation.names]:
        metrics = evaluation.metrics(result, members)
        rows.append([name, *(number(metrics[column]) for column in COLUMNS)])
    return table(["", *(HEADINGS[column] for column in COLUMNS)], rows)


def write_tables(evaluation: Evaluation, folder: Path, *, plots: Sequence[str]) -> None:
    """Write evaluation.json, evaluation.csv and evaluation.md into an existing folder."""
    text = json.dumps(to_json(evaluation), indent=1, allow_nan=False) + "\n"
    write_atomic(folder / EVALUATION_FILE, text.encode())
    write_atomic(folder / "evaluation.csv", to_csv(evaluation).encode())
    write_atomic(folder / "evaluation.md", to_markdown(evaluation, plots).encode())


def write_tracks(result: TrackerResult, folder: Path) -> None:
    """Write the boxes of every sequence as `<sequence>.txt` into a folder with the tracker's name."""
    place = folder / folder_name(result.name)
    place.mkdir(parents=True, exist_ok=True)
    for name, tracks in result.tracks.items():
        write_boxes(place / f"{name}.txt", tracks.boxes_xywh)


def folder_name(name: str) -> str:
    """A tracker's name as a folder name, without spaces and separators."""
    return "".join(letter if letter.isalnum() or letter in "+-._" else "_" for letter in name).lstrip(".") or "_"

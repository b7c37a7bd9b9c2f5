"""An evaluation as files: JSON with everything, CSV with every row, Markdown to read, boxes in the official format."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.checkpoints.side_files import EvaluatedSequence, EvaluatedTracker, EvaluationRecord
from seqtrack.data.annotations import Annotation, write_boxes
from seqtrack.evaluation.metrics import METRICS, NORM_PRECISION_THRESHOLDS, PRECISION_THRESHOLDS
from seqtrack.evaluation.results import Protocol, TrackerResult
from seqtrack.markdown import Markdown, escape, image, number, table
from seqtrack.run_dir import EVALUATION_FILE

HEADINGS = {name: metric.heading for name, metric in METRICS.items()} | {"fps": "FPS", "ms_a_frame": "ms per frame"}
COLUMNS = tuple(HEADINGS)
PROTOCOL = (
    "One-pass evaluation: success is IoU above 21 thresholds from 0 to 1, AUC their mean; P20 is a centre error up to "
    "20 px, P_norm up to 0.2 of the annotation's width and height; absent frames count as failures, every sequence has "
    "the same weight, the first frame is given. All but FPS and ms are percent. Mean IoU is over visible frames."
)


def evaluation_record(
    annotations: Sequence[Annotation],
    results: Sequence[TrackerResult],
    conditions: Mapping[str, object],
    protocol: Protocol,
) -> EvaluationRecord:
    """The content of evaluation.json (docs/formats.md).

    Args:
        annotations, results: in the order of the tables; `protocol` is what they were scored by.
        conditions: data set, split, device, precision and the like, as JSON values.
    """
    sequences = [
        {"name": one.name, "class": one.class_name, "frames": one.num_frames, "absent": int(one.absent.sum())}
        for one in annotations
    ]
    return EvaluationRecord(
        format="seqtrack-evaluation/1",
        protocol=PROTOCOL,
        conditions=dict(conditions),
        sequences=[EvaluatedSequence.model_validate(one) for one in sequences],
        thresholds={
            "success": protocol.convention.thresholds.tolist(),
            "precision_px": PRECISION_THRESHOLDS.tolist(),
            "norm_precision": NORM_PRECISION_THRESHOLDS.tolist(),
        },
        attributes={name: len(members) for name, members in protocol.attributes.items()},
        trackers=[one.record for one in results],
    )


def main_tracker(record: EvaluationRecord) -> EvaluatedTracker:
    """The last checkpoint; without one, the first tracker."""
    return next((one for one in reversed(record.trackers) if one.kind == "checkpoint"), record.trackers[0])


def _to_csv(record: EvaluationRecord) -> str:
    """One row per tracker for all sequences, one per class, one per sequence, one per attribute."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["tracker", "kind", "epoch", "level", "name", "sequences", "frames", *COLUMNS])
    for one in record.trackers:
        for level, groups in enumerate(({"all": one.mean}, one.classes, one.sequences)):
            for name, metrics in groups.items():
                frames = [s.frames for s in record.sequences if ("all", s.class_name, s.name)[level] == name]
                group = [("all", "class", "sequence")[level], name, len(frames), sum(frames)]
                row = ["" if metrics[column] is None else f"{metrics[column]:.4f}" for column in COLUMNS]
                writer.writerow([one.name, one.kind, one.epoch, *group, *row])
        for name, metrics in one.attributes.items():
            row = ["" if metrics[column] is None else f"{metrics[column]:.4f}" for column in COLUMNS]
            writer.writerow([one.name, one.kind, one.epoch, "attribute", name, record.attributes[name], "", *row])
    return stream.getvalue()


def summary_table(record: EvaluationRecord) -> str:
    """Every tracker's mean over all sequences."""
    rows = [[one.name, *(number(one.mean[column]) for column in COLUMNS)] for one in record.trackers]
    return table(["tracker", *HEADINGS.values()], rows)


def official_table(record: EvaluationRecord) -> str:
    """Every tracker's numbers by the measure of the data set's server; empty where there is none."""
    names = list(dict.fromkeys(name for one in record.trackers for name in one.official))
    rows = [[one.name, *(number(one.official.get(name)) for name in names)] for one in record.trackers if one.official]
    return table(["tracker", *names], rows) if names else ""


def _to_markdown(record: EvaluationRecord, plots: Sequence[str]) -> str:
    """The conditions, the means, AUC by class and sequence, the main tracker in full, and plots."""
    conditions, names = record.conditions, [one.name for one in record.trackers]
    title = f"{conditions.get('dataset') or 'annotations'}, {conditions.get('split') or 'given'}"
    frames = sum(one.frames for one in record.sequences)
    parts = [f"# Evaluation on {escape(title)}: {len(record.sequences)} sequences, {frames} frames\n"]
    if conditions.get("synthetic"):
        parts.append(
            "**The data set is synthetic**: the numbers show that the system works, nothing about real video.\n"
        )
    parts.append(PROTOCOL + "\n")
    shown = {key: value for key, value in conditions.items() if value not in (None, "", [], False)}
    parts.append("".join(f"- {escape(key.replace('_', ' '))}: {escape(value)}\n" for key, value in shown.items()))
    parts += ["## All sequences\n", summary_table(record)]
    if official := official_table(record):
        parts += ["## The measure of the data set's own toolkit\n", official]
    main = main_tracker(record)
    if record.attributes:
        rows = [
            [name, count, *(number(one.attributes[name]["auc"]) for one in record.trackers)]
            for name, count in record.attributes.items()
        ]
        parts += ["## AUC by attribute\n", table(["attribute", "sequences", *names], rows)]
    for what, attribute in (("class", "classes"), ("sequence", "sequences")):
        groups = [getattr(one, attribute) for one in record.trackers]
        rows = [[name, *(number(group[name]["auc"]) for group in groups)] for name in groups[0]]
        parts += [f"## AUC by {what}\n", table([what, *names], rows)]
    every = {Markdown(f"**{escape(name)}**"): metrics for name, metrics in main.classes.items()} | main.sequences
    rows = [[name, *(number(metrics[column]) for column in COLUMNS)] for name, metrics in every.items()]
    parts += [f"## {escape(main.name)}, by class and sequence\n", table(["", *HEADINGS.values()], rows)]
    parts += ["## Plots\n", "\n".join(image(plot, Path(plot).stem) for plot in plots) + "\n"]
    notes = [f"- {escape(one.name)}: {escape(note)}" for one in record.trackers for note in one.notes]
    if notes:
        parts += ["## Notes\n", "\n".join(notes) + "\n"]
    return "\n".join(parts)


def write_tables(record: EvaluationRecord, folder: Path, *, plots: Sequence[str]) -> None:
    """Write evaluation.json, .csv and .md into an existing folder; `plots` are paths relative to it."""
    write_atomic(folder / EVALUATION_FILE, record.model_dump_json(by_alias=True, indent=1).encode() + b"\n")
    write_atomic(folder / "evaluation.csv", _to_csv(record).encode())
    write_atomic(folder / "evaluation.md", _to_markdown(record, plots).encode())


def write_tracks(result: TrackerResult, folder: Path) -> None:
    """Write the boxes of every sequence as `<sequence>.txt` into a folder with the tracker's name."""
    name = "".join(letter if letter.isalnum() or letter in "+-._" else "_" for letter in result.record.name)
    place = folder / (name.lstrip(".") or "_")
    place.mkdir(parents=True, exist_ok=True)
    for sequence, tracks in result.tracks.items():
        write_boxes(place / f"{sequence}.txt", tracks.boxes_xywh)

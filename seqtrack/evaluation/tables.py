"""An evaluation as files: JSON with everything, CSV with every row, Markdown to read, boxes in the official format."""

import contextlib
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_atomic, write_json
from seqtrack.checkpoints.side_files import EvaluatedSequence, EvaluatedTracker, EvaluationRecord
from seqtrack.data.annotations import Annotation, read_boxes, write_boxes
from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import METRICS, NORM_PRECISION_THRESHOLDS, PRECISION_THRESHOLDS
from seqtrack.evaluation.results import Protocol, TrackerResult, Tracks
from seqtrack.markdown import Markdown, escape, image, number, table
from seqtrack.run_dir import EVALUATION_FILE

HEADINGS = {name: metric.heading for name, metric in METRICS.items()} | {"fps": "FPS", "ms_a_frame": "ms per frame"}
COLUMNS = tuple(HEADINGS)
_MADE_FROM = "made_from.json"
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


# What a course asks for by epoch, overall, by class and by sequence.
COURSE_COLUMNS = ("mean_iou", "p20", "auc", "fps", "ms_a_frame")
_STATIC_PERCENT = 0.05  # a smaller difference from the static box's does not show in one decimal


def checkpoints(record: EvaluationRecord) -> list[EvaluatedTracker]:
    """The evaluated checkpoints, by epoch."""
    return [one for one in record.trackers if one.kind == "checkpoint"]


def best_epoch(record: EvaluationRecord) -> EvaluatedTracker | None:
    """The checkpoint with the highest AUC; None without one."""
    return max(checkpoints(record), key=lambda one: one.mean["auc"] or 0.0, default=None)


def epochs_by_group(record: EvaluationRecord) -> list[tuple[str, str, str, Mapping[str, float | None]]]:
    """("class" or "sequence", its name, the checkpoint's name, its metrics), the epochs of a group together."""
    return [
        (level, name, one.name, getattr(one, attribute)[name])
        for level, attribute in (("class", "classes"), ("sequence", "sequences"))
        for name in (getattr(record.trackers[0], attribute) if record.trackers else ())
        for one in checkpoints(record)
    ]


def static_epochs(record: EvaluationRecord) -> list[str]:
    """Names of the checkpoints whose mean IoU, P20 and AUC are those of a box that never moves."""
    static = next((one.mean for one in record.trackers if one.kind == "static_box"), None)
    if static is None:
        return []
    differences = {
        one.name: max(abs((one.mean[name] or 0.0) - (static[name] or 0.0)) for name in ("mean_iou", "p20", "auc"))
        for one in checkpoints(record)
    }
    return [name for name, percent in differences.items() if percent < _STATIC_PERCENT]


def static_sentence(record: EvaluationRecord) -> str:
    """A sentence that names these checkpoints, or states that there are none."""
    names = static_epochs(record)
    if not names:
        return "No checkpoint scores like a box that never moves."
    score = "scores" if len(names) == 1 else "score"
    return f"{', '.join(names)} {score} like a box that never moves (static box): such a checkpoint does not track."


def compare_evaluations(records: Sequence[EvaluationRecord]) -> list[tuple[EvaluatedTracker, EvaluatedTracker, bool]]:
    """Of two evaluations on the same sequences, the epochs of both, and whether every metric of every sequence is
    equal; empty unless there are two."""
    if len(records) != 2 or records[0].sequences != records[1].sequences:
        return []
    others = {one.epoch: one for one in checkpoints(records[1])}
    pairs = [(one, others[one.epoch]) for one in checkpoints(records[0]) if one.epoch in others]
    return [(one, two, _scores(one) == _scores(two)) for one, two in pairs]


def _scores(one: EvaluatedTracker) -> dict[str, dict[str, float | None]]:
    return {name: {key: metrics[key] for key in METRICS} for name, metrics in one.sequences.items()}


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
    parts += [static_sentence(record) + "\n"] * bool(checkpoints(record))
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


def tracks_folder(name: str, folder: Path) -> Path:
    """Where a tracker's boxes are in the folder of all trackers."""
    name = "".join(letter if letter.isalnum() or letter in "+-._" else "_" for letter in name)
    return folder / (name.lstrip(".") or "_")


def write_tracks(result: TrackerResult, folder: Path, made_from: Mapping[str, object]) -> None:
    """Write boxes and times of every sequence as `<sequence>.txt` and `<sequence>_time.txt`, and last, as the sign that
    all exist, what they were made from."""
    place = tracks_folder(result.record.name, folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / _MADE_FROM).unlink(missing_ok=True)
    for sequence, tracks in result.tracks.items():
        write_boxes(place / f"{sequence}.txt", tracks.boxes_xywh)
        lines = "".join(f"{seconds!r}\n" for seconds in tracks.times_s)
        write_atomic(place / f"{sequence}_time.txt", lines.encode())
    write_json(place / _MADE_FROM, dict(made_from))


def read_tracks(
    name: str, folder: Path, sequences: Sequence[str], made_from: Mapping[str, object]
) -> dict[str, Tracks] | None:
    """What an earlier evaluation wrote with `write_tracks`, if it was made from exactly the same; else None."""
    place = tracks_folder(name, folder)
    with contextlib.suppress(OSError, ValueError, UserError):
        if json.loads((place / _MADE_FROM).read_bytes()) == dict(made_from):
            return {
                one: Tracks(
                    read_boxes(place / f"{one}.txt"),
                    [float(line) for line in (place / f"{one}_time.txt").read_text("utf-8").split()],
                )
                for one in sequences
            }
    return None

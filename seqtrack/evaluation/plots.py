"""Curves, bars and pictures of an evaluation. Needs no display.

A colour is a phase: the epochs of a run have its colour, the best and the last marked, the others pale; baselines
are grey and dashed, other trackers have own colours, so that a plot of ten epochs and two trackers can still be read.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from seqtrack.checkpoints.side_files import EvaluatedTracker, EvaluationRecord
from seqtrack.evaluation.metrics import METRICS
from seqtrack.evaluation.results import TrackerResult
from seqtrack.evaluation.tables import HEADINGS, best_epoch, checkpoints, main_tracker
from seqtrack.plotting import NEUTRAL, PHASE_COLOURS, new_axes, save_figure

if TYPE_CHECKING:
    from seqtrack.data.sequence import Sequence as Video

_OTHERS = ("#2a8f5d", "#8e4fb0", "#b0334f", "#7a6a1f", "#3aa0b8")  # of other trackers
_LINES = {"checkpoint": "-", "onnx": "-.", "results": "-.", "untrained": "--", "static_box": ":", "oracle": ":"}
_MARKERS = "os^Dv*P"  # of the quantities or classes of one run, which share its colour
_MAX_BARS, _MAX_LINES = 24, 20  # further classes and sequences are only in the tables
_PICTURES = 5  # frames of a sequence that are shown
# Curve: title, axis, key of its thresholds, and the metric that is read from it and sorts the legend.
_CURVES = {
    "success": ("Success", "IoU threshold", "success", "auc"),
    "precision": ("Precision", "centre error threshold (px)", "precision_px", "p20"),
    "norm_precision": ("Normalised precision", "centre error (annotation sizes)", "norm_precision", "p_norm"),
}


def draw_plots(record: EvaluationRecord, folder: Path, *, formats: Sequence[str] = ("png",)) -> list[str]:
    """Draw every plot that the evaluation has data for into an existing folder, in each format.

    Returns:
        file names of the first format, in the order of a report.
    """
    conditions, trackers, main = record.conditions, record.trackers, main_tracker(record)
    kind = " (synthetic)" if conditions.get("synthetic") else ""
    place = f"{conditions.get('dataset') or 'annotations'}{kind} {conditions.get('split') or ''}".strip()
    place = f"{place}, {len(record.sequences)} sequences"
    colours = _colours(record)
    figures = {}
    epochs = checkpoints(record)
    if len(epochs) > 1:
        lines = {METRICS[name].heading: [_value(one.mean, name) for one in epochs] for name in METRICS}
        others = [one for one in trackers if one.kind != "checkpoint"]
        figures["epochs"] = _epochs(f"Tracking by epoch: {place}", record, lines, others)
        for level, attribute in (("class", "classes"), ("sequence", "sequences")):
            series = {
                name: [(one.epoch or 0, getattr(one, attribute)[name]) for one in epochs]
                for name in getattr(main, attribute)
            }
            if len(series) > 1:
                title = f"By {level} and epoch: {place}"
                figures[f"epochs_by_{level}"] = draw_overlaid(title, series, ("mean_iou", "p20", "auc"))
    figures |= {name: _curve(record, name, place, colours) for name in _CURVES}
    if len(main.classes) > 1:
        # Of the epochs only the last, and of very many classes those with its lowest AUC: more could not be read.
        shown = [one for one in trackers if one.kind != "checkpoint" or one is main]
        names = sorted(main.classes, key=lambda name: _value(main.classes[name]))[:_MAX_BARS]
        few = f", the {len(names)} lowest of {len(main.classes)}" if len(names) < len(main.classes) else ""
        bars = {one.name: [_value(one.classes[name]) for name in names] for one in shown}
        shades = [colours[one.name] for one in shown]
        figures["classes"] = _bars(f"AUC by class{few}\n{place}", "AUC (percent)", names, bars, shades)
    if measured := [one for one in epochs if one.mean["fps"] is not None]:
        title = f"Speed on {conditions.get('device')}, up to {conditions.get('concurrent')} sequences at once"
        figures["fps"] = _speed(f"{title}\n(one network, measured {len(measured)} times)", measured, colours[main.name])
    if len(record.attributes) > 2:
        shown = [one for one in trackers if one.kind != "checkpoint" or one is main]
        figures["attributes"] = _radar(f"AUC by attribute: {place}", record, shown, colours)
    for name, figure in figures.items():
        for kind in formats:
            save_figure(figure, folder / f"{name}.{kind}")
    return [f"{name}.{formats[0]}" for name in figures]


def _radar(
    title: str, record: EvaluationRecord, trackers: Sequence[EvaluatedTracker], colours: Mapping[str, str]
) -> Figure:
    """One closed line per tracker, one direction per attribute, percent from the centre."""
    figure, (axes,) = new_axes(title, "", size=(6.4, 6.4), polar=True)
    names = list(record.attributes)
    angles = np.append(np.linspace(0, 2 * np.pi, len(names), endpoint=False), 0)
    for one in trackers:
        values = [_value(one.attributes[name]) for name in names]
        label = f"{one.name} [{_value(one.mean):.1f}]"
        axes.plot(angles, [*values, values[0]], ls=_LINES[one.kind], color=colours[one.name], label=label)
    axes.set_xticks(angles[:-1], [f"{name}\n({record.attributes[name]})" for name in names], fontsize=8)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=2, title=METRICS["auc"].heading)
    return figure


def _value(metrics: Mapping[str, float | None], name: str = "auc") -> float:
    return metrics[name] or 0.0


def _colours(record: EvaluationRecord) -> dict[str, str]:
    """Colour by tracker name."""
    run = PHASE_COLOURS.get(str(record.conditions.get("run")), PHASE_COLOURS["phase_1"])
    colours = {one.name: run if one.kind == "checkpoint" else NEUTRAL for one in record.trackers}
    others = [one.name for one in record.trackers if one.kind == "results"]
    colours |= {one.name: "#b9b9b9" for one in record.trackers if one.kind == "static_box"}
    return colours | {name: _OTHERS[place % len(_OTHERS)] for place, name in enumerate(others)}


def _curve(record: EvaluationRecord, name: str, place: str, colours: Mapping[str, str]) -> Figure:
    title, axis, thresholds_key, metric = _CURVES[name]
    thresholds, best, last = record.thresholds[thresholds_key], best_epoch(record), main_tracker(record)
    figure, (axes,) = new_axes(f"{title}: {place}", axis)
    pale = "other epochs"
    for one in sorted(record.trackers, key=lambda one: -_value(one.mean, metric)):  # the best first, as in LaSOT's
        label, line, width, alpha = f"{one.name} [{_value(one.mean, metric):.1f}]", _LINES[one.kind], 1.6, 1.0
        if one is best:
            label, width = f"{label}, best AUC", 2.8
        elif one.kind == "checkpoint" and one is last:
            label, line = f"{label}, last", "--"
        elif one.kind == "checkpoint":
            label, pale, width, alpha = pale, "", 0.9, 0.35
        axes.plot(thresholds, one.curves[name], ls=line, label=label, color=(colours[one.name], alpha), lw=width)
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("fraction of frames")
    handles, labels = axes.get_legend_handles_labels()
    shown = sorted(zip(handles, labels, strict=True), key=lambda one: one[1] == "other epochs")  # these last
    figure.legend(
        *zip(*shown, strict=True), loc="outside lower center", frameon=False, fontsize=8, ncols=2,
        title=METRICS[metric].heading,
    )  # fmt: skip
    return figure


def _epochs(
    title: str, record: EvaluationRecord, lines: Mapping[str, list[float]], others: Sequence[EvaluatedTracker]
) -> Figure:
    """Percent over epochs, one line per name, the best AUC marked, and that of other trackers as horizontal lines."""
    figure, (axes,) = new_axes(title, "Epoch")
    colours, best = _colours(record), best_epoch(record)
    at, colour = [one.epoch or 0 for one in checkpoints(record)], colours[best.name] if best else NEUTRAL
    for place, ((name, values), marker) in enumerate(zip(lines.items(), _MARKERS, strict=False)):
        first = name == METRICS["auc"].heading
        axes.plot(
            at, values, marker=marker, label=name, color=colour, alpha=1.0 if first else 0.5,
            linewidth=2.2 if first else 1.0, markersize=4, linestyle=("-", "--", "-.", ":")[place % 4],
        )  # fmt: skip
    if best:
        axes.axvline(best.epoch or 0, color=colour, alpha=0.25, linewidth=6, label=f"best AUC: epoch {best.epoch}")
    for one in others:
        axes.axhline(_value(one.mean), color=colours[one.name], ls=_LINES[one.kind], label=f"AUC, {one.name}")
    axes.set_ylabel("percent")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    return figure


def draw_overlaid(
    title: str, series: Mapping[str, Sequence[tuple[int, Mapping[str, float | None]]]], metrics: Sequence[str]
) -> Figure:
    """Metrics over epochs, one below another, with a line per class, sequence or run: of very many, the first ones.

    Args:
        series: by name, (epoch, metrics) of each checkpoint.
    """
    names = [*series][:_MAX_LINES]
    title += f", the first {_MAX_LINES} of {len(series)}" * (len(names) < len(series))
    figure, rows = new_axes(title, "Epoch", rows=len(metrics), size=(6.4, 0.6 + 2.6 * len(metrics) + 0.06 * len(names)))
    for axes, metric in zip(rows, metrics, strict=True):
        for place, name in enumerate(names):
            points = [(epoch, one[metric] or 0.0) for epoch, one in series[name] if one[metric] is not None]
            line, colour = ("-", "--")[place // 10 % 2], f"C{place % 10}"
            label = name if metric == metrics[0] else None
            at, values = [point[0] for point in points], [point[1] for point in points]
            axes.plot(at, values, line, marker=_MARKERS[place % 7], ms=4, color=colour, label=label)
        axes.set_ylabel(f"{HEADINGS[metric]}{'' if metric == 'fps' else ' (percent)'}")
        axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", frameon=False, fontsize=7, ncols=4)
    return figure


def _speed(title: str, epochs: Sequence[EvaluatedTracker], colour: str) -> Figure:
    """Frames per second by epoch. All epochs are one network, so that the spread is the measurement's, and shown so."""
    figure, (axes,) = new_axes(title, "Epoch")
    speeds = [_value(one.mean, "fps") for one in epochs]
    axes.plot([one.epoch or 0 for one in epochs], speeds, "o", color=colour, label="an epoch's checkpoint")
    axes.axhline(float(np.median(speeds)), color=colour, label=f"median {np.median(speeds):.0f}")
    low, high = min(speeds), max(speeds)
    axes.axhspan(low, high, color=colour, alpha=0.12, label=f"spread of the measurement: {low:.0f} to {high:.0f}")
    axes.set_ylabel("frames per second, without reading images")
    axes.set_ylim(0, 1.08 * high)
    figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    return figure


def draw_tracking(result: TrackerResult, sequences: "Sequence[Video]", path: Path) -> None:
    """A picture of a tracker at work: frames of the sequences with its highest, median and lowest AUC."""
    from seqtrack.data.decode import read_image  # deferred: a report, which draws the plots too, needs no OpenCV

    ranked = sorted(sequences, key=lambda one: _value(result.record.sequences[one.name]))
    shown = list({place: ranked[place] for place in (len(ranked) - 1, len(ranked) // 2, 0)}.values())
    figure = Figure(figsize=(2.0 * _PICTURES, 1.75 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), _PICTURES, squeeze=False)
    for row, one in zip(axes, shown, strict=True):
        boxes = result.tracks[one.name].boxes_xywh
        for place, index in zip(row, np.linspace(0, one.num_frames - 1, _PICTURES).round().astype(int), strict=True):
            image = read_image(one.frame_path(index))[..., ::-1]
            place.imshow(image)
            for (x, y, w, h), colour, thick in ((boxes[index], "#ffc400", 2), (one.boxes_xywh[index], "white", 1)):
                place.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor="black", linewidth=thick + 1.5))
                place.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=thick))
            place.set(xlim=(0, image.shape[1]), ylim=(image.shape[0], 0), xticks=[], yticks=[])
            place.set_title(f"frame {index + 1}" + (", absent" if one.absent[index] else ""), fontsize=8)
        row[0].set_ylabel(f"{one.name[:24]}\nAUC {_value(result.record.sequences[one.name]):.1f}", fontsize=9)
    figure.suptitle(f"{result.record.name}: yellow, its box; white, the annotation", fontsize=11)
    save_figure(figure, path)


def _bars(title: str, x: str, rows: Sequence[str], series: Mapping[str, list[float]], colours: Sequence[Any]) -> Figure:
    """Horizontal bars: in each row one per series."""
    figure, (axes,) = new_axes(title, x, size=(6.4, max(2.4, 1.6 + (0.16 * len(series) + 0.12) * len(rows))))
    thickness = 0.8 / len(series)
    for place, (name, values) in enumerate(series.items()):
        y = np.arange(len(rows)) + (place - (len(series) - 1) / 2) * thickness
        bars = axes.barh(y, values, thickness, color=colours[place], label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(rows)), [textwrap.fill(row, 20) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    if len(series) > 1:
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=3)
    return figure

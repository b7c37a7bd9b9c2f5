"""Curves and bars of an evaluation. Needs no display.

Epochs run from dark to bright in one colour scale, baselines are grey and dashed, other trackers have own colours,
so that a plot of ten epochs and two trackers can still be read.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from seqtrack.checkpoints.side_files import EvaluatedTracker, EvaluationRecord
from seqtrack.evaluation.metrics import METRICS
from seqtrack.evaluation.tables import main_tracker
from seqtrack.plotting import new_axes, save_figure

_COLOURS = ("#1f5fa8", "#d1602b", "#2a8f5d", "#8e4fb0", "#b0334f", "#7a6a1f", "#3aa0b8")
_LINES = {"checkpoint": "-", "results": "-.", "untrained": "--", "still": ":"}
_MAX_BARS = 24  # further classes are only in the tables
# Curve: title, axis, key of its thresholds, and the metric that is read from it and sorts the legend.
_CURVES = {
    "success": ("Success", "IoU threshold", "success", "auc"),
    "precision": ("Precision", "centre error threshold (px)", "precision_px", "p20"),
    "norm_precision": ("Normalised precision", "centre error (annotation sizes)", "norm_precision", "p_norm"),
}


def draw_plots(record: EvaluationRecord, folder: Path) -> list[str]:
    """Draw every plot that the evaluation has data for into an existing folder.

    Returns:
        file names in the order of a report.
    """
    conditions, trackers, main = record.conditions, record.trackers, main_tracker(record)
    kind = " (synthetic)" if conditions.get("synthetic") else ""
    place = f"{conditions.get('dataset') or 'annotations'}{kind} {conditions.get('split') or ''}".strip()
    place = f"{place}, {len(record.sequences)} sequences"
    colours = _colours(trackers)
    figures = {}
    epochs = [one for one in trackers if one.kind == "checkpoint"]
    if len(epochs) > 1:
        lines = {METRICS[name].heading: [_value(one.mean, name) for one in epochs] for name in METRICS}
        others = [one for one in trackers if one.kind != "checkpoint"]
        figures["epochs"] = _epochs(f"Tracking by epoch: {place}", epochs, lines, others)
        if 1 < len(main.classes) <= len(_COLOURS):
            lines = {name: [_value(one.classes[name]) for one in epochs] for name in main.classes}
            figures["epochs_by_class"] = _epochs(f"AUC by class and epoch: {place}", epochs, lines, [])
    figures |= {name: _curve(record, name, place, colours) for name in _CURVES}
    if len(main.classes) > 1:
        # Of the epochs only the last, and of very many classes those with its lowest AUC: more could not be read.
        shown = [one for one in trackers if one.kind != "checkpoint" or one is main]
        names = sorted(main.classes, key=lambda name: _value(main.classes[name]))[:_MAX_BARS]
        few = f", the {len(names)} lowest of {len(main.classes)}" if len(names) < len(main.classes) else ""
        bars = {one.name: [_value(one.classes[name]) for name in names] for one in shown}
        shades = [colours[one.name] for one in shown]
        figures["classes"] = _bars(f"AUC by class{few}\n{place}", "AUC (percent)", names, bars, shades)
    if measured := {one.name: fps for one in trackers if (fps := one.mean["fps"]) is not None}:
        x = f"tracker only, without reading images; up to {conditions.get('concurrent')} sequences at once"
        title = f"Frames per second on {conditions.get('device') or ''}: {place}"
        figures["fps"] = _bars(
            title, x, [*measured], {"": [*measured.values()]}, [[colours[name] for name in measured]]
        )
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")
    return [f"{name}.png" for name in figures]


def _value(metrics: Mapping[str, float | None], name: str = "auc") -> float:
    return metrics[name] or 0.0


def _colours(trackers: Sequence[EvaluatedTracker]) -> dict[str, ColorType]:
    """Colour by tracker name."""
    epochs = [one.name for one in trackers if one.kind == "checkpoint"]
    others = [one.name for one in trackers if one.kind == "results"]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(epochs)))
    colours = dict(zip(epochs, shades, strict=True))
    colours |= {name: _COLOURS[1:][place % (len(_COLOURS) - 1)] for place, name in enumerate(others)}
    return {one.name: colours.get(one.name, "#777777") for one in trackers}


def _curve(record: EvaluationRecord, name: str, place: str, colours: Mapping[str, ColorType]) -> Figure:
    title, axis, thresholds_key, metric = _CURVES[name]
    thresholds = record.thresholds[thresholds_key]
    figure, (axes,) = new_axes(f"{title}: {place}", axis)
    for one in sorted(record.trackers, key=lambda one: -_value(one.mean, metric)):  # the best first, as in LaSOT's
        label = f"{one.name} [{_value(one.mean, metric):.1f}]"
        axes.plot(thresholds, one.curves[name], _LINES[one.kind], label=label, color=colours[one.name])
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_ylabel("fraction of frames")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title=METRICS[metric].heading)
    return figure


def _epochs(
    title: str, epochs: Sequence[EvaluatedTracker], lines: Mapping[str, list[float]], others: Sequence[EvaluatedTracker]
) -> Figure:
    """Percent over epochs, one line per name, and the AUC of other trackers as horizontal lines."""
    figure, (axes,) = new_axes(title, "Epoch")
    for (name, values), colour in zip(lines.items(), _COLOURS, strict=False):
        axes.plot([one.epoch or 0 for one in epochs], values, ".-", label=name, color=colour)
    for one in others:
        axes.axhline(_value(one.mean), color="#777777", linestyle=_LINES[one.kind], label=f"AUC, {one.name}")
    axes.set_ylabel("percent")
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _bars(title: str, x: str, rows: Sequence[str], series: Mapping[str, list[float]], colours: Sequence[Any]) -> Figure:
    """Horizontal bars: in each row one per series."""
    figure, (axes,) = new_axes(title, x, size=(8.0, max(2.4, 1.6 + (0.16 * len(series) + 0.12) * len(rows))))
    thickness = 0.8 / len(series)
    for place, (name, values) in enumerate(series.items()):
        y = np.arange(len(rows)) + (place - (len(series) - 1) / 2) * thickness
        bars = axes.barh(y, values, thickness, color=colours[place], label=name)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    if len(series) > 1:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure

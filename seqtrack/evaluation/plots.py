"""Curves and bars of an evaluation. Needs no display.

Epochs run from dark to bright in one colour scale, baselines are grey and dashed, other trackers have own colours,
so that a plot of ten epochs and two trackers can still be read.
"""

from pathlib import Path
from typing import TypedDict

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.typing import ColorType

from seqtrack.checkpoints.side_files import EvaluatedTracker, EvaluationRecord
from seqtrack.evaluation.metrics import METRICS
from seqtrack.evaluation.tables import main_tracker
from seqtrack.plotting import new_axes, save_figure

_COLOURS = ("#d1602b", "#2a8f5d", "#8e4fb0", "#b0334f", "#7a6a1f", "#3aa0b8")
_GREY, _DASHES = "#777777", {"untrained": "--", "still": ":"}
_MAX_BARS = 24  # further classes are only in the tables
# Curve: title, axis, key of its thresholds, and the metric that is read from it and sorts the legend.
_CURVES = {
    "success": ("Success", "IoU threshold", "success", "auc"),
    "precision": ("Precision", "centre error threshold (px)", "precision_px", "p20"),
    "norm_precision": (
        "Normalised precision", "centre error threshold (annotation sizes)", "norm_precision", "p_norm",
    ),
}  # fmt: skip


class _Style(TypedDict):
    color: ColorType
    linestyle: str
    linewidth: float


def draw_plots(record: EvaluationRecord, folder: Path) -> list[str]:
    """Draw every plot that the evaluation has data for into an existing folder.

    Returns:
        file names in the order of a report.
    """
    styles = _styles(record)
    figures = {"epochs": _epochs(record), "epochs_by_class": _epochs_by_class(record)}
    figures |= {name: _curve(record, name, styles) for name in _CURVES}
    figures |= {"classes": _classes(record, styles), "fps": _speed(record, styles)}
    drawn = {f"{name}.png": figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    return list(drawn)


def _value(metrics: dict[str, float | None], name: str) -> float:
    return metrics[name] or 0.0


def _epochs_of(record: EvaluationRecord) -> list[EvaluatedTracker]:
    return [one for one in record.trackers if one.kind == "checkpoint"]


def _subtitle(record: EvaluationRecord) -> str:
    conditions = record.conditions
    kind = " (synthetic)" if conditions.get("synthetic") else ""
    place = f"{conditions.get('dataset') or 'annotations'}{kind} {conditions.get('split') or ''}".strip()
    return f"{place}, {len(record.sequences)} sequences"


def _styles(record: EvaluationRecord) -> dict[str, _Style]:
    """Line style by tracker name."""
    epochs = _epochs_of(record)
    scale = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(epochs)) if len(epochs) > 1 else [0.35])
    styles: dict[str, _Style] = {}
    for place, one in enumerate(epochs):
        styles[one.name] = {"color": scale[place], "linestyle": "-", "linewidth": 2.4 if one is epochs[-1] else 1.3}
    for place, one in enumerate(one for one in record.trackers if one.kind == "results"):
        styles[one.name] = {"color": _COLOURS[place % len(_COLOURS)], "linestyle": "-.", "linewidth": 1.8}
    for one in record.trackers:
        if one.kind in _DASHES:
            styles[one.name] = {"color": _GREY, "linestyle": _DASHES[one.kind], "linewidth": 1.5}
    return styles


def _finish(figure: Figure, axes: Axes, *, x: str, y: str = "", legend: str | None = "") -> Figure:
    axes.set_xlabel(x)
    if y:
        axes.set_ylabel(y)
        axes.set_ylim(bottom=0)
    if legend is not None:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8, title=legend)
    return figure


def _curve(record: EvaluationRecord, name: str, styles: dict[str, _Style]) -> Figure:
    title, axis, thresholds_key, metric = _CURVES[name]
    thresholds = record.thresholds[thresholds_key]
    figure, (axes,) = new_axes(f"{title}: {_subtitle(record)}")
    for one in sorted(record.trackers, key=lambda one: -_value(one.mean, metric)):  # the best first, as in LaSOT's
        label = f"{one.name} [{_value(one.mean, metric):.1f}]"
        axes.plot(thresholds, one.curves[name], label=label, **styles[one.name])
    axes.set_xlim(thresholds[0], thresholds[-1])
    return _finish(figure, axes, x=axis, y="fraction of frames", legend=METRICS[metric].heading)


def _epochs(record: EvaluationRecord) -> Figure | None:
    """Metrics over epochs, with the baselines' AUC as horizontal lines; None with fewer than two epochs."""
    epochs = _epochs_of(record)
    if len(epochs) < 2:
        return None
    figure, (axes,) = new_axes(f"Tracking by epoch: {_subtitle(record)}")
    for name, colour in zip(("auc", "op50", "op75", "p20", "p_norm"), ("#1f5fa8", *_COLOURS), strict=False):
        values = [_value(one.mean, name) for one in epochs]
        width = 2.4 if name == "auc" else 1.2
        axes.plot([one.epoch or 0 for one in epochs], values, ".-", label=METRICS[name].heading, color=colour, lw=width)
    for one in record.trackers:
        if one.kind in _DASHES:
            level, dashes = _value(one.mean, "auc"), _DASHES[one.kind]
            axes.axhline(level, color=_GREY, linestyle=dashes, linewidth=1.2, label=f"AUC, {one.name}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(figure, axes, x="Epoch", y="percent")


def _epochs_by_class(record: EvaluationRecord) -> Figure | None:
    """AUC of each class over epochs; None with one class, one epoch, or more classes than can be distinguished."""
    epochs = _epochs_of(record)
    if len(epochs) < 2 or not 2 <= len(epochs[0].classes) <= len(_COLOURS):
        return None
    figure, (axes,) = new_axes(f"AUC by class and epoch: {_subtitle(record)}")
    for name, colour in zip(epochs[0].classes, _COLOURS, strict=False):
        values = [_value(one.classes[name], "auc") for one in epochs]
        axes.plot([one.epoch or 0 for one in epochs], values, marker="o", color=colour, label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return _finish(figure, axes, x="Epoch", y="AUC (percent)")


def _classes(record: EvaluationRecord, styles: dict[str, _Style]) -> Figure | None:
    """AUC by class; None with a single class. Of very many classes, those with the lowest AUC of the main tracker."""
    main = main_tracker(record)
    if len(main.classes) < 2:
        return None
    # Of the epochs only the last: bars of every epoch could not be read.
    shown = [one for one in record.trackers if one.kind != "checkpoint" or one is main]
    names = sorted(main.classes, key=lambda name: _value(main.classes[name], "auc"))[:_MAX_BARS]
    few = f", the {len(names)} lowest of {len(main.classes)}" if len(names) < len(main.classes) else ""
    height = 1.6 + (0.16 * len(shown) + 0.12) * len(names)
    figure, (axes,) = new_axes(f"AUC by class{few}\n{_subtitle(record)}", size=(8.0, max(3.0, height)))
    thickness = 0.8 / len(shown)
    rows = np.arange(len(names))
    for place, one in enumerate(shown):
        values = [_value(one.classes[name], "auc") for name in names]
        y = rows + (place - (len(shown) - 1) / 2) * thickness
        bars = axes.barh(y, values, thickness, color=styles[one.name]["color"], label=one.name)
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return _finish(figure, axes, x="AUC (percent)")


def _speed(record: EvaluationRecord, styles: dict[str, _Style]) -> Figure | None:
    """Frames per second of every tracker whose time was measured; None if there is none."""
    measured = {one.name: fps for one in record.trackers if (fps := one.mean["fps"]) is not None}
    if not measured:
        return None
    title = f"Frames per second on {record.conditions.get('device') or ''}: {_subtitle(record)}"
    figure, (axes,) = new_axes(title, size=(8.0, max(2.4, 1.2 + 0.3 * len(measured))))
    colours = [styles[name]["color"] for name in measured]
    bars = axes.barh(list(measured), list(measured.values()), 0.7, color=colours)
    axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    x = f"tracker only, without reading images; up to {record.conditions.get('concurrent')} sequences at once"
    return _finish(figure, axes, x=x, legend=None)

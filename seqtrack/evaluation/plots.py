"""Curves and bars of an evaluation. Needs no display.

Epochs run from dark to bright in one colour scale, baselines are grey and dashed, other trackers have own colours,
so that a plot of ten epochs and two trackers can still be read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from seqtrack.evaluation.metrics import (
    METRICS,
    NORM_PRECISION_THRESHOLDS,
    PRECISION_THRESHOLDS,
    SUCCESS_THRESHOLDS,
    Array,
    Scores,
)
from seqtrack.evaluation.results import Evaluation
from seqtrack.plotting import new_axes, save_figure

_OTHERS = ("#d1602b", "#2a8f5d", "#8e4fb0", "#b0334f", "#7a6a1f", "#3aa0b8")
_GREYS = {"untrained": ("#777777", "--"), "still": ("#777777", ":")}
_MAX_BARS = 24  # further classes are only in the tables
_EPOCH_METRICS = {"auc": "#1f5fa8", "op50": "#2a8f5d", "op75": "#8e4fb0", "p20": "#d1602b", "p_norm": "#b0334f"}


class _Curve(NamedTuple):
    title: str
    axis: str
    thresholds: Array
    values: Callable[[Scores], Array]
    metric: str  # read from the curve; sorts the legend


_CURVES = {
    "success": _Curve("Success", "IoU threshold", SUCCESS_THRESHOLDS, lambda one: one.success, "auc"),
    "precision": _Curve(
        "Precision", "centre error threshold (px)", PRECISION_THRESHOLDS, lambda one: one.precision, "p20"
    ),
    "norm_precision": _Curve(
        "Normalised precision",
        "centre error threshold (annotation sizes)",
        NORM_PRECISION_THRESHOLDS,
        lambda one: one.norm_precision,
        "p_norm",
    ),
}


def draw_plots(evaluation: Evaluation, folder: Path) -> list[str]:
    """Draw every plot that the evaluation has data for into an existing folder.

    Returns:
        file names in the order of a report.
    """
    figures = {"epochs": _epochs(evaluation), "epochs_by_class": _epochs_by_class(evaluation)}
    figures |= {name: _curve(evaluation, curve) for name, curve in _CURVES.items()}
    figures |= {"classes": _classes(evaluation), "fps": _speed(evaluation)}
    drawn = {f"{name}.png": figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        save_figure(figure, folder / name)
    return list(drawn)


def _subtitle(evaluation: Evaluation) -> str:
    conditions = evaluation.conditions
    kind = " (synthetic)" if conditions.get("synthetic") else ""
    place = f"{conditions.get('dataset') or 'annotations'}{kind} {conditions.get('split') or ''}".strip()
    return f"{place}, {len(evaluation.names)} sequences"


def _styles(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Line style by tracker name."""
    epochs = evaluation.epochs
    scale = matplotlib.colormaps["viridis"]
    styles: dict[str, dict[str, Any]] = {}
    for place, one in enumerate(epochs):
        shade = place / (len(epochs) - 1) if len(epochs) > 1 else 0.4
        styles[one.name] = {"color": scale(0.85 * shade), "linewidth": 2.4 if one is epochs[-1] else 1.3}
    others = 0
    for one in evaluation.results:
        if one.kind in _GREYS:
            colour, dashes = _GREYS[one.kind]
            styles[one.name] = {"color": colour, "linestyle": dashes, "linewidth": 1.5}
        elif one.kind == "results":
            styles[one.name] = {"color": _OTHERS[others % len(_OTHERS)], "linewidth": 1.8, "linestyle": "-."}
            others += 1
    return styles


def _legend(figure: Figure, title: str | None = None) -> None:
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title=title)


def _curve(evaluation: Evaluation, curve: _Curve) -> Figure:
    figure, (axes,) = new_axes(f"{curve.title}: {_subtitle(evaluation)}")
    styles = _styles(evaluation)
    means = {one.name: one.mean(evaluation.names) for one in evaluation.results}
    values = {name: mean.metrics()[curve.metric] for name, mean in means.items()}
    for name in sorted(means, key=lambda name: -values[name]):  # the best first, as in LaSOT's own plots
        axes.plot(curve.thresholds, curve.values(means[name]), label=f"{name} [{values[name]:.1f}]", **styles[name])
    axes.set_xlabel(curve.axis)
    axes.set_ylabel("fraction of frames")
    axes.set_xlim(float(curve.thresholds[0]), float(curve.thresholds[-1]))
    axes.set_ylim(bottom=0)
    _legend(figure, METRICS[curve.metric].heading)
    return figure


def _epochs(evaluation: Evaluation) -> Figure | None:
    """Metrics over epochs, with the baselines' AUC as horizontal lines; None with fewer than two epochs."""
    epochs = evaluation.epochs
    if len(epochs) < 2:
        return None
    figure, (axes,) = new_axes(f"Tracking by epoch: {_subtitle(evaluation)}")
    for name, colour in _EPOCH_METRICS.items():
        width, size = (2.4, 5) if name == "auc" else (1.2, 3)
        values = [one.mean(evaluation.names).metrics()[name] for one in epochs]
        axes.plot(
            [one.epoch or 0 for one in epochs], values,
            marker="o", label=METRICS[name].heading, color=colour, linewidth=width, markersize=size,
        )  # fmt: skip
    for one in evaluation.results:
        if one.kind in _GREYS:
            colour, dashes = _GREYS[one.kind]
            level = one.mean(evaluation.names).auc
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.2, label=f"AUC, {one.name}")
    return _over_epochs(figure, axes, "percent")


def _epochs_by_class(evaluation: Evaluation) -> Figure | None:
    """AUC of each class over epochs; None with one class, one epoch, or more classes than can be distinguished."""
    epochs, groups = evaluation.epochs, evaluation.classes
    if len(epochs) < 2 or not 2 <= len(groups) <= len(_OTHERS):
        return None
    figure, (axes,) = new_axes(f"AUC by class and epoch: {_subtitle(evaluation)}")
    x = [one.epoch or 0 for one in epochs]
    for (name, members), colour in zip(groups.items(), _OTHERS, strict=False):
        axes.plot(x, [one.mean(members).auc for one in epochs], marker="o", color=colour, label=name)
    return _over_epochs(figure, axes, "AUC (percent)")


def _over_epochs(figure: Figure, axes: Axes, label: str) -> Figure:
    axes.set_xlabel("Epoch")
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _legend(figure)
    return figure


def _classes(evaluation: Evaluation) -> Figure | None:
    """AUC by class; None with a single class. Of very many classes, those with the lowest AUC of the main tracker."""
    groups = evaluation.classes
    if len(groups) < 2:
        return None
    # Of the epochs only the last: bars of every epoch could not be read.
    shown = [one for one in evaluation.results if one.kind != "checkpoint" or one is evaluation.epochs[-1]]
    main = next((one for one in shown if one.kind not in _GREYS), shown[0])
    names = sorted(groups, key=lambda name: main.mean(groups[name]).auc)[:_MAX_BARS]
    few = f", the {len(names)} lowest of {len(groups)}" if len(names) < len(groups) else ""
    height = 1.6 + 0.16 * len(names) * len(shown) + 0.12 * len(names)
    figure, (axes,) = new_axes(f"AUC by class{few}\n{_subtitle(evaluation)}", size=(8.0, max(3.0, height)))
    styles = _styles(evaluation)
    thickness = 0.8 / len(shown)
    rows = np.arange(len(names))
    for place, one in enumerate(shown):
        bars = axes.barh(
            rows + (place - (len(shown) - 1) / 2) * thickness, [one.mean(groups[name]).auc for name in names],
            thickness, color=styles[one.name]["color"], label=one.name, alpha=0.5 if one.kind == "still" else 1.0,
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("AUC (percent)")
    axes.grid(visible=False, axis="y")
    _legend(figure)
    return figure


def _speed(evaluation: Evaluation) -> Figure | None:
    """Frames per second of every tracker whose time was measured; None if there is none."""
    timed = {one.name: one.timing(evaluation.names)["fps"] for one in evaluation.results}
    measured = {name: fps for name, fps in timed.items() if fps is not None}
    if not measured:
        return None
    conditions = evaluation.conditions
    title = f"Frames per second on {conditions.get('device') or ''}: {_subtitle(evaluation)}"
    figure, (axes,) = new_axes(title, size=(8.0, max(2.4, 1.2 + 0.3 * len(measured))))
    styles = _styles(evaluation)
    rows = np.arange(len(measured))
    bars = axes.barh(rows, list(measured.values()), 0.7, color=[styles[name]["color"] for name in measured])
    axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_yticks(rows, list(measured))
    axes.invert_yaxis()
    axes.set_xlabel(f"tracker only, without reading images; up to {conditions.get('concurrent')} sequences at once")
    axes.grid(visible=False, axis="y")
    return figure

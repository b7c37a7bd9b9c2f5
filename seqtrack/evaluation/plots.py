"""Curves and bars of an evaluation. Needs no display; draws what `Evaluation` holds and computes nothing else.

Epochs run from dark to bright in one colour scale, baselines are grey and dashed, other trackers have colours of their
own, so that a plot of ten epochs and two trackers can still be read.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from seqtrack.evaluation.tracker_results import Evaluation, TrackerResult
from seqtrack.plotting import new_axes, save_figure

_OTHERS = ("#d1602b", "#2a8f5d", "#8e4fb0", "#b0334f", "#7a6a1f", "#3aa0b8")
_GREYS = {"untrained": ("#777777", "--"), "still": ("#777777", ":")}
_MOST_BARS = 24  # classes beyond this many are left to the tables
_EPOCH_FIGURES = ("auc", "op50", "op75", "p20", "p_norm")
_FIGURE_COLOURS = ("#1f5fa8", "#2a8f5d", "#8e4fb0", "#d1602b", "#b0334f")


@dataclass(frozen=True)
class _Curve:
    title: str
    axis: str
    thresholds: Array
    values: Callable[[Scores], Array]
    figure: str  # the number read from the curve, which sorts the legend


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
    """Draw every plot that the evaluation has data for into a folder, which must exist.

    Returns:
        file names in the order of a report.
    """
    drawn: list[str] = []

    def save(figure: Figure | None, name: str) -> None:
        if figure is not None:
            save_figure(figure, folder / name)
            drawn.append(name)

    save(_epochs(evaluation), "epochs.png")
    save(_epochs_by_class(evaluation), "epochs_by_class.png")
    for name, curve in _CURVES.items():
        save(_curve(evaluation, curve), f"{name}.png")
    save(_classes(evaluation), "classes.png")
    save(_speed(evaluation), "fps.png")
    return drawn


def _subtitle(evaluation: Evaluation) -> str:
    conditions = evaluation.conditions
    kind = " (synthetic)" if conditions.get("synthetic") else ""
    place = f"{conditions.get('dataset') or 'annotations'}{kind} {conditions.get('split') or ''}".strip()
    return f"{place}, {len(evaluation.names)} sequences"


def _styles(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Line style by subject name."""
    epochs = [one for one in evaluation.results if one.kind == "checkpoint"]
    scale = matplotlib.colormaps["viridis"]
    styles: dict[str, dict[str, Any]] = {}
    for place, one in enumerate(epochs):
        shade = place / (len(epochs) - 1) if len(epochs) > 1 else 0.4
        last = one is epochs[-1]
        styles[one.name] = {"color": scale(0.85 * shade), "linewidth": 2.4 if last else 1.3}
    for one in evaluation.results:
        if one.kind in _GREYS:
            colour, dashes = _GREYS[one.kind]
            styles[one.name] = {"color": colour, "linestyle": dashes, "linewidth": 1.5}
    others = [one for one in evaluation.results if one.kind == "results"]
    for place, one in enumerate(others):
        styles[one.name] = {"color": _OTHERS[place % len(_OTHERS)], "linewidth": 1.8, "linestyle": "-."}
    return styles


def _curve(evaluation: Evaluation, curve: _Curve) -> Figure:
    figure, (axes,) = new_axes(f"{curve.title}: {_subtitle(evaluation)}")
    styles = _styles(evaluation)
    means = {one.name: one.mean(evaluation.names) for one in evaluation.results}
    # The best first, as LaSOT's own plots sort their legends.
    for name in sorted(means, key=lambda name: -means[name].metrics()[curve.figure]):
        value = means[name].metrics()[curve.figure]
        axes.plot(curve.thresholds, curve.values(means[name]), label=f"{name} [{value:.1f}]", **styles[name])
    axes.set_xlabel(curve.axis)
    axes.set_ylabel("share of frames")
    axes.set_xlim(float(curve.thresholds[0]), float(curve.thresholds[-1]))
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, title=METRICS[curve.figure].heading)
    return figure


def _epochs(evaluation: Evaluation) -> Figure | None:
    """Figures over epochs, with the baselines' AUC as level lines; None with fewer than two epochs."""
    epochs = [one for one in evaluation.results if one.kind == "checkpoint"]
    if len(epochs) < 2:
        return None
    figure, (axes,) = new_axes(f"Tracking by epoch: {_subtitle(evaluation)}")
    x = [one.epoch or 0 for one in epochs]
    for name, colour in zip(_EPOCH_FIGURES, _FIGURE_COLOURS, strict=True):
        y = [one.mean(evaluation.names).metrics()[name] for one in epochs]
        main = name == "auc"
        axes.plot(
            x,
            y,
            marker="o",
            label=METRICS[name].heading,
            color=colour,
            linewidth=2.4 if main else 1.2,
            markersize=5 if main else 3,
        )
    for one in evaluation.results:
        if one.kind in _GREYS:
            colour, dashes = _GREYS[one.kind]
            level = one.mean(evaluation.names).auc
            axes.axhline(level, color=colour, linestyle=dashes, linewidth=1.2, label=f"AUC, {one.name}")
    return _over_epochs(figure, axes, "percent")


def _epochs_by_class(evaluation: Evaluation) -> Figure | None:
    """AUC of each class over epochs; None with one class, one epoch, or more classes than can be told apart."""
    epochs = [one for one in evaluation.results if one.kind == "checkpoint"]
    groups = evaluation.classes
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
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _shown_in_bars(evaluation: Evaluation) -> list[TrackerResult]:
    """The last epoch, and whatever is no epoch: bars of every epoch could not be read."""
    epochs = [one for one in evaluation.results if one.kind == "checkpoint"]
    return [one for one in evaluation.results if one.kind != "checkpoint" or one is epochs[-1]]


def _classes(evaluation: Evaluation) -> Figure | None:
    """AUC by class; None with a single class. With very many classes, those that the main tracker does worst on."""
    groups = evaluation.classes
    if len(groups) < 2:
        return None
    shown = _shown_in_bars(evaluation)
    first = next((one for one in shown if one.kind not in _GREYS), shown[0])
    names = sorted(groups, key=lambda name: first.mean(groups[name]).auc)
    left_out = len(names) - _MOST_BARS
    names = names[:_MOST_BARS]
    height = 1.6 + 0.16 * len(names) * len(shown) + 0.12 * len(names)
    few = f", the {len(names)} lowest of {len(groups)}" if left_out > 0 else ""
    figure, (axes,) = new_axes(f"AUC by class{few}\n{_subtitle(evaluation)}", size=(8.0, max(3.0, height)))
    styles = _styles(evaluation)
    thickness = 0.8 / len(shown)
    rows = np.arange(len(names))
    for place, one in enumerate(shown):
        values = [one.mean(groups[name]).auc for name in names]
        bars = axes.barh(
            rows + (place - (len(shown) - 1) / 2) * thickness, values, thickness,
            color=styles[one.name]["color"], label=one.name, alpha=0.5 if one.kind == "still" else 1.0,
        )  # fmt: skip
        axes.bar_label(bars, fmt="%.1f", fontsize=7, padding=2)
    axes.set_yticks(rows, names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("AUC (percent)")
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _speed(evaluation: Evaluation) -> Figure | None:
    """Frames a second of every tracker whose time was taken; None if there is none."""
    timed = [(one, one.timing(evaluation.names)["fps"]) for one in evaluation.results]
    measured = [(one, fps) for one, fps in timed if fps is not None]
    if not measured:
        return None
    device = evaluation.conditions.get("device") or ""
    figure, (axes,) = new_axes(
        f"Frames a second on {device}: {_subtitle(evaluation)}", size=(8.0, max(2.4, 1.2 + 0.3 * len(measured)))
    )
    styles = _styles(evaluation)
    rows = np.arange(len(measured))
    bars = axes.barh(rows, [fps for _, fps in measured], 0.7, color=[styles[one.name]["color"] for one, _ in measured])
    axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    axes.set_yticks(rows, [one.name for one, _ in measured])
    axes.invert_yaxis()
    together = evaluation.conditions.get("concurrent")
    axes.set_xlabel(f"frames a second (tracker only, image reading left out; up to {together} sequences at once)")
    axes.grid(visible=False, axis="y")
    return figure

"""Training curves from what a run has measured: its `metrics.jsonl`. Needs no torch and no display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrack.engine.log import read_metrics
from seqtrack.figures import new_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = ("#1f5fa8", "#d1602b")
_LABELS = {"loss": "Loss (cross-entropy)", "iou": "IoU (teacher-forced)"}


def _curves(folder: Path, name: str) -> tuple[list[float], list[float], list[int], list[float]]:
    """Intervals as (position, value), and epochs as (epoch, value); epoch e reaches from e - 0.5 to e + 0.5."""
    records = read_metrics(folder / "logs" / "metrics.jsonl")
    intervals = [record for record in records if record["type"] == "interval"]
    epochs = [record for record in records if record["type"] == "epoch"]
    position = [record["epoch"] - 0.5 + record["sample"] / record["samples"] for record in intervals]
    return (
        position,
        [record[f"interval_{name}"] for record in intervals],
        [record["epoch"] for record in epochs],
        [record[name] for record in epochs],
    )


def _draw(axes: Axes, folder: Path, name: str, colour: str, *, label: str, dashed: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator  # here: as in `seqtrack.figures`

    position, values, epochs, means = _curves(folder, name)
    axes.plot(position, values, color=colour, alpha=0.35, linewidth=0.8, label=f"{label}, every interval")
    style: dict[str, Any] = {"linestyle": "--", "marker": "x"} if dashed else {"linestyle": "-", "marker": "o"}
    axes.plot(epochs, means, color=colour, linewidth=1.8, markersize=5, label=f"{label}, mean of the epoch", **style)
    axes.set_xlabel("Epoch")
    axes.set_ylabel(_LABELS[name])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_phase(folder: Path) -> None:
    """`plots/<phase>_loss.png` and `plots/<phase>_iou.png` of one run, as far as it has come."""
    if not read_metrics(folder / "logs" / "metrics.jsonl"):
        return
    (folder / "plots").mkdir(exist_ok=True)
    for name, word in (("loss", "loss"), ("iou", "IoU")):
        figure, (axes,) = new_axes(f"SeqTrack, {folder.name}: {word}")
        _draw(axes, folder, name, COLOURS[name == "iou"], label=folder.name)
        axes.legend(frameon=False)
        if name == "iou":
            axes.set_ylim(bottom=0)
        save_figure(figure, folder / "plots" / f"{folder.name}_{name}.png")


def plot_comparison(folders: Sequence[Path], target: Path, *, verdict: str) -> None:
    """`loss_comparison.png`, `iou_comparison.png`, and both as `training_comparison.png`, titled with the verdict."""
    for names, file in ((("loss",), "loss"), (("iou",), "iou"), (("loss", "iou"), "training")):
        title = f"{' and '.join(folder.name for folder in folders)}: {verdict}"
        figure, axes = new_axes(title, rows=len(names), size=(8.0, 1.2 + 3.8 * len(names)))
        for one, name in zip(axes, names, strict=True):
            for place, (folder, colour) in enumerate(zip(folders, COLOURS, strict=True)):
                _draw(one, folder, name, colour, label=folder.name, dashed=place == 1)
            one.legend(frameon=False, fontsize=8)
        save_figure(figure, target / f"{file}_comparison.png")

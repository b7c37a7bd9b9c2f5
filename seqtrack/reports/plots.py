"""Plots of training curves, from metrics.jsonl alone. Needs no torch and no display.

During a run a child process (`python -m seqtrack.reports.plots FOLDER`) draws them, so that drawing holds neither the
trainer's interpreter lock nor its cores. A plot that cannot be written is only a warning.
"""

import logging
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.checkpoints.side_files import EpochRecord, IntervalRecord, metrics_records
from seqtrack.plotting import NEUTRAL, PHASE_COLOURS, new_axes, save_figure
from seqtrack.run_dir import PHASES, PLOTS, metrics_path

logger = logging.getLogger(__name__)

_LABELS = {"loss": "Loss (cross-entropy)", "iou": "IoU of training samples (teacher-forced)"}
_MARKED_EPOCHS = 60  # with more, markers would hide the line
_GROUPS = 2000  # more points than a plot of 900 pixels can show

Line = tuple[NDArray[np.float64], NDArray[np.float64]]  # positions in epochs, values
Curves = dict[str, Line]


def read_curves(run: Path) -> Curves:
    """The curves of a run's records: "loss" and "iou" of every epoch, "interval_loss" and "interval_iou" of every
    interval; empty without records. Epoch e begins at e - 1 and ends at e."""
    found: dict[str, tuple[array[float], array[float]]] = {}
    for record in metrics_records(metrics_path(run)):
        if isinstance(record, IntervalRecord):
            at, names = record.epoch - 1 + record.sample / record.samples, ("interval_loss", "interval_iou")
        elif isinstance(record, EpochRecord):
            at, names = record.epoch, ("loss", "iou")
        else:
            continue
        for name in names:
            positions, values = found.setdefault(name, (array("d"), array("d")))
            positions.append(at)
            values.append(getattr(record, name))
    return {name: thin_out(np.array(positions), np.array(values)) for name, (positions, values) in found.items()}


def thin_out(positions: NDArray[np.float64], values: NDArray[np.float64]) -> Line:
    """The lowest and the highest value of groups of neighbours: the line covers what all points would cover."""
    size = -(-len(positions) // _GROUPS)
    if size <= 1:
        return positions, values
    starts = np.arange(0, len(positions), size)
    extremes = np.stack([np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)], axis=1)
    return np.repeat(positions[starts], 2), extremes.ravel()


def _plot(runs: Sequence[tuple[str, Curves]], name: str, title: str, path: Path) -> Path:
    """Draw "loss" or "iou" of one or two named runs."""
    nothing = np.empty(0), np.empty(0)
    figure, (axes,) = new_axes(title, "Epoch")
    for place, (run, curves) in enumerate(runs):
        second = place == 1 or run == PHASES[1]
        colour = PHASE_COLOURS[PHASES[second]]
        axes.plot(*curves.get(f"interval_{name}", nothing), color=colour, alpha=0.45, linewidth=0.9, zorder=1)
        epochs = curves.get(name, nothing)
        style = ("--" if second else "-") + (("x" if second else "o") if len(epochs[0]) <= _MARKED_EPOCHS else "")
        axes.plot(*epochs, style, color=colour, linewidth=1.8, markersize=5, label=f"{run}, epoch's mean")
    axes.plot(*nothing, color=NEUTRAL, linewidth=0.9, label="pale: every interval")
    axes.set_ylabel(_LABELS[name])
    axes.legend(frameon=False, fontsize=9)
    axes.set_xlim(left=0)
    if name == "iou":
        axes.set_ylim(bottom=0)
    save_figure(figure, path)
    return path


def plot_phase(folder: Path) -> list[Path]:
    """Draw `plots/<phase>_loss.png` and `plots/<phase>_iou.png` of one run, unless it has no records yet.

    Returns:
        the files drawn.

    Raises:
        OSError: a plot cannot be written; it is named.
    """
    if not (curves := read_curves(folder)):
        return []
    target, runs = folder / PLOTS / f"{folder.name}_loss.png", [(folder.name, curves)]
    target.parent.mkdir(exist_ok=True)
    return [_plot(runs, name, folder.name, target.with_stem(f"{folder.name}_{name}")) for name in _LABELS]


def plot_comparison(folders: Sequence[Path], target: Path, *, verdict: str) -> list[Path]:
    """Draw `loss_comparison.png` and `iou_comparison.png`, titled with the verdict; returns their paths."""
    runs = [(folder.name, read_curves(folder)) for folder in folders]
    title = f"{' and '.join(name for name, _ in runs)}: {verdict}"
    return [_plot(runs, name, title, target / f"{name}_comparison.png") for name in _LABELS]


class PhasePlots:
    """The plots of a run: redrawn by a child process at most every `interval_s`, and in this process at the end."""

    def __init__(self, folder: Path, *, interval_s: float = 60.0) -> None:
        self.folder, self.interval_s = folder, interval_s
        self._began = self._last = time.monotonic()
        self._child: subprocess.Popen[bytes] | None = None

    def redraw(self) -> None:
        """Start drawing in the background, unless that is in progress or was done recently."""
        now = time.monotonic()
        # A drawing takes longer with every record, so that a long run is drawn more rarely.
        due = self._last + max(self.interval_s, (now - self._began) / 50)
        if now < due or (self._child and self._child.poll() is None):
            return
        self.close()
        self._last = now
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "seqtrack.reports.plots", str(self.folder.absolute())],
                cwd=Path(__file__).parents[2],  # where this package is found, however this process found it
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        except OSError as error:
            self._warn(error)

    def _warn(self, reason: object) -> None:
        logger.warning("%s: the plots could not be drawn (%s)", self.folder / PLOTS, reason)

    def finish(self) -> None:
        """Draw them a last time, in this process."""
        self.close()
        try:
            plot_phase(self.folder)
        except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
            # Whatever drawing fails of, the run has done its work.
            self._warn(error)

    def close(self) -> None:
        """End the child, if one is running; warn if it had failed before."""
        if self._child is not None:
            self._child.kill()
            _, output = self._child.communicate()
            if self._child.returncode > 0:
                self._warn((output.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1])
            self._child = None


if __name__ == "__main__":
    os.nice(19)
    plot_phase(Path(sys.argv[1]))

"""Plots of training curves. Needs no torch and no display.

During a run a child process (`python -m seqtrack.reports.plots`) draws them, so that drawing holds neither the
trainer's interpreter lock nor its cores. The child receives the curves on stdin and reads no file of the run. A plot
that cannot be written is only a warning: metrics.jsonl has all that it shows.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrack.checkpoints.side_files import read_metrics
from seqtrack.plotting import new_axes, save_figure
from seqtrack.run_dir import PLOTS, metrics_path
from seqtrack.runtime.curves import Curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

COLOURS = ("#1f5fa8", "#d1602b")
REDRAW_INTERVAL_S = 60.0
_LABELS = {"loss": "Loss (cross-entropy)", "iou": "IoU (teacher-forced)"}
_MARKED_EPOCHS = 60  # with more, markers would hide the line


def _draw(axes: Axes, curves: Curves, name: str, colour: str, *, label: str, dashed: bool = False) -> None:
    from matplotlib.ticker import MaxNLocator  # here: as in `seqtrack.plotting`

    intervals, epochs = curves.intervals[name].line(), curves.epochs[name].line()
    axes.plot(*intervals, color=colour, alpha=0.35, linewidth=0.8, label=f"{label}, every interval")
    style: dict[str, Any] = {"linestyle": "--" if dashed else "-"}
    if len(epochs[0]) <= _MARKED_EPOCHS:
        style["marker"] = "x" if dashed else "o"
    axes.plot(*epochs, color=colour, linewidth=1.8, markersize=5, label=f"{label}, mean of the epoch", **style)
    axes.set_xlabel("Epoch")
    axes.set_ylabel(_LABELS[name])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_phase(folder: Path, curves: Curves) -> None:
    """Draw `plots/<phase>_loss.png` and `plots/<phase>_iou.png` of one run, unless it has no records yet.

    Raises:
        OSError: a plot cannot be written; it is named.
    """
    if not curves:
        return
    (folder / PLOTS).mkdir(exist_ok=True)
    for name, word in (("loss", "loss"), ("iou", "IoU")):
        figure, (axes,) = new_axes(f"SeqTrack, {folder.name}: {word}")
        _draw(axes, curves, name, COLOURS[name == "iou"], label=folder.name)
        axes.legend(frameon=False)
        if name == "iou":
            axes.set_ylim(bottom=0)
        save_figure(figure, folder / PLOTS / f"{folder.name}_{name}.png")


def plot_comparison(folders: Sequence[Path], target: Path, *, verdict: str) -> None:
    """`loss_comparison.png`, `iou_comparison.png`, and both as `training_comparison.png`, titled with the verdict."""
    curves = [Curves(read_metrics(metrics_path(folder)).records) for folder in folders]
    for names, file in ((("loss",), "loss"), (("iou",), "iou"), (("loss", "iou"), "training")):
        title = f"{' and '.join(folder.name for folder in folders)}: {verdict}"
        figure, axes = new_axes(title, rows=len(names), size=(8.0, 1.2 + 3.8 * len(names)))
        for one, name in zip(axes, names, strict=True):
            for place, (folder, colour) in enumerate(zip(folders, COLOURS, strict=True)):
                _draw(one, curves[place], name, colour, label=folder.name, dashed=place == 1)
            one.legend(frameon=False, fontsize=8)
        save_figure(figure, target / f"{file}_comparison.png")


class PhasePlots:
    """The plots of a run: redrawn by a child process from time to time, and in this process at the end.

    Args:
        folder: the run's folder.
        curves: grow during the run.
        interval_s: minimum time between two drawings, and before the first.
    """

    def __init__(self, folder: Path, curves: Curves, *, interval_s: float = REDRAW_INTERVAL_S) -> None:
        self.folder = folder
        self.curves = curves
        self.interval_s = interval_s
        self._last = time.monotonic()
        self._child: subprocess.Popen[bytes] | None = None

    def redraw(self) -> None:
        """Start drawing in the background, unless that is in progress or was done less than `interval_s` ago."""
        if time.monotonic() - self._last < self.interval_s or (self._child and self._child.poll() is None):
            return
        self._reap()
        self._last = time.monotonic()
        # The package may have been found through the folder that the trainer was started in.
        path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            # A file and not a pipe: the child reads only after its imports, and the trainer must not wait for it.
            with tempfile.TemporaryFile() as curves:
                curves.write(json.dumps({"folder": str(self.folder), "curves": self.curves.to_json()}).encode())
                curves.seek(0)
                self._child = subprocess.Popen(
                    [sys.executable, "-m", "seqtrack.reports.plots"],
                    stdin=curves,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
                )
        except OSError as error:
            self._warn(error)

    def _reap(self) -> None:
        if self._child is not None:
            _, output = self._child.communicate()
            if self._child.returncode > 0:
                self._warn((output.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1])
        self._child = None

    def _warn(self, reason: object) -> None:
        logger.warning("%s: the plots could not be drawn (%s)", self.folder / PLOTS, reason)

    def finish(self) -> None:
        """Draw them a last time, in this process."""
        self.close()
        try:
            plot_phase(self.folder, self.curves)
        except (OSError, ValueError, RuntimeError, ImportError, MemoryError) as error:
            # Whatever drawing fails of, the run has done its work.
            self._warn(error)

    def close(self) -> None:
        """End the child, if one is running."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
        self._reap()


def main() -> None:
    """Draw what stdin describes, at the lowest priority."""
    os.nice(19)
    values = json.load(sys.stdin)
    plot_phase(Path(values["folder"]), Curves.from_json(values["curves"]))


if __name__ == "__main__":
    main()

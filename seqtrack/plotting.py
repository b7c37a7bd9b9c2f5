"""Figures in one look, and their files: what training curves and evaluation plots have in common.

Knows matplotlib and nothing of what is drawn. Needs no display and no torch.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.checkpoints.safetensors_io import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PHASE_COLOURS = {"phase_1": "#1f5fa8", "phase_2": "#d1602b"}  # a colour is a phase, in every plot
NEUTRAL = "#777777"  # of baselines and whatever else belongs to no phase
_DPI = 160


def new_axes(
    title: str, x: str, *, rows: int = 1, size: tuple[float, float] = (6.4, 4.2), polar: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `rows` axes below one another: light grid, no frame on top and right.

    Args:
        title: above the axes, wrapped as the label is.
        x: label of the horizontal axis; "Epoch" has whole numbers only.
        size: width and height in inches, of 160 pixels each once it is saved.
    """
    import matplotlib  # here: a training run's first step need not wait until it is loaded
    from matplotlib.figure import Figure  # as above

    matplotlib.rcParams["text.parse_math"] = False  # a dollar in the name of a class or a device is a dollar
    figure = Figure(figsize=size, layout="constrained")
    axes = [figure.add_subplot(rows, 1, row + 1, polar=polar) for row in range(rows)]
    for one in axes:
        one.grid(alpha=0.3)
        if not polar:
            one.spines[["top", "right"]].set_visible(False)
        one.set_xlabel(textwrap.fill(x, 48))
        if x == "Epoch":
            one.locator_params(axis="x", integer=True)
    title = "\n".join(textwrap.fill(line, round(9.5 * size[0])) for line in title.splitlines())
    figure.suptitle(title, fontsize=11)  # over the figure, for axes next to long names leave no room for it
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, PDF or SVG, as the name ends; `path` is whole or absent.

    Raises:
        OSError: no space, no right, no such folder.
    """
    import matplotlib  # as above

    buffer, kind = io.BytesIO(), path.suffix[1:]
    # No date, version or random name in the file: equal numbers give equal bytes.
    hidden: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None}}
    with matplotlib.rc_context({"svg.hashsalt": "seqtrack"}):
        figure.savefig(buffer, format=kind, dpi=_DPI, metadata=hidden.get(kind, {"CreationDate": None}))
    write_atomic(path, buffer.getvalue())

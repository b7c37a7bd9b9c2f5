"""Figures in one look, and their files: what training curves and evaluation plots have in common.

Knows matplotlib and nothing of what is drawn. Needs no display and no torch.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.checkpoints.safetensors_io import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_axes(title: str, x: str, *, rows: int = 1, size: tuple[float, float] = (8.0, 4.8)) -> tuple[Figure, list[Axes]]:
    """A figure with `rows` axes below one another: light grid, no frame on top and right.

    Args:
        title: above the axes, or above all of them where there are several.
        x: label of the horizontal axis; "Epoch" has whole numbers only.
        size: width and height in inches, of 110 pixels each once it is saved.
    """
    from matplotlib.figure import Figure  # here: a training run's first step need not wait until it is loaded

    figure = Figure(figsize=size, layout="constrained")
    axes = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
        one.set_xlabel(x)
        if x == "Epoch":
            one.locator_params(axis="x", integer=True)
    if rows == 1:
        axes[0].set_title(title)
    else:
        figure.suptitle(title)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; `path` is whole or absent.

    Raises:
        OSError: no space, no right, no such folder.
    """
    buffer = io.BytesIO()
    # No date and no version in the file: equal numbers give equal bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())

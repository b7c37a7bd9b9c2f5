"""Which frames make a sample: the authors' sampling modes as pure functions of a generator.

Every mode draws a fixed number of random numbers, so no loop here can fail to end.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["order", "causal"]
_GAP_STEP = 5


def draw_frames(
    generator: np.random.Generator, visible: NDArray[np.int64], *, mode: Mode, num_templates: int, gap: int
) -> NDArray[np.int64]:
    """Frame numbers of one sample.

    Mode `order`: frames from a window around a base frame, ascending or descending in time with equal probability. The
    base frame itself need not be among them, frames may repeat, and they spread over up to 2 * gap - 1.

    Mode `causal`: a base template, further templates up to a gap before it, the search frame up to a gap after it. The
    authors retry with a gap that grows by five until a frame is in reach; the growth is computed here instead.

    Args:
        visible: ascending numbers, from 0, of the frames that may be drawn.
        gap: the largest interval, in frames, as the mode defines it.

    Returns:
        (num_templates + 1,) int64: templates, then the search frame.
    """

    def pick(low: int, high: int, count: int) -> NDArray[np.int64]:
        """`count` of the visible frames in [low, high), with replacement; at least one must exist."""
        start, stop = np.searchsorted(visible, (low, high))
        return visible[generator.integers(start, stop, size=count)]

    def grown(gap: int, distance: int) -> int:
        return gap + _GAP_STEP * -(-max(0, distance - gap) // _GAP_STEP)

    if mode == "order":
        base = int(visible[generator.integers(len(visible))])
        drawn = np.sort(pick(base - gap, base + gap, num_templates + 1))
        return drawn if generator.random() < 0.5 else drawn[::-1]
    place = int(generator.integers(1 if num_templates > 1 else 0, len(visible) - 1))
    base = int(visible[place])
    gap = grown(gap, int(visible[place + 1]) - base)
    templates = np.array([base])
    if num_templates > 1:
        gap = grown(gap, base - int(visible[place - 1]))
        templates = np.concatenate((templates, pick(base - gap, base, num_templates - 1)))
    return np.concatenate((templates, pick(base + 1, base + gap + 1, 1)))

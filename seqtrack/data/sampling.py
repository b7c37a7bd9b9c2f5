"""Which frames make a sample: the authors' sampling modes as pure functions of a generator.

Every mode draws a fixed number of random numbers, so no loop here can fail to end.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.sequence import Sequence

Mode = Literal["order", "causal"]
_GAP_STEP = 5
_SHORTEST_SEQUENCE = 20


def why_unusable(sequence: Sequence, frames_per_sample: int) -> str | None:
    """Why a sequence cannot be sampled (too short, or the target too rarely visible), or None."""
    if sequence.num_frames < _SHORTEST_SEQUENCE:
        return f"{sequence.num_frames} frames, {_SHORTEST_SEQUENCE} are needed"
    visible = int(sequence.visible.sum())
    if visible <= 2 * frames_per_sample:
        return f"the target is visible in {visible} frames, more than {2 * frames_per_sample} are needed"
    return None


def draw_frames(
    generator: np.random.Generator, visible: NDArray[np.int64], *, mode: Mode, num_templates: int, gap: int
) -> NDArray[np.int64]:
    """Frame numbers of one sample.

    Args:
        visible: ascending numbers, from 0, of the frames that may be drawn.
        gap: the largest interval, in frames, as the mode defines it.

    Returns:
        (num_templates + 1,) int64: templates, then the search frame.
    """
    return (_order if mode == "order" else _causal)(generator, visible, num_templates, gap)


def _pick(
    generator: np.random.Generator, numbers: NDArray[np.int64], low: int, high: int, count: int
) -> NDArray[np.int64]:
    """`count` of the ascending numbers in [low, high), with replacement; at least one must exist."""
    start, stop = np.searchsorted(numbers, (low, high))
    return numbers[generator.integers(start, stop, size=count)]


def _order(
    generator: np.random.Generator, visible: NDArray[np.int64], num_templates: int, gap: int
) -> NDArray[np.int64]:
    """Frames from a window around a base frame, ascending or descending in time with equal probability.

    The base frame itself need not be among them, frames may repeat, and they spread over up to 2 * gap - 1.
    """
    base = int(visible[generator.integers(len(visible))])
    drawn = np.sort(_pick(generator, visible, base - gap, base + gap, num_templates + 1))
    return drawn if generator.random() < 0.5 else drawn[::-1]


def _causal(
    generator: np.random.Generator, visible: NDArray[np.int64], num_templates: int, gap: int
) -> NDArray[np.int64]:
    """A base template, further templates up to a gap before it, the search frame up to a gap after it.

    The authors retry with a gap that grows by five until a frame is in reach; the growth is computed here instead.
    """
    place = int(generator.integers(1 if num_templates > 1 else 0, len(visible) - 1))
    base = int(visible[place])
    gap += _growth(int(visible[place + 1]) - base, gap)
    templates = np.array([base])
    if num_templates > 1:
        reach = gap + _growth(base - int(visible[place - 1]), gap)
        templates = np.concatenate((templates, _pick(generator, visible, base - reach, base, num_templates - 1)))
        gap = max(gap, reach)
    return np.concatenate((templates, _pick(generator, visible, base + 1, base + gap + 1, 1)))


def _growth(distance: int, gap: int) -> int:
    return _GAP_STEP * -(-max(0, distance - gap) // _GAP_STEP)

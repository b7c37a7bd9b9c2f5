"""Which frames make a sample: the authors' sampling modes as pure functions of a generator.

Knows which frames may be used and how far apart they may lie. It must not know of images, nor keep a state: the same
generator gives the same frames. Every mode takes a fixed number of draws, so no loop here can fail to end.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.sequence import Sequence

Mode = Literal["order", "causal", "trident", "stark"]
_GAP_STEP = 5
_SHORTEST_SEQUENCE = 20


def usable(sequence: Sequence, frames_per_sample: int) -> str | None:
    """Why a sequence cannot be sampled, or None when it can: long enough, and the target visible often enough."""
    if sequence.num_frames < _SHORTEST_SEQUENCE:
        return f"{sequence.num_frames} frames, {_SHORTEST_SEQUENCE} are needed"
    visible = int(sequence.visible.sum())
    if visible <= 2 * frames_per_sample:
        return f"the target is visible in {visible} frames, more than {2 * frames_per_sample} are needed"
    return None


class FrameIndex:
    """The frames of one sequence that may be drawn, prepared once.

    Attributes:
        visible: ascending numbers (from 0) of the frames where the target is in view.
        has_box: ascending numbers of the frames that have a box, the target in view or not.
    """

    def __init__(self, sequence: Sequence) -> None:
        self.visible: NDArray[np.int64] = np.flatnonzero(sequence.visible)
        self.has_box: NDArray[np.int64] = np.flatnonzero(sequence.has_box)


def draw_frames(
    generator: np.random.Generator, frames: FrameIndex, *, mode: Mode, num_templates: int, num_search: int, gap: int
) -> NDArray[np.int64]:
    """Frame numbers of one sample, templates first.

    Args:
        gap: the largest interval, in frames, as the mode understands it.

    Returns:
        (num_templates + num_search,) int64, each a frame with a box and a file.
    """
    return MODES[mode](generator, frames, num_templates, num_search, gap)


def _pick(
    generator: np.random.Generator, numbers: NDArray[np.int64], low: int, high: int, count: int
) -> NDArray[np.int64]:
    """`count` of the ascending numbers in [low, high), with replacement; at least one must be there."""
    start, stop = np.searchsorted(numbers, (low, high))
    return numbers[generator.integers(start, stop, size=count)]


def _order(
    generator: np.random.Generator, frames: FrameIndex, num_templates: int, num_search: int, gap: int
) -> NDArray[np.int64]:
    """Frames from a window around a base frame, in time's order or against it by a coin.

    The base frame itself need not be among them, frames may repeat, and they spread over up to 2 * gap - 1.
    """
    visible = frames.visible
    base = int(visible[generator.integers(len(visible))])
    drawn = np.sort(_pick(generator, visible, base - gap, base + gap, num_templates + num_search))
    return drawn if generator.random() < 0.5 else drawn[::-1]


def _causal(
    generator: np.random.Generator, frames: FrameIndex, num_templates: int, num_search: int, gap: int
) -> NDArray[np.int64]:
    """A base template, further templates up to a gap before it, search frames up to a gap after it.

    Where nothing is in reach the gap grows by fives until something is; it is computed here instead of tried.
    """
    visible = frames.visible
    first = 1 if num_templates > 1 else 0
    place = int(generator.integers(first, len(visible) - 1))
    base = int(visible[place])
    gap += _growth(int(visible[place + 1]) - base, gap)
    templates = np.array([base])
    if num_templates > 1:
        reach = gap + _growth(base - int(visible[place - 1]), gap)
        templates = np.concatenate((templates, _pick(generator, visible, base - reach, base, num_templates - 1)))
        gap = max(gap, reach)
    return np.concatenate((templates, _pick(generator, visible, base + 1, base + gap + 1, num_search)))


def _growth(distance: int, gap: int) -> int:
    return _GAP_STEP * -(-max(0, distance - gap) // _GAP_STEP)


def _around(
    generator: np.random.Generator,
    frames: FrameIndex,
    allowed: NDArray[np.int64],
    num_templates: int,
    num_search: int,
    gap: int,
) -> NDArray[np.int64]:
    """A template and a search frame anywhere, further templates near the search frame on the first template's side."""
    visible = frames.visible
    first = int(visible[generator.integers(len(visible))])
    search = visible[generator.integers(len(visible), size=num_search)]
    pivot = int(search[0])
    if first >= pivot:
        low, high = pivot, pivot + gap
    else:
        # The nearest allowed frame on this side bounds the gap from below: the first template is one, so it exists.
        nearest = int(allowed[np.searchsorted(allowed, pivot) - 1])
        low, high = min(pivot - gap, nearest), pivot
    return np.concatenate(([first], _pick(generator, allowed, low, high, num_templates - 1), search))


def _trident(
    generator: np.random.Generator, frames: FrameIndex, num_templates: int, num_search: int, gap: int
) -> NDArray[np.int64]:
    """`_around`, where further templates must show the target."""
    return _around(generator, frames, frames.visible, num_templates, num_search, gap)


def _stark(
    generator: np.random.Generator, frames: FrameIndex, num_templates: int, num_search: int, gap: int
) -> NDArray[np.int64]:
    """`_around`, where further templates need a box but may show the target hidden."""
    return _around(generator, frames, frames.has_box, num_templates, num_search, gap)


MODES: dict[str, Callable[[np.random.Generator, FrameIndex, int, int, int], NDArray[np.int64]]] = {
    "order": _order,
    "causal": _causal,
    "trident": _trident,
    "stark": _stark,
}

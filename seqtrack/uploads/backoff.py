"""When to try again. Pure: times go in, times come out; chance is an argument.

Monotonic seconds for everything inside one life of the process, since the wall clock may jump; wall-clock seconds
only for what must hold over a restart.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """The three things a loop needs of time; a test brings its own."""

    monotonic: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


def jittered(attempt: int, *, base_s: float, cap_s: float, rng: random.Random) -> float:
    """Seconds to wait after the n-th failure in a row (from 1): full jitter, so that many clients spread out.

    Uniform in [0, min(cap_s, base_s * 2^(n-1))].
    """
    ceiling = min(cap_s, base_s * 2.0 ** min(attempt - 1, 60))
    return rng.uniform(0.0, ceiling)


def commit_limit_wait(attempt: int, *, longest_s: float, asked_s: float) -> float:
    """Seconds to wait once the hourly limit of commits is reached: a quarter of `longest_s`, doubling up to it.

    The window slides, so places come free before the hour is over; `asked_s` is honoured if it is longer.
    """
    return max(asked_s, min(longest_s, longest_s / 4.0 * 2.0 ** min(attempt - 1, 60)))


def pace(now: float, last: float | None, interval_s: float) -> float:
    """Seconds until the next commit may be made; both times monotonic, `last` None if there was none."""
    return 0.0 if last is None else max(0.0, last + interval_s - now)


def monotonic_of(wall: float, clock: Clock) -> float:
    """A wall-clock time kept over a restart, as monotonic time; one in the future (a clock set back) counts as now."""
    return clock.monotonic() - max(0.0, clock.wall() - wall)

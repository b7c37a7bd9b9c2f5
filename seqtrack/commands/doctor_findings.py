"""What a check of the doctor answers with.

Knows nothing of what is checked.
"""

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How a finding bears on a run."""

    GOOD = "ok"
    NOTE = "note"  # worth knowing, no obstacle
    BAD = "BAD"  # the run cannot work, or not well


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what was looked at, what was found, and what to do about it."""

    about: str
    level: Level
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.level.value:4}  {self.about}: {self.found}" + (f". {self.advice}" if self.advice else "")


def good(about: str, found: str) -> Finding:
    return Finding(about, Level.GOOD, found)


def note(about: str, found: str, advice: str = "") -> Finding:
    return Finding(about, Level.NOTE, found, advice)


def bad(about: str, found: str, advice: str) -> Finding:
    return Finding(about, Level.BAD, found, advice)

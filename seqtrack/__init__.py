"""SeqTrack training system: exact runs, their proof, and their safe upload."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqtrack.api import Tracker

__version__ = "0.1.0"
__all__ = ["Tracker", "__version__"]


def __getattr__(name: str) -> object:
    """Import torch only when the tracker is used."""
    if name == "Tracker":
        return importlib.import_module("seqtrack.api").Tracker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

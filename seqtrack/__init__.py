"""SeqTrack training system: exact runs, their proof, and their safe upload."""

__version__ = "0.1.0"

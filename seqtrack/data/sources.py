"""Data sets by name: opens one, and describes what was opened for the run's records.

Knows the registry and the digest of the data. It must not know a data set's files: that is its own module's affair, and
a new data set is one module and one line here.
"""

import hashlib
from collections.abc import Callable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqtrack.data.demo import open_demo
from seqtrack.data.got10k import open_got10k, open_got10k_without_vot
from seqtrack.data.lasot import SPLITS, open_lasot
from seqtrack.data.sequence import Sequence
from seqtrack.errors import UserError


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
        name: upper case, as in the configuration.
        sequences: in a fixed order, the same on every machine.
        split: "train" or "test".
        synthetic: drawn by code; results on it say nothing about real video.
    """

    name: str
    sequences: list[Sequence]
    split: str
    synthetic: bool


@dataclass(frozen=True)
class _Kind:
    open: Callable[..., list[Sequence]]
    synthetic: bool = False


# What of the frame files a digest of the data covers, as logs and records say it.
FRAMES_COVERED_BY = "size"

SOURCES: dict[str, _Kind] = {
    "LASOT": _Kind(open_lasot),
    "GOT10K_TRAIN_FULL": _Kind(open_got10k),
    "GOT10K_VOTTRAIN": _Kind(open_got10k_without_vot),
    "DEMO": _Kind(open_demo, synthetic=True),
}


def open_source(name: str, data_dir: Path, *, classes: tuple[str, ...], split: str) -> Source:
    """Open a data set.

    Args:
        name: a name in `SOURCES`, in any case.
        data_dir: the folder of data sets, or of this one.
        classes: empty for all.
        split: "train" or "test".

    Raises:
        UserError: an unknown name, or everything that is wrong with the data.
    """
    kind = SOURCES.get(name.upper())
    if kind is None:
        text = f"DATASET: unknown data set {name!r}; known are {', '.join(sorted(SOURCES))}"
        raise UserError(text, "data.unknown_data_set")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    return Source(name.upper(), kind.open(data_dir, classes=classes, split=split), split, kind.synthetic)


def describe(sources: ListOf[Source]) -> dict[str, Any]:
    """What was opened: a table by class and a digest of what training reads, independent of paths and machines.

    The digest covers every name, box and flag, and of the frame files what `FRAMES_COVERED_BY` names.
    """
    entries = []
    for source in sources:
        rows: dict[str, dict[str, int]] = {}
        for sequence in source.sequences:
            row = rows.setdefault(
                sequence.class_name, {"sequences": 0, "frames": 0, "visible": 0, "absent": 0, "missing": 0}
            )
            row["sequences"] += 1
            row["frames"] += sequence.num_frames
            row["visible"] += int(sequence.visible.sum())
            row["absent"] += int(sequence.absent.sum())
            row["missing"] += int(sequence.missing.sum())
        entries.append(
            {
                "name": source.name,
                "split": source.split,
                "synthetic": source.synthetic,
                "sequences": len(source.sequences),
                "frames": sum(sequence.num_frames for sequence in source.sequences),
                "frame_bytes": sum(_total_bytes(sequence) for sequence in source.sequences),
                "classes": rows,
                "names": [sequence.name for sequence in source.sequences],
                "digest": _digest(source),
            }
        )
    whole = hashlib.sha256("".join(str(entry["digest"]) for entry in entries).encode())
    return {"format": 2, "frames_covered_by": FRAMES_COVERED_BY, "sources": entries, "digest": whole.hexdigest()}


def _digest(source: Source) -> str:
    digest = hashlib.sha256(f"{source.name}/{source.split}".encode())
    for sequence in source.sequences:
        digest.update(f"\n{sequence.name} {sequence.num_frames}\n".encode())
        for array in (sequence.boxes_xywh.astype("<f8"), sequence.absent, sequence.missing):
            digest.update(array.tobytes())
        digest.update(_frames_identity(sequence))
    return digest.hexdigest()


def _frames_identity(sequence: Sequence) -> bytes:
    """What the digest knows of a sequence's frame files: their sizes. Whoever adds contents adds them here."""
    return b"" if sequence.frame_bytes is None else sequence.frame_bytes.astype("<i8").tobytes()


def _total_bytes(sequence: Sequence) -> int:
    return 0 if sequence.frame_bytes is None else int(sequence.frame_bytes.clip(min=0).sum())

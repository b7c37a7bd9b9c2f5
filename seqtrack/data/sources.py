"""Data sets by name: opens one, and describes it for the run's records.

Knows the registry and the digest of the data. A new data set is one module and one line here.
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

# What a digest of the data covers of the frame files, as logs and records name it.
FRAMES_COVERED_BY = "size"


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
        name: upper case, as in the configuration.
        sequences: in a fixed order, the same on every machine.
        split: "train" or "test".
        synthetic: drawn by code; results on it show nothing about real video.
    """

    name: str
    sequences: list[Sequence]
    split: str
    synthetic: bool


SOURCES: dict[str, Callable[..., list[Sequence]]] = {
    "LASOT": open_lasot,
    "GOT10K_TRAIN_FULL": open_got10k,
    "GOT10K_VOTTRAIN": open_got10k_without_vot,
    "DEMO": open_demo,
}
_SYNTHETIC = frozenset({"DEMO"})


def open_source(name: str, data_dir: Path, *, classes: tuple[str, ...], split: str) -> Source:
    """Open a data set.

    Args:
        name: a name in `SOURCES`, in any case.
        data_dir: the folder of data sets, or of this one.
        classes: empty for all.
        split: "train" or "test".

    Raises:
        UserError: an unknown name, or every problem with the data.
    """
    key = name.upper()
    if key not in SOURCES:
        text = f"DATASET: unknown data set {name!r}; known are {', '.join(sorted(SOURCES))}"
        raise UserError(text, "data.unknown_data_set")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    return Source(key, SOURCES[key](data_dir, classes=classes, split=split), split, key in _SYNTHETIC)


def describe(sources: ListOf[Source]) -> dict[str, Any]:
    """Counts by class and a digest of what training reads, independent of paths and machines (see docs/formats.md).

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
            for name in ("visible", "absent", "missing"):
                row[name] += int(getattr(sequence, name).sum())
        entries.append(
            {
                "name": source.name,
                "split": source.split,
                "synthetic": source.synthetic,
                "sequences": len(source.sequences),
                "frames": sum(sequence.num_frames for sequence in source.sequences),
                "frame_bytes": sum(int(sequence.frame_bytes.clip(min=0).sum()) for sequence in source.sequences),
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
        boxes, sizes = sequence.boxes_xywh.astype("<f8"), sequence.frame_bytes.astype("<i8")
        for array in (boxes, sequence.absent, sequence.missing, sizes):
            digest.update(array.tobytes())
    return digest.hexdigest()

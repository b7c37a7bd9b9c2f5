"""Data sets by name: opens one, and describes it for the run's records.

Knows the registry and the digest of the data. A new data set is one module and one line here.
"""

import functools
import hashlib
from collections.abc import Callable
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from pathlib import Path

from seqtrack.checkpoints.side_files import ClassCounts, DatasetRecord, SourceRecord
from seqtrack.data.demo import open_demo
from seqtrack.data.got10k import open_got10k
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
    "GOT10K_VOTTRAIN": functools.partial(open_got10k, without_vot=True),
    "DEMO": open_demo,
}


def open_source(name: str, data_dir: Path, *, classes: tuple[str, ...], split: str) -> Source:
    """Open a data set of `SOURCES`, named in any case, in the folder of data sets or its own; no `classes` are all.

    Raises:
        UserError: an unknown name, or every problem with the data.
    """
    key = name.upper()
    if key not in SOURCES:
        text = f"DATASET: unknown data set {name!r}; known are {', '.join(sorted(SOURCES))}"
        raise UserError(text, "data.unknown_data_set")
    assert split in SPLITS
    return Source(key, SOURCES[key](data_dir, classes=classes, split=split), split, synthetic=key == "DEMO")


def describe(sources: ListOf[Source]) -> DatasetRecord:
    """Counts by class and a digest of what training reads, independent of paths and machines (see docs/formats.md).

    The digest covers every name, box and flag, and of the frame files what `FRAMES_COVERED_BY` names.
    """
    records = [_describe(source) for source in sources]
    whole = hashlib.sha256("".join(record.digest for record in records).encode()).hexdigest()
    return DatasetRecord(frames_covered_by=FRAMES_COVERED_BY, sources=records, digest=whole)


def _describe(source: Source) -> SourceRecord:
    classes: dict[str, list[Sequence]] = {}
    digest = hashlib.sha256(f"{source.name}/{source.split}".encode())
    for one in source.sequences:
        classes.setdefault(one.class_name, []).append(one)
        digest.update(f"\n{one.name} {one.num_frames}\n".encode())
        for array in (one.boxes_xywh.astype("<f8"), one.absent, one.missing, one.frame_bytes.astype("<i8")):
            digest.update(array.tobytes())
    return SourceRecord(
        name=source.name,
        split="test" if source.split == "test" else "train",
        synthetic=source.synthetic,
        sequences=len(source.sequences),
        frames=sum(one.num_frames for one in source.sequences),
        frame_bytes=sum(int(one.frame_bytes.clip(min=0).sum()) for one in source.sequences),
        classes={
            name: ClassCounts(
                sequences=len(sequences),
                frames=sum(one.num_frames for one in sequences),
                visible=sum(int(one.visible.sum()) for one in sequences),
                absent=sum(int(one.absent.sum()) for one in sequences),
                missing=sum(int(one.missing.sum()) for one in sequences),
            )
            for name, sequences in classes.items()
        },
        names=[one.name for one in source.sequences],
        digest=digest.hexdigest(),
    )

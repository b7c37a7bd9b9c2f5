"""Data sets by name: opens one, describes it for the run's records, and puts what a run needs into the data folder.

Knows the registry and the digest of the data. A new data set is one module and one line here.
"""

import contextlib
import functools
import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from pathlib import Path

from seqtrack.checkpoints.side_files import ClassCounts, DatasetRecord, SourceRecord
from seqtrack.config.environment import Environment
from seqtrack.config.schema import Config
from seqtrack.data.coco import StillImages, open_coco
from seqtrack.data.demo import demo_set
from seqtrack.data.drawn import DrawnSet
from seqtrack.data.got10k import open_got10k
from seqtrack.data.lasot import SPLITS, draw_classes, find_layout, open_lasot, unpublished_classes
from seqtrack.data.nano import nano_set
from seqtrack.data.sequence import Sequence
from seqtrack.data.test_sets import ALIASES, TEST_SETS, open_test_set
from seqtrack.data.trackingnet import open_trackingnet
from seqtrack.data.vid import open_vid
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import did_you_mean

_log = logging.getLogger(__name__)

# What a digest of the data covers of the frame files, as logs and records name it.
FRAMES_COVERED_BY = "size"


@dataclass(frozen=True)
class Source:
    """An opened data set: its name in upper case, sequences in an order that is the same on every machine, the split
    ("train" or "test"), and whether it is drawn by code, so that results show nothing about real video."""

    name: str
    sequences: ListOf[Sequence]
    split: str
    synthetic: bool

    @property
    def is_images(self) -> bool:
        """Whether every sequence is one image, from which all crops of a sample are taken."""
        return isinstance(self.sequences, StillImages)


# Data sets that are drawn by code at first use.
DRAWN: dict[str, DrawnSet] = {"DEMO": demo_set(), "NANO": nano_set()}

SOURCES: dict[str, Callable[..., ListOf[Sequence]]] = {
    "LASOT": open_lasot,
    "GOT10K_TRAIN_FULL": open_got10k,
    "GOT10K_VOTTRAIN": functools.partial(open_got10k, listed="got10k_vot_train_split.txt"),
    "GOT10K_VOTVAL": functools.partial(open_got10k, listed="got10k_vot_val_split.txt"),
    "GOT10K_TRAIN": functools.partial(open_got10k, listed="got10k_train_split.txt"),
    "COCO17": open_coco,
    "VID": open_vid,
    **{name: drawn.open for name, drawn in DRAWN.items()},
    **{name: functools.partial(open_test_set, name) for name in TEST_SETS},
    "TRACKINGNET": open_trackingnet,
}


# Training sets of images, of videos without another split, and one whose test boxes are secret.
WITHOUT_TEST = frozenset({"COCO17", "VID", "TRACKINGNET"})


def data_set_key(name: str) -> str:
    """The key of a data set of `SOURCES`, named in any case or by another of its names.

    Raises:
        UserError: an unknown name.
    """
    key = ALIASES.get(name.upper(), name.upper())
    if key not in SOURCES:
        known = f"known are {', '.join(sorted(SOURCES))}"
        text = f"DATASET: unknown data set {name!r}{did_you_mean(name, SOURCES)}; {known}"
        raise UserError(text, "data.unknown_data_set")
    return key


def open_source(name: str, data_dir: Path, *, classes: tuple[str, ...], split: str) -> Source:
    """Open a data set of `SOURCES`, named in any case, in the folder of data sets or its own; no `classes` are all.

    Raises:
        UserError: an unknown name, or every problem with the data.
    """
    key = data_set_key(name)
    assert split in SPLITS
    return Source(key, SOURCES[key](data_dir, classes=classes, split=split), split, synthetic=key in DRAWN)


def describe(sources: ListOf[Source]) -> DatasetRecord:
    """Counts by class and a digest of what training reads, independent of paths and machines (see docs/formats.md).

    The digest covers every name, box and flag, and of the frame files what `FRAMES_COVERED_BY` names.
    """
    records = []
    for source in sources:
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        digest = hashlib.sha256(f"{source.name}/{source.split}".encode())
        for one in source.sequences:
            flags = {name: int(getattr(one, name).sum()) for name in ("visible", "absent", "missing")}
            counts[one.class_name].update(flags, sequences=1, frames=one.num_frames)
            digest.update(f"\n{one.name} {one.num_frames}\n".encode())
            for array in (one.boxes_xywh.astype("<f8"), one.absent, one.missing, one.frame_bytes.astype("<i8")):
                digest.update(array.tobytes())
        record = SourceRecord(
            name=source.name,
            split="test" if source.split == "test" else "train",
            synthetic=source.synthetic,
            sequences=len(source.sequences),
            frames=sum(one.num_frames for one in source.sequences),
            frame_bytes=sum(int(one.frame_bytes.clip(min=0).sum()) for one in source.sequences),
            classes={name: ClassCounts(**count) for name, count in counts.items()},
            names=[] if source.is_images else [one.name for one in source.sequences],  # of COCO 20 MB, in no test set
            digest=digest.hexdigest(),
        )
        records.append(record)
    whole = hashlib.sha256("".join(record.digest for record in records).encode()).hexdigest()
    return DatasetRecord(frames_covered_by=FRAMES_COVERED_BY, sources=records, digest=whole)


def check_classes(environment: Environment, config: Config) -> None:
    """Refuse a class that a run could not find, without a download; what is drawn by code is drawn.

    Raises:
        UserError: every class of LaSOT or of a drawn set that does not exist.
    """
    for name in (one.upper() for one in config.DATA.TRAIN.DATASETS_NAME):
        if name in DRAWN:
            open_source(name, environment.data_dir, classes=config.DATA.CLASSES, split="train")
        elif name == "LASOT":
            existing: list[str] = []
            with contextlib.suppress(UserError):  # nothing there yet
                existing = find_layout(environment.data_dir).classes
            if problems := unpublished_classes(one for one in config.DATA.CLASSES if one not in existing):
                raise UserError(problems)


def prepare_data(environment: Environment, config: Config, environ: Mapping[str, str]) -> list[str]:
    """Draw or download what a run needs and the data folder lacks; other data sets must be there. A line per data set.

    Raises:
        UserError: no named class, a class that cannot be downloaded, a data set missing or damaged.
    """
    data_dir, lines = environment.data_dir, []
    for name in (one.upper() for one in config.DATA.TRAIN.DATASETS_NAME):
        if name in DRAWN:
            lines.append(f"{DRAWN[name].ensure(data_dir)}: the {name.lower()} data set (synthetic) is complete")
        elif name == "LASOT":
            chosen = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
            existing: list[str] = []
            try:
                existing = find_layout(data_dir).classes
            except UserError as error:
                if not chosen:
                    text = "CLASSES: name those to download, such as book,coin; all 70 together are 248 GB"
                    raise UserError([*error.problems, Problem(text, "data.no_classes")]) from error
            if missing := tuple(one for one in chosen if one not in existing):
                from seqtrack.data.download import data_hub, download_classes  # the Hub's client is slow to import

                download_classes(data_dir, missing, hub=data_hub(environ))
            lines.append(f"LaSOT: {', '.join(chosen or existing)} in {data_dir}")
        else:
            found = open_source(name, data_dir, classes=config.DATA.CLASSES, split="train").sequences
            lines.append(f"{name}: {len(found)} training sequences in {data_dir}")
    return lines

"""Test sets that are only tracked and scored, each a row of `TEST_SETS`: where its files are, and its oddities.

Frames are images whose names are numbers, with any number of zeros in front. Annotation and frames need not have the
same length: both are used up to the shorter one, since published copies differ. Names of sequences are those under
which trackers' results are published, without the prefix that the authors put before some.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from seqtrack.data import files
from seqtrack.data.annotations import (
    Boxes,
    Flags,
    attempt,
    class_of,
    read_boxes,
    read_corners,
    read_labels,
    read_names,
    unknown_classes,
)  # fmt: skip
from seqtrack.data.decode import IMAGE_SUFFIXES, is_hidden
from seqtrack.data.sequence import LARGEST_COORDINATE, Sequence
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

_LAST_FRAME = 99_999  # of any sequence
_LASOT_ATTRIBUTES = "IV POC DEF MB CM ROT BC VC SV FOC FM OV LR ARC"
_OTB_ATTRIBUTES = "IV SV OCC DEF MB FM IPR OPR OV BC LR"


@dataclass(frozen=True)
class TestSet:
    """Places are relative to the root; `{name}` is a sequence's name there, `{at}` the folder of its annotation.

    Attributes:
        roots: names of its folder below DATA_DIR, which may also be that folder itself.
        boxes: annotation files, and what follows `{name}` in the name of the sequence; of a name the first counts.
        flags: files that mark absent frames, as far as they exist.
        first: number of the first frame.
        parts: folder, first and last frame of sequences for which these are not their name, `first` and any.
        ranges: files with the first and the last frame.
        aliases: other names of result files; `skipped` are no sequences of the set.
        only: what names must contain, or the file of their positions in the list of sequences.
        prefix: what the authors put before the names of its results.
        first_box_only: the others are kept on a server, and every frame is tracked.
        attributes: files of the flags of a sequence, in the order of `attribute_names`.
        invalid_center, absent_norm: of the Python evaluators, as in `Convention`.
    """

    roots: tuple[str, ...]
    boxes: Mapping[str, str]
    frames: tuple[str, ...] = ("{at}/img",)
    numbered: bool = True
    first: int = 1
    flags: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, int, int]] = field(default_factory=dict)
    ranges: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    skipped: frozenset[str] = frozenset()
    only: str = ""
    prefix: str = ""
    first_box_only: bool = False
    attributes: tuple[str, ...] = ()
    attribute_names: str = ""
    invalid_center: float = float("inf")
    absent_norm: float = float("inf")


# First and last frames of sequences that are not their folder's frames from 1 on: UAV123's are parts of a folder.
_UAV = """bird1 1-253 775-1477 1573-2437, car1 1-751 751-1627 1627-2629, car16 1-415 415-1993,
    car6 1-487 487-1807 1807-2953 2953-3925 3925-4861, car8 1-1357 1357-2575, uav1 1-1555 1555-2377 2473-3469,
    group1 1-1333 1333-2515 2515-3925 3925-4873, group2 1-907 907-1771 1771-2683,
    group3 1-1567 1567-2827 2827-4369 4369-5527, truck4 1-577 577-1261, person12 1-601 601-1621,
    person14 1-847 847-1813 1813-2923, person17 1-1501 1501-2347, person19 1-1243 1243-2791 2791-4357,
    person2 1-1189 1189-2623, person4 1-1501 1501-2743, person5 1-877 877-2101, person7 1-1249 1249-2065,
    person8 1-1075 1075-1525"""
_OTB = "David 300-770, BlurCar1 247-988, BlurCar3 3-359, BlurCar4 18-397, Tiger1 6-354"


def _parts(text: str, numbered: bool) -> dict[str, tuple[str, int, int]]:
    found = {}
    for folder, *ranges in (one.split() for one in text.split(",")):
        for number, one in enumerate(ranges, start=1):
            first, last = one.split("-")
            found[f"{folder}_{number}" if numbered else folder] = (folder, int(first), int(last))
    return found


_TC128 = TestSet(
    ("tc128", "TC128", "Temple-color-128"), {"{name}/{name}_gt.txt": ""}, ranges=("{at}/{name}_frames.txt",),
    attributes=("att/{name}.txt",), attribute_names=_OTB_ATTRIBUTES,
)  # fmt: skip
TEST_SETS: dict[str, TestSet] = {
    "OTB": TestSet(
        ("otb", "OTB100", "OTB2015", "otb100"),
        {f"{{name}}/groundtruth_rect{end}.txt": end.replace(".", "_") for end in ("", ".1", ".2")},
        parts=_parts(_OTB, numbered=False), aliases={"Human4_2": "Human4"},
        skipped=frozenset({"Human4", "Human4_1", "Jogging", "Skating2"}), attribute_names=_OTB_ATTRIBUTES,
    ),
    "UAV": TestSet(
        ("uav", "UAV123"), {"anno/UAV123/{name}.txt": ""}, ("data_seq/UAV123/{name}",), prefix="uav_",
        parts=_parts(_UAV, numbered=True),
        attributes=("anno/att/{name}.txt", "anno/UAV123/att/{name}.txt"), invalid_center=-1.0,
        attribute_names="SV ARC LR FM FOC POC OV BC IV VC CM SOB",
    ),
    "NFS": TestSet(
        ("nfs", "NFS", "Nfs"),
        {"anno/nfs_{name}.txt": "", "{name}/30/{name}_pytracking.txt": "", "{name}/30/{name}.txt": ""},
        ("sequences/{name}", "{name}/30/{name}"), prefix="nfs_",
    ),
    "LASOT_EXTENSION_SUBSET": TestSet(
        ("lasot_extension_subset", "LaSOT_extension_subset", "lasot_ext"),
        {"{name}/groundtruth.txt": "", "*/{name}/groundtruth.txt": ""},
        flags=("{at}/full_occlusion.txt", "{at}/out_of_view.txt"), absent_norm=-1.0,
        attributes=("att/{name}.txt",), attribute_names=_LASOT_ATTRIBUTES,
    ),
    "GOT10K_VAL": TestSet(("got10k", "GOT-10k"), {"val/{name}/groundtruth.txt": ""}, ("{at}",)),
    "GOT10K_LTRVAL": TestSet(
        ("got10k", "GOT-10k"), {"train/{name}/groundtruth.txt": ""}, ("{at}",), only="got10k_val_split.txt"
    ),
    "GOT10K_TEST": TestSet(
        ("got10k", "GOT-10k"), {"test/{name}/groundtruth.txt": ""}, ("{at}",), first_box_only=True
    ),
    "TRACKINGNET": TestSet(
        ("trackingnet", "TrackingNet"), {"TEST/anno/{name}.txt": ""}, ("TEST/frames/{name}",), first=0,
        first_box_only=True,
    ),
    "TNL2K": TestSet(
        ("tnl2k", "TNL2K", "TNL2K_test"), {"{name}/groundtruth.txt": ""}, ("{at}/imgs",), numbered=False,
        flags=("{at}/absent.txt", "annos/absent/{name}.txt"), absent_norm=-1.0,
        attributes=("annos/att/{name}_attribute.txt", "{at}/attribute.txt"),
        attribute_names="CM ROT DEF FOC IV OV POC VC SV BC MB ARC LR FM AS TC MS",
    ),
    "TC128": _TC128,
    "TC128CE": replace(_TC128, only="_ce"),
}  # fmt: skip
ATTRIBUTE_NAMES = {name: row.attribute_names.split() for name, row in TEST_SETS.items()} | {
    "LASOT": _LASOT_ATTRIBUTES.split()
}
ALIASES = {
    "OTB100": "OTB", "OTB2015": "OTB", "UAV123": "UAV", "NFS30": "NFS", "LASOT_EXT": "LASOT_EXTENSION_SUBSET",
    "LASOT_EXTENSION": "LASOT_EXTENSION_SUBSET", "TNL2K_TEST": "TNL2K", "TRACKINGNET_TEST": "TRACKINGNET",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A sequence's name, its annotation file, its name in the set's paths, and the set's root."""

    name: str
    boxes: Path
    folder: str
    root: Path

    def find(self, patterns: tuple[str, ...]) -> list[Path]:
        """Those of the places that exist."""
        at = self.boxes.parent
        paths = [self.root / one.format(name=self.folder, at=at) for one in patterns]
        return [path for path in paths if path.exists()]


def find_places(key: str, data_dir: Path) -> list[Place]:
    """The annotation files of a test set, by name.

    Raises:
        UserError: there are none.
    """
    row = TEST_SETS[key]
    for root in (*(data_dir / name for name in row.roots), data_dir):
        found: dict[str, Place] = {}
        for pattern, end in row.boxes.items():
            for place in _matches(root, pattern, end):
                found.setdefault(place.name, place)
        names = set(found) - row.skipped
        if row.only.endswith(".txt") and found:  # positions in the list of sequences
            listed = read_names(root / "train" / "list.txt")
            names = {listed[index] for index in read_labels(root / row.only, len(listed) - 1)}
            if gone := sorted(names - set(found)):
                text = f"{root / 'train'}: lacks {len(gone)} sequences of {row.only}, such as {gone[0]}"
                raise UserError(text, "data.no_sequence")
        elif row.only:
            names = {name for name in names if row.only in name}
        if names:
            return [found[name] for name in sorted(names)]
    expected = " or ".join(f"{row.roots[0]}/{pattern}" for pattern in row.boxes)
    raise UserError(f"DATA_DIR: {data_dir.absolute()} holds no {key}: expected {expected}", "data.no_folder")


def _matches(root: Path, pattern: str, end: str) -> Iterator[Place]:
    expression = re.escape(pattern).replace(r"\*", "[^/]+").replace(r"\{name\}", "([^/]+)", 1)
    expression = expression.replace(r"\{name\}", r"\1")
    for path in root.glob(pattern.replace("{name}", "*")):
        if is_hidden(path.name):
            continue
        if match := re.fullmatch(expression, path.relative_to(root).as_posix()):
            yield Place(match.group(1) + end, path, match.group(1), root)


def read_test_set(key: str, data_dir: Path, *, frames: bool = True) -> list[Sequence]:
    """The sequences of a test set, by name.

    Args:
        frames: False reads the annotation alone, and every frame counts as missing.

    Raises:
        UserError: every problem with the annotation and the frames.
    """
    problems: list[Problem] = []
    read = [attempt(problems, _read, key, one, frames) for one in find_places(key, data_dir)]
    if problems:
        raise UserError(problems)
    return [one for one in read if one is not None]


def open_test_set(key: str, data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """As `read_test_set`, those of the classes; there is no split but "test"."""
    if split != "test":
        raise UserError(f"{key} is a test set: nothing of it may be trained on", "data.no_split")
    found = read_test_set(key, data_dir)
    if problems := unknown_classes(key, classes, (one.class_name for one in found)):
        raise UserError(problems)
    return [one for one in found if not classes or one.class_name in classes]


def _read(key: str, place: Place, frames: bool) -> Sequence:
    row = TEST_SETS[key]
    folder, first, last = row.parts.get(place.name, (place.folder, row.first, 0))
    if ranges := place.find(row.ranges):
        first, last = _range(ranges[0])
    images: dict[int, tuple[str, int]] = {}
    at = Place(place.name, place.boxes, folder, place.root).find(row.frames) if frames else [place.boxes.parent]
    if not at:
        expected = " or ".join(one.format(name=folder, at=place.boxes.parent) for one in row.frames)
        raise UserError(f"{place.root}: no frames of {place.name}; expected {expected}", "data.no_frames")
    if frames:
        images = _images(at[0], row.numbered)
        if first not in images:
            raise UserError(f"{at[0]}: the first frame, number {first}, is missing", "data.frame_count")
    count = max(images, default=first - 1) - first + 1
    boxes = _boxes(key, place, count)
    if last and len(boxes) == last:  # rows for the frames before the first one too
        boxes = boxes[first - 1 :]
    if last and len(boxes) != last - first + 1:
        text = f"found {len(boxes)} rows, expected {last - first + 1}, of frames {first} to {last}"
        raise UserError(f"{place.boxes}: {text}", "data.frame_count")
    if row.first_box_only:
        boxes = np.vstack((boxes[:1], np.full((max(0, count - 1), 4), np.nan)))
    elif frames and count < len(boxes):
        _log.warning("%s: %d boxes for %d frames; the last are cut", place.boxes, len(boxes), count)
        boxes = boxes[:count]
    width = len(Path(next(iter(images.values()))[0]).stem) if images else 8
    named = [images.get(first + index, (f"{first + index:0{width}d}.jpg", -1)) for index in range(len(boxes))]
    names, sizes = [name for name, _ in named], np.array([size for _, size in named], dtype=np.int64)
    class_name = class_of(place.name) if key.startswith("LASOT") else key.lower()
    absent = _absent(place, row, len(boxes))
    return Sequence(place.name, class_name, boxes, absent, at[0], sizes, names.__getitem__)


def _range(path: Path) -> tuple[int, int]:
    numbers = read_labels(path, _LAST_FRAME).tolist()
    if len(numbers) != 2 or not 0 < numbers[0] <= numbers[1]:
        raise UserError(f"{path}: found {numbers}, expected the first and the last frame", "file.row")
    return numbers[0], numbers[1]


def _images(folder: Path, numbered: bool) -> dict[int, tuple[str, int]]:
    """Name and size of the frames by number; those of a set without numbers are counted from 1, sorted as text."""
    try:
        entries = files.list_folder(folder).items()
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})", "data.frame") from error
    kept = [(name, size) for name, size in entries if name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)]
    found = {name: size for name, size in kept if size is not None}
    if not numbered:
        return dict(enumerate(sorted(found.items()), start=1))
    frames = dict[int, tuple[str, int]]()
    for name, number in sorted((name, int(stem)) for name in found if (stem := Path(name).stem).isdecimal()):
        if number in frames or number > _LAST_FRAME:
            expected = f"expected one image for each number up to {_LAST_FRAME}"
            raise UserError(f"{folder / name}: is no frame, or its second image; {expected}", "data.frame")
        frames[number] = name, found[name]
    return frames


def _boxes(key: str, place: Place, count: int) -> Boxes:
    if key == "NFS" and place.boxes.stem == place.folder:  # as published: corners, at 240 frames per second
        boxes = read_corners(place.boxes)
        boxes = boxes[::8] if not count or round(len(boxes) / count) == 8 else boxes
    else:
        boxes = read_boxes(place.boxes, allow_not_finite=key == "UAV")
    if (np.abs(boxes) > LARGEST_COORDINATE).any():
        raise UserError(f"{place.boxes}: found a number above {LARGEST_COORDINATE:g}", "data.box")
    return boxes


def _absent(place: Place, row: TestSet, length: int) -> Flags:
    absent: Flags = np.zeros(length, dtype=np.bool_)
    paths = place.find(row.flags)
    if row.flags and not paths:
        _log.warning("%s: no flags of absent frames (%s)", place.boxes, ", ".join(row.flags))
    for path in paths:
        flags = read_labels(path, 1)
        if len(flags) < length:
            raise UserError(f"{path}: found {len(flags)} entries, expected {length}", "file.count")
        absent |= flags[:length] == 1  # one file of TNL2K is a line longer than its boxes
    return absent

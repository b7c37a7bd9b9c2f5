"""ImageNet VID's training set: `Annotations/VID/train/<set>/<video>/000000.xml`, and frames likewise below `Data`.

The list of sequences that the authors' code caches as `cache.json` saves reading 1.1 million files, and is the only
form in LMDB. A sequence is an object of a video from where it first appears to its first gap.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from xml.etree import ElementTree

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from seqtrack.data import files
from seqtrack.data.annotations import attempt, first_problems, unknown_classes
from seqtrack.data.decode import Numbered, is_hidden
from seqtrack.data.sequence import LARGEST_COORDINATE, Sequence
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, parse_int

_ROOTS = ("vid", "VID", "ILSVRC2015", "vid_lmdb")
_TEXTS, _IMAGES = Path("Annotations/VID/train"), Path("Data/VID/train")
_Coordinate = Annotated[float, Field(ge=-LARGEST_COORDINATE, le=LARGEST_COORDINATE)]


class Track(BaseModel):
    """An object's sequence, as an entry of cache.json: boxes x, y, w, h, and width and height of the video."""

    model_config = ConfigDict(frozen=True)
    set_id: int = Field(ge=0, le=9999)
    vid_id: int = Field(ge=0, le=99_999_999)
    class_name: str
    start_frame: int = Field(ge=0, le=999_999)
    anno: list[tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate]] = Field(min_length=1)
    target_visible: list[bool]
    image_size: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


def open_vid(data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """Sequences of `data_dir/vid`, or of `data_dir`, by video and object.

    Args:
        classes: WordNet ids such as n02691156; empty for all.
        split: "train"; there is no other here.

    Raises:
        UserError: no such split or class, or every problem with annotations and frames.
    """
    if split != "train":
        raise UserError("VID has a training set only", "data.no_split")
    roots = (*(data_dir / name for name in _ROOTS), data_dir)
    root = next((one for one in roots if files.exists(one / "cache.json") or files.exists(one / _TEXTS)), None)
    if root is None:
        expected = (
            f"expected vid/{_TEXTS}/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000000/000000.xml or vid/cache.json"
        )
        raise UserError(f"DATA_DIR: {data_dir.absolute()} holds no ImageNet VID: {expected}", "data.no_folder")
    problems: list[Problem] = []
    cached = files.exists(root / "cache.json")
    tracks = _read_cache(root / "cache.json") if cached else [*_read_texts(root / _TEXTS, problems)]
    # As the authors do: an object that fills the first image is no target.
    tracks = [one for one in tracks if one.anno[0][2] * one.anno[0][3] < math.prod(one.image_size)]
    problems += unknown_classes("VID", classes, (one.class_name for one in tracks))
    found, sizes, counts = list[Sequence](), dict[Path, dict[str, int | None]](), dict[Path, int]()
    for one in tracks:
        folder = root / _IMAGES / f"ILSVRC2015_VID_train_{one.set_id:04d}" / f"ILSVRC2015_train_{one.vid_id:08d}"
        if folder not in sizes:
            sizes = {folder: attempt(problems, _list, folder) or {}}
        counts[folder] = counts.get(folder, -1) + 1
        if not classes or one.class_name in classes:
            found.append(_sequence(one, f"{folder.name}-{counts[folder]}", folder, sizes[folder]))
    if not found and not problems:
        problems.append(Problem(f"{root}: no sequence", "data.no_sequence"))
    if problems:
        raise UserError(first_problems(problems))
    return found


def _list(folder: Path) -> dict[str, int | None]:
    try:
        return {name: size for name, size in files.list_folder(folder).items() if not is_hidden(name)}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})", "data.no_frames") from error


def _sequence(one: Track, name: str, folder: Path, sizes: dict[str, int | None]) -> Sequence:
    frames = Numbered("{:06d}.JPEG", one.start_frame)
    found = [sizes.get(frames(index)) for index in range(len(one.anno))]
    absent = ~np.array(one.target_visible, dtype=np.bool_)
    frame_bytes = np.array([-1 if size is None else size for size in found], dtype=np.int64)
    return Sequence(name, one.class_name, np.array(one.anno, dtype=np.float64), absent, folder, frame_bytes, frames)


def _read_cache(path: Path) -> list[Track]:
    try:
        tracks = TypeAdapter(list[Track]).validate_json(files.read_bytes(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "file.unreadable") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}, {where}: {first['msg']} ({error.error_count()} problems)", "file.json") from error
    for number, one in enumerate(tracks):
        if len(one.anno) != len(one.target_visible):
            raise UserError(f"{path}, {number}: anno and target_visible have different lengths", "file.count")
    return tracks


def _read_texts(root: Path, problems: list[Problem]) -> Iterator[Track]:
    for set_name in sorted(attempt(problems, _list, root) or ()):
        for video in sorted(attempt(problems, _list, root / set_name) or ()):
            names = sorted(
                one for one in attempt(problems, _list, root / set_name / video) or () if one.endswith(".xml")
            )
            frames = [attempt(problems, _read_objects, root / set_name / video / name) for name in names]
            good = [one for one in frames if one is not None]
            numbers = [one.rpartition("_")[2] for one in (set_name, video)]
            gap = next((index for index, name in enumerate(names) if name != f"{index:06d}.xml"), None)
            if not all(one.isdecimal() and len(one) == digits for one, digits in zip(numbers, (4, 8), strict=True)):
                problems.append(Problem(f"{root / set_name / video}: expected a number at the end", "file.name"))
            elif gap is not None:  # which boxes belong to the frames after it?
                text = f"{root / set_name / video}: found {names[gap]}, expected {gap:06d}.xml"
                problems.append(Problem(text, "data.frame_count"))
            elif good and len(good) == len(frames):
                yield from _tracks(int(numbers[0]), int(numbers[1]), good[0][1], [objects for objects, _ in good])


_Object = tuple[str, tuple[int, int, int, int], bool]  # class, box, visible


def _tracks(set_id: int, vid_id: int, size: tuple[int, int], frames: list[dict[str, _Object]]) -> Iterator[Track]:
    starts: dict[str, int] = {}
    for index, objects in enumerate(frames):
        for track_id in objects:
            starts.setdefault(track_id, index)
    for track_id, start in starts.items():
        end = next((i for i in range(start, len(frames)) if track_id not in frames[i]), len(frames))
        found = [one[track_id] for one in frames[start:end]]
        yield Track(
            set_id=set_id, vid_id=vid_id, class_name=found[0][0], start_frame=start, image_size=size,
            anno=[box for _, box, _ in found], target_visible=[visible for _, _, visible in found],
        )  # fmt: skip


def _read_objects(path: Path) -> tuple[dict[str, _Object], tuple[int, int]]:
    """The objects of a frame by track id, and width and height of the image."""
    try:
        tree = ElementTree.fromstring(files.read_bytes(path))

        def text(node: ElementTree.Element, name: str) -> str:
            found = node.findtext(name)
            if found is None:
                raise ParseError(f"has no {name}")
            return found

        def size(name: str) -> int:
            if (found := parse_int(text(tree, f"size/{name}"), 6)) < 1:
                raise ParseError(f"found {name} {found}")
            return found

        objects: dict[str, _Object] = {}
        for one in tree.findall("object"):
            left, top, right, bottom = (
                parse_int(text(one, f"bndbox/{side}"), 5) for side in ("xmin", "ymin", "xmax", "ymax")
            )
            box = left, top, right - left, bottom - top
            objects.setdefault(text(one, "trackid"), (text(one, "name"), box, text(one, "occluded").strip() == "0"))
        return objects, (size("width"), size("height"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "file.unreadable") from error
    except (ElementTree.ParseError, ParseError, ValueError, LookupError) as error:  # an unknown encoding
        raise UserError(f"{path}: is no annotation of a frame ({error})", "file.xml") from error

"""Boxes in the formats of annotation tools: COCO's JSON, CVAT's XML 1.1, YOLO's text files, CSV with a header.

Every reader returns the objects of one video. Nothing is guessed: what can be read in two ways is refused, with its
place in the file. Knows no pixel, no folder of the result and no split.
"""

import csv
import io
import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from seqtrack.checkpoints.side_files import problems_of
from seqtrack.data.annotations import first_problems, read_text_file
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, did_you_mean, parse_float, parse_int, parse_json, parse_yaml, short_repr

Size = tuple[int, int]


class Box(NamedTuple):
    """x, y, w, h and the place in its file; `is_absent` where the annotation marks the object as out of view;
    `frame_size` is the (width, height) in pixels that the annotation states for the frame, if it does."""

    xywh: tuple[float, float, float, float]
    place: str
    is_absent: bool = False
    frame_size: Size | None = None


@dataclass
class Track:
    """One object of a video: its boxes by frame index from 0, in pixels from the top left, or in fractions of the
    frame's width and height where `is_relative`."""

    class_name: str
    object_id: str
    boxes: dict[int, Box] = field(default_factory=dict)
    is_relative: bool = False


@dataclass(frozen=True)
class Frames:
    """The frames that annotations refer to.

    Attributes:
        folder: the folder that the files are in; of a video its path without suffix.
        names: its files in order; empty for a video.
        count: frames, if known.
        first: the number that the annotations give the first frame.
        is_first_given: whether the user stated it.
    """

    folder: PurePath
    names: tuple[str, ...]
    count: int | None
    first: int
    is_first_given: bool = False

    def find(self, given: str, place: str) -> int:
        """The index of a frame given by its file name, with or without suffix, or by its number.

        Raises:
            UserError: there is no such frame, or the number is one file's place and another file's name.
        """
        name = _file_name(given)
        stem = _without_suffix(name)
        for one in (name, stem):
            if one in self._by_name:
                return self._by_name[one]
        # Of a folder, only a plain number counts: frame_7 may not be the seventh file.
        number = re.search(r"([0-9]{1,15})$", given if self.names else stem)
        is_other_number = re.fullmatch(r"[+-][0-9.]+|[0-9]*\.[0-9]*", given)  # -1 is not frame 1, 2.5 not frame 2
        is_frame = number and not is_other_number and (given.isdecimal() or not self.names)
        index = int(number[1]) - self.first if number and is_frame else -1
        is_outside = index < 0 or (self.count is not None and index >= self.count)
        named = self._by_number.get(int(number[1])) if number and is_frame and not self.is_first_given else None
        if named is not None and not is_outside and named != index:
            text = f"{place}: frame {given} is the file {self.names[index]}, counted from {self.first}, or the file"
            raise UserError(f"{text} {self.names[named]}; --first states the number of the first file", _AMBIGUOUS)
        if named is not None:
            return named
        if is_outside:
            last = "" if self.count is None else f" to {self.first + self.count - 1}"
            names = f"one of its {len(self.names)} file names, or " if self.names else ""
            text = f"{place}: no frame {short_repr(given)}; expected {names}a number from {self.first}{last}"
            raise UserError(f"{text} (--first is the number of the first frame)", "import.frame")
        return index

    @cached_property
    def _by_name(self) -> dict[str, int]:
        return {key: index for index, name in enumerate(self.names) for key in (name, Path(name).stem)}

    @cached_property
    def _by_number(self) -> dict[int, int]:
        """Index by the number that is a file's name, where all of them are numbers."""
        stems = [Path(name).stem for name in self.names]
        return {int(stem): index for index, stem in enumerate(stems)} if all(map(str.isdecimal, stems)) else {}

    def own_files(self, given: Iterable[str], path: Path) -> set[str]:
        """Of file names in several folders, which are several videos, those in a folder whose path ends as this one's;
        else all. Files of a video are called alike but for their number.

        Raises:
            UserError: files of several videos between which the folder does not decide.
        """
        folders = {one: _own_parts(PurePosixPath(one.replace("\\", "/")).parent) for one in given}
        alike = {parts: _common_end(parts, _own_parts(self.folder)) for parts in folders.values()}
        if len(alike) > 1:
            best = max(alike.values())
            chosen = [parts for parts, count in alike.items() if count == best]
            if () in alike or (best and len(chosen) > 1):
                shown = ", ".join(sorted(short_repr("/".join(parts)) for parts in (alike if () in alike else chosen)))
                raise UserError(f"{path}: files of several folders, {shown}; {_ONE_VIDEO}", _AMBIGUOUS)
            folders = {one: parts for one, parts in folders.items() if best and parts == chosen[0]}
        if not self.names:
            numbered = (re.fullmatch(r"(|.*[^0-9.+-])[0-9]+", _without_suffix(_file_name(one))) for one in folders)
            called = {match[1] for match in numbered if match}
            if len(called) > 1:
                shown = ", ".join(sorted(map(short_repr, called))[:5])
                raise UserError(f"{path}: frames called {shown} and a number; {_ONE_VIDEO}", _AMBIGUOUS)
        return {*folders}


_AMBIGUOUS = "import.ambiguous"
_ONE_VIDEO = "expected the annotations of one video"


def _file_name(given: str) -> str:
    return PurePosixPath(given.replace("\\", "/")).name


def _without_suffix(name: str) -> str:
    """A name may have dots: video.2_7 is no file of the type 2_7."""
    return re.sub(r"(?<=.)\.[A-Za-z]{2,5}$", "", name)


def _own_parts(folder: PurePath) -> tuple[str, ...]:
    """The path of a video's folder, whose frames may be in `img` (LaSOT) or `img1` (MOT)."""
    return folder.parent.parts if folder.name in ("img", "img1") else folder.parts


def _common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The number of equal last components."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class _Tracks:
    """Collects boxes by object, and every problem."""

    def __init__(self, frames: Frames, *, is_relative: bool = False) -> None:
        self.frames, self.is_relative = frames, is_relative
        self.tracks: dict[tuple[str, str], Track] = {}
        self.problems: list[Problem] = []
        self.seen = 0

    def expect(self, frame: str, place: str) -> int | None:
        """The index of a frame; None, and a problem, if there is none."""
        try:
            return self.frames.find(frame, place)
        except UserError as error:
            self.problems += error.problems
            return None

    def add(
        self,
        class_name: str,
        object_id: object,
        frame: str,
        xywh: Iterable[float],
        place: str,
        *,
        is_absent: bool = False,
        frame_size: Size | None = None,
    ) -> None:
        """Add one box; `object_id` None where the format has no objects."""
        self.seen += 1
        if (index := self.expect(frame, place)) is None:
            return
        key = (class_name, "" if object_id is None else str(object_id))
        x, y, w, h = xywh
        if not is_absent and not (w > 0 and h > 0):
            text = f"{place}: found width {w:g} and height {h:g}, expected both above 0"
            self.problems.append(Problem(text, "import.box"))
            return
        track = self.tracks.setdefault(key, Track(*key, is_relative=self.is_relative))
        if index in track.boxes:
            what = f"object {key[1]}" if key[1] else "one object, for the annotation has no object ids"
            text = f"{place}: a second box of {class_name} in this frame ({track.boxes[index].place}) for {what}"
            self.problems.append(Problem(f"{text}; every object needs an id of its own", _AMBIGUOUS))
            return
        track.boxes[index] = Box((x, y, w, h), place, is_absent, frame_size)

    def result(self, path: Path) -> list[Track]:
        """The objects with at least one visible box.

        Raises:
            UserError: every problem, or no box at all.
        """
        if self.problems:
            raise UserError(first_problems(self.problems))
        found = [one for one in self.tracks.values() if not all(box.is_absent for box in one.boxes.values())]
        if not found:
            text = f"{path}: {self.seen} boxes, none in the frames of {self.frames.folder.name or 'the video'}"
            raise UserError(text, "import.no_boxes")
        boxes = [box for one in found for box in one.boxes.values() if not box.is_absent]
        if not self.is_relative and all(max(map(abs, box.xywh)) <= 1 for box in boxes):
            text = f"{boxes[0].place}: the box {boxes[0].xywh}, and every other one, is at most a pixel large"
            raise UserError(f"{text}; expected pixels, not fractions of the frame", "import.box")
        return found


class _Image(BaseModel):
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class _Category(BaseModel):
    id: int
    name: str


class _Annotation(BaseModel):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    track_id: int | str | None = None
    instance_id: int | str | None = None
    attributes: dict[str, Any] = {}


class _Coco(BaseModel):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_coco(path: Path, frames: Frames) -> list[Track]:
    """COCO's JSON: `bbox` is x, y, w, h in pixels; the object is `track_id` or `instance_id`, also in `attributes`."""
    try:
        document = _Coco.model_validate(parse_json(read_text_file(path)))
    except (ParseError, ValidationError) as error:
        raise UserError(first_problems(problems_of(path, error, "import.coco"), 5)) from error
    images = {one.id: one for one in document.images}
    categories = {one.id: one.name for one in document.categories}
    if len(images) < len(document.images) or len(categories) < len(document.categories):
        raise UserError(f"{path}: two images or two categories have the same id", "import.coco")
    found, own = _Tracks(frames), frames.own_files((one.file_name for one in document.images), path)
    for number, image in enumerate(document.images):
        if image.file_name in own:
            found.expect(image.file_name, f"{path}, images[{number}]")
    if found.problems:
        raise UserError(first_problems(found.problems))
    for number, one in enumerate(document.annotations):
        place = f"{path}, annotations[{number}]"
        for key, known in ((one.image_id, images), (one.category_id, categories)):
            if key not in known:
                what = "image" if known is images else "category"
                found.problems.append(Problem(f"{place}: {what} {key!r} is not in the file", "import.coco"))
                break
        else:
            image = images[one.image_id]
            if image.file_name not in own:
                continue
            ids = (one.track_id, one.instance_id, one.attributes.get("track_id"), one.attributes.get("instance_id"))
            object_id = next((each for each in ids if each is not None), None)
            size = (image.width, image.height) if image.width and image.height else None
            found.add(categories[one.category_id], object_id, image.file_name, one.bbox, place, frame_size=size)
    return found.result(path)


def read_cvat(path: Path, frames: Frames) -> list[Track]:
    """CVAT's XML 1.1 of a video (`track`) or images (`image`); corners are in pixels, `outside` is out of view.

    A track has numbers only, whatever the files are called: its frame 1 is the second file, 1.jpg or not. CVAT sorts
    the files of a task by their characters.
    """
    try:
        root = ElementTree.fromstring(read_text_file(path))
    except ElementTree.ParseError as error:
        raise UserError(f"{path}: not XML: {error}", "import.cvat") from error
    if root.tag != "annotations":
        raise UserError(f"{path}: found <{root.tag[:40]}>, expected <annotations> of CVAT's XML 1.1", "import.cvat")
    tasks = {one.get("task_id") for kind in ("track", "image") for one in root.iter(kind)}
    if len(tasks) > 1:
        shown = ", ".join(sorted(map(str, tasks)))
        raise UserError(f"{path}: the tasks {shown} of a project; {_ONE_VIDEO}: export each task alone", _AMBIGUOUS)
    if root.find("track") is not None and list(frames.names) != sorted(frames.names):
        text = f"{path}: counts files by their characters, {sorted(frames.names)[1]} second; {frames.folder} is in the"
        raise UserError(f'{text} order of its numbers: export as "CVAT for images", which has names', _AMBIGUOUS)
    found = _Tracks(replace(frames, names=(), count=len(frames.names) or frames.count))

    def add(
        box: ElementTree.Element, class_name: str, object_id: object, frame: str, place: str, size: Size | None
    ) -> None:
        try:
            x0, y0, x1, y1 = (parse_float(box.attrib[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
            if (rotation := parse_float(box.get("rotation", "0"))) != 0:
                raise ParseError(f"found a box rotated by {rotation:g} degrees")
        except (KeyError, ParseError) as error:
            found.problems.append(Problem(f"{place}: {error}, expected xtl, ytl, xbr, ybr", "import.cvat"))
            return
        xywh, is_absent = (x0, y0, x1 - x0, y1 - y0), box.get("outside") == "1"
        found.add(class_name, object_id, frame, xywh, place, is_absent=is_absent, frame_size=size)

    original = root.find("meta//original_size")
    size = None if original is None else _size(original.findtext("width"), original.findtext("height"))
    for number, track in enumerate(root.iter("track")):
        name, object_id = track.get("label", ""), track.get("id", str(number))
        for box in track.iter("box"):
            frame = box.get("frame", "")
            add(box, name, object_id, frame, f"{path}, track {object_id}, frame {frame}", size)
    found.frames = frames
    own = frames.own_files((image.get("name", "") for image in root.iter("image")), path)
    for image in (one for one in root.iter("image") if one.get("name", "") in own):
        frame = image.get("name", "")
        if found.expect(frame, f"{path}, image {frame}") is None:
            continue
        for box in image.iter("box"):
            ids = [one.text for one in box.iter("attribute") if one.get("name") in ("track_id", "id")]
            size = _size(image.get("width"), image.get("height"))
            add(box, box.get("label", ""), ids[0] if ids else None, frame, f"{path}, image {frame}", size)
    return found.result(path)


def _size(width: str | None, height: str | None) -> Size | None:
    """(width, height) where both are stated as whole numbers above 0."""
    if width and height and width.isdecimal() and height.isdecimal() and int(width) and int(height):
        return int(width), int(height)
    return None


def read_yolo(path: Path, frames: Frames) -> list[Track]:
    """A folder with a text file per frame, named as the frame or by its number: lines `class cx cy w h`, in fractions,
    and perhaps a whole number, the object. Names of classes are in `classes.txt`, `obj.names` or `data.yaml`."""
    files = sorted(one for one in path.glob("[!.]*.txt") if one.name != "classes.txt") if path.is_dir() else []
    if not files:
        raise UserError(f"{path}: expected a folder with a .txt file per frame", "import.yolo")
    classes, found = _class_names(path), _Tracks(frames, is_relative=True)
    frames.own_files((file.name for file in files), path)
    for file in files:
        if found.expect(file.stem, str(file)) is None:
            continue
        for number, line in enumerate(read_text_file(file).splitlines(), start=1):
            words, place = line.split(), f"{file}, line {number}"
            try:
                if len(words) not in (5, 6):
                    raise ParseError(f"found {len(words)} values")
                class_id, object_id = parse_int(words[0]), parse_int(words[5]) if len(words) == 6 else None
                cx, cy, w, h = map(parse_float, words[1:5])
                if not all(0 <= value <= 1 for value in (cx, cy, w, h)):
                    raise ParseError(f"found {' '.join(words[1:5])[:60]} outside 0 to 1")
                if class_id not in classes:
                    raise ParseError(f"class {class_id} has no name in {', '.join(_NAME_FILES)}")
            except ParseError as error:
                text = f"{place}: {error}, expected class cx cy w h in fractions, and perhaps the object's number"
                found.problems.append(Problem(text, "import.yolo"))
                continue
            found.add(classes[class_id], object_id, file.stem, (cx - w / 2, cy - h / 2, w, h), place)
    return found.result(path)


_NAME_FILES = ("classes.txt", "obj.names", "data.yaml")


def _class_names(folder: Path) -> dict[int, str]:
    """Names by number, of a file in the labels' folder or up to two above."""
    places = [parent / name for parent in (folder, *folder.resolve().parents[:2]) for name in _NAME_FILES]
    file = next((one for one in places if one.is_file()), None)
    if file is None:
        return {number: str(number) for number in range(1000)}
    text = read_text_file(file)
    if file.suffix != ".yaml":
        return dict(enumerate(text.splitlines()))
    try:
        document = parse_yaml(text)
    except ParseError as error:
        raise UserError(f"{file}: {error}", "import.yolo") from error
    names = document.get("names") if isinstance(document, dict) else None
    if not isinstance(names, dict | list):
        raise UserError(f"{file}: expected `names:` with a list or numbers and names", "import.yolo")
    try:
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {parse_int(str(key)): str(name) for key, name in pairs}
    except ParseError as error:
        raise UserError(f"{file}: a number of `names:`: {error}", "import.yolo") from error


# Columns of a CSV, and the names that they may have.
_COLUMNS = {
    "frame": ("frame", "image", "file", "filename", "file_name", "image_name"),
    "class": ("class", "label", "category"),
    "object": ("object", "id", "track", "track_id", "object_id"),
    "x": ("x", "xmin", "x1", "left"),
    "y": ("y", "ymin", "y1", "top"),
    "w": ("w", "width"),
    "h": ("h", "height"),
    "x1": ("xmax", "x2", "right"),
    "y1": ("ymax", "y2", "bottom"),
}


def read_csv(path: Path, frames: Frames) -> list[Track]:
    """CSV with a header: frame (file name or number), x, y and w, h or xmin, ymin, xmax, ymax in pixels, and perhaps
    class and object."""
    try:
        rows = list(csv.reader(io.StringIO(read_text_file(path)), skipinitialspace=True))
    except csv.Error as error:
        raise UserError(f"{path}: not CSV: {error}; is a quotation mark missing?", "import.csv") from error
    header = [name.strip().lower() for name in rows[0]] if rows else []
    at = {key: header.index(name) for key, names in _COLUMNS.items() for name in names if name in header}
    if "x1" in at:  # then width and height are those of the image
        at.pop("w", None), at.pop("h", None)
    corners = "x1" in at
    states_size = corners and {"width", "height"} <= {*header}
    needed = ("frame", "x", "y", *(("x1", "y1") if corners else ("w", "h")))
    if missing := [name for name in needed if name not in at]:
        expected = "expected a header with frame and x,y,w,h or xmin,ymin,xmax,ymax"
        raise UserError(f"{path}, line 1: no column {', '.join(missing)} in {short_repr(','.join(header))}; {expected}",
                        "import.csv")  # fmt: skip
    if twice := [name for name in at if sum(map(header.count, _COLUMNS[name])) > 1]:
        columns = ", ".join(one for one in header if one in _COLUMNS[twice[0]])
        raise UserError(f"{path}, line 1: {columns}: which column is {twice[0]}?", _AMBIGUOUS)
    found = _Tracks(frames)
    own = frames.own_files((row[at["frame"]].strip() for row in rows[1:] if len(row) == len(header)), path)
    for number, row in enumerate(rows[1:], start=2):
        place = f"{path}, line {number}"
        if not row:
            continue
        try:
            if len(row) != len(header):
                raise ParseError(f"found {len(row)} values, expected {len(header)}")
            x, y, a, b = (parse_float(row[at[name]]) for name in needed[1:])
        except ParseError as error:
            found.problems.append(Problem(f"{place}: {error}", "import.csv"))
            continue
        if (frame := row[at["frame"]].strip()) not in own:
            continue
        name, object_id = (row[at[key]].strip() if key in at else None for key in ("class", "object"))
        size = _size(*(row[header.index(one)].strip() for one in ("width", "height"))) if states_size else None
        xywh = (x, y, a - x, b - y) if corners else (x, y, a, b)
        found.add(name or "object", object_id or None, frame, xywh, place, frame_size=size)
    return found.result(path)


READERS: dict[str, Callable[[Path, Frames], list[Track]]] = {
    "coco": read_coco, "cvat": read_cvat, "yolo": read_yolo, "csv": read_csv,
}  # fmt: skip
# What each format calls the first frame, unless it names files.
FIRST_FRAME = {"coco": 1, "cvat": 0, "yolo": 1, "csv": 1}


def choose_tracks(tracks: list[Track], *, object_ids: tuple[str, ...], class_name: str | None) -> list[Track]:
    """The objects of these ids, all without any, with classes that can be names of folders.

    Args:
        class_name: replaces the class of every object.

    Raises:
        UserError: an id that no object has, or a class without a letter or digit.
    """
    known = [one.object_id for one in tracks]
    if unknown := [one for one in object_ids if one not in known]:
        named = ", ".join(filter(None, known))
        there = f"{named} exist{did_you_mean(unknown[0], known)}" if named else "the annotation has no object ids"
        text = f"--object {unknown[0]}: {there}"
        raise UserError(text, "import.object")
    chosen = [one for one in tracks if not object_ids or one.object_id in object_ids]
    for one in chosen:
        given = class_name or one.class_name
        one.class_name = re.sub(r"[^\w-]+", "-", given).strip("-_")
        if not one.class_name:
            raise UserError(f"class {given!r}: expected letters or digits; --class NAME sets it", "import.class")
    return chosen

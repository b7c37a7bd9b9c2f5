"""COCO 2017 for training: each annotation of an image is a sequence of one frame, from which all crops are taken.
Annotations of crowds, without an area and of missing images are left out, which is logged.

860,000 sequences are arrays, of which one is made when it is drawn.
"""

import json
import logging
from collections.abc import Sequence as ListOf
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqtrack.data import files
from seqtrack.data.annotations import Boxes, first_problems, unknown_classes
from seqtrack.data.decode import Numbered
from seqtrack.data.sequence import LARGEST_COORDINATE, Sequence
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

_ROOTS = ("coco", "COCO", "coco2017", "coco_lmdb")
_TEXT, _IMAGES = Path("annotations/instances_train2017.json"), Path("images/train2017")
_PRESENT: NDArray[np.bool_] = np.zeros(1, dtype=np.bool_)


class StillImages(ListOf[Sequence]):
    """Sequences of one frame each: names, classes and images by position in `boxes_xywh` (N, 4)."""

    def __init__(
        self, folder: Path, names: list[str], classes: list[str], images: list[str], boxes_xywh: Boxes,
        frame_bytes: NDArray[np.int64],
    ) -> None:  # fmt: skip
        self._folder, self._names, self._classes, self._images = folder, names, classes, images
        self._boxes, self._sizes = boxes_xywh, frame_bytes

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sequence:  # type: ignore[override]  # nothing takes slices of it
        if not 0 <= index < len(self):
            raise IndexError(index)
        one = slice(index, index + 1)
        return Sequence(
            self._names[index], self._classes[index], self._boxes[one], _PRESENT, self._folder, self._sizes[one],
            Numbered(self._images[index]),
        )  # fmt: skip


def open_coco(data_dir: Path, *, classes: tuple[str, ...], split: str) -> ListOf[Sequence]:
    """Annotations of `data_dir/coco`, or of `data_dir`, in the order of their numbers.

    Args:
        classes: names of categories; empty for all.
        split: "train"; still images cannot be tracked.

    Raises:
        UserError: no such split or class, or every problem with the annotations.
    """
    if split != "train":
        raise UserError("COCO17 holds images: it can be trained on, not tracked", "data.no_split")
    root = next((one for one in (*(data_dir / name for name in _ROOTS), data_dir) if files.exists(one / _TEXT)), None)
    if root is None:
        expected = f"expected coco/{_TEXT} and coco/{_IMAGES}/000000000009.jpg from http://images.cocodataset.org"
        raise UserError(f"DATA_DIR: {data_dir.absolute()} holds no COCO 2017: {expected}", "data.no_folder")
    content = _read(root / _TEXT)
    categories = {one["id"]: one["name"] for one in content["categories"]}
    images = {one["id"]: one["file_name"] for one in content["images"]}
    if problems := unknown_classes("COCO17", classes, categories.values()):
        raise UserError(problems)
    try:
        sizes = files.list_folder(root / _IMAGES)
    except OSError as error:
        raise UserError(f"{root / _IMAGES}: cannot be read ({error.strerror})", "data.folder") from error
    kept, left_out = [], dict.fromkeys(("of crowds", "without an area", "of missing images"), 0)
    for one in sorted(content["annotations"], key=lambda one: one["id"]):
        if classes and categories[one["category_id"]] not in classes:
            continue
        is_present = sizes.get(images[one["image_id"]]) is not None
        if one.get("iscrowd") or min(one["bbox"][2:]) <= 0 or not is_present:
            reason = "of crowds" if one.get("iscrowd") else "of missing images" if not is_present else "without an area"
            left_out[reason] += 1
        else:
            kept.append(one)
    if any(left_out.values()):
        _log.info("%s: annotations left out: %s", root, ", ".join(f"{n} {what}" for what, n in left_out.items()))
    if not kept:
        raise UserError(f"{root / _TEXT}: no annotation of {', '.join(classes) or 'any class'}", "data.no_sequence")
    of_image = [images[one["image_id"]] for one in kept]
    return StillImages(
        root / _IMAGES,
        [f"{Path(image).stem}-{one['id']}" for image, one in zip(of_image, kept, strict=True)],
        [categories[one["category_id"]] for one in kept],
        of_image,
        np.array([one["bbox"] for one in kept], dtype=np.float64),
        np.array([sizes[image] for image in of_image], dtype=np.int64),
    )


def _read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The annotation file, with everything in it that is used checked."""
    try:
        content: dict[str, list[dict[str, Any]]] = json.loads(
            files.read_bytes(path)
        )  # 450 MB: the strict parser of `parsing` would take minutes
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "file.unreadable") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error})", "file.json") from error
    wanted = {"images": {"id": int, "file_name": str}, "categories": {"id": int, "name": str},
              "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list}}  # fmt: skip
    problems: list[Problem] = []
    for part, fields in wanted.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            problems.append(Problem(f"{path}: has no list {part!r}", "file.json"))
            continue
        for number, one in enumerate(entries):
            if not isinstance(one, dict) or any(type(one.get(key)) is not kind for key, kind in fields.items()):
                text = f"{path}, {part}[{number}]: expected {', '.join(fields)}"
                problems.append(Problem(text, "file.json"))
    if problems:
        raise UserError(first_problems(problems))
    known = tuple({one["id"] for one in content[part]} for part in ("images", "categories"))
    for number, one in enumerate(content["annotations"]):
        box = one["bbox"]
        good = len(box) == 4 and all(type(v) in (int, float) and abs(v) <= LARGEST_COORDINATE for v in box)
        if not good or one["image_id"] not in known[0] or one["category_id"] not in known[1]:
            text = f"{path}, annotations[{number}]: expected a box of four numbers, an image and a category of the file"
            problems.append(Problem(text, "data.box"))
    for one in content["images"]:
        if Path(one["file_name"]).name != one["file_name"] or set(one["file_name"]) & set("{}"):
            problems.append(Problem(f"{path}: {one['file_name']!a:.60} is not the name of an image", "file.name"))
    if problems:
        raise UserError(first_problems(problems))
    return content

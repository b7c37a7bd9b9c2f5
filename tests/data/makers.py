"""Small data sets in LaSOT's and GOT-10k's layout, in which all frames and boxes are different, and damaged frames."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from seqtrack.errors import Problem, UserError


def refused(read: Callable[..., object], *arguments: object, **options: object) -> list[Problem]:
    """The problems that a call must end with."""
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
    return caught.value.problems


def picture(seed: int, width: int = 96, height: int = 72) -> np.ndarray:
    """A smooth image (height, width, 3), different for every seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_LINEAR)


def jpeg(image: np.ndarray, *options: int) -> bytes:
    written, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90, *options])
    assert written
    return data.tobytes()


def with_header(data: bytes, at: int, value: bytes) -> bytes:
    """A JPEG with bytes of its frame header replaced: 4 is the bit depth, 5 height and width, 9 the planes."""
    start = data.index(b"\xff\xc0") + at
    return data[:start] + value + data[start + len(value) :]


cmyk = partial(with_header, at=9, value=b"\x04")
huge = partial(with_header, at=5, value=struct.pack(">HH", 65_000, 65_000))


def with_orientation(data: bytes, orientation: int, order: str = ">") -> bytes:
    """A JPEG with an Exif orientation, big- or little-endian."""
    tiff = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, 1)
    tiff += struct.pack(f"{order}HHIHHI", 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def write_sequence(
    folder: Path, frames: int = 24, *, seed: int | None = None, width: int = 96, height: int = 72, empty: bool = False
) -> Path:
    """One sequence in LaSOT's layout."""
    if seed is None:
        seed = int(hashlib.sha256(folder.name.encode()).hexdigest()[:6], 16)
    (folder / "img").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(1, frames + 1):
        data = b"" if empty else jpeg(picture(seed + 1000 * number, width, height))
        (folder / "img" / f"{number:08d}.jpg").write_bytes(data)
        w, h = rng.integers(8, 30, size=2)
        rows.append(f"{rng.integers(0, width - w)},{rng.integers(0, height - h)},{w},{h}")
    (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")
    for name in ("full_occlusion.txt", "out_of_view.txt"):
        (folder / name).write_text(",".join("0" * frames))
    return folder


def make_got10k(data_dir: Path) -> None:
    """GOT-10k with three sequences in `train` and three in `val`, and a list without the second of `train`."""
    for split, first in (("train", 1), ("val", 9)):
        root = data_dir / "got10k" / split
        names = [f"GOT-10k_{split.capitalize()}_{number:06d}" for number in range(first, first + 3)]
        for place, name in enumerate(names):
            made = write_sequence(data_dir / "made" / name, 24)
            shutil.move(made / "img", root / name)
            shutil.move(made / "groundtruth.txt", root / name / "groundtruth.txt")
            (root / name / "absence.label").write_text("0\n" * 23 + "1\n")
            (root / name / "cover.label").write_text("8\n" * 22 + "0\n8\n")
            (root / name / "meta_info.ini").write_text(f"[METAINFO]\nobject_class: {('bear', 'sloth')[place % 2]}\n")
        (root / "list.txt").write_text("".join(f"{name}\n" for name in names))
    for name in ("vot_train", "vot_val", "train"):
        (data_dir / "got10k" / f"got10k_{name}_split.txt").write_text("0\n2\n")
    shutil.rmtree(data_dir / "made")


def make_trackingnet(data_dir: Path) -> None:
    """Two of the twelve parts with three sequences, frames from 0 and boxes with fractions; and one of the test set."""
    root = data_dir / "trackingnet"
    for place, name in (("TRAIN_0", "-b_0"), ("TRAIN_0", "a_1"), ("TRAIN_3", "c_0"), ("TEST", "t_0")):
        made = write_sequence(data_dir / "made" / name, 24)
        rows = (made / "groundtruth.txt").read_text().splitlines()
        anno, frames = root / place / "anno" / f"{name}.txt", root / place / "frames" / name
        frames.mkdir(parents=True)
        anno.parent.mkdir(exist_ok=True)
        for number in range(24):
            shutil.move(made / "img" / f"{number + 1:08d}.jpg", frames / f"{number}.jpg")
        rows[5] = "0.0,0.0,0.0,0.0"
        anno.write_text(rows[0] if place == "TEST" else "\n".join(rows))
    (root / "trackingnet_classmap.txt").write_text("-b_0\tperson\na_1\tboat\nc_0\tperson\n")
    shutil.rmtree(data_dir / "made")


def make_coco(data_dir: Path) -> None:
    """Three images with four annotations that are used; others of a crowd, without an area, of a missing image."""
    root = data_dir / "coco"
    (root / "images/train2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    for number in (9, 25, 30):
        (root / f"images/train2017/{number:012d}.jpg").write_bytes(jpeg(picture(number)))
    boxes = [(9, 1, [10.5, 20, 30, 20.25]), (9, 2, [2, 3, 12, 14]), (25, 1, [40, 30, 22, 11]), (30, 2, [1, 1, 90, 70])]
    more = [(25, 2, [1, 1, 50, 50]), (30, 2, [5, 5, 0, 9]), (77, 1, [5, 5, 9, 9])]
    annotations = [
        {"id": 100 - at, "image_id": image, "category_id": category, "bbox": box, "iscrowd": int(at == 4)}
        for at, (image, category, box) in enumerate(boxes + more)
    ]
    images = [
        {"id": number, "file_name": f"{number:012d}.jpg", "width": 96, "height": 72} for number in (9, 25, 30, 77)
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "traffic light"}]
    content = {"info": {}, "images": images, "categories": categories, "annotations": annotations}
    (root / "annotations/instances_train2017.json").write_text(json.dumps(content))


def make_vid(data_dir: Path) -> None:
    """Two videos of 26 frames; object 0 of the first has a gap and returns, object 1 begins late and is hidden once."""
    for number in (3, 12):
        video = f"ILSVRC2015_VID_train_0000/ILSVRC2015_train_{number:08d}"
        made = write_sequence(data_dir / "made" / f"v-{number}", 26)
        rows = [[int(one) for one in row.split(",")] for row in (made / "groundtruth.txt").read_text().split()]
        texts, frames = data_dir / "vid/Annotations/VID/train" / video, data_dir / "vid/Data/VID/train" / video
        texts.mkdir(parents=True)
        frames.mkdir(parents=True)
        for index, (x, y, w, h) in enumerate(rows):
            shutil.move(made / "img" / f"{index + 1:08d}.jpg", frames / f"{index:06d}.JPEG")
            objects = [0] * (index not in (21, 22)) + [1] * (index >= 4)
            text = "".join(
                f"<object><trackid>{one}</trackid><name>n0{one}</name><bndbox><xmax>{x + w + one}</xmax><xmin>{x + one}"
                f"</xmin><ymax>{y + h}</ymax><ymin>{y}</ymin></bndbox><occluded>{int(one and index == 9)}</occluded>"
                "<generated>0</generated></object>"
                for one in objects
            )
            size = "<size><width>96</width><height>72</height></size>"
            (texts / f"{index:06d}.xml").write_text(f"<annotation>{size}{text}</annotation>")
    shutil.rmtree(data_dir / "made")


def as_lmdb(folder: Path) -> None:
    """Replace a folder by an environment of the same files, as the authors' tools write one."""
    target = folder.with_name(folder.name + "_lmdb")
    with lmdb.open(str(target), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        for path in folder.rglob("*"):
            if path.is_file():
                transaction.put(path.relative_to(folder).as_posix().encode(), path.read_bytes())
    shutil.rmtree(folder)


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

"""Small data sets in LaSOT's and GOT-10k's layout, in which all frames and boxes are different, and damaged frames."""

import hashlib
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
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
    (data_dir / "got10k" / "got10k_vot_train_split.txt").write_text("0\n2\n")
    shutil.rmtree(data_dir / "made")


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

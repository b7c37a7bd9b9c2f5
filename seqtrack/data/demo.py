"""The demo data set: synthetic video in LaSOT's layout, drawn by code from a seed at first use.

The folder appears complete or not at all, and is read back as any LaSOT folder. Pixels are made by integer arithmetic
and OpenCV's fixed-point routines from one generator per sequence, so that the bytes do not depend on the process, the
number of threads or the order of drawing.
"""

import fcntl
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data import Image
from seqtrack.data.annotations import class_of, read_names
from seqtrack.data.frames import scan_frames
from seqtrack.data.lasot import LIST_FILES, open_lasot
from seqtrack.data.sequence import Sequence
from seqtrack.errors import UserError

_log = logging.getLogger(__name__)

VERSION = 1
SEED = 2023
CLASSES = ("disk", "tile")
MARKER = "demo.json"
_STREAM = 0xDE30
_WIDTH, _HEIGHT = 320, 240
_PAN = 64
_QUALITY = 90
_TEXTS = ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt", "nlp.txt")
_NOTE = (
    "These frames are synthetic: coloured shapes over drawn backgrounds, made by `seqtrack` from a seed.\n"
    "Results on them show that the system works, and nothing about tracking in real video.\n"
)


@dataclass(frozen=True)
class Plan:
    """Size of the data set: sequences per class and frames per sequence, by split."""

    train_sequences: int = 20
    train_frames: int = 50
    test_sequences: int = 6
    test_frames: int = 100


def open_demo(data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """Sequences of one split; draws the data set into `data_dir/demo` if it does not exist.

    Raises:
        UserError: the folder cannot be written, or holds something else.
    """
    _log.info(
        "DATASET=demo: SYNTHETIC video drawn by code, not real frames; results on it show nothing about real video"
    )
    return open_lasot(ensure_demo(data_dir), classes=classes, split=split)


def ensure_demo(data_dir: Path, *, plan: Plan = Plan()) -> Path:
    """The folder of the demo data set, drawn now if it is missing. Safe against concurrent processes.

    It is drawn into a temporary folder and renamed: the data set is complete or absent.
    """
    folder = data_dir / "demo"
    if _is_ready(folder, plan):
        return folder
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with (data_dir / ".demo.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_ready(folder, plan):
                _log.info("drawing the demo data set (synthetic) into %s", folder)
                temporary = data_dir / ".demo.tmp"
                shutil.rmtree(temporary, ignore_errors=True)  # left by a process that died: we hold the lock
                draw_demo(temporary, plan=plan)
                temporary.rename(folder)
    except OSError as error:
        text = f"DATA_DIR: the demo data set cannot be drawn into {folder.absolute()}: {error}"
        raise UserError(text, "data.demo_unwritable") from error
    return folder


def _is_ready(folder: Path, plan: Plan) -> bool:
    """Whether the folder exists; refuses a folder that is not this data set."""
    if not folder.exists():
        return False
    try:
        found = json.loads((folder / MARKER).read_text("utf-8"))
        if {**found, "digest": ""} == _marker(plan, ""):
            return True
    except (OSError, ValueError, TypeError):
        pass  # not readable as a marker
    expected = f"expected {MARKER} with version {VERSION}; move the folder away or delete it, and it is drawn again"
    raise UserError(f"{folder.absolute()} is not the demo data set of this version; {expected}", "data.demo_other")


def _marker(plan: Plan, digest: str) -> dict[str, object]:
    return {"synthetic": True, "version": VERSION, "seed": SEED, "plan": vars(plan), "digest": digest}


def draw_demo(folder: Path, *, plan: Plan = Plan()) -> None:
    """Draw the data set into a new folder; the marker with a digest of all files comes last."""
    folder.mkdir()
    for split, count, frames, first in (
        ("train", plan.train_sequences, plan.train_frames, 1),
        ("test", plan.test_sequences, plan.test_frames, plan.train_sequences + 1),
    ):
        names = []
        for class_name in CLASSES:
            for number in range(first, first + count):
                names.append(f"{class_name}-{number}")
                _draw_sequence(folder / class_name / names[-1], class_name, number, frames)
        (folder / LIST_FILES[split]).write_text("".join(f"{name}\n" for name in names), "utf-8")
    (folder / "README.txt").write_text(_NOTE, "utf-8")
    (folder / MARKER).write_text(json.dumps(_marker(plan, _digest(folder)), indent=1), "utf-8")


def _draw_sequence(folder: Path, class_name: str, number: int, frames: int) -> None:
    entropy = [_STREAM, SEED, CLASSES.index(class_name), number]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
    scene = _Scene(generator, class_name, frames)
    (folder / "img").mkdir(parents=True)
    for index in range(frames):
        encoded, data = cv2.imencode(".jpg", scene.draw(index), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        assert encoded
        (folder / "img" / f"{index + 1:08d}.jpg").write_bytes(data.tobytes())
    texts = (
        "".join(",".join(map(str, row)) + "\n" for row in scene.boxes),
        ",".join(str(int(flag)) for flag in scene.occluded),
        ",".join(str(int(flag)) for flag in scene.outside),
        f"a synthetic two-coloured {class_name}",
    )
    for name, text in zip(_TEXTS, texts, strict=True):
        (folder / name).write_text(text, "utf-8")


def _digest(folder: Path) -> str:
    """Of every file of every sequence, in the order of the lists.

    Raises:
        UserError, OSError: a file is missing.
    """
    digest = hashlib.sha256()
    for name in (name for split in ("train", "test") for name in read_names(folder / LIST_FILES[split])):
        place = folder / class_of(name) / name
        for path in (*scan_frames(place / "img").paths, *(place / text for text in _TEXTS)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def check_demo(folder: Path) -> list[str]:
    """Compare every file of a drawn data set with the digest in its marker; one problem if they differ."""
    try:
        if _digest(folder) == json.loads((folder / MARKER).read_text("utf-8"))["digest"]:
            return []
        reason = "a file was changed after it was drawn"
    except (UserError, OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error)
    return [f"{folder}: the demo data set is damaged ({reason}); delete the folder, and it is drawn again"]


class _Scene:
    """One sequence: where everything moves, and what a frame looks like.

    Attributes:
        boxes: (N, 4) int, x, y, w, h; zeros where the object is absent.
        occluded, outside: (N,) bool.
    """

    def __init__(self, generator: np.random.Generator, class_name: str, frames: int) -> None:
        self._round = class_name == "disk"
        self._background = _background(generator)
        self._texture = _texture(generator)
        self._cover = _background(generator)[:_HEIGHT, :_WIDTH]
        time_ = np.arange(frames)
        # Width and height change together by up to a quarter.
        base = generator.integers(30, 53, size=2)
        period, phase = generator.integers(40, 90), generator.random()
        scale = 1 + 0.25 * np.sin(2 * np.pi * (time_ / period + phase))
        sizes = np.round(base * scale[:, None], 3).astype(np.int64)
        centres = _path(generator, frames, margin=int(sizes.max()) // 2 + 2)
        self._pan = _path(generator, frames, width=_PAN, height=_PAN, margin=0)
        first, second = np.sort(generator.choice(np.arange(1, 9), size=2, replace=False)) * (frames // 10)
        covered, away = (first, second) if generator.random() < 0.5 else (second, first)
        self._cover_from = int(covered)
        self.occluded = (time_ >= covered) & (time_ < covered + 4)
        self.outside = (time_ >= away) & (time_ < away + 4)
        self.boxes = np.where(self.outside[:, None], 0, np.concatenate((centres - sizes // 2, sizes), axis=1))

    def draw(self, index: int) -> Image:
        """Frame `index` (240, 320, 3), BGR."""
        pan_x, pan_y = self._pan[index]
        frame = self._background[pan_y : pan_y + _HEIGHT, pan_x : pan_x + _WIDTH].copy()
        x, y, w, h = (int(value) for value in self.boxes[index])
        if w == 0:
            return frame
        patch = cv2.resize(self._texture, (w, h), interpolation=cv2.INTER_LINEAR)
        place = frame[y : y + h, x : x + w]
        if self._round:
            mask = np.zeros((h, w), dtype=np.uint8)
            cv2.ellipse(mask, (w // 2, h // 2), ((w - 1) // 2, (h - 1) // 2), 0, 0, 360, (255,), -1)
            np.copyto(place, patch, where=mask[..., None] > 0)
        else:
            place[:] = patch
        step = index - self._cover_from
        if -2 <= step < 6:
            # A piece of background passes in front: from the left, covering the object for four frames, and away.
            shift = {-2: -w * 2 // 3, -1: -w // 3, 4: w // 3 + 2, 5: w * 2 // 3 + 2}.get(step, 0)
            left, right = max(0, x - 2 + shift), min(_WIDTH, x + w + 2 + shift)
            top, bottom = max(0, y - 2), min(_HEIGHT, y + h + 2)
            frame[top:bottom, left:right] = self._cover[top:bottom, left:right]
        return frame


def _background(generator: np.random.Generator) -> Image:
    """Texture of low saturation at two scales, (240 + pan, 320 + pan, 3)."""
    height, width = _HEIGHT + _PAN, _WIDTH + _PAN
    tint = generator.integers(80, 150, size=3)
    canvas = np.zeros((height, width, 3), dtype=np.int32) + tint.astype(np.int32)
    for cell, strength in ((40, 24), (8, 20)):
        grid = generator.integers(0, 256, (height // cell + 1, width // cell + 1, 1), dtype=np.uint8)
        smooth = cv2.resize(np.repeat(grid, 3, axis=2), (width, height), interpolation=cv2.INTER_LINEAR)
        canvas += (smooth.astype(np.int32) - 128) * strength // 128
    canvas += generator.integers(-6, 7, (height, width, 1))
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _texture(generator: np.random.Generator) -> Image:
    """(64, 64, 3) pattern of two saturated colours: stripes across, stripes down, or squares."""
    hue = int(generator.integers(180))
    other = (hue + int(generator.integers(50, 131))) % 180
    colours = cv2.cvtColor(np.array([[[hue, 255, 255], [other, 255, 230]]], dtype=np.uint8), cv2.COLOR_HSV2BGR)[0]
    period = int(generator.choice([8, 16]))
    rows, columns = np.arange(64)[:, None] // period % 2, np.arange(64)[None, :] // period % 2
    across, down = np.broadcast_to(rows, (64, 64)), np.broadcast_to(columns, (64, 64))
    choice = (across, down, across ^ down)[int(generator.integers(3))]
    return np.ascontiguousarray(np.asarray(colours, dtype=np.uint8)[choice])


def _path(
    generator: np.random.Generator, frames: int, *, margin: int, width: int = _WIDTH, height: int = _HEIGHT
) -> NDArray[np.int64]:
    """(N, 2) int: a smooth path through the area that keeps `margin` from its border."""
    path = np.empty((frames, 2))
    for axis, limit in enumerate((width, height)):
        room = (limit - 2 * margin) / 2
        period, phase = generator.integers(70, 140), generator.random()
        wobble, wobble_phase = generator.integers(18, 40), generator.random()
        steps = np.arange(frames)
        path[:, axis] = limit / 2 + room * (
            0.8 * np.sin(2 * np.pi * (steps / period + phase))
            + 0.2 * np.sin(2 * np.pi * (steps / wobble + wobble_phase))
        )
    # Rounded before truncation: the last digit of another libm's sine must not move anything by a pixel.
    return np.asarray(np.round(path, 3).astype(np.int64))

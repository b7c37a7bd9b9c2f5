"""The demo data set: two synthetic shapes, small enough to be drawn and trained on in minutes.

Pixels are made by integer arithmetic and OpenCV's fixed-point routines from one generator per sequence, so that the
bytes do not depend on the process, the number of threads or the order of drawing.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data import Image
from seqtrack.data.annotations import class_of, sequence_order
from seqtrack.data.drawn import DrawnSet, encode, write_sequence

CLASSES = ("disk", "tile")
SEED = 2023
_STREAM = 0xDE30
_WIDTH, _HEIGHT, _PAN, _QUALITY = 320, 240, 64, 90


@dataclass(frozen=True)
class Plan:
    """Size of the data set: sequences per class and frames per sequence, by split."""

    train_sequences: int = 20
    train_frames: int = 50
    test_sequences: int = 6
    test_frames: int = 100


def demo_set(plan: Plan = Plan()) -> DrawnSet:
    """The demo data set of this size."""
    return DrawnSet(
        "demo", version=1, seed=SEED, plan=vars(plan), draw=functools.partial(_draw_split, plan), megabytes=45
    )


def _draw_split(plan: Plan, folder: Path, split: str) -> list[str]:
    count, frames, first = plan.train_sequences, plan.train_frames, 1
    if split == "test":
        count, frames, first = plan.test_sequences, plan.test_frames, plan.train_sequences + 1
    names = [f"{class_name}-{number}" for class_name in CLASSES for number in range(first, first + count)]
    for name in names:
        _draw_sequence(folder / class_of(name) / name, frames)
    return names


def _draw_sequence(folder: Path, frames: int) -> None:
    class_name, number = sequence_order(folder.name)
    entropy = [_STREAM, SEED, CLASSES.index(class_name), number]
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
    background, texture = _background(generator), _texture(generator)
    cover = _background(generator)[:_HEIGHT, :_WIDTH]
    time_ = np.arange(frames)
    # Width and height change together by up to a quarter.
    base = generator.integers(30, 53, size=2)
    period, phase = generator.integers(40, 90), generator.random()
    sizes = np.round(base * (1 + 0.25 * np.sin(2 * np.pi * (time_ / period + phase)))[:, None], 3).astype(np.int64)
    centres = _path(generator, frames, margin=int(sizes.max()) // 2 + 2)
    pan = _path(generator, frames, width=_PAN, height=_PAN, margin=0)
    first, second = np.sort(generator.choice(np.arange(1, 9), size=2, replace=False)) * (frames // 10)
    covered_from, away_from = (first, second) if generator.random() < 0.5 else (second, first)
    away = (time_ >= away_from) & (time_ < away_from + 4)
    boxes = np.where(away[:, None], 0, np.concatenate((centres - sizes // 2, sizes), axis=1))

    encoded = []
    for index in range(frames):
        frame = background[pan[index, 1] : pan[index, 1] + _HEIGHT, pan[index, 0] : pan[index, 0] + _WIDTH].copy()
        if not away[index]:
            step, is_round = index - int(covered_from), class_name == "disk"
            _draw_object(frame, boxes[index].tolist(), texture, cover, is_round=is_round, step=step)
        encoded.append(encode(frame, _QUALITY))
    occluded = (time_ >= covered_from) & (time_ < covered_from + 4)
    write_sequence(folder, encoded, boxes, occluded, away, f"a synthetic two-coloured {class_name}")


def _draw_object(frame: Image, box_xywh: list[int], texture: Image, cover: Image, *, is_round: bool, step: int) -> None:
    """Draw the object, and a piece of background that comes from the left, covers it in steps 0 to 3, and goes away."""
    x, y, w, h = box_xywh
    mask = np.full((h, w), 0 if is_round else 1, dtype=np.uint8)
    if is_round:
        cv2.ellipse(mask, (w // 2, h // 2), ((w - 1) // 2, (h - 1) // 2), 0, 0, 360, (255,), -1)
    patch = cv2.resize(texture, (w, h), interpolation=cv2.INTER_LINEAR)
    np.copyto(frame[y : y + h, x : x + w], patch, where=mask[..., None] > 0)
    if -2 <= step < 6:
        shift = {-2: -w * 2 // 3, -1: -w // 3, 4: w // 3 + 2, 5: w * 2 // 3 + 2}.get(step, 0)
        left, right = max(0, x - 2 + shift), min(_WIDTH, x + w + 2 + shift)
        top, bottom = max(0, y - 2), min(_HEIGHT, y + h + 2)
        frame[top:bottom, left:right] = cover[top:bottom, left:right]


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
    path, steps = np.empty((frames, 2)), np.arange(frames)
    for axis, limit in enumerate((width, height)):
        room = (limit - 2 * margin) / 2
        period, phase = generator.integers(70, 140), generator.random()
        wobble, wobble_phase = generator.integers(18, 40), generator.random()
        swing, waves = (2 * np.pi * (steps / t + start) for t, start in ((period, phase), (wobble, wobble_phase)))
        path[:, axis] = limit / 2 + room * (0.8 * np.sin(swing) + 0.2 * np.sin(waves))
    # Rounded before truncation: the last digit of another libm's sine must not move anything by a pixel.
    return np.asarray(np.round(path, 3).astype(np.int64))

"""Crop geometry, the same for training and tracking: a square around a box, cut out and resized; and augmentation.

Knows arithmetic on boxes and pixels, as the published checkpoints were trained with it; no files, and every random
number is an argument.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data import Image

GREY_PROBABILITY, FLIP_PROBABILITY, BRIGHTNESS_JITTER = 0.05, 0.5, 0.2


@dataclass(frozen=True)
class Window:
    """A square of whole pixels in a frame; parts of it may lie outside the frame. `left`, `top`, `side` in pixels."""

    left: int
    top: int
    side: int


def crop_window(box_xywh: NDArray[np.float64], factor: float) -> Window:
    """The square around a box whose side is `factor` times the root of the box's area, rounded up.

    Halves are rounded to even, as in the training of the published checkpoints.

    Raises:
        ValueError: the box has no area.
    """
    x, y, w, h = (float(value) for value in box_xywh)
    side = math.ceil(math.sqrt(w * h) * factor) if w > 0 and h > 0 else 0
    if side < 1:
        raise ValueError(f"box {x:g},{y:g},{w:g},{h:g} is too small to be cropped")
    return Window(round(x + 0.5 * w - side * 0.5), round(y + 0.5 * h - side * 0.5), side)


def covered(window: Window, width: int, height: int) -> tuple[int, int, int, int]:
    """What a crop takes from a frame: left, top, right, bottom; nothing where left == right or top == bottom.

    A crop that reaches the last column or row loses it: the published checkpoints were trained with this border.
    """
    spans = []
    for start, limit in ((window.left, width), (window.top, height)):
        low, stop = max(0, start), start + window.side
        spans.append((low, max(low, limit - 1 if stop >= limit else stop)))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def cut(patch: Image, window: Window, *, place: tuple[int, int], frame_size: tuple[int, int]) -> Image:
    """The window's pixels (side, side, channels), black where it leaves the frame.

    Args:
        patch: part of the frame that holds at least what the window covers of it.
        place: left and top of the patch in the frame.
        frame_size: width and height.
    """
    left, top, right, bottom = covered(window, *frame_size)
    inside = patch[top - place[1] : bottom - place[1], left - place[0] : right - place[0]]
    if inside.shape[0] == inside.shape[1] == window.side:
        return inside
    # np.zeros costs nothing until pages are touched, and of a huge window few are.
    square = np.zeros((window.side, window.side, patch.shape[2]), dtype=np.uint8)
    if inside.size:
        square[top - window.top : bottom - window.top, left - window.left : right - window.left] = inside
    return square


def resize(square: Image, size: int) -> Image:
    """Bilinear, without antialiasing, to (size, size, channels)."""
    if square.shape[:2] == (size, size):
        return square
    return np.asarray(cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)


def crop_frame(frame: Image, box_xywh: NDArray[np.float64], *, factor: float, size: int) -> tuple[Image, float]:
    """Crop a whole frame (H, W, 3) around a box.

    Returns:
        the crop (size, size, 3) and the resize factor, crop pixels for one frame pixel.
    """
    window = crop_window(box_xywh, factor)
    square = cut(frame, window, place=(0, 0), frame_size=(frame.shape[1], frame.shape[0]))
    return resize(square, size), size / window.side


def box_in_crop(
    box_xywh: NDArray[np.float64], around_xywh: NDArray[np.float64], *, resize_factor: float, size: int
) -> NDArray[np.float64]:
    """A box in fractions of the crop made around another box.

    Positions are pixel centres: the middle of the crop is (size - 1) / 2 and a fraction of 1 is size - 1.

    Returns:
        (4,) cx, cy, w, h; outside [0, 1] where the box leaves the crop.
    """
    offset = (box_xywh[:2] + 0.5 * box_xywh[2:]) - (around_xywh[:2] + 0.5 * around_xywh[2:])
    in_pixels = (size - 1) / 2 + offset * resize_factor, box_xywh[2:] * resize_factor
    return np.concatenate(in_pixels) / (size - 1)


@dataclass(frozen=True)
class Jitter:
    """How far a crop may be from its box: see `jitter_box`."""

    center: float
    scale: float


NO_JITTER = Jitter(center=0.0, scale=0.0)
AUTHORS_SEARCH_JITTER = Jitter(center=3.5, scale=0.5)


def jitter_box(
    box_xywh: NDArray[np.float64], jitter: Jitter, *, normal: NDArray[np.float64], uniform: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Move and scale a box.

    Args:
        box_xywh: (4,) pixels.
        jitter: sides are multiplied by exp(normal * scale); then the centre moves, along each axis, by up to half of
            `center` times the root of the new area.
        normal: (2,) standard normal numbers, for width and height.
        uniform: (2,) numbers in [0, 1), for x and y.

    Returns:
        (4,) xywh in pixels; may leave the frame.
    """
    size = box_xywh[2:] * np.exp(normal * jitter.scale)
    reach = np.sqrt(size[0] * size[1]) * jitter.center
    centre = box_xywh[:2] + 0.5 * box_xywh[2:] + reach * (uniform - 0.5)
    return np.concatenate((centre - 0.5 * size, size))


def mirror_box(box_xywh: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The box, (4,) xywh in pixels, in the mirror image of a frame `width` pixels wide."""
    x, y, w, h = box_xywh
    return np.array([width - x - w, y, w, h])


def to_grey(image_bgr: Image) -> Image:
    """(H, W, 3) with the luma (ITU-R BT.601, as OpenCV computes it) in all three channels."""
    grey = cv2.cvtColor(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return np.asarray(grey, dtype=np.uint8)


def mirror(image: Image) -> Image:
    """(H, W, 3) with left and right exchanged."""
    return np.asarray(cv2.flip(image, 1), dtype=np.uint8)

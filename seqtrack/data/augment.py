"""Augmentation, with every random number an argument: box jitter, flip, greyscale, brightness. Knows arrays only."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data import Image

GREY_PROBABILITY = 0.05
FLIP_PROBABILITY = 0.5
BRIGHTNESS_JITTER = 0.2


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


def draw_brightness(generator: np.random.Generator) -> np.float32:
    """Factor in [0.8, 1.2) for the pixels of one crop; the device multiplies and clamps."""
    return np.float32(generator.uniform(1 - BRIGHTNESS_JITTER, 1 + BRIGHTNESS_JITTER))

"""An image of training samples as the model gets them."""

from collections.abc import Sequence as ListOf
from pathlib import Path

import cv2
import numpy as np

from seqtrack.data import Image
from seqtrack.data.dataset import Sample
from seqtrack.errors import UserError

_GAP = 6
_TEXT_HEIGHT = 16
_BOX_BGR = (80, 255, 80)


def sample_preview(samples: ListOf[Sample], *, columns: int = 3, height: int = 192) -> Image:
    """One image (H, W, 3) BGR: of each sample its templates, then its search region with the box drawn in.

    Args:
        columns: samples per row.
        height: of every crop, pixels.
    """
    tiles = [_tile(sample, height) for sample in samples]
    width, tall = max(tile.shape[1] for tile in tiles), max(tile.shape[0] for tile in tiles)
    rows = -(-len(tiles) // columns)
    canvas = np.full((rows * (tall + 2 * _GAP), columns * (width + 2 * _GAP), 3), 255, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top = number // columns * (tall + 2 * _GAP) + _GAP
        left = number % columns * (width + 2 * _GAP) + _GAP
        canvas[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return canvas


def write_preview(path: Path, samples: ListOf[Sample]) -> None:
    """Write `sample_preview` as PNG.

    Raises:
        UserError: the file cannot be written, or the image is too large.
    """
    written, data = cv2.imencode(".png", sample_preview(samples))
    if not written:
        raise UserError(f"{path}: an image of {len(samples)} samples is too large; use fewer", "data.option")
    try:
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})", "data.output") from error


def _tile(sample: Sample, height: int) -> Image:
    """Templates and search region next to each other, with sequence and frame numbers below."""
    images = [
        _to_bgr(image, float(brightness), height)
        for image, brightness in zip(sample.templates, sample.template_brightness, strict=True)
    ]
    search = _to_bgr(sample.search, float(sample.search_brightness), height)
    centre_x, centre_y, w, h = (float(value) * (height - 1) for value in sample.box)
    first, last = (centre_x - w / 2, centre_y - h / 2), (centre_x + w / 2, centre_y + h / 2)
    cv2.rectangle(search, [round(v) for v in first], [round(v) for v in last], _BOX_BGR, 1)
    row = np.hstack([np.pad(image, ((0, 0), (0, 2), (0, 0)), constant_values=255) for image in (*images, search)])
    caption = np.full((_TEXT_HEIGHT, row.shape[1], 3), 255, dtype=np.uint8)
    text = f"{sample.sequence} frames {', '.join(str(frame + 1) for frame in sample.frames)}"
    cv2.putText(caption, text, (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.vstack((row, caption))


def _to_bgr(planes_rgb: Image, brightness: float, height: int) -> Image:
    """(3, S, S) RGB and its brightness -> (height, height, 3) BGR."""
    bright = np.clip(planes_rgb.astype(np.float32) * brightness, 0, 255).astype(np.uint8)
    image = np.ascontiguousarray(bright[::-1].transpose(1, 2, 0))
    return np.asarray(cv2.resize(image, (height, height), interpolation=cv2.INTER_LINEAR), dtype=np.uint8)

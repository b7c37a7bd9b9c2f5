"""Images to look at: training samples as the model gets them, and frames with their annotated boxes."""

from collections.abc import Sequence as ListOf
from pathlib import Path

import cv2
import numpy as np

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.data import Image
from seqtrack.data.dataset import Sample
from seqtrack.data.decode import read_image
from seqtrack.data.sequence import Sequence
from seqtrack.errors import UserError

_HEIGHT, _GAP, _TEXT_HEIGHT = 192, 6, 16  # pixels
_COLUMNS = 4  # of a box preview
_BOX_BGR = (80, 255, 80)


def write_preview(path: Path, samples: ListOf[Sample], *, columns: int = 1) -> None:
    """Write a PNG with, per sample, templates, search region with the box drawn in, and where they are from.

    Raises:
        UserError: the file cannot be written, or the image is too large.
    """
    rows = [np.pad(_row(sample), ((0, 0), (0, _GAP), (0, 0)), constant_values=255) for sample in samples]
    rows += [np.full_like(rows[0], 255)] * (-len(rows) % columns)
    _write(path, np.vstack([np.hstack(rows[first : first + columns]) for first in range(0, len(rows), columns)]))


def write_box_preview(path: Path, sequence: Sequence) -> None:
    """Write a PNG with 12 frames at equal distances, from the first to the last, each with its annotated box.

    Raises:
        UserError: a frame cannot be read, or the file cannot be written.
    """
    tiles = []
    for index in np.unique(np.linspace(0, sequence.num_frames - 1, 12).round().astype(int)).tolist():
        frame, (x, y, w, h) = read_image(sequence.frame_path(index)), sequence.boxes_xywh[index]
        scale = _HEIGHT / frame.shape[0]
        tile = cv2.resize(frame, (max(1, round(frame.shape[1] * scale)), _HEIGHT), interpolation=cv2.INTER_AREA)
        if not sequence.absent[index]:
            first, last = (round(x * scale), round(y * scale)), (round((x + w) * scale), round((y + h) * scale))
            cv2.rectangle(tile, first, last, _BOX_BGR, 2)
        tile = np.pad(tile, ((0, _TEXT_HEIGHT), (0, _GAP), (0, 0)), constant_values=255)
        text = f"{index + 1}" + (", out of view" if sequence.absent[index] else "")
        cv2.putText(tile, text, (2, _HEIGHT + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(np.asarray(tile, dtype=np.uint8))
    width = max(tile.shape[1] for tile in tiles)  # frames of a folder may differ in size
    tiles = [np.pad(tile, ((0, 0), (0, width - tile.shape[1]), (0, 0)), constant_values=255) for tile in tiles]
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % _COLUMNS)
    _write(path, np.vstack([np.hstack(tiles[first : first + _COLUMNS]) for first in range(0, len(tiles), _COLUMNS)]))


def _write(path: Path, canvas: Image) -> None:
    written, data = cv2.imencode(".png", canvas)
    if not written:
        raise UserError(f"{path}: an image of {canvas.shape[0]} rows is too large; show fewer", "data.option")
    try:
        write_atomic(path, data.tobytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})", "data.output") from error


def _row(sample: Sample) -> Image:
    """Crops next to each other, (H, W, 3) BGR, with sequence and frame numbers below; equally wide for all samples."""
    images = []
    crops = zip(
        (*sample.templates, sample.search), (*sample.template_brightness, sample.search_brightness), strict=True
    )
    for planes_rgb, brightness in crops:
        bright = np.clip(planes_rgb.astype(np.float32) * brightness, 0, 255).astype(np.uint8)
        pixels = np.ascontiguousarray(bright[::-1].transpose(1, 2, 0))
        images.append(cv2.resize(pixels, (_HEIGHT, _HEIGHT), interpolation=cv2.INTER_LINEAR))
    centre, size = sample.box[:2] * (_HEIGHT - 1), sample.box[2:] * (_HEIGHT - 1)
    first, last = (np.round(centre + side * size / 2).astype(int).tolist() for side in (-1, 1))
    cv2.rectangle(images[-1], first, last, _BOX_BGR, 1)
    row = np.pad(np.hstack(images), ((_GAP, _TEXT_HEIGHT), (0, 0), (0, 0)), constant_values=255)
    text = f"{sample.sequence} frames {', '.join(str(frame + 1) for frame in sample.frames)}"
    cv2.putText(row, text, (2, _GAP + _HEIGHT + 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return np.asarray(row, dtype=np.uint8)

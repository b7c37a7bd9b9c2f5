"""A box and a few words drawn into a frame. Knows pixels only."""

from collections.abc import Sequence

import cv2
import numpy as np

from seqtrack.tracking.video import Image

COLOUR_RGB = (255, 196, 0)
_SHADE_RGB = (20, 20, 20)


def draw_box(image: Image, box_xywh: Sequence[float], tokens: str) -> Image:
    """A copy of (H, W, 3) uint8 RGB with the box and, above or below it, the words on a dark ground.

    Args:
        box_xywh: pixels; parts outside the image are cut.
    """
    canvas = image.copy()
    height, width = canvas.shape[:2]
    scale = max(0.35, min(height, width) / 900)
    line = max(1, round(2 * scale))
    x0, y0 = round(box_xywh[0]), round(box_xywh[1])
    x1, y1 = round(box_xywh[0] + box_xywh[2]), round(box_xywh[1] + box_xywh[3])
    # A dark line around the bright one: the box is seen on any background.
    cv2.rectangle(canvas, (x0, y0), (x1, y1), _SHADE_RGB, line + 2)
    cv2.rectangle(canvas, (x0, y0), (x1, y1), COLOUR_RGB, line)
    (text_width, text_height), below = cv2.getTextSize(tokens, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    pad = max(2, round(4 * scale))
    left = int(np.clip(x0, 0, max(0, width - text_width - 2 * pad)))
    bottom = y0 - line - 1
    if bottom - text_height - below - 2 * pad < 0:  # no room above: below the box, or inside at the frame's end
        bottom = min(height - 1, y1 + line + 1 + text_height + below + 2 * pad)
    top = bottom - text_height - below - 2 * pad
    cv2.rectangle(canvas, (left, top), (left + text_width + 2 * pad, bottom), _SHADE_RGB, cv2.FILLED)
    cv2.putText(
        canvas, tokens, (left + pad, bottom - below - pad), cv2.FONT_HERSHEY_SIMPLEX, scale, COLOUR_RGB, 1, cv2.LINE_AA
    )
    return canvas

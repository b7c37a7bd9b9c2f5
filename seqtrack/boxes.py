"""Box formats, IoU, and the mapping from a search region to its image.

Pure functions of tensors, elementwise over the last axis, in any floating-point type. `xywh` is top-left corner and
size, `cxcywh` centre and size, `xyxy` two corners.
"""

import torch
from torch import Tensor


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to two corners."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h), dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) two corners to centre and size."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0), dim=-1)


def xywh_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) top-left corner and size to centre and size."""
    x, y, w, h = boxes.unbind(-1)
    return torch.stack((x + 0.5 * w, y + 0.5 * h, w, h), dim=-1)


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union, box by box.

    Args:
        a_xyxy, b_xyxy: (..., 4) corners, broadcastable. Continuous coordinates: no pixel is added to a side.

    Returns:
        (...) in [0, 1]; 0 where neither box has an area, because the NaN of 0/0 would spoil the mean of an epoch.
    """
    low, high = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2]), torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area_a, area_b = ((one[..., 2:] - one[..., :2]).prod(-1) for one in (a_xyxy, b_xyxy))
    union = area_a + area_b - intersection
    empty = union <= 0
    return torch.where(empty, torch.zeros_like(union), intersection / torch.where(empty, torch.ones_like(union), union))


def search_to_image(
    boxes_cxcywh: Tensor, previous_xywh: Tensor, *, resize_factor: float | Tensor, search_size_px: int
) -> Tensor:
    """Map boxes from a search region to the image that it was cropped from, around the centre of `previous_xywh`.

    Like the authors' tracker this multiplies by the region's size, although training divides by size - 1: boxes are
    256/255 too large, and released checkpoints are scored that way.

    Args:
        boxes_cxcywh: (..., 4) in fractions of the search region's side.
        previous_xywh: (..., 4) in image pixels.
        resize_factor: pixels of the region per pixel of the image; a number or (...).

    Returns:
        (..., 4) xywh in image pixels, not clipped.
    """
    scale = search_size_px / torch.as_tensor(resize_factor, dtype=boxes_cxcywh.dtype, device=boxes_cxcywh.device)
    in_crop = boxes_cxcywh * scale[..., None]
    previous_centre = previous_xywh[..., :2] + 0.5 * previous_xywh[..., 2:]
    centre = in_crop[..., :2] + previous_centre - 0.5 * scale[..., None]
    size = in_crop[..., 2:]
    return torch.cat((centre - 0.5 * size, size), dim=-1)


def clip_to_image(boxes_xywh: Tensor, *, height_px: int, width_px: int, margin_px: float = 0) -> Tensor:
    """Move and clip boxes so that at least `margin_px` of them is inside the image on both axes.

    Args:
        boxes_xywh: (..., 4) in pixels.
        margin_px: also the minimum width and height of the result. The tracker uses 10.
    """
    limit = torch.tensor([width_px, height_px], dtype=boxes_xywh.dtype, device=boxes_xywh.device)
    low = boxes_xywh[..., :2].clamp(min=0).minimum(limit - margin_px)
    high = (boxes_xywh[..., :2] + boxes_xywh[..., 2:]).clamp(min=margin_px).minimum(limit)
    return torch.cat((low, (high - low).clamp(min=margin_px)), dim=-1)

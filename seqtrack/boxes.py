"""Boxes in their several spellings, how much they overlap, and the way between a search region and its image.

Pure functions of tensors, elementwise over the last axis, in whatever floating type they are given. Knows nothing of
tokens, images or models. Names say both ends: `xywh` is top-left corner and size, `cxcywh` centre and size, `xyxy` two
corners.
"""

import torch
from torch import Tensor


def xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) top-left corner and size to top-left and bottom-right corner."""
    x, y, w, h = boxes.unbind(-1)
    return torch.stack((x, y, x + w, y + h), dim=-1)


def xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """(..., 4) two corners to top-left corner and size."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack((x0, y0, x1 - x0, y1 - y0), dim=-1)


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


def cxcywh_to_xywh(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size to top-left corner and size."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack((cx - 0.5 * w, cy - 0.5 * h, w, h), dim=-1)


def _intersection_and_union(a_xyxy: Tensor, b_xyxy: Tensor) -> tuple[Tensor, Tensor]:
    size_a = a_xyxy[..., 2:] - a_xyxy[..., :2]
    size_b = b_xyxy[..., 2:] - b_xyxy[..., :2]
    low = torch.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    return intersection, size_a.prod(-1) + size_b.prod(-1) - intersection


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    # Two boxes without area share nothing: 0 rather than the NaN of 0/0, which would spoil the mean of a whole epoch.
    empty = whole <= 0
    return torch.where(empty, torch.zeros_like(part), part / torch.where(empty, torch.ones_like(whole), whole))


def iou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Intersection over union, box by box.

    Args:
        a_xyxy, b_xyxy: (..., 4) corners, broadcastable. Continuous coordinates: no pixel is added to a side.

    Returns:
        (...) in [0, 1]; 0 where neither box has an area.
    """
    return _ratio(*_intersection_and_union(a_xyxy, b_xyxy))


def giou(a_xyxy: Tensor, b_xyxy: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019), box by box.

    SeqTrack's loss has no such term and nothing here calls it: it belongs to the authors' vocabulary of boxes, and
    their reference values hold the arithmetic above to theirs also where boxes do not meet.

    Returns:
        (...) in [-1, 1]: IoU less the share of the smallest enclosing box that neither box covers.
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    low = torch.minimum(a_xyxy[..., :2], b_xyxy[..., :2])
    high = torch.maximum(a_xyxy[..., 2:], b_xyxy[..., 2:])
    hull = (high - low).clamp(min=0).prod(-1)
    return _ratio(intersection, union) - _ratio(hull - union, hull)


def search_to_image(
    boxes_cxcywh: Tensor, previous_xywh: Tensor, *, resize_factor: float | Tensor, search_size_px: int
) -> Tensor:
    """Carry boxes from a search region back to the image it was cut from.

    The region was cut around the centre of `previous_xywh`. Like the authors' tracker this multiplies by the region's
    size, although training divided by size - 1: boxes come out 256/255 too large, and released checkpoints are scored
    that way.

    Args:
        boxes_cxcywh: (..., 4) in fractions of the search region's side.
        previous_xywh: (..., 4) in image pixels.
        resize_factor: pixels of the region for one pixel of the image; a number or (...) of them.

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
    """Move and cut boxes so that at least `margin_px` of them stays inside the image on both axes.

    Args:
        boxes_xywh: (..., 4) in pixels.
        margin_px: also the smallest width and height that is returned. The tracker uses 10.
    """
    limit = torch.tensor([width_px, height_px], dtype=boxes_xywh.dtype, device=boxes_xywh.device)
    low = boxes_xywh[..., :2].clamp(min=0).minimum(limit - margin_px)
    high = (boxes_xywh[..., :2] + boxes_xywh[..., 2:]).clamp(min=margin_px).minimum(limit)
    return torch.cat((low, (high - low).clamp(min=margin_px)), dim=-1)

"""Boxes as tokens: SeqTrack's vocabulary and its training sequences (SeqTrack, section 3.2).

The vocabulary has `bins` coordinate tokens 0..bins-1, then END = bins, then START = bins + 1. A sequence is one box of
four coordinates, in one of three formats: "xywh" is cx, cy, w, h (the authors' name, although it is centre based),
"whxy" is w, h, cx, cy, and "corner" is x0, y0, x1, y1. "cxcywh" is a second name of the first.
"""

import math

import torch
from torch import Tensor

from seqtrack.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

COORDINATES = 4
SEQUENCE_LENGTH = COORDINATES + 1
SEQ_FORMATS = ("xywh", "whxy", "corner", "cxcywh")


def end_token(bins: int) -> int:
    """The token that ends a sequence. It is learned but never generated: a box always has four coordinates."""
    return bins


def start_token(bins: int) -> int:
    """The first token of every decoder input."""
    return bins + 1


def vocabulary_size(bins: int) -> int:
    """Coordinate tokens, END and START."""
    return bins + 2


def centre_positions(seq_format: str) -> tuple[int, ...]:
    """Positions of the box's centre in the sequence, where the tracker's window applies.

    "corner" has none. The authors apply the window to its first two tokens, which pulls the top-left corner instead of
    the box to the middle; no published model uses that format.

    Raises:
        ValueError: an unknown format.
    """
    _check_format(seq_format)
    return {"xywh": (0, 1), "cxcywh": (0, 1), "whxy": (2, 3), "corner": ()}[seq_format]


def boxes_to_tokens(boxes: Tensor, bins: int) -> Tensor:
    """Quantize coordinates to tokens, in the order given.

    Args:
        boxes: (..., 4) float in [0, 1], fractions of the search region's side.
        bins: number of coordinate tokens.

    Returns:
        (..., 4) int64 in [0, bins - 1]: the integer part of value * (bins - 1), as in released checkpoints, which is
        half a bin below the value on average.

    Raises:
        ValueError: a coordinate is outside [0, 1] or NaN. Clip the box first.
    """
    if not bool(((boxes >= 0) & (boxes <= 1)).all()):
        outside = boxes[~((boxes >= 0) & (boxes <= 1))]
        raise ValueError(
            f"{outside.numel()} of {boxes.numel()} coordinates are outside [0, 1], the first is {float(outside[0])}; "
            "clip the boxes to the search region first"
        )
    return (boxes * (bins - 1)).long()


def tokens_to_boxes(tokens: Tensor, bins: int, seq_format: str = "xywh") -> Tensor:
    """Decode tokens to boxes.

    Args:
        tokens: (..., 4) integers in [0, bins - 1].

    Returns:
        (..., 4) float64 cxcywh in fractions of the search region's side.

    Raises:
        ValueError: an unknown format.
    """
    _check_format(seq_format)
    values = tokens.to(torch.float64) / (bins - 1)
    if seq_format == "corner":
        return xyxy_to_cxcywh(values)
    if seq_format == "whxy":
        return values.roll(2, dims=-1)  # an index list would be copied to the device
    return values


def target_sequences(boxes_cxcywh: Tensor, bins: int, seq_format: str = "xywh") -> tuple[Tensor, Tensor]:
    """Decoder inputs and targets for boxes that may extend beyond the search region.

    Args:
        boxes_cxcywh: (B, 4) float in fractions of the search region's side.

    Returns:
        input tokens (B, 5) int64: START and four coordinates; target tokens (B, 5) int64: four coordinates and END.

    Raises:
        ValueError: a NaN coordinate, or an unknown format.
    """
    return target_sequences_from_corners(cxcywh_to_xyxy(boxes_cxcywh), bins, seq_format)


def target_sequences_from_corners(boxes_xyxy: Tensor, bins: int, seq_format: str = "xywh") -> tuple[Tensor, Tensor]:
    """As `target_sequences`, from corners, each of which is clamped to the region.

    Args:
        boxes_xyxy: (B, 4) float in fractions of the search region's side.
    """
    _check_format(seq_format)
    corners = boxes_xyxy.clamp(0, 1)
    if seq_format == "corner":
        coordinates = corners
    else:
        coordinates = xyxy_to_cxcywh(corners)
        if seq_format == "whxy":
            coordinates = coordinates.roll(2, dims=-1)
    tokens = boxes_to_tokens(coordinates, bins)
    start = tokens.new_full((*tokens.shape[:-1], 1), start_token(bins))
    end = tokens.new_full((*tokens.shape[:-1], 1), end_token(bins))
    return torch.cat((start, tokens), dim=-1), torch.cat((tokens, end), dim=-1)


def hann_window(bins: int) -> Tensor:
    """The tracker's penalty for large motion: a Hann window over the coordinate tokens.

    Returns:
        (bins,) float64 on the CPU, 1 in the middle, exactly 0 at both ends: with the window the outermost tokens are
        never chosen, as in the authors' tracker.
    """
    if bins == 1:
        return torch.ones(1, dtype=torch.float64)
    position = torch.arange(bins, dtype=torch.float64)
    window: Tensor = 0.5 - 0.5 * torch.cos(2 * math.pi * position / (bins - 1))
    return window


def _check_format(seq_format: str) -> None:
    if seq_format not in SEQ_FORMATS:
        raise ValueError(f"unknown sequence format {seq_format!r}; expected one of {', '.join(SEQ_FORMATS)}")

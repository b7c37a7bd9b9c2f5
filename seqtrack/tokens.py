"""Boxes as tokens: SeqTrack's vocabulary and its training sequences (SeqTrack, section 3.2).

The vocabulary has `bins` coordinate tokens 0..bins-1, then END = bins, then START = bins + 1. A sequence is one box of
four coordinates, in one of three formats: "xywh" is cx, cy, w, h (the authors' name, although it is centre based),
"whxy" is w, h, cx, cy, and "corner" is x0, y0, x1, y1.
"""

import torch
from torch import Tensor

from seqtrack.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh

COORDINATES = 4
SEQUENCE_LENGTH = COORDINATES + 1


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
    """
    return {"xywh": (0, 1), "whxy": (2, 3), "corner": ()}[seq_format]


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
        raise ValueError("a coordinate is not in [0, 1]; clip the boxes first")
    return (boxes * (bins - 1)).long()


def tokens_to_boxes(tokens: Tensor, bins: int, seq_format: str = "xywh") -> Tensor:
    """Decode (..., 4) tokens in [0, bins - 1] to (..., 4) float64 cxcywh in fractions of the search region's side."""
    values = tokens.to(torch.float64) / (bins - 1)
    if seq_format == "corner":
        return xyxy_to_cxcywh(values)
    return values.roll(2, dims=-1) if seq_format == "whxy" else values  # an index list would be copied to the device


def target_sequences(boxes_cxcywh: Tensor, bins: int, seq_format: str = "xywh") -> tuple[Tensor, Tensor]:
    """Decoder inputs and targets for boxes that may extend beyond the search region: their corners are clamped to it.

    Args:
        boxes_cxcywh: (B, 4) float in fractions of the search region's side.

    Returns:
        input tokens (B, 5) int64: START and four coordinates; target tokens (B, 5) int64: four coordinates and END.

    Raises:
        ValueError: a NaN coordinate.
    """
    corners = cxcywh_to_xyxy(boxes_cxcywh).clamp(0, 1)
    coordinates = corners if seq_format == "corner" else xyxy_to_cxcywh(corners)
    tokens = boxes_to_tokens(coordinates.roll(2, dims=-1) if seq_format == "whxy" else coordinates, bins)
    start = tokens.new_full((*tokens.shape[:-1], 1), start_token(bins))
    end = tokens.new_full((*tokens.shape[:-1], 1), end_token(bins))
    return torch.cat((start, tokens), dim=-1), torch.cat((tokens, end), dim=-1)


def hann_window(bins: int) -> Tensor:
    """The tracker's penalty for large motion: a Hann window over the coordinate tokens.

    Returns:
        (bins,) float64 on the CPU, 1 in the middle, exactly 0 at both ends: with the window the outermost tokens are
        never chosen, as in the authors' tracker.
    """
    return torch.hann_window(bins, periodic=False, dtype=torch.float64)

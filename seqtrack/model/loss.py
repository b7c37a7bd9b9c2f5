"""The training loss and the IoU that is logged with it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from seqtrack.boxes import cxcywh_to_xyxy, iou
from seqtrack.tokens import COORDINATES, tokens_to_boxes

# END is always right and START is never a target: they get hardly any weight.
SPECIAL_WEIGHT = 0.01


def sequence_loss(logits: Tensor, targets: Tensor, bins: int) -> Tensor:
    """Weighted cross-entropy of each sample's sequence.

    Args:
        logits: (B, 5, bins + 2), any float type; computed in float32 at least.
        targets: (B, 5) int64, four coordinate tokens and END.

    Returns:
        (B,): each sample's weighted sum over its tokens divided by the sum of their weights (4.01). Every sample has
        the same weights, so the mean over samples is the authors' loss over the flattened batch.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = torch.where(targets < bins, 1.0, SPECIAL_WEIGHT).to(logits.dtype)
    entropy = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").reshape(targets.shape)
    return (entropy * weights).sum(dim=1) / weights.sum(dim=1)


@torch.no_grad()
def teacher_forced_iou(logits: Tensor, targets: Tensor, bins: int, seq_format: str = "xywh") -> Tensor:
    """IoU of the target box and the most likely tokens, each predicted from the true tokens before it.

    The authors log this too, but decode "corner" and "whxy" sequences as centre boxes and get NaN where neither box
    has an area; here the format is respected and such a pair counts 0.

    Args:
        logits: (B, 5, bins + 2).
        targets: (B, 5) int64.

    Returns:
        (B,) float32 in [0, 1].
    """
    predicted = logits[:, :COORDINATES, :bins].argmax(dim=-1)
    boxes = [cxcywh_to_xyxy(tokens_to_boxes(t, bins, seq_format)) for t in (predicted, targets[:, :COORDINATES])]
    return iou(boxes[0], boxes[1]).float()

"""Signs that a run which continues is worth nothing: said loudly, as early as they can be seen."""

import logging
import math
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

_FIRST_LOSS_TOLERANCE = 0.2


def check_first_loss(loss: float, bins: int) -> str | None:
    """A model that knows nothing yet spreads its guess over all words: its loss is about ln(bins + 2).

    Returns:
        a warning, or None when the loss is within 20 % of that.
    """
    expected = math.log(bins + 2)
    if abs(loss - expected) <= _FIRST_LOSS_TOLERANCE * expected:
        return None
    return (
        f"the first loss of this run is {loss:.3f}, but an untrained model's is about ln({bins} + 2) = {expected:.3f}: "
        "look at the data with `seqtrack data show`, and at the initial weights"
    )


def check_encoder_gradient(model: nn.Module) -> str | None:
    """The encoder must receive a gradient unless it is frozen."""
    trained = [p for name, p in model.named_parameters() if "encoder" in name and p.requires_grad]
    if not trained or any(p.grad is not None and bool((p.grad != 0).any()) for p in trained):
        return None
    return "the encoder receives no gradient although it is to be trained: every one of its gradients is zero or absent"


def check_history(epochs: list[dict[str, Any]]) -> str | None:
    """An IoU that is the same in two epochs to the last digit is not measured on what is being trained."""
    if len(epochs) < 2 or epochs[-1]["iou"] != epochs[-2]["iou"]:
        return None
    return (
        f"the IoU of epochs {epochs[-2]['epoch']} and {epochs[-1]['epoch']} is the same to the last digit "
        f"({epochs[-1]['iou']}): the model does not change, or the samples repeat without effect"
    )


def warn(problem: str | None) -> None:
    """Say a warning so that nobody overlooks it."""
    if problem:
        logger.warning("%s", "!" * 100)
        logger.warning("WARNING: %s", problem)
        logger.warning("%s", "!" * 100)

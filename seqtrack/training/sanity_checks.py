"""Signs that a run is worthless although it continues: logged prominently, as early as they can be detected."""

import logging
import math
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

_FIRST_LOSS_TOLERANCE = 0.2


def check_first_loss(loss: float, bins: int) -> str | None:
    """Warn if the first loss is not within 20 % of ln(bins + 2), that of a uniform guess over all tokens."""
    expected = math.log(bins + 2)
    if abs(loss - expected) <= _FIRST_LOSS_TOLERANCE * expected:
        return None
    return (
        f"the first loss of this run is {loss:.3f}, but an untrained model's is about ln({bins} + 2) = {expected:.3f}: "
        "look at the data with `seqtrack data show`, and at the initial weights"
    )


def check_encoder_gradient(model: nn.Module) -> str | None:
    """Warn if the encoder receives no gradient although it is not frozen."""
    trained = [p for name, p in model.named_parameters() if "encoder" in name and p.requires_grad]
    if not trained or any(p.grad is not None and bool((p.grad != 0).any()) for p in trained):
        return None
    return "the encoder receives no gradient although it is to be trained: every one of its gradients is zero or absent"


def check_history(epochs: list[dict[str, Any]]) -> str | None:
    """Warn if the IoU of two epochs is the same to the last digit: it is not measured on what is trained."""
    if len(epochs) < 2 or epochs[-1]["iou"] != epochs[-2]["iou"]:
        return None
    return (
        f"the IoU of epochs {epochs[-2]['epoch']} and {epochs[-1]['epoch']} is the same to the last digit "
        f"({epochs[-1]['iou']}): the model does not change, or the samples repeat without effect"
    )


def warn(problem: str | None) -> None:
    """Log a warning that nobody overlooks."""
    if problem:
        logger.warning("%s", "!" * 100)
        logger.warning("WARNING: %s", problem)
        logger.warning("%s", "!" * 100)

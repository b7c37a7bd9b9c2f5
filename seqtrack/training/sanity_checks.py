"""Signs that a run is worthless although it continues: logged prominently, as early as they can be detected."""

import logging
import math
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


def check_first_loss(loss: float, bins: int) -> bool:
    """Warn if the first loss is not within 20 % of ln(bins + 2), that of a uniform guess over all tokens."""
    expected = math.log(bins + 2)
    text = (
        f"the first loss of this run is {loss:.3f}, but an untrained model's is about ln({bins} + 2) = {expected:.3f}"
    )
    return _warn_if(abs(loss - expected) > 0.2 * expected, f"{text}: look at the data and the initial weights")


def check_encoder_gradient(model: nn.Module) -> bool:
    """Warn if the encoder receives no gradient although it is not frozen."""
    trained = [p for name, p in model.named_parameters() if "encoder" in name and p.requires_grad]
    without = all(p.grad is None or not bool((p.grad != 0).any()) for p in trained)
    return _warn_if(
        bool(trained) and without, "the encoder is to be trained, and all of its gradients are zero or absent"
    )


def check_history(epochs: list[dict[str, Any]]) -> bool:
    """Warn if the IoU of two epochs is the same to the last digit: it is not measured on what is trained."""
    last = [one["iou"] for one in epochs[-2:]]
    text = f"the IoU of epoch {len(epochs)} is that of the epoch before to the last digit ({last[-1]}): the model does "
    return _warn_if(len(last) == 2 and last[0] == last[1], f"{text}not change, or the samples repeat without effect")


def _warn_if(problem: bool, text: str) -> bool:
    """Log a warning that nobody overlooks, if there is a problem; returns whether there is one."""
    for line in ("!" * 100, f"WARNING: {text}", "!" * 100) if problem else ():
        logger.warning("%s", line)
    return problem

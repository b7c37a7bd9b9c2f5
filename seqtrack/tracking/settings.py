"""Settings of a tracker: crop factors, window, and template updates. The tracker itself knows no configuration."""

import logging
from dataclasses import dataclass

import torch

from seqtrack.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config
from seqtrack.device import capability_of, has_tf32, is_emulated
from seqtrack.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackerSettings:
    """Everything a tracker needs besides the model.

    Attributes:
        search_factor, template_factor: side of the crop as a multiple of sqrt(w * h) of the box.
        window: multiply the probabilities of the centre tokens by a Hann window, which favours boxes near the middle.
        update_interval: frames between two possible template updates.
        update_threshold: score, from 0 to 40, above which the template is updated.
        mean, std: of red, green and blue in [0, 1], as in training.
        precision: of the encoder's matrix products, fp32, tf32, bf16 or fp16; everything else is float32 always.
    """

    search_factor: float = 4.0
    template_factor: float = 4.0
    window: bool = True
    update_interval: int = 9999
    update_threshold: float = 0.6
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    precision: str = "fp32"


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision without hardware support: it would have no effect, or be slower than float32.

    Raises:
        UserError: tf32 or fp16 on a CPU, or any but fp32 on a GPU that is too old for it.
    """
    capability = capability_of(device)
    if capability is None:
        if precision in ("tf32", "fp16"):
            text = f"precision {precision} needs a GPU; a CPU tracks in fp32 or bf16"
            raise UserError(text, code="tracking.precision_on_cpu")
    elif is_emulated(precision, capability) or (precision == "tf32" and not has_tf32(capability)):
        raise UserError(
            f"precision {precision} needs a GPU of compute capability 8.0 or later, this one has "
            f"{capability[0]}.{capability[1]}; use fp16 or fp32",
            code="tracking.precision_on_gpu",
        )


def tracker_settings(config: Config, *, dataset: str | None, precision: str = "fp32") -> TrackerSettings:
    """The settings of a configuration for a data set.

    Args:
        dataset: its name, in any case, looked up in TEST.UPDATE_INTERVALS and TEST.UPDATE_THRESHOLD. A data set without
            its own interval takes DEFAULT, which is logged. None (a user's own video) takes DEFAULT silently.
    """
    test, data = config.TEST, config.DATA
    intervals, thresholds = test.UPDATE_INTERVALS.model_dump(), test.UPDATE_THRESHOLD.model_dump()
    key = "DEFAULT" if dataset is None else dataset.upper()
    if key not in intervals and test.NUM_TEMPLATES > 1:
        # With one template there are no updates.
        logger.info("TEST.UPDATE_INTERVALS has no key %s: DEFAULT, %d frames, is used", key, intervals["DEFAULT"])
    return TrackerSettings(
        search_factor=test.SEARCH_FACTOR,
        template_factor=test.TEMPLATE_FACTOR,
        window=test.WINDOW,
        update_interval=int(intervals.get(key, intervals["DEFAULT"])),
        update_threshold=float(thresholds.get(key, thresholds["DEFAULT"])),
        mean=data.MEAN,
        std=data.STD,
        precision=precision,
    )

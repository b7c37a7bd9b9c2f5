"""Convert crops to the encoder's input, on the device that holds them."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(
    images_uint8: Tensor, brightness: Tensor | None = None, *, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """Scale to [0, 1], apply brightness, clamp, and normalise each channel by `mean` and `std`.

    Args:
        images_uint8: (..., 3, H, W) uint8, RGB.
        brightness: (...) float factor per image, or None for 1.

    Returns:
        (..., 3, H, W) float32.
    """
    values = images_uint8.to(torch.float32, copy=True)
    if brightness is None:
        values.div_(255)
    else:
        factor = brightness.to(torch.float32) / 255
        values.mul_(factor[..., None, None, None]).clamp_(0, 1)
    return values.sub_(_per_channel(tuple(mean), values.device)).div_(_per_channel(tuple(std), values.device))


@functools.lru_cache
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Cached on the device: a copy per step would synchronize with it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device).reshape(3, 1, 1)

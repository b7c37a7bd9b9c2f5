"""Position embeddings: initial values, and resampling to another grid."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sinusoid_1d(length: int, dim: int) -> Tensor:
    """(length, dim) float32: the table of "Attention Is All You Need", sin on even channels, cos on odd, base 10000.

    The authors initialise the decoder's memory positions with it, over the flattened patch index.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000.0 ** (-2 * torch.div(channel, 2, rounding_mode="floor") / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).to(torch.float32)


def sincos_2d(grid: int, dim: int) -> Tensor:
    """(grid * grid, dim) float32, row-major, as in MAE: half of the channels for the column, half for the row.

    Each half is sin, then cos; `dim` must be a multiple of 4, which `config/loader.py` checks.
    """
    rate = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(grid, dtype=torch.float64)[:, None] * rate
    one_axis = torch.cat((angle.sin(), angle.cos()), dim=1)
    column, row = one_axis[None].expand(grid, grid, -1), one_axis[:, None].expand(grid, grid, -1)
    return torch.cat((column, row), dim=2).reshape(grid * grid, dim).to(torch.float32)


def resample_positions(table: Tensor, grid: int) -> Tensor:
    """Resample a learned square table to another grid: bicubic with aligned corners, as the authors do.

    Args:
        table: (1, side * side, C), row-major, without class token.

    Returns:
        (1, grid * grid, C).
    """
    side = round(table.shape[1] ** 0.5)
    if side == grid:
        return table
    image = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=True)
    resampled: Tensor = image.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)
    return resampled

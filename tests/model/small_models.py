"""Small models of every variant, with weights that make the output depend on the input."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec

SMALL = ModelSpec(
    encoder_type="vit_custom", embed_dim=48, depth=2, num_heads=3, patch_size=16, search_size=64, template_size=32,
    num_templates=2, hidden_dim=32, bins=50, decoder_layers=2, decoder_heads=4, decoder_feedforward=64, dropout=0.0,
)  # fmt: skip

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "xz": {"feature_type": "xz"},
    "token": {"feature_type": "token"},
    "pre_norm": {"pre_norm": True},
    "same_width": {"hidden_dim": 48},
    "three_templates": {"num_templates": 3},
    "one_layer": {"decoder_layers": 1},
    "corner": {"seq_format": "corner"},
    "patch_8": {"patch_size": 8},
}


def spec_of(**changes: Any) -> ModelSpec:
    return dataclasses.replace(SMALL, **changes)


def lively(model: SeqTrack) -> SeqTrack:
    """Random weights large enough for the tokens to depend on the image."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 2 / fan_in**0.5)
    return model


def pictures(spec: ModelSpec, batch: int) -> tuple[Tensor, Tensor]:
    """Templates and search regions, different in every sample."""
    generator = torch.Generator().manual_seed(7)
    templates = torch.randn(batch, spec.num_templates, 3, spec.template_size, spec.template_size, generator=generator)
    return templates, torch.randn(batch, 3, spec.search_size, spec.search_size, generator=generator)


def some_boxes(count: int) -> Tensor:
    """(count, 4) different cxcywh boxes inside the region."""
    return torch.rand(count, 4, generator=torch.Generator().manual_seed(count)) * 0.3 + 0.3

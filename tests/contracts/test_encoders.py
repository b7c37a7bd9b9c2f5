"""The contract of every encoder in the registry."""

from dataclasses import replace

import pytest
import torch

from seqtrack.model.build import ENCODERS, build_empty
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import ModelSpec

# A small plain ViT of timm stands for all of them.
NAMES = [*ENCODERS, "vit_tiny_patch16_224"]


def spec_of(name: str) -> ModelSpec:
    patch = 14 if "patch14" in name else 16
    return ModelSpec(
        encoder_type=name, patch_size=patch, search_size=4 * patch, template_size=2 * patch, hidden_dim=32, bins=50
    )


@pytest.mark.parametrize("name", NAMES)
def test_an_encoder_gives_the_decoder_its_memory_and_refuses_an_image_of_another_size(name: str) -> None:
    spec = spec_of(name)
    model = build_empty(spec)  # shapes only
    templates = torch.empty(2, spec.num_templates, 3, spec.template_size, spec.template_size, device="meta")
    search = torch.empty(2, 3, spec.search_size, spec.search_size, device="meta")
    memory = model.encode(templates, search)
    assert memory.shape == (2, spec.search_tokens, spec.hidden_dim)
    assert model.decode(memory, torch.zeros(2, 5, dtype=torch.int64, device="meta")).shape == (2, 5, spec.bins + 2)
    everything = build_empty(replace(spec, feature_type="xz"))
    assert everything.encode(templates, search).shape == (2, spec.encoder_tokens, spec.hidden_dim)
    with pytest.raises(ValueError):
        model.encode(templates, templates[:, 0])
    cost = cost_of(spec)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    assert cost.encoder_flops > cost.parameters  # each weight is used for more than one token

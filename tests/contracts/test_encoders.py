"""The contract of every encoder in the registry."""

from dataclasses import replace

import pytest
import torch

from seqtrack.model.build import ENCODERS, build_empty, build_model
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import ModelSpec
from seqtrack.model.weights import pretrained_name

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


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_pretrained_weights_of_an_encoder_have_a_name(name: str) -> None:
    for kind in ("mae", "default"):
        assert pretrained_name(ModelSpec(encoder_type=name, pretrain_type=kind)).startswith(f"{name}_224.")


def test_gradients_reach_templates_and_search_region() -> None:
    model = build_model(spec_of("vit_tiny_patch16_224"), seed=1)
    templates = torch.randn(1, 2, 3, 32, 32, requires_grad=True)
    search = torch.randn(1, 3, 64, 64, requires_grad=True)
    model(templates, search, torch.tensor([[51, 1, 2, 3, 4]])).square().sum().backward()
    assert templates.grad is not None and all(bool(part.any()) for part in templates.grad[0])
    assert search.grad is not None and bool(search.grad.any())
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []

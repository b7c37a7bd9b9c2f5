"""Building a model: initial values, seeds, encoders by name."""

import dataclasses

import pytest
import torch
from small_models import SMALL, pictures, some_boxes, spec_of

from seqtrack.errors import UserError
from seqtrack.model.build import build_empty, build_model, initialise
from seqtrack.model.positions import resample_positions, sincos_2d, sinusoid_1d
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import target_sequences

# With layer scale, register tokens, parallel blocks, two class tokens, or a norm before the blocks.
TIMM_NAMES = [
    ("vit_tiny_patch16_224", 16),
    ("deit_tiny_distilled_patch16_224", 16),
    ("vit_small_patch16_18x2_224", 16),
    ("vit_small_patch14_reg4_dinov2", 16),
    ("vit_xsmall_patch16_clip_224", 16),
]


def test_weights_are_a_function_of_the_seed_and_torchs_generator_is_unchanged() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, again, other = build_model(SMALL, seed=1), build_model(SMALL, seed=1), build_model(SMALL, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    differing = set()
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        if not torch.equal(value, other.state_dict()[name]):
            differing.add(name)
    assert "encoder.body.pos_embed" in differing
    assert "decoder.embedding.word_embeddings.weight" in differing


def test_without_a_seed_torchs_generator_is_used() -> None:
    torch.manual_seed(4)
    first = build_model(SMALL)
    torch.manual_seed(4)
    again = build_model(SMALL)
    assert torch.equal(first.encoder.body.pos_embed, again.encoder.body.pos_embed)
    assert not torch.equal(first.encoder.body.pos_embed, build_model(SMALL).encoder.body.pos_embed)


def test_initial_values_are_those_of_the_recipe() -> None:
    model = build_model(dataclasses.replace(SMALL, embed_dim=192, num_heads=4, hidden_dim=64), seed=1)
    state = model.state_dict()
    for name, value in state.items():
        if name.startswith("encoder.body.blocks") and value.dim() == 2:
            assert value.std().item() == pytest.approx(0.02, rel=0.05), name
        if name.startswith("encoder.body.blocks") and name.endswith("bias"):
            assert not value.any(), name
        if "norm" in name.lower() and name.endswith("weight"):
            assert (value == 1).all(), name
        if name.startswith("decoder") and value.dim() > 1:
            bound = (6 / (value.shape[0] + value.shape[1])) ** 0.5
            assert value.abs().max() <= bound, name
            assert value.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name
        if name.endswith(("in_proj_bias", "out_proj.bias")):
            assert not value.any(), name
    assert state["vocab_embed.layers.2.bias"].any()
    assert torch.equal(state["pos_embed"][0], sinusoid_1d(16, 64))


@pytest.mark.parametrize("name", ["vit_custom", *(name for name, _ in TIMM_NAMES if "18x2" not in name)])
def test_every_parameter_is_initialised(name: str) -> None:
    """The model is made with `to_empty`: a parameter that is not initialised would have arbitrary values."""
    sizes = {} if name == "vit_custom" else {"embed_dim": 0, "depth": 0, "num_heads": 0}
    model = build_empty(spec_of(encoder_type=name, **sizes)).to_empty(device="cpu")
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(float("nan"))
    initialise(model)
    assert [name for name, value in model.state_dict().items() if value.isnan().any()] == []


def test_positions_may_start_as_a_2d_sinusoid_for_both_grids() -> None:
    model = build_model(spec_of(pos_init="sincos2d"), seed=1)
    table = model.encoder.body.pos_embed[0]
    assert torch.equal(table[:16], sincos_2d(4, 48))
    assert torch.equal(table[16:], sincos_2d(2, 48))
    # Neighbours in a row share the row's half, neighbours in a column the column's.
    assert torch.equal(table[0, 24:], table[1, 24:])
    assert torch.equal(table[0, :24], table[4, :24])
    assert not torch.equal(table[0, :24], table[1, :24])


def test_resampling_keeps_corners_and_a_table_of_the_same_size() -> None:
    table = torch.randn(1, 14 * 14, 8, generator=torch.Generator().manual_seed(1))
    larger = resample_positions(table, 16)
    for old, new in ((0, 0), (13, 15), (13 * 14, 15 * 16), (195, 255)):
        torch.testing.assert_close(larger[0, new], table[0, old], rtol=1e-5, atol=1e-5)
    assert resample_positions(table, 14) is table
    with pytest.raises(ValueError):
        resample_positions(table[:, :-1], 16)


@pytest.mark.parametrize(("name", "patch"), TIMM_NAMES)
def test_any_plain_vit_of_timm_is_an_encoder(name: str, patch: int) -> None:
    spec = spec_of(encoder_type=name, embed_dim=0, depth=0, num_heads=0, patch_size=patch)
    model = build_model(spec, seed=1)
    inputs, _ = target_sequences(some_boxes(2), spec.bins)
    templates, search = pictures(spec, 2)
    logits = model.eval()(templates, search, inputs)
    assert logits.shape == (2, 5, 52)
    assert logits.isfinite().all()
    assert not any("cls_token" in key or ".head" in key for key in model.state_dict())
    encoder = model.double().encoder  # rounding does not matter
    with torch.no_grad():
        whole = encoder(templates.double(), search.double())
        short = encoder(templates.double(), search.double(), only_search=True)
    torch.testing.assert_close(short, whole[:, : spec.search_tokens], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vit_enormous_patch16", "resnet18", "swin_tiny_patch4_window7_224"])
def test_other_encoders_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError) as caught:
        build_empty(spec_of(encoder_type=name, embed_dim=0, depth=0, num_heads=0))
    assert caught.value.code in ("model.unknown_encoder", "model.not_a_plain_vit") and name in str(caught.value)


@pytest.mark.parametrize("patch", [1, 2, 4, 8, 16, 32])
def test_any_patch_size_that_divides_both_sizes_works(patch: int) -> None:
    assert spec_of(patch_size=patch).search_tokens == (64 // patch) ** 2


def test_the_short_names_are_the_authors_sizes() -> None:
    sizes = {
        "vit_base_patch16": 90_596_002,
        "vit_large_patch16": 308_244_898,
    }
    for name, parameters in sizes.items():
        assert sum(p.numel() for p in build_empty(ModelSpec(encoder_type=name)).parameters()) == parameters
    huge = ModelSpec(encoder_type="vit_huge_patch14", patch_size=14, search_size=224, template_size=224)
    body = build_empty(huge).encoder.body
    assert (body.pos_embed.shape[-1], len(body.blocks), body.blocks[0].attn.num_heads) == (1280, 32, 16)
    assert body.patch_embed.proj.kernel_size == (14, 14)

"""Building a model: initial values, seeds, encoders by name; pretrained weights are loaded or refused."""

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from small_models import SMALL, pictures, some_boxes, spec_of
from torch import Tensor

from seqtrack.errors import UserError
from seqtrack.model.build import TEMPLATE_OFFSET, build_empty, build_model, initialise, sincos_2d, sinusoid_1d
from seqtrack.model.spec import ModelSpec
from seqtrack.model.weights import _from_hub, load_pretrained, pretrained_name, resample_positions
from seqtrack.tokens import target_sequences

TINY_VIT = "vit_tiny_patch16_224"
# With layer scale, register tokens, parallel blocks, two class tokens, or a norm before the blocks.
TIMM_NAMES: dict[str, tuple[Any, ...]] = {
    TINY_VIT: (16,),
    "deit_tiny_distilled_patch16_224": (16, pytest.mark.long),
    "vit_small_patch16_18x2_224": (16, pytest.mark.long),
    "vit_small_patch14_reg4_dinov2": (16,),
    "vit_xsmall_patch16_clip_224": (16,),
}
NO_SIZES = {"embed_dim": 0, "depth": 0, "num_heads": 0}


def test_weights_are_a_function_of_the_seed_and_torchs_generator_is_unchanged() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, again, other = (build_model(SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    for name in ("encoder.body.pos_embed", "decoder.embedding.word_embeddings.weight"):
        assert not torch.equal(first[name], other[name])


def test_initial_values_are_those_of_the_recipe() -> None:
    state = build_model(dataclasses.replace(SMALL, embed_dim=192, num_heads=4, hidden_dim=64), seed=1).state_dict()
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


def test_positions_may_start_as_a_2d_sinusoid_for_both_grids_and_resampling_keeps_corners() -> None:
    table = build_model(spec_of(pos_init="sincos2d"), seed=1).encoder.body.pos_embed[0]
    assert torch.equal(table, torch.cat((sincos_2d(4, 48), sincos_2d(2, 48))))
    offset = build_model(spec_of(pos_init="sincos2d_offset"), seed=1).encoder.body.pos_embed[0]
    assert torch.equal(offset, torch.cat((sincos_2d(4, 48), sincos_2d(2, 48, first=TEMPLATE_OFFSET))))
    # Neighbours in a row share the row's half, neighbours in a column the column's.
    assert torch.equal(table[0, 24:], table[1, 24:]) and torch.equal(table[0, :24], table[4, :24])
    assert not torch.equal(table[0, :24], table[1, :24])
    grid = torch.randn(1, 14 * 14, 8, generator=torch.Generator().manual_seed(1))
    larger = resample_positions(grid, 16)
    for old, new in ((0, 0), (13, 15), (13 * 14, 15 * 16), (195, 255)):
        torch.testing.assert_close(larger[0, new], grid[0, old], rtol=1e-5, atol=1e-5)
    assert resample_positions(grid, 14) is grid


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, (_, *marks) in TIMM_NAMES.items()])
def test_any_plain_vit_of_timm_is_an_encoder(name: str) -> None:
    """Every parameter is initialised, although it is made with `to_empty`; the last block's shortcut is exact."""
    spec = spec_of(encoder_type=name, **NO_SIZES, patch_size=TIMM_NAMES[name][0])
    model = build_empty(spec).to_empty(device="cpu")
    with torch.no_grad():
        for value in model.state_dict().values():
            value.fill_(float("nan"))
    torch.manual_seed(1)
    initialise(model)
    assert [key for key, value in model.state_dict().items() if value.isnan().any()] == []
    assert not any("cls_token" in key or ".head" in key for key in model.state_dict())
    inputs, _ = target_sequences(some_boxes(2), spec.bins)
    images = pictures(spec, 2)
    logits = model.eval()(*images, inputs)
    assert logits.shape == (2, 5, 52) and logits.isfinite().all()
    encoder, images = model.double().encoder, tuple(image.double() for image in images)  # rounding does not matter
    with torch.no_grad():
        whole, short = encoder(*images), encoder(*images, only_search=True)
    torch.testing.assert_close(short, whole[:, : spec.search_tokens], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vit_enormous_patch16", "resnet18", "swin_tiny_patch4_window7_224"])
def test_other_encoders_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=name) as caught:
        build_empty(spec_of(encoder_type=name, **NO_SIZES))
    assert caught.value.code == "model.unknown_encoder"


def _vit(**changes: object) -> ModelSpec:
    return spec_of(encoder_type=TINY_VIT, **NO_SIZES, **changes)


@pytest.fixture(scope="module")
def vit() -> dict[str, Tensor]:
    """timm's state dict of a ViT, with class token and head and random values."""
    torch.manual_seed(5)
    state = timm.create_model(TINY_VIT, pretrained=False).state_dict()
    return {name: torch.randn_like(value) for name, value in state.items()}


def test_a_vit_is_loaded_without_class_token_and_resampled_to_both_grids(
    vit: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(vit, tmp_path / "model.safetensors")
    model, fresh = build_model(_vit(), seed=1), build_model(_vit(), seed=1).state_dict()
    load_pretrained(model, source=tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        own = name.removeprefix("encoder.body.")
        if own != "pos_embed" or not name.startswith("encoder"):
            assert torch.equal(value, vit[own] if name.startswith("encoder") else fresh[name]), name
    table, grid = model.encoder.body.pos_embed.detach(), vit["pos_embed"][:, 1:]
    assert torch.equal(table, torch.cat((resample_positions(grid, 4), resample_positions(grid, 2)), dim=1))
    smaller = build_model(_vit(patch_size=8), seed=1)
    load_pretrained(smaller, source=tmp_path / "model.safetensors")
    assert smaller.encoder.body.patch_embed.proj.weight.shape[-2:] == (8, 8)
    assert torch.equal(smaller.encoder.body.blocks[0].attn.qkv.weight, vit["blocks.0.attn.qkv.weight"])


def test_pretrained_weights_that_do_not_fit_are_refused_and_change_nothing(
    vit: dict[str, Tensor], tmp_path: Path
) -> None:
    state = {**vit, "blocks.0.norm1.weight": torch.ones(7), "something.else": torch.ones(1)}
    del state["blocks.3.mlp.fc1.bias"]
    save_file(state, tmp_path / "bad.safetensors")
    model = build_model(_vit(), seed=1)
    before = model.encoder.body.pos_embed.clone()
    with pytest.raises(UserError) as caught:
        load_pretrained(model, source=tmp_path / "bad.safetensors")
    codes = [problem.code for problem in caught.value.problems]
    assert codes == ["weights.missing", "weights.unexpected", "weights.shape"]
    assert torch.equal(model.encoder.body.pos_embed, before)


def test_the_names_of_published_weights() -> None:
    assert pretrained_name(_vit(pretrain_type="default")).startswith(f"{TINY_VIT}.")  # others: tests/contracts
    tagged = "vit_base_patch16_224.dino"
    assert pretrained_name(ModelSpec(encoder_type=tagged, pretrain_type="default")) == tagged
    for spec in (spec_of(pretrain_type="mae"), _vit(pretrain_type="mae")):
        with pytest.raises(UserError) as caught:
            pretrained_name(spec)
        assert caught.value.code == "weights.not_published"


MAE = pretrained_name(ModelSpec(pretrain_type="mae"))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's client, and a Hub that does not answer."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", "http://127.0.0.1:9")
    assert "127.0.0.1" in template
    names = {"HF_HUB_CACHE": str(tmp_path / "hub"), "ENDPOINT": "http://127.0.0.1:9"}
    for name, value in {**names, "HUGGINGFACE_CO_URL_TEMPLATE": template}.items():
        monkeypatch.setattr(constants, name, value)
    return tmp_path / "hub"


def test_without_network_and_cache_the_error_names_both(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("the client tries again, for 25 s"))
    for offline in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(UserError) as caught:
            _from_hub(MAE)
        assert caught.value.code == "weights.not_available"
        for part in (MAE, str(hub_cache.parent), f"hf download timm/{MAE}", "PRETRAIN_TYPE scratch"):
            assert part in str(caught.value)


def test_a_cached_file_is_used_without_network_unless_it_is_corrupt(hub_cache: Path) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    repo, commit = hub_cache / f"models--timm--{MAE}", "0" * 40
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True)
    (repo / "blobs" / digest).write_bytes(b"weights")
    (repo / "snapshots" / commit / "model.safetensors").symlink_to(repo / "blobs" / digest)
    (repo / "refs" / "main").write_text(commit)
    assert _from_hub(MAE).read_bytes() == b"weights"
    (repo / "blobs" / digest).write_bytes(b"w3ights")
    with pytest.raises(UserError) as caught:
        _from_hub(MAE)
    assert caught.value.code == "file.damaged" and digest in str(caught.value)

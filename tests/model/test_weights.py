"""Pretrained encoder weights are loaded, resampled, refused when they do not fit, and never silently missing."""

import hashlib
import logging
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from small_models import spec_of
from torch import Tensor

from seqtrack.errors import UserError
from seqtrack.model.build import build_model
from seqtrack.model.positions import resample_positions
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.model.weights import _from_hub, load_pretrained, pretrained_name

TINY_VIT = "vit_tiny_patch16_224"


def _spec(**changes: object) -> ModelSpec:
    return spec_of(encoder_type=TINY_VIT, embed_dim=0, depth=0, num_heads=0, **changes)


@pytest.fixture(scope="module")
def vit() -> dict[str, Tensor]:
    """timm's state dict of a ViT, with class token and head and random values."""
    torch.manual_seed(5)
    state = timm.create_model(TINY_VIT, pretrained=False).state_dict()
    return {name: torch.randn_like(value) for name, value in state.items()}


@pytest.fixture
def file(vit: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(vit, path)
    return path


def _load(file: Path, spec: ModelSpec) -> SeqTrack:
    model = build_model(spec, seed=1)
    load_pretrained(model, spec, source=file)
    return model


def test_blocks_are_loaded_unchanged_and_the_decoder_is_not_touched(vit: dict[str, Tensor], file: Path) -> None:
    model = _load(file, _spec())
    fresh = build_model(_spec(), seed=1)
    for name, value in model.state_dict().items():
        own = name.removeprefix("encoder.body.")
        if name.startswith("encoder.body.") and own != "pos_embed":
            assert torch.equal(value, vit[own]), name
        elif not name.startswith("encoder"):
            assert torch.equal(value, fresh.state_dict()[name]), name


def test_positions_lose_the_class_token_and_are_resampled_for_both_grids(vit: dict[str, Tensor], file: Path) -> None:
    table = _load(file, _spec()).encoder.body.pos_embed.detach()
    grid = vit["pos_embed"][:, 1:]
    assert torch.equal(table[:, :16], resample_positions(grid, 4))
    assert torch.equal(table[:, 16:], resample_positions(grid, 2))
    # Aligned corners.
    torch.testing.assert_close(table[0, 0], grid[0, 0])
    torch.testing.assert_close(table[0, 15], grid[0, 195])


def test_patches_of_another_size_are_resampled(vit: dict[str, Tensor], file: Path) -> None:
    model = _load(file.parent, _spec(patch_size=8))  # a folder with the file is accepted as well
    assert model.encoder.body.patch_embed.proj.weight.shape[-2:] == (8, 8)
    assert torch.equal(model.encoder.body.blocks[0].attn.qkv.weight, vit["blocks.0.attn.qkv.weight"])


def test_every_difference_is_reported(vit: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(vit)
    del state["blocks.3.mlp.fc1.bias"]
    state["blocks.0.norm1.weight"] = torch.ones(7)
    state["something.else"] = torch.ones(1)
    save_file(state, tmp_path / "bad.safetensors")
    model = build_model(_spec(), seed=1)
    with pytest.raises(UserError) as caught:
        load_pretrained(model, _spec(), source=tmp_path / "bad.safetensors")
    problems = {problem.code: problem for problem in caught.value.problems}
    assert "blocks.3.mlp.fc1.bias" in problems["weights.missing"]
    assert "something.else" in problems["weights.unexpected"]
    assert "blocks.0.norm1.weight" in problems["weights.shape"] and "[7]" in problems["weights.shape"]
    assert torch.equal(model.encoder.body.pos_embed, build_model(_spec(), seed=1).encoder.body.pos_embed)


@pytest.mark.parametrize(("content", "code"), [(b"", "file.empty"), (b"not safetensors at all", "file.unknown")])
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    bad = tmp_path / "model.safetensors"
    bad.write_bytes(content)
    with pytest.raises(UserError) as caught:
        _load(bad, _spec())
    assert caught.value.code == code
    with pytest.raises(UserError) as caught:
        _load(tmp_path / "nowhere", _spec())
    assert caught.value.code == "file.unreadable"


def test_the_names_of_published_weights() -> None:
    for short in ("vit_base_patch16", "vit_large_patch16"):
        assert pretrained_name(ModelSpec(encoder_type=short, pretrain_type="mae")) == f"{short}_224.mae"
        assert timm.is_model(pretrained_name(ModelSpec(encoder_type=short, pretrain_type="default")))
    assert pretrained_name(_spec(pretrain_type="default")).startswith(f"{TINY_VIT}.")
    tagged = spec_of(encoder_type="vit_base_patch16_224.dino", embed_dim=0, depth=0, num_heads=0)
    assert pretrained_name(ModelSpec(**{**tagged.__dict__, "pretrain_type": "default"})) == "vit_base_patch16_224.dino"


def test_weights_that_are_not_published_are_refused() -> None:
    for spec in (spec_of(pretrain_type="mae"), _spec(pretrain_type="mae")):
        with pytest.raises(UserError) as caught:
            pretrained_name(spec)
        assert caught.value.code == "weights.not_published"


def test_scratch_loads_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(_spec(), seed=1)
    with caplog.at_level(logging.INFO):
        load_pretrained(model, _spec())
    assert not caplog.records


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's client, and a Hub that does not answer."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", "http://127.0.0.1:9")
    assert "127.0.0.1" in template
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    return tmp_path / "hub"


MAE = pretrained_name(ModelSpec(pretrain_type="mae"))


@pytest.mark.parametrize("offline", [False, True])
def test_without_network_and_cache_the_error_names_both(
    hub_cache: Path, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client's retries
    with pytest.raises(UserError) as caught:
        _from_hub(MAE)
    assert caught.value.code == "weights.not_available"
    for part in (MAE, str(hub_cache.parent), f"hf download timm/{MAE}", "PRETRAIN_TYPE scratch"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("content", "valid"), [(b"weights", True), (b"w3ights", False)])
def test_a_cached_file_is_used_without_network_unless_it_is_corrupt(
    hub_cache: Path, content: bytes, valid: bool
) -> None:
    digest = hashlib.sha256(b"weights").hexdigest()
    repo, commit = hub_cache / f"models--timm--{MAE}", "0" * 40
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repo / folder).mkdir(parents=True)
    (repo / "blobs" / digest).write_bytes(content)
    (repo / "snapshots" / commit / "model.safetensors").symlink_to(repo / "blobs" / digest)
    (repo / "refs" / "main").write_text(commit)
    if valid:
        assert _from_hub(MAE).read_bytes() == content
    else:
        with pytest.raises(UserError) as caught:
            _from_hub(MAE)
        assert caught.value.code == "file.damaged" and digest in str(caught.value)

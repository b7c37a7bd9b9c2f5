"""Pretrained encoders: read through the real path, resampled, refused when they do not fit, never silently missing."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from small_models import spec_of
from torch import Tensor

from seqtrack.errors import UserError
from seqtrack.model.build import build_model
from seqtrack.model.positions import resample_positions
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.model.weights import load_pretrained, pretrained_name

TINY_VIT = "vit_tiny_patch16_224"


def _spec(**changes: object) -> ModelSpec:
    return spec_of(encoder_type=TINY_VIT, embed_dim=0, depth=0, num_heads=0, **changes)


@pytest.fixture(scope="module")
def vit() -> dict[str, Tensor]:
    """timm's own state dict of a ViT, class token and head included, with values that differ everywhere."""
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


def test_blocks_are_taken_as_they_are_and_the_decoder_is_left_alone(vit: dict[str, Tensor], file: Path) -> None:
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
    # The corners of the old grid and of the new lie on each other.
    torch.testing.assert_close(table[0, 0], grid[0, 0])
    torch.testing.assert_close(table[0, 15], grid[0, 195])


def test_a_folder_with_the_file_is_taken_as_well(file: Path) -> None:
    one, other = _load(file, _spec()), _load(file.parent, _spec())
    assert torch.equal(one.encoder.body.pos_embed, other.encoder.body.pos_embed)


def test_patches_of_another_size_are_resampled(vit: dict[str, Tensor], file: Path) -> None:
    model = _load(file, _spec(patch_size=8))
    assert model.encoder.body.patch_embed.proj.weight.shape[-2:] == (8, 8)
    assert torch.equal(model.encoder.body.blocks[0].attn.qkv.weight, vit["blocks.0.attn.qkv.weight"])


def test_what_does_not_fit_is_listed_whole(vit: dict[str, Tensor], tmp_path: Path) -> None:
    state = dict(vit)
    del state["blocks.3.mlp.fc1.bias"]
    state["blocks.0.norm1.weight"] = torch.ones(7)
    state["something.else"] = torch.ones(1)
    save_file(state, tmp_path / "bad.safetensors")
    before = build_model(_spec(), seed=1)
    with pytest.raises(UserError) as caught:
        load_pretrained(before, _spec(), source=tmp_path / "bad.safetensors")
    text = str(caught.value)
    assert "1 missing: blocks.3.mlp.fc1.bias" in text
    assert "1 unexpected: something.else" in text
    assert "blocks.0.norm1.weight has shape [7], expected [192]" in text
    assert torch.equal(before.encoder.body.pos_embed, build_model(_spec(), seed=1).encoder.body.pos_embed)


@pytest.mark.parametrize(("content", "code"), [(b"", "file.empty"), (b"not safetensors at all", "file.unknown")])
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: bytes, code: str) -> None:
    bad = tmp_path / "model.safetensors"
    bad.write_bytes(content)
    with pytest.raises(UserError) as caught:
        _load(bad, _spec())
    assert caught.value.code == code
    with pytest.raises(UserError, match="no such file"):
        _load(tmp_path / "nowhere", _spec())


def test_the_names_of_published_weights() -> None:
    for short in ("vit_base_patch16", "vit_large_patch16"):
        assert pretrained_name(ModelSpec(encoder_type=short, pretrain_type="mae")) == f"{short}_224.mae"
        assert timm.is_model(pretrained_name(ModelSpec(encoder_type=short, pretrain_type="default")))
    assert pretrained_name(_spec(pretrain_type="default")).startswith(f"{TINY_VIT}.")
    tagged = spec_of(encoder_type="vit_base_patch16_224.dino", embed_dim=0, depth=0, num_heads=0)
    assert pretrained_name(ModelSpec(**{**tagged.__dict__, "pretrain_type": "default"})) == "vit_base_patch16_224.dino"


def test_weights_that_nobody_published_are_refused_not_replaced() -> None:
    with pytest.raises(UserError, match="scratch"):
        pretrained_name(spec_of(pretrain_type="mae"))
    with pytest.raises(UserError, match=r"no such weights for vit_tiny_patch16_224.*augreg"):
        pretrained_name(_spec(pretrain_type="mae"))


def test_scratch_loads_nothing(caplog: pytest.LogCaptureFixture) -> None:
    model = build_model(_spec(), seed=1)
    with caplog.at_level(logging.INFO):
        load_pretrained(model, _spec())
    assert not caplog.records


ASK = """
import sys
from seqtrack.errors import UserError
from seqtrack.model.spec import ModelSpec
from seqtrack.model.weights import _from_hub, pretrained_name
try:
    print("FILE", _from_hub(pretrained_name(ModelSpec(pretrain_type="mae"))))
except UserError as error:
    print("ERROR", error)
"""


def _ask(home: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env={**os.environ, "HF_HOME": str(home), **environment},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.parametrize("how", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_network_and_cache_the_error_says_what_to_do(tmp_path: Path, how: dict[str, str]) -> None:
    said = _ask(tmp_path, **how)
    for part in ("ERROR", "vit_base_patch16_224.mae", str(tmp_path), "hf download timm/vit_base_patch16_224.mae",
                 "PRETRAIN_TYPE scratch"):  # fmt: skip
        assert part in said


def _fill_cache(home: Path, content: bytes, digest: str) -> None:
    """The layout in which the Hub's client keeps a file."""
    repo = home / "hub" / "models--timm--vit_base_patch16_224.mae"
    commit = "0" * 40
    (repo / "blobs").mkdir(parents=True)
    (repo / "blobs" / digest).write_bytes(content)
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "model.safetensors").symlink_to(repo / "blobs" / digest)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)


def test_a_cached_file_is_used_without_network_unless_it_is_damaged(tmp_path: Path) -> None:
    import hashlib

    content = b"weights"
    digest = hashlib.sha256(content).hexdigest()
    _fill_cache(tmp_path / "good", content, digest)
    _fill_cache(tmp_path / "bad", b"w3ights", digest)
    assert "FILE" in _ask(tmp_path / "good", HF_ENDPOINT="http://127.0.0.1:9")
    said = _ask(tmp_path / "bad", HF_ENDPOINT="http://127.0.0.1:9")
    assert "ERROR" in said
    assert "damaged" in said

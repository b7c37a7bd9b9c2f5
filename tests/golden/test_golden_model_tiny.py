"""Small models in every variant against the authors' classes: complete outputs, every entry of every gradient."""

from dataclasses import dataclass
from pathlib import Path

import model_sets as sets
import numpy as np
import pytest
import torch

from seqtrack.boxes import xywh_to_xyxy
from seqtrack.model.build import build_empty, build_model
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import hann_window, target_sequences_from_corners

# Ten times the B256 floor would be 7e-6; a small model has fewer terms to average over.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def spec_of(variant: str) -> tuple[ModelSpec, str, str, int]:
    """The spec of a variant, the rule and prefix of its recipe, and the batch."""
    facts = sets.read_json("tiny.json") or {**sets.TINY, "variants": {}}
    own = facts["variants"].get(variant)
    if own is None:
        if variant not in sets.TINY_VARIANTS:
            pytest.skip(f"unknown variant {variant}")
        own = {**sets.TINY_PLAIN, **sets.TINY_VARIANTS[variant]}
    spec = ModelSpec(
        encoder_type="vit_custom",
        embed_dim=facts["embed_dim"],
        depth=facts["depth"],
        num_heads=facts["heads"],
        search_size=facts["search"],
        template_size=facts["template"],
        num_templates=own["num_template"],
        hidden_dim=own["hidden"],
        bins=facts["bins"],
        feature_type=own["feature_type"],
        decoder_layers=own["dec_layers"],
        decoder_heads=facts["dec_heads"],
        decoder_feedforward=facts["dec_ff"],
        pre_norm=own["pre_norm"],
    )
    return spec, facts["fill_rule"], facts["input_prefix"], facts["batch"]


@dataclass
class Tiny:
    theirs: sets.Arrays
    model: SeqTrack
    templates: torch.Tensor
    search: torch.Tensor


@pytest.fixture(scope="module", params=sets.find("tiny_*.npz"))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """A variant with its weights and inputs."""
    path: Path = request.param
    spec, rule, prefix, batch = spec_of(path.stem.removeprefix("tiny_"))
    model = sets.fill(build_empty(spec), rule)
    templates, search = sets.images(prefix, spec.template_size, spec.search_size, batch, spec.num_templates)
    return Tiny(sets.read(path), model, templates, search)


def test_golden_tiny_encoder(tiny: Tiny) -> None:
    """All tokens, and the search tokens with the shortened last block."""
    with torch.no_grad():
        whole = tiny.model.encoder(tiny.templates, tiny.search)
        short = tiny.model.encoder(tiny.templates, tiny.search, only_search=True)
    np.testing.assert_allclose(whole.cpu().numpy(), tiny.theirs["enc"], **CLOSE)
    np.testing.assert_allclose(short.cpu().numpy(), tiny.theirs["enc"][:, : short.shape[1]], **CLOSE)
    assert short.shape[1] == tiny.model.spec.search_tokens


def test_golden_tiny_logits_loss_and_gradients(tiny: Tiny) -> None:
    """Teacher forcing, and the gradient of every parameter, entry by entry."""
    model, spec = tiny.model, tiny.model.spec
    anno = torch.from_numpy(tiny.theirs["anno"][0]).to(sets.DEVICE)
    inputs, targets = target_sequences_from_corners(xywh_to_xyxy(anno), spec.bins, spec.seq_format)
    assert targets.flatten().tolist() == tiny.theirs["target"].tolist()
    logits = model(tiny.templates, tiny.search, inputs)
    np.testing.assert_allclose(logits.detach().cpu().numpy(), tiny.theirs["logits"], **CLOSE)
    losses = sequence_loss(logits, targets, spec.bins)
    assert losses.shape == (len(anno),)
    assert losses.mean().item() == pytest.approx(float(tiny.theirs["loss"]), rel=1e-6)
    iou = teacher_forced_iou(logits, targets, spec.bins, spec.seq_format).mean().item()
    assert iou == pytest.approx(float(tiny.theirs["iou"]), abs=1e-6)
    losses.mean().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {key.removeprefix("grad/") for key in tiny.theirs if key.startswith("grad/")}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        # If only one memory token is attended to, its position's gradient is zero except for rounding.
        theirs = tiny.theirs[f"grad/{name}"]
        scale = float(np.abs(theirs).max())
        np.testing.assert_allclose(
            parameter.grad.cpu().numpy(), theirs, rtol=1e-4, atol=1e-5 * scale + 1e-7, err_msg=name
        )
        norm = np.linalg.norm(theirs.astype(np.float64))
        assert parameter.grad.double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("mode", ["win", "nowin"])
def test_golden_tiny_generated_tokens(tiny: Tiny, mode: str) -> None:
    """Tokens and confidences of a batch, with and without the window."""
    with torch.no_grad():
        memory = tiny.model.encode(tiny.templates, tiny.search)
    out = tiny.model.generate(memory, hann_window(tiny.model.spec.bins) if mode == "win" else None)
    assert out.tokens.tolist() == tiny.theirs[f"tokens_{mode}"].tolist()
    np.testing.assert_allclose(out.confidences.cpu().numpy(), tiny.theirs[f"conf_{mode}"], rtol=1e-4, atol=1e-7)


def test_golden_tiny_initial_memory_positions(tiny: Tiny) -> None:
    """A fresh model starts from the authors' sinusoid."""
    fresh = build_model(tiny.model.spec, seed=0)
    np.testing.assert_allclose(
        fresh.pos_embed.detach().cpu().numpy(), tiny.theirs["initial_pos_embed"], rtol=0, atol=1e-7
    )


def test_golden_tiny_names_and_shapes(tiny: Tiny, request: pytest.FixtureRequest) -> None:
    """The state dict of the variant, if tiny.json lists it."""
    facts = sets.read_json("tiny.json")
    name = request.node.callspec.id.removeprefix("tiny_")
    if facts is None or "keys" not in facts["variants"].get(name, {}):
        pytest.skip("no tiny.json lists this variant's names")
    assert {k: [*v.shape] for k, v in tiny.model.state_dict().items()} == facts["variants"][name]["keys"]

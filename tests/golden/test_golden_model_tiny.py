"""Small models in every variant against the authors' classes: complete outputs, every entry of every gradient."""

from pathlib import Path

import model_sets as sets
import numpy as np
import pytest
import torch

from seqtrack.boxes import xywh_to_cxcywh
from seqtrack.model.build import build_empty, build_model
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import hann_window, target_sequences

# Ten times the B256 floor would be 7e-6; a small model has fewer terms to average over.
CLOSE = {"rtol": 1e-5, "atol": 2e-5}


def spec_of(variant: str) -> tuple[ModelSpec, str, str, int]:
    """The spec of a variant, the rule and prefix of its recipe, and the batch."""
    facts = sets.read_json("tiny.json")
    if facts is None or variant not in facts["variants"]:
        pytest.skip(f"no tiny.json describes the variant {variant}")
    own = facts["variants"][variant]
    spec = ModelSpec(
        "vit_custom", embed_dim=facts["embed_dim"], depth=facts["depth"], num_heads=facts["heads"],
        search_size=facts["search"], template_size=facts["template"], num_templates=own["num_template"],
        hidden_dim=own["hidden"], bins=facts["bins"], feature_type=own["feature_type"], pre_norm=own["pre_norm"],
        decoder_layers=own["dec_layers"], decoder_heads=facts["dec_heads"], decoder_feedforward=facts["dec_ff"],
    )  # fmt: skip
    return spec, facts["fill_rule"], facts["input_prefix"], facts["batch"]


@pytest.mark.parametrize("path", sets.find("tiny_*.npz"))
def test_golden_tiny_model(path: Path) -> None:
    """Encoder (whole, and with the shortened last block), teacher forcing, gradients, generation, initial values."""
    spec, rule, prefix, batch = spec_of(path.stem.removeprefix("tiny_"))
    theirs, model = sets.read(path), sets.fill(build_empty(spec), rule)
    templates, search = sets.images(prefix, spec.template_size, spec.search_size, batch, spec.num_templates)
    with torch.no_grad():
        whole = model.encoder(templates, search)
        short = model.encoder(templates, search, only_search=True)
        memory = model.encode(templates, search)
    np.testing.assert_allclose(whole.cpu().numpy(), theirs["enc"], **CLOSE)
    assert short.shape[1] == spec.search_tokens
    np.testing.assert_allclose(short.cpu().numpy(), theirs["enc"][:, : short.shape[1]], **CLOSE)
    for mode, window in (("win", hann_window(spec.bins)), ("nowin", None)):
        out = model.generate(memory, window)
        assert out.tokens.tolist() == theirs[f"tokens_{mode}"].tolist()
        np.testing.assert_allclose(out.confidences.cpu().numpy(), theirs[f"conf_{mode}"], rtol=1e-4, atol=1e-7)

    anno = torch.from_numpy(theirs["anno"][0]).to(sets.DEVICE)
    inputs, targets = target_sequences(xywh_to_cxcywh(anno), spec.bins, spec.seq_format)
    assert targets.flatten().tolist() == theirs["target"].tolist()
    logits = model(templates, search, inputs)
    np.testing.assert_allclose(logits.detach().cpu().numpy(), theirs["logits"], **CLOSE)
    losses = sequence_loss(logits, targets, spec.bins)
    assert losses.shape == (len(anno),)
    assert losses.mean().item() == pytest.approx(float(theirs["loss"]), rel=1e-6)
    iou = teacher_forced_iou(logits, targets, spec.bins, spec.seq_format).mean().item()
    assert iou == pytest.approx(float(theirs["iou"]), abs=1e-6)

    losses.mean().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert set(gradients) == {key.removeprefix("grad/") for key in theirs if key.startswith("grad/")}
    for name, gradient in gradients.items():
        # If only one memory token is attended to, its position's gradient is zero except for rounding.
        expected = theirs[f"grad/{name}"]
        limit = 1e-5 * float(np.abs(expected).max()) + 1e-7
        np.testing.assert_allclose(gradient.cpu().numpy(), expected, rtol=1e-4, atol=limit, err_msg=name)
        norm = np.linalg.norm(expected.astype(np.float64))
        assert gradient.double().norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-6), name

    fresh = build_model(spec, seed=0).pos_embed.detach().numpy()
    np.testing.assert_allclose(fresh, theirs["initial_pos_embed"], rtol=0, atol=1e-7)
    names = sets.read_json("tiny.json")["variants"][path.stem.removeprefix("tiny_")].get("keys")
    assert names is None or {k: [*v.shape] for k, v in model.state_dict().items()} == names

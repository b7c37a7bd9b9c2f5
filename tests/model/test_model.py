"""The model in every variant: shapes, gradients, generation, causality, other dtypes. Its numbers are golden tests."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL, VARIANTS, lively, pictures, some_boxes, spec_of
from torch import Tensor

from seqtrack.model import encoder
from seqtrack.model.build import build_empty, build_model
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tokens import hann_window, target_sequences


@pytest.fixture(params=sorted(VARIANTS))
def variant(request: pytest.FixtureRequest) -> SeqTrack:
    """In eval, with weights that make the output depend on the input."""
    return lively(build_model(spec_of(**VARIANTS[request.param]), seed=1)).eval()


def _inputs(model: SeqTrack, batch: int) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """Images, input tokens and target tokens."""
    return pictures(model.spec, batch), *target_sequences(some_boxes(batch), model.spec.bins, model.spec.seq_format)


def test_shapes_and_gradients(variant: SeqTrack) -> None:
    """Every trained parameter takes a gradient and no other does."""
    spec = variant.spec
    images, inputs, targets = _inputs(variant, 3)
    memory, logits = variant.encode(*images), variant(*images, inputs)
    assert memory.shape == (3, spec.memory_tokens, spec.hidden_dim)
    assert logits.shape == (3, 5, spec.bins + 2)
    torch.testing.assert_close(logits, variant.decode(memory, inputs))
    encoded = variant.encoder(*images)
    assert encoded.shape[:2] == (3, spec.encoder_tokens)
    attended = {"x": encoded[:, : spec.search_tokens], "xz": encoded, "token": encoded.mean(1, keepdim=True)}
    expected = attended[spec.feature_type]
    expected = variant.bottleneck(expected) if spec.hidden_dim != spec.embed_dim else expected
    torch.testing.assert_close(memory, expected, rtol=1e-4, atol=1e-5)  # by the last block's shortcut for "x"
    sequence_loss(logits, targets, spec.bins).mean().backward()
    for name, parameter in variant.named_parameters():
        unused = spec.hidden_dim == spec.embed_dim and name.startswith("bottleneck")
        assert (parameter.grad is None) == unused, name
        assert parameter.requires_grad != unused, name


@torch.no_grad()
def test_attention_is_causal_and_a_batch_gives_the_tokens_of_its_single_samples(variant: SeqTrack) -> None:
    templates, search = pictures(variant.spec, 8)
    memory = variant.encode(templates, search)
    tokens = torch.tensor([[51, 3, 14, 15, 9]] * 8)
    changed = tokens.clone()
    changed[:, 3] = 40
    before, after = variant.decode(memory, tokens), variant.decode(memory, changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])
    together = variant.generate(memory).tokens
    alone = [variant.generate(variant.encode(t[None], s[None])).tokens for t, s in zip(templates, search, strict=True)]
    assert together.tolist() == torch.cat(alone).tolist()
    assert len({tuple(row) for row in together.tolist()}) > 1, "else the test would see nothing"


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-4), (torch.bfloat16, 0.2)])
def test_other_dtypes_run_and_agree(variant: SeqTrack, dtype: torch.dtype, allowed: float) -> None:
    images, inputs, _ = _inputs(variant, 2)
    single = variant(*images, inputs)
    other, images = variant.to(dtype), tuple(image.to(dtype) for image in images)
    found = other(*images, inputs)
    assert found.dtype == dtype
    assert (found.double() - single).norm() < allowed * single.norm()
    out = other.generate(other.encode(*images), hann_window(50))
    assert (out.confidences.dtype, out.tokens.shape) == (torch.float64, (2, 4))


def test_the_window_changes_the_choice_and_its_ends_never_win() -> None:
    model = lively(build_model(SMALL, seed=1)).eval()
    with torch.no_grad():
        memory = model.encode(*pictures(SMALL, 8))
    first = torch.zeros(50, dtype=torch.float64)
    first[7] = 1
    forced = model.generate(memory, first).tokens
    assert (forced[:, :2] == 7).all()
    assert not (forced[:, 2:] == 7).all()
    centres = model.generate(memory, hann_window(50)).tokens[:, :2]
    assert centres.clamp(1, 48).equal(centres)


@pytest.mark.parametrize("rates", [{}, {"dropout": 0.1, "drop_path": 0.3}])
def test_recomputed_activations_give_the_same_gradients_and_dropout(
    rates: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of the random generator is kept only where the encoder is random."""
    kept = []
    recompute = encoder.checkpoint

    def watching(*arguments: object, preserve_rng_state: bool, **options: object) -> object:
        kept.append(preserve_rng_state)
        return recompute(*arguments, preserve_rng_state=preserve_rng_state, **options)

    monkeypatch.setattr(encoder, "checkpoint", watching)
    gradients = []
    for use_checkpoint in (False, True):
        model = lively(build_model(spec_of(**rates, use_checkpoint=use_checkpoint), seed=1)).train()
        images, inputs, targets = _inputs(model, 2)
        torch.manual_seed(11)
        sequence_loss(model(*images, inputs), targets, 50).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert kept == [bool(rates)] * SMALL.depth
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_images_of_another_size_are_refused_with_both_sizes() -> None:
    model = build_model(SMALL, seed=1)
    templates, search = pictures(SMALL, 1)
    for side in (48, 60):
        with pytest.raises(ValueError, match=f"{side} x {side} px.* 16 px"):
            model.encode(templates, search[..., :side, :side])


@torch.no_grad()
def test_templates_share_their_positions() -> None:
    model = lively(build_model(SMALL, seed=1)).eval()
    templates, search = pictures(SMALL, 1)
    encoded, swapped = model.encoder(templates, search), model.encoder(templates.flip(1), search)
    order = [*range(16), *range(20, 24), *range(16, 20)]
    torch.testing.assert_close(encoded, swapped[:, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(encoded[:, 16:20], encoded[:, 20:24], atol=1e-2)


@pytest.mark.parametrize("seq_format", ["xywh", "whxy", "corner"])
def test_perfect_tokens_have_iou_one_and_distant_tokens_zero(seq_format: str) -> None:
    _, targets = target_sequences(torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.4, 0.4, 0.3]]), 50, seq_format)
    _, elsewhere = target_sequences(torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.05, 0.05, 0.1, 0.1]]), 50, seq_format)
    for tokens, iou in ((targets, 1.0), (elsewhere, 0.0)):
        found = teacher_forced_iou(F.one_hot(tokens, 52).float(), targets, 50, seq_format)
        assert found.tolist() == pytest.approx([iou, iou])


def test_a_fresh_model_starts_at_the_loss_of_guessing() -> None:
    model = build_model(SMALL, seed=3).eval()
    images, inputs, targets = _inputs(model, 8)
    assert sequence_loss(model(*images, inputs), targets, 50).mean().item() == pytest.approx(math.log(52), rel=0.1)
    assert list(build_empty(SMALL).state_dict()) == list(model.state_dict())

"""The model in every variant: shapes, generation with and without a cache, causality, other dtypes."""

import dataclasses

import pytest
import torch
from small_models import SMALL, lively, pictures, some_boxes, spec_of

from seqtrack.model.build import build_empty, build_model
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.model.seqtrack import Generated, SeqTrack
from seqtrack.tokens import centre_positions, hann_window, start_token, target_sequences


def _uncached(model: SeqTrack, memory: torch.Tensor, window: torch.Tensor | None) -> Generated:
    """Generation without a cache: the whole prefix through the decoder for every token."""
    bins = model.spec.bins
    tokens = torch.full((memory.shape[0], 1), start_token(bins))
    confidences = []
    for position in range(4):
        scores = model.decode(memory, tokens)[:, -1].softmax(-1)[:, :bins]
        if window is not None and position in centre_positions(model.spec.seq_format):
            scores = scores * window
        best, token = scores.max(-1, keepdim=True)
        confidences.append(best.double())
        tokens = torch.cat((tokens, token), dim=1)
    return Generated(tokens[:, 1:], torch.cat(confidences, dim=1))


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("windowed", [False, True])
@torch.no_grad()
def test_generation_with_a_cache_gives_the_same_tokens(variant: SeqTrack, batch: int, windowed: bool) -> None:
    memory = variant.encode(*pictures(variant.spec, batch))
    window = hann_window(variant.spec.bins) if windowed else None
    kept, plain = variant.generate(memory, window), _uncached(variant, memory, window)
    assert kept.tokens.tolist() == plain.tokens.tolist()
    if batch > 1:
        assert len({tuple(row) for row in kept.tokens.tolist()}) > 1  # else the test would see nothing
    # Products over four tokens at once and over one round differently; in float64 the difference is negligible.
    memory, wide = memory.double(), variant.double()
    kept, plain = wide.generate(memory, window), _uncached(wide, memory, window)
    torch.testing.assert_close(kept.confidences, plain.confidences, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_a_batch_gives_the_tokens_of_its_single_samples(variant: SeqTrack) -> None:
    templates, search = pictures(variant.spec, 8)
    together = variant.generate(variant.encode(templates, search)).tokens
    alone = [variant.generate(variant.encode(t[None], s[None])).tokens for t, s in zip(templates, search, strict=True)]
    assert together.tolist() == torch.cat(alone).tolist()


@torch.no_grad()
def test_attention_is_causal(variant: SeqTrack) -> None:
    memory = variant.encode(*pictures(variant.spec, 2))
    tokens = torch.tensor([[51, 3, 14, 15, 9], [51, 2, 6, 5, 35]])
    changed = tokens.clone()
    changed[:, 3] = 40
    before, after = variant.decode(memory, tokens), variant.decode(memory, changed)
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_memory_and_logits_have_the_documented_shapes(variant: SeqTrack) -> None:
    spec = variant.spec
    templates, search = pictures(spec, 3)
    memory = variant.encode(templates, search)
    assert memory.shape == (3, spec.memory_tokens, spec.hidden_dim)
    inputs, _ = target_sequences(some_boxes(3), spec.bins, spec.seq_format)
    logits = variant(templates, search, inputs)
    assert logits.shape == (3, 5, spec.bins + 2)
    torch.testing.assert_close(logits, variant.decode(memory, inputs))


def test_every_trained_parameter_takes_a_gradient_and_no_other_does(variant: SeqTrack) -> None:
    spec = variant.spec
    inputs, targets = target_sequences(some_boxes(3), spec.bins, spec.seq_format)
    sequence_loss(variant(*pictures(spec, 3), inputs), targets, spec.bins).mean().backward()
    for name, parameter in variant.named_parameters():
        unused = spec.hidden_dim == spec.embed_dim and name.startswith("bottleneck")
        assert (parameter.grad is None) == unused, name
        assert parameter.requires_grad != unused, name


@torch.no_grad()
def test_search_tokens_alone_are_the_first_of_all_tokens(variant: SeqTrack) -> None:
    """The last block's shortcut changes no number."""
    templates, search = (images.double() for images in pictures(variant.spec, 2))  # rounds alike on every CPU
    encoder = variant.double().encoder
    whole = encoder(templates, search)
    short = encoder(templates, search, only_search=True)
    assert short.shape[1] == variant.spec.search_tokens < whole.shape[1]
    torch.testing.assert_close(short, whole[:, : short.shape[1]], rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_float64_runs_and_agrees(variant: SeqTrack) -> None:
    templates, search = pictures(variant.spec, 2)
    inputs, _ = target_sequences(some_boxes(2), variant.spec.bins, variant.spec.seq_format)
    single = variant(templates, search, inputs)
    wide = variant.double()
    double = wide(templates.double(), search.double(), inputs)
    assert double.dtype == torch.float64
    assert (single - double).norm() < 1e-4 * double.norm()
    assert wide.generate(wide.encode(templates.double(), search.double()), hann_window(50)).tokens.shape == (2, 4)


@torch.no_grad()
def test_pure_bf16_runs_and_is_near(variant: SeqTrack) -> None:
    templates, search = pictures(variant.spec, 2)
    inputs, _ = target_sequences(some_boxes(2), variant.spec.bins, variant.spec.seq_format)
    single = variant(templates, search, inputs)
    half = variant.to(torch.bfloat16)
    rough = half(templates.bfloat16(), search.bfloat16(), inputs)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - single).norm() < 0.2 * single.norm()
    out = half.generate(half.encode(templates.bfloat16(), search.bfloat16()), hann_window(50))
    assert out.confidences.dtype == torch.float64


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


def test_recomputed_activations_give_the_same_gradients_and_dropout() -> None:
    spec = spec_of(dropout=0.1, drop_path=0.3)
    grads = []
    for recompute in (False, True):
        model = lively(build_model(dataclasses.replace(spec, use_checkpoint=recompute), seed=1)).train()
        torch.manual_seed(11)
        inputs, targets = target_sequences(torch.tensor([[0.4, 0.5, 0.2, 0.3], [0.3, 0.6, 0.1, 0.4]]), spec.bins)
        sequence_loss(model(*pictures(spec, 2), inputs), targets, spec.bins).mean().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in grads[0].items():
        assert torch.equal(gradient, grads[1][name]), name


def test_images_of_another_size_are_refused_with_both_sizes() -> None:
    model = build_model(SMALL, seed=1)
    templates, search = pictures(SMALL, 1)
    with pytest.raises(ValueError, match=r"\b9\b"):
        model.encode(templates, search[..., :48, :48])
    with pytest.raises(ValueError, match="16 px"):
        model.encode(templates, search[..., :60, :60])


def test_the_loss_of_a_sample_does_not_depend_on_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(4, 5, 52, generator=generator)
    _, targets = target_sequences(torch.rand(4, 4, generator=generator) * 0.5, 50)
    together = sequence_loss(logits, targets, 50)
    alone = torch.cat([sequence_loss(logits[i : i + 1], targets[i : i + 1], 50) for i in range(4)])
    torch.testing.assert_close(together, alone)
    weights = torch.ones(52)
    weights[50:] = 0.01
    whole = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), weight=weights)
    torch.testing.assert_close(together.mean(), whole)


@pytest.mark.parametrize("seq_format", ["xywh", "whxy", "corner"])
def test_perfect_tokens_have_iou_one_and_distant_tokens_zero(seq_format: str) -> None:
    _, targets = target_sequences(torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.4, 0.4, 0.3]]), 50, seq_format)
    right = torch.nn.functional.one_hot(targets, 52).float()
    assert teacher_forced_iou(right, targets, 50, seq_format).tolist() == pytest.approx([1.0, 1.0])
    _, elsewhere = target_sequences(torch.tensor([[0.9, 0.9, 0.1, 0.1], [0.05, 0.05, 0.1, 0.1]]), 50, seq_format)
    wrong = torch.nn.functional.one_hot(elsewhere, 52).float()
    assert teacher_forced_iou(wrong, targets, 50, seq_format).tolist() == [0.0, 0.0]


def test_a_fresh_model_starts_at_the_loss_of_guessing() -> None:
    """ln(vocabulary); the state dict of the meta model has the same names."""
    model = build_model(SMALL, seed=3).eval()
    inputs, targets = target_sequences(some_boxes(8), 50)
    loss = sequence_loss(model(*pictures(SMALL, 8), inputs), targets, 50).mean().item()
    assert loss == pytest.approx(torch.tensor(52.0).log().item(), rel=0.1)
    assert list(build_empty(SMALL).state_dict()) == list(model.state_dict())

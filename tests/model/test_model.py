"""The model in every variant: causality, batches, other dtypes, recomputation. Its numbers are golden tests."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL, VARIANTS, lively, pictures, some_boxes, spec_of
from torch import Tensor

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


@pytest.mark.parametrize("rates", [{}, {"dropout": 0.1, "drop_path": 0.3}])
def test_recomputed_activations_give_the_same_gradients_and_dropout(rates: dict[str, float]) -> None:
    gradients = []
    for use_checkpoint in (False, True):
        model = lively(build_model(spec_of(**rates, use_checkpoint=use_checkpoint), seed=1)).train()
        images, inputs, targets = _inputs(model, 2)
        torch.manual_seed(11)
        sequence_loss(model(*images, inputs), targets, 50).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


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

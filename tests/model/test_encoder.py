"""Activation checkpointing and explicit attention for bf16 on a CPU give the same numbers."""

import dataclasses
from typing import Any

import pytest
import torch
from small_models import SMALL, lively, pictures

from seqtrack.model import encoder
from seqtrack.model.build import build_model


def _gradients(
    *, explicit: bool = False, precision: torch.dtype | None = None, **changes: Any
) -> dict[str, torch.Tensor]:
    body = lively(build_model(dataclasses.replace(SMALL, **changes), seed=1)).train().encoder.body
    body.explicit_attention = explicit
    torch.manual_seed(11)
    with torch.autocast("cpu", dtype=precision, enabled=precision is not None):
        out = body(*pictures(SMALL, 2), only_search=True)
    out.float().square().mean().backward()
    return {name: p.grad.clone() for name, p in body.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("drop_path", "kept"), [(0.0, False), (0.3, True)])
def test_the_rng_state_is_saved_for_recomputation_only_where_something_is_random(
    drop_path: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = _gradients(drop_path=drop_path)
    asked = []
    recompute = encoder.checkpoint

    def watching(*args: Any, preserve_rng_state: bool, **options: Any) -> Any:
        asked.append(preserve_rng_state)
        return recompute(*args, preserve_rng_state=preserve_rng_state, **options)

    monkeypatch.setattr(encoder, "checkpoint", watching)
    again = _gradients(drop_path=drop_path, use_checkpoint=True)
    assert any(asked) == kept
    assert all(torch.equal(plain[name], again[name]) for name in plain) and set(plain) == set(again)


def test_an_unknown_block_is_assumed_to_be_random() -> None:
    assert encoder._is_random(torch.nn.Linear(2, 2))


def test_explicit_attention_is_the_same_attention() -> None:
    fused, explicit = _gradients(), _gradients(explicit=True)
    for name, gradient in fused.items():
        torch.testing.assert_close(explicit[name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    assert not all(torch.equal(fused[name], explicit[name]) for name in fused), "computed differently"


def test_explicit_attention_in_bf16_is_as_close_to_float32_as_fused() -> None:
    exact = _gradients()
    off = [
        {name: float((own[name] - exact[name]).norm() / exact[name].norm()) for name in exact}
        for own in (_gradients(precision=torch.bfloat16, explicit=explicit) for explicit in (False, True))
    ]
    assert max(off[1].values()) < 2 * max(off[0].values())


@torch.no_grad()
def test_tracking_uses_fused_attention() -> None:
    body = lively(build_model(SMALL, seed=1)).eval().encoder.body
    plain = body(*pictures(SMALL, 2))
    body.explicit_attention = True
    assert torch.equal(body(*pictures(SMALL, 2)), plain)

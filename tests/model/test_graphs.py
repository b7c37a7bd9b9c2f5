"""The graphs for export compute what the model computes, for every variant of it."""

import pytest
import torch
from small_models import VARIANTS, lively, pictures, spec_of

from seqtrack.model.build import build_model
from seqtrack.model.graphs import DecoderStepGraph, EncoderGraph
from seqtrack.tokens import start_token


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_steps_with_a_cache_give_the_logits_of_the_whole_decoder(name: str) -> None:
    spec = spec_of(**VARIANTS[name])
    model = lively(build_model(spec, seed=1)).eval()
    templates, search = pictures(spec, 3)
    tokens = torch.tensor([[start_token(spec.bins), 3, 1, 4], [start_token(spec.bins), 1, 5, 9]])[[0, 1, 0]]
    expected = model.decode(model.encode(templates, search), tokens)
    memory = EncoderGraph(model)(templates, search)
    assert memory.shape == (3, spec.decoder_layers, 2, spec.memory_tokens, spec.hidden_dim)
    cache, step = memory[:, :, :, :0], DecoderStepGraph(model)
    for index in range(4):
        logits, cache = step(tokens[:, index : index + 1], memory, cache)
        assert cache.shape[3] == index + 1
        torch.testing.assert_close(logits, expected[:, index], rtol=1e-4, atol=1e-4)
    # The negative control: without the earlier tokens the last step gives other logits.
    alone, _ = step(tokens[:, 3:], memory, memory[:, :, :, :0])
    assert float((alone - logits).abs().max()) > 0.01

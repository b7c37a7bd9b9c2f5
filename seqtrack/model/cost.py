"""Parameters and FLOPs of a model, counted on the meta device; only matrix products, a multiply-add as two."""

import functools
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqtrack.model.build import build_empty
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import SEQUENCE_LENGTH


@dataclass(frozen=True)
class Cost:
    """Cost of one model.

    Args:
        parameters, trained_parameters: all, and those that take a gradient.
        encoder_flops, decoder_flops: of one sample's forward pass with teacher forcing, every block in full.
        executed_flops: of one sample's training step as it is computed: the last block for the decoder's tokens only,
            no gradient for the pixels. Recomputation by activation checkpointing is not counted.
    """

    parameters: int
    trained_parameters: int
    encoder_flops: int
    decoder_flops: int
    executed_flops: int

    @property
    def training_flops(self) -> int:
        """Nominal, of one sample's training step: the backward pass costs twice the forward pass."""
        return 3 * (self.encoder_flops + self.decoder_flops)


@functools.lru_cache(maxsize=16)
def cost_of(spec: ModelSpec) -> Cost:
    """The cost of the model that a spec describes."""
    model = build_empty(replace(spec, use_checkpoint=False)).train()
    templates = torch.empty(1, spec.num_templates, 3, spec.template_size, spec.template_size, device="meta")
    search = torch.empty(1, 3, spec.search_size, spec.search_size, device="meta")
    tokens = torch.empty(1, SEQUENCE_LENGTH, dtype=torch.long, device="meta")
    # The math backend shows attention's two matrix products to the counter in every version of torch.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as whole, torch.no_grad():
        model.encoder(templates, search)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as step:
        scores = model(templates, search, tokens)
        decoder = step.get_total_flops() - sum(step.get_flop_counts()["SeqTrack.encoder"].values())
        scores.sum().backward()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    trained = sum(size for size, takes_gradient in sizes if takes_gradient)
    executed = step.get_total_flops()
    return Cost(sum(size for size, _ in sizes), trained, whole.get_total_flops(), decoder, executed)

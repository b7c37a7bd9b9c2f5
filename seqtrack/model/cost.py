"""Parameters, tokens and FLOPs of a model, counted on the meta device.

A multiply and an add count as two operations; only matrix products are counted, as is usual.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqtrack.model.build import build_empty
from seqtrack.model.spec import ModelSpec


@dataclass(frozen=True)
class Cost:
    """Cost of one model.

    Args:
        parameters: all entries of the state dict.
        trained_parameters: those that take a gradient.
        encoder_tokens, memory_tokens: tokens per sample in the encoder's blocks, and that the decoder attends to.
        encoder_flops, decoder_flops: of one sample's forward pass with teacher forcing, every block in full.
        executed_flops: of one sample's training step as it is computed: the last block for the decoder's tokens only,
            no gradient for the pixels. Recomputation by activation checkpointing is not counted.
    """

    parameters: int
    trained_parameters: int
    encoder_tokens: int
    memory_tokens: int
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
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    templates = torch.empty(1, spec.num_templates, 3, spec.template_size, spec.template_size, device="meta")
    search = torch.empty(1, 3, spec.search_size, spec.search_size, device="meta")
    tokens = torch.empty(1, spec.sequence_length, dtype=torch.long, device="meta")
    # The math backend shows attention's two matrix products to the counter in every version of torch.
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as whole_encoder, torch.no_grad():
            model.encoder(templates, search)
        with FlopCounterMode(display=False) as step:
            scores = model(templates, search, tokens)
            decoder = step.get_total_flops() - sum(step.get_flop_counts()["SeqTrack.encoder"].values())
            scores.sum().backward()
    return Cost(
        parameters=sum(size for size, _ in sizes),
        trained_parameters=sum(size for size, trained in sizes if trained),
        encoder_tokens=spec.encoder_tokens,
        memory_tokens=spec.memory_tokens,
        encoder_flops=whole_encoder.get_total_flops(),
        decoder_flops=decoder,
        executed_flops=step.get_total_flops(),
    )

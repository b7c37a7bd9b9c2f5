"""What a model costs: parameters, tokens, FLOPs. Counted on the meta device, before a byte is allocated.

A multiply and an add count as two operations; only matrix products are counted, as is usual. Knows nothing of batches
in flight, disks or machines: `commands/plan.py` puts those together.
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
    """What one model needs.

    Args:
        parameters: all entries of the state dict.
        trained_parameters: those that take a gradient.
        encoder_tokens: tokens the encoder's blocks see per sample.
        memory_tokens: tokens the decoder sees.
        encoder_flops, decoder_flops: of one sample's forward pass with teacher forcing, every block whole.
        executed_flops: of one sample's training step as it is computed: the last block for the decoder's tokens only,
            no gradient for the pixels. Activation checkpointing is not counted.
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
        """Nominal, of one sample's training step: a backward pass costs twice a forward pass."""
        return 3 * (self.encoder_flops + self.decoder_flops)


@functools.lru_cache(maxsize=16)
def cost_of(spec: ModelSpec) -> Cost:
    """Count a model that is described but not built."""
    model = build_empty(replace(spec, use_checkpoint=False)).train()
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    templates = torch.empty(1, spec.num_templates, 3, spec.template_size, spec.template_size, device="meta")
    search = torch.empty(1, 3, spec.search_size, spec.search_size, device="meta")
    tokens = torch.empty(1, spec.sequence_length, dtype=torch.long, device="meta")
    # The two products of attention are counted one by one, whatever kernels this torch has.
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

"""What a model costs: parameters, tokens, FLOPs. Reckoned from shapes, before a byte is allocated.

A multiply and an add count as two operations; only matrix products are counted, as is usual. Knows nothing of batches
in flight, disks or machines: `commands/plan.py` puts those together.
"""

from dataclasses import dataclass

from torch import nn

from seqtrack.model.build import build_empty
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import SEQUENCE_LENGTH, vocabulary_size


@dataclass(frozen=True)
class Cost:
    """What one model needs.

    Args:
        parameters: all entries of the state dict.
        trained_parameters: those that take a gradient.
        encoder_tokens: tokens the encoder's blocks see a sample.
        memory_tokens: tokens the decoder sees.
        encoder_flops, decoder_flops: of one sample's forward pass with teacher forcing, every block whole.
    """

    parameters: int
    trained_parameters: int
    encoder_tokens: int
    memory_tokens: int
    encoder_flops: int
    decoder_flops: int

    @property
    def training_flops(self) -> int:
        """Of one sample's training step: a backward pass costs twice a forward pass."""
        return 3 * (self.encoder_flops + self.decoder_flops)


def cost_of(spec: ModelSpec) -> Cost:
    """Count a model that is described but not built."""
    model = build_empty(spec)
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return Cost(
        parameters=sum(size for size, _ in sizes),
        trained_parameters=sum(size for size, trained in sizes if trained),
        encoder_tokens=spec.encoder_tokens,
        memory_tokens=spec.memory_tokens,
        encoder_flops=_encoder_flops(model),
        decoder_flops=_decoder_flops(model),
    )


def _encoder_flops(model: SeqTrack) -> int:
    spec, body = model.spec, model.encoder.body
    tokens, width = spec.encoder_tokens, body.pos_embed.shape[-1]
    total: int = 2 * tokens * body.patch_embed.proj.weight.numel()
    for block in body.blocks:
        linear: int = sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Linear))
        total += 2 * tokens * linear
        total += 4 * tokens * tokens * width  # scores, and their product with the values
    return total


def _decoder_flops(model: SeqTrack) -> int:
    spec = model.spec
    dim, memory, words = spec.hidden_dim, spec.memory_tokens, SEQUENCE_LENGTH
    width = model.encoder.body.pos_embed.shape[-1]
    bottleneck = 2 * memory * width * dim if model.bottleneck_used else 0
    self_attention = 2 * words * 4 * dim * dim + 4 * words * words * dim
    cross_attention = 2 * words * 2 * dim * dim + 2 * memory * 2 * dim * dim + 4 * words * memory * dim
    feedforward = 2 * words * 2 * dim * spec.decoder_feedforward
    head = 2 * words * (2 * dim * dim + dim * vocabulary_size(spec.bins))
    return bottleneck + spec.decoder_layers * (self_attention + cross_attention + feedforward) + head

"""Estimate the memory of a training step from shapes; the tests compare it with a measured peak."""

from dataclasses import asdict, dataclass

from torch import nn

from seqtrack.model.build import build_empty
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import SEQUENCE_LENGTH, vocabulary_size

# Values kept per token and block, in units of the encoder's width: the inputs of both norms, their outputs, q, k and v,
# the attention's output, and the wide layer of the MLP before and after GELU.
_RESIDUAL, _NARROW, _WIDE = 2, 6, 8
# Gradients of the widest layer that are alive together in a block's backward pass, in the same units.
_BACKWARD_WIDTHS = 10


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per process, by purpose.

    Args:
        weights, gradients, optimizer: float32; AdamW keeps two values per parameter.
        casts: half-precision copies of the weights, kept for a step.
        activations: saved by the forward for the backward pass.
        transient: alive only while one block is computed.
        inputs: the batch, as floats.
    """

    weights: int
    gradients: int
    optimizer: int
    casts: int
    activations: int
    transient: int
    inputs: int

    @property
    def total(self) -> int:
        """The peak."""
        return sum(asdict(self).values())


def training_memory(
    spec: ModelSpec, *, batch: int, half: bool, checkpointing: bool, fused_attention: bool = True
) -> TrainingMemory:
    """Estimate the peak of a training step.

    Args:
        batch: samples that one process computes at a time.
        half: under autocast to bf16 or fp16; weights, gradients and optimizer stay float32.
        checkpointing: activation checkpointing of every block.
        fused_attention: without it, attention's score matrices are stored in float32 as well.
    """
    cost = cost_of(spec)
    body = build_empty(spec).encoder.body
    width, depth = body.pos_embed.shape[-1], len(body.blocks)
    tokens = batch * spec.encoder_tokens
    narrow = 2 if half else 4
    block = tokens * width * (_RESIDUAL * 4 + (_NARROW - _RESIDUAL + _WIDE) * narrow + (_RESIDUAL * narrow))
    scores = 0 if fused_attention else tokens * spec.encoder_tokens * _heads(body.blocks[0]) * 4
    block += scores
    stream = tokens * width * 4
    kept = depth * stream + block if checkpointing else depth * block
    # The patches as rows of pixels, the encoder's last norm, the memory, and the tokens' logits with their softmax.
    ends = 3 * stream + batch * spec.memory_tokens * spec.hidden_dim * 4 * (2 + 3 * spec.decoder_layers)
    ends += batch * SEQUENCE_LENGTH * vocabulary_size(spec.bins) * 4 * 3
    pixels = 3 * (spec.search_size**2 + spec.num_templates * spec.template_size**2)
    return TrainingMemory(
        weights=4 * cost.parameters,
        gradients=4 * cost.trained_parameters,
        optimizer=8 * cost.trained_parameters,
        casts=2 * cost.trained_parameters if half else 0,
        activations=kept + ends,
        transient=_BACKWARD_WIDTHS * tokens * width * narrow + 2 * scores,
        inputs=batch * pixels * 4,
    )


def _heads(block: nn.Module) -> int:
    # timm's parallel blocks have no attention module of their own.
    return int(getattr(block, "attn", block).num_heads)


def checkpoint_bytes(spec: ModelSpec) -> int:
    """Approximate bytes of one checkpoint: weights, and AdamW's two values per trained parameter."""
    cost = cost_of(spec)
    return 4 * cost.parameters + 8 * cost.trained_parameters

"""Estimate the memory of a training step from shapes; the tests compare it with a measured peak."""

from seqtrack.model.build import build_empty
from seqtrack.model.cost import cost_of
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import SEQUENCE_LENGTH, vocabulary_size

# Values kept per token and block, in units of the encoder's width: the inputs of both norms, their outputs, q, k and v,
# the attention's output, and the wide layer of the MLP before and after GELU.
_RESIDUAL, _NARROW, _WIDE = 2, 6, 8
# Gradients of the widest layer that are alive together in a block's backward pass, in the same units.
_BACKWARD_WIDTHS = 10


def training_memory(
    spec: ModelSpec, *, batch: int, half: bool, checkpointing: bool, stored_scores: bool = False
) -> dict[str, int]:
    """Bytes per process by purpose; their sum is the estimated peak of a training step.

    Args:
        batch: samples that one process computes at a time.
        half: under autocast to bf16 or fp16; weights, gradients and optimizer stay float32.
        checkpointing: activation checkpointing of every block.
        stored_scores: attention stores its score matrices, in float32, as on a GPU without a fused kernel.
    """
    cost, body = cost_of(spec), build_empty(spec).encoder.body
    tokens, width = batch * spec.encoder_tokens, body.pos_embed.shape[-1]
    narrow = 2 if half else 4
    heads = int(getattr(body.blocks[0], "attn", body.blocks[0]).num_heads)  # timm's parallel blocks have no `attn`
    scores = tokens * spec.encoder_tokens * heads * 4 if stored_scores else 0
    block = tokens * width * (_RESIDUAL * 4 + (_NARROW + _WIDE) * narrow) + scores
    stream = tokens * width * 4
    # The patches as rows of pixels, the encoder's last norm, the memory, and the tokens' logits with their softmax.
    ends = 3 * stream + batch * spec.memory_tokens * spec.hidden_dim * 4 * (2 + 3 * spec.decoder_layers)
    ends += batch * SEQUENCE_LENGTH * vocabulary_size(spec.bins) * 4 * 3
    return {
        "weights": 4 * cost.parameters,
        "gradients": 4 * cost.trained_parameters,
        "optimizer": 8 * cost.trained_parameters,
        "casts": 2 * cost.trained_parameters if half else 0,  # half-precision copies of the weights
        "activations": ends + (len(body.blocks) * stream + block if checkpointing else len(body.blocks) * block),
        "transient": _BACKWARD_WIDTHS * tokens * width * narrow + 2 * scores,
        "inputs": batch * 12 * (spec.search_size**2 + spec.num_templates * spec.template_size**2),
    }


def checkpoint_bytes(spec: ModelSpec) -> int:
    """Approximate bytes of one checkpoint: weights, and AdamW's two values per trained parameter."""
    cost = cost_of(spec)
    return 4 * cost.parameters + 8 * cost.trained_parameters

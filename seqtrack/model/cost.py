"""What a model costs, from shapes on the meta device: parameters, FLOPs, bytes of memory and of checkpoints.

FLOPs are those of matrix products, a multiply-add as two. The tests compare the memory with a measured peak.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from seqtrack.model.build import build_empty
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import SEQUENCE_LENGTH, vocabulary_size

# Values kept per token and block, in units of the encoder's width: the inputs of both norms, their outputs, q, k and v,
# the attention's output, and the wide layer of the MLP before and after GELU.
_RESIDUAL, _NARROW, _WIDE = 2, 6, 8
# Gradients of the widest layer that are alive together in a block's backward pass, in the same units.
_BACKWARD_WIDTHS = 10


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

    @property
    def checkpoint_bytes(self) -> int:
        """Approximate, of one checkpoint: weights, and AdamW's two values per trained parameter."""
        return 4 * self.parameters + 8 * self.trained_parameters


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
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Cost(parameters, trained, whole.get_total_flops(), decoder, step.get_total_flops())


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
    tokens, width, depth = batch * spec.encoder_tokens, body.pos_embed.shape[-1], len(body.blocks)
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
        "activations": ends + (depth * stream + block if checkpointing else depth * block),
        "transient": _BACKWARD_WIDTHS * tokens * width * narrow + 2 * scores,
        "inputs": batch * 12 * (spec.search_size**2 + spec.num_templates * spec.template_size**2),
    }

"""The model as two graphs of fixed sizes for export: the encoder, and one step of the decoder with its cache.

The numbers are those of `SeqTrack.encode` and `SeqTrack.generate`. The decoder there computes every token again in each
step, which is clearer and costs 1 % of a frame; a graph with a cache is what runtimes expect. Choosing the tokens, and
with it the window, stays outside.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seqtrack.model.decoder import DecoderLayer
from seqtrack.model.seqtrack import SeqTrack


class EncoderGraph(nn.Module):
    """Images to what the decoder attends to: the keys and values of each of its layers, computed once per frame."""

    def __init__(self, model: SeqTrack) -> None:
        super().__init__()
        self.model = model

    def forward(self, templates: Tensor, search: Tensor) -> Tensor:
        """(B, T, 3, S, S) and (B, 3, S', S') normalised to the memory (B, layers, 2, N, hidden): keys, then values."""
        memory = self.model.encode(templates, search)
        placed, parts = memory + self.model.pos_embed, []
        for layer in self.model.decoder.body.layers:
            parts.append(
                torch.stack(
                    [_project(layer.multihead_attn, placed, 1), _project(layer.multihead_attn, memory, 2)], dim=1
                )
            )
        return torch.stack(parts, dim=1)


class DecoderStepGraph(nn.Module):
    """One token to the logits of the next one."""

    def __init__(self, model: SeqTrack) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, memory: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """Run the decoder for one more token.

        Args:
            tokens: (B, 1) int64: START, later the last chosen token.
            memory: (B, layers, 2, N, hidden) from the encoder.
            cache: (B, layers, 2, P, hidden): keys and values of the P tokens before; P is 0 at START.

        Returns:
            logits (B, bins + 2), and the cache for the next step, one token longer.
        """
        decoder, longer = self.model.decoder, []
        position = decoder.embedding.position_embeddings.weight[cache.shape[3]]
        x = decoder.embedding(tokens)
        for index, layer in enumerate(decoder.body.layers):
            x, part = _step(layer, x, position, memory[:, index], cache[:, index])
            longer.append(part)
        logits: Tensor = self.model.vocab_embed(decoder.body.norm(x))[:, 0]
        return logits, torch.stack(longer, dim=1)


def _step(layer: DecoderLayer, x: Tensor, position: Tensor, memory: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
    """`DecoderLayer.forward` without dropout for the last token, (B, 1, D), and the layer's longer cache."""
    y = layer.norm1(x) if layer.pre_norm else x
    placed = y + position
    own = torch.stack([_project(layer.self_attn, placed, 1), _project(layer.self_attn, y, 2)], dim=1)
    cache = torch.cat((cache, own), dim=2)
    x = x + _attend(layer.self_attn, placed, cache)
    x = x if layer.pre_norm else layer.norm1(x)
    y = layer.norm2(x) if layer.pre_norm else x
    x = x + _attend(layer.multihead_attn, y + position, memory)
    x = x if layer.pre_norm else layer.norm2(x)
    y = layer.norm3(x) if layer.pre_norm else x
    x = x + layer.linear2(F.relu(layer.linear1(y)))
    return (x if layer.pre_norm else layer.norm3(x)), cache


def _project(attention: nn.MultiheadAttention, x: Tensor, part: int) -> Tensor:
    """Queries (part 0), keys (1) or values (2) of (B, L, D)."""
    rows = slice(part * attention.embed_dim, (part + 1) * attention.embed_dim)
    return F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])


def _attend(attention: nn.MultiheadAttention, x: Tensor, keys_values: Tensor) -> Tensor:
    """Attention of one query (B, 1, D) to (B, 2, N, D)."""
    heads, width = attention.num_heads, attention.head_dim
    query = _project(attention, x, 0).reshape(-1, 1, heads, width).transpose(1, 2)
    shape = (keys_values.shape[0], -1, heads, width)
    keys, values = (keys_values[:, part].reshape(shape).transpose(1, 2) for part in (0, 1))
    weights = (query @ keys.transpose(2, 3) * width**-0.5).softmax(dim=-1)
    out: Tensor = attention.out_proj((weights @ values).transpose(1, 2).flatten(2))
    return out

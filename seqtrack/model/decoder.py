"""The decoder: generates a box token by token while it attends to the encoder's features, the memory.

Positions are added as DETR does: query positions to the queries and keys of self-attention and to the queries of
cross-attention, memory positions to the keys of cross-attention; values carry no position. Everything runs in the
dtype it is given. Parameter names are the authors'.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KeysValues = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Multi-head attention with the parameter layout of `nn.MultiheadAttention` and separate keys and values.

    Keys and values can be projected once and cached, which the stock module does not allow.
    """

    def __init__(self, dim: int, *, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim))
        self.out_proj = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, heads, L, D / heads)."""
        batch, length, dim = x.shape
        return x.reshape(batch, length, self.heads, dim // self.heads).transpose(1, 2)

    def keys_values(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Project (B, L, D) keys and values to (B, heads, L, D / heads) each."""
        dim = keys.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        k = F.linear(keys, weight[dim : 2 * dim], bias[dim : 2 * dim])
        v = F.linear(values, weight[2 * dim :], bias[2 * dim :])
        return self._split(k), self._split(v)

    def forward(self, queries: Tensor, keys_values: KeysValues, *, causal: bool = False) -> Tensor:
        """Attend from (B, L, D) queries; `causal` lets query i see keys 0..i only."""
        dim = queries.shape[-1]
        q = self._split(F.linear(queries, self.in_proj_weight[:dim], self.in_proj_bias[:dim]))
        out = F.scaled_dot_product_attention(
            q, *keys_values, dropout_p=self.dropout if self.training else 0.0, is_causal=causal
        )
        projected: Tensor = self.out_proj(out.transpose(1, 2).flatten(2))
        return projected


class DecoderLayer(nn.Module):
    """Self-attention over tokens, cross-attention to the memory, feed-forward; post-norm or pre-norm."""

    def __init__(self, dim: int, *, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads=heads, dropout=dropout)
        self.multihead_attn = Attention(dim, heads=heads, dropout=dropout)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self, x: Tensor, query_positions: Tensor, memory: KeysValues, past: KeysValues | None, *, causal: bool
    ) -> tuple[Tensor, KeysValues]:
        """Run the layer over new tokens.

        Args:
            x: (B, L, D) new tokens.
            query_positions: (L, D), their positions.
            memory: projected keys and values of the memory, from `memory_keys_values`.
            past: cached keys and values of the tokens before `x`, or None.
            causal: mask the new tokens after each new token; not needed for a single one.

        Returns:
            (B, L, D), and the keys and values of all tokens so far.
        """
        y = self.norm1(x) if self.pre_norm else x
        positioned = y + query_positions
        keys_values = self.self_attn.keys_values(positioned, y)
        if past is not None:
            keys_values = torch.cat((past[0], keys_values[0]), dim=2), torch.cat((past[1], keys_values[1]), dim=2)
        x = x + self.dropout(self.self_attn(positioned, keys_values, causal=causal))
        x = x if self.pre_norm else self.norm1(x)
        y = self.norm2(x) if self.pre_norm else x
        x = x + self.dropout(self.multihead_attn(y + query_positions, memory))
        x = x if self.pre_norm else self.norm2(x)
        y = self.norm3(x) if self.pre_norm else x
        x = x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(y)))))
        x = x if self.pre_norm else self.norm3(x)
        return x, keys_values

    def memory_keys_values(self, positioned_memory: Tensor, memory: Tensor) -> KeysValues:
        """Project the memory: keys from (B, N, D) memory with positions, values without."""
        projected: KeysValues = self.multihead_attn.keys_values(positioned_memory, memory)
        return projected


class TokenEmbedding(nn.Module):
    """Normalised token embeddings, and the position embeddings that the layers add themselves."""

    def __init__(self, vocabulary: int, dim: int, *, sequence_length: int, dropout: float) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocabulary, dim)
        self.position_embeddings = nn.Embedding(sequence_length, dim)
        self.LayerNorm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) integers to (B, L, D)."""
        embedded: Tensor = self.dropout(self.LayerNorm(self.word_embeddings(tokens)))
        return embedded


class DecoderBody(nn.Module):
    """The stack of layers and a final norm. With post-norm layers that is the second norm in a row, as in the
    authors' code and released checkpoints."""

    def __init__(self, layers: list[DecoderLayer], norm: nn.LayerNorm) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm


@dataclass
class DecoderCache:
    """Key-value cache of one decoding pass.

    Args:
        memory: keys and values of the memory, one pair per layer.
        tokens: keys and values of the tokens so far, one pair per layer; None before the first.
        length: tokens so far.
    """

    memory: list[KeysValues]
    tokens: list[KeysValues | None]
    length: int = 0


class Decoder(nn.Module):
    """Tokens and memory to one feature vector per token."""

    def __init__(self, embedding: TokenEmbedding, body: DecoderBody) -> None:
        super().__init__()
        self.embedding = embedding
        self.body = body

    def start(self, memory: Tensor, memory_positions: Tensor) -> DecoderCache:
        """Project the memory for every layer.

        Args:
            memory: (B, N, D).
            memory_positions: (1, N, D).
        """
        positioned = memory + memory_positions
        projected = [layer.memory_keys_values(positioned, memory) for layer in self.body.layers]
        return DecoderCache(memory=projected, tokens=[None] * len(projected))

    def forward(self, tokens: Tensor, cache: DecoderCache) -> Tensor:
        """Decode new tokens, each attending to those before it, and add them to `cache`.

        Args:
            tokens: (B, L) integers; any L when the cache is new, otherwise L = 1.

        Returns:
            (B, L, D), normalised.
        """
        new = tokens.shape[1]
        if new > 1 and cache.length:
            raise ValueError("several new tokens need an empty cache")
        positions = self.embedding.position_embeddings.weight[cache.length : cache.length + new]
        x = self.embedding(tokens)
        for index, layer in enumerate(self.body.layers):
            x, cache.tokens[index] = layer(x, positions, cache.memory[index], cache.tokens[index], causal=new > 1)
        cache.length += new
        out: Tensor = self.body.norm(x)
        return out


class TokenHead(nn.Module):
    """Three linear layers with ReLU between: (B, L, D) to (B, L, vocabulary) logits. Not tied to the embedding."""

    def __init__(self, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, vocabulary)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        x = F.relu(self.layers[1](x))
        logits: Tensor = self.layers[2](x)
        return logits

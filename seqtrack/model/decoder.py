"""The decoder: predicts a box token by token while it attends to the encoder's features, the memory.

Positions are added as DETR does: query positions to the queries and keys of self-attention and to the queries of
cross-attention, memory positions to the keys of cross-attention; values carry no position. Everything runs in the
dtype it is given. Parameter names are the authors'.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DecoderLayer(nn.Module):
    """Self-attention over tokens, cross-attention to the memory, feed-forward; post-norm or pre-norm."""

    def __init__(self, dim: int, *, heads: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward)
        self.linear2 = nn.Linear(feedforward, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, query_positions: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        """Run the layer over (B, L, D) tokens, each of which sees itself and those before it.

        Args:
            query_positions: (L, D).
            memory, memory_positions: (B, N, D) and (1, N, D).
        """
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        y = self.norm1(x) if self.pre_norm else x
        placed = y + query_positions
        attended = self.self_attn(placed, placed, y, attn_mask=later, is_causal=True, need_weights=False)[0]
        x = x + self.dropout(attended)
        x = x if self.pre_norm else self.norm1(x)
        y = self.norm2(x) if self.pre_norm else x
        attended = self.multihead_attn(y + query_positions, memory + memory_positions, memory, need_weights=False)[0]
        x = x + self.dropout(attended)
        x = x if self.pre_norm else self.norm2(x)
        y = self.norm3(x) if self.pre_norm else x
        x = x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(y)))))
        return x if self.pre_norm else self.norm3(x)


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


class Decoder(nn.Module):
    """Tokens and memory to one feature vector per token.

    After the layers follows a norm. With post-norm layers that is the second norm in a row, as in the authors' code and
    released checkpoints.
    """

    def __init__(self, embedding: TokenEmbedding, layers: list[DecoderLayer], norm: nn.LayerNorm) -> None:
        super().__init__()
        self.embedding = embedding
        self.body = nn.ModuleDict({"layers": nn.ModuleList(layers), "norm": norm})  # the authors' names

    def forward(self, tokens: Tensor, memory: Tensor, memory_positions: Tensor) -> Tensor:
        """(B, L) integers, a (B, N, D) memory and its (1, N, D) positions to (B, L, D), normalised."""
        positions = self.embedding.position_embeddings.weight[: tokens.shape[1]]
        x = self.embedding(tokens)
        for layer in self.body.layers:
            x = layer(x, positions, memory, memory_positions)
        out: Tensor = self.body.norm(x)
        return out


class TokenHead(nn.Module):
    """Three linear layers with ReLU between: (B, L, D) to (B, L, vocabulary) logits. Not tied to the embedding."""

    def __init__(self, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList((nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, vocabulary)))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers[2](F.relu(self.layers[1](F.relu(self.layers[0](x)))))
        return logits

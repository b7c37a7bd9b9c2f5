"""SeqTrack: images in, a box as a sequence of tokens out (Chen et al., CVPR 2023)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqtrack.model.decoder import Decoder, TokenHead
from seqtrack.model.encoder import Encoder
from seqtrack.model.spec import ModelSpec
from seqtrack.tokens import COORDINATES, centre_positions, start_token


class Generated(NamedTuple):
    """(B, 4) int64 coordinate tokens in the order of the sequence format, and (B, 4) float64 confidences: each token's
    probability, times the window where that applies."""

    tokens: Tensor
    confidences: Tensor


class SeqTrack(nn.Module):
    """Encoder, bottleneck, decoder and token head.

    Args:
        encoder: images to (B, N, C) features.
        bottleneck: C to the decoder's width. Where both are equal it is unused, as in the authors' model, and takes no
            gradient.
        decoder, vocab_embed: tokens and memory to logits.
        spec: sizes and variants that the parts were built with.
    """

    def __init__(
        self, encoder: Encoder, bottleneck: nn.Linear, decoder: Decoder, vocab_embed: TokenHead, *, spec: ModelSpec
    ) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.empty(1, spec.memory_tokens, spec.hidden_dim))
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.vocab_embed = vocab_embed
        self.spec = spec
        self.bottleneck_used = bottleneck.in_features != bottleneck.out_features
        if not self.bottleneck_used:
            # DistributedDataParallel waits for the gradient of every trained parameter.
            bottleneck.requires_grad_(False)

    def encode(self, templates: Tensor, search: Tensor) -> Tensor:
        """Encode normalised images, (B, T, 3, S, S) templates and (B, 3, S', S') search regions.

        Returns:
            memory (B, N, hidden): N search tokens ("x"), all tokens ("xz") or one mean ("token").
        """
        tokens = self.encoder(templates, search, only_search=self.spec.feature_type == "x")
        if self.spec.feature_type == "token":
            tokens = tokens.mean(dim=1, keepdim=True)
        memory: Tensor = self.bottleneck(tokens) if self.bottleneck_used else tokens
        return memory

    def decode(self, memory: Tensor, input_tokens: Tensor) -> Tensor:
        """Logits of every next token, with teacher forcing.

        Args:
            memory: (B, N, hidden) from `encode`.
            input_tokens: (B, L) integers, START first, L up to 5.

        Returns:
            logits (B, L, bins + 2): row i is for the token after input token i.
        """
        logits: Tensor = self.vocab_embed(self.decoder(input_tokens, memory, self.pos_embed))
        return logits

    def forward(self, templates: Tensor, search: Tensor, input_tokens: Tensor) -> Tensor:
        """`encode` and `decode` in one call, for wrappers such as DDP and torch.compile."""
        return self.decode(self.encode(templates, search), input_tokens)

    @torch.no_grad()
    def generate(self, memory: Tensor, window: Tensor | None = None) -> Generated:
        """Generate the box greedily, one coordinate token at a time; END is never chosen.

        The softmax is over the whole vocabulary; END and START are then dropped without renormalising.

        Args:
            memory: (B, N, hidden) from `encode`.
            window: (bins,) penalty that multiplies the probabilities of the two centre tokens before the choice, such
                as `tokens.hann_window`; None for none. Format "corner" has no centre tokens and ignores it.

        Returns:
            tokens and confidences. The product with a float64 window is computed in float64, as in the authors' code,
            so that a near tie is resolved alike.
        """
        bins = self.spec.bins
        windowed = centre_positions(self.spec.seq_format) if window is not None else ()
        tokens = torch.full((memory.shape[0], 1), start_token(bins), dtype=torch.int64, device=memory.device)
        confidences = []
        for position in range(COORDINATES):
            logits = self.vocab_embed(self.decoder(tokens, memory, self.pos_embed)[:, -1])
            scores = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))[:, :bins]
            if window is not None and position in windowed:
                scores = scores * window.to(scores.device)
            confidence, token = scores.max(dim=-1, keepdim=True)
            tokens = torch.cat((tokens, token), dim=1)
            confidences.append(confidence.to(torch.float64))
        return Generated(tokens=tokens[:, 1:], confidences=torch.cat(confidences, dim=1))

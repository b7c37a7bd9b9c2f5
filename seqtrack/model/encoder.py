"""The encoder: one plain ViT that encodes the search region and all templates jointly.

It is given its parts (patch projection, blocks, norms) as objects; `build.py` chooses their sizes. Parameter names are
those of the authors' `encoder.body`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqtrack.model.spec import ModelSpec


class EncoderBody(nn.Module):
    """A ViT over search tokens followed by the tokens of each template, without class token.

    All templates share one part of the position table, as in released checkpoints, so the model cannot distinguish the
    first template from the second.

    Args:
        spec: the sizes of both images, drop path and activation checkpointing.
        patch_embed: object with a convolution `proj` (kernel = stride = patch size) and a `norm`.
        blocks: transformer blocks such as timm's `Block`, each (B, N, C) to (B, N, C).
        norm: the final norm.
        norm_pre: before the blocks: a norm for CLIP-like models, else the identity.
    """

    def __init__(
        self, spec: ModelSpec, patch_embed: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module,
        norm_pre: nn.Module, *, embed_dim: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.search_tokens, self.template_tokens = spec.search_tokens, spec.template_grid**2
        self.use_checkpoint, self.is_random = spec.use_checkpoint, spec.drop_path > 0
        self.patch_embed = patch_embed
        self.pos_embed = nn.Parameter(torch.empty(1, self.search_tokens + self.template_tokens, embed_dim))
        self.norm_pre = norm_pre
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def embed(self, templates: Tensor, search: Tensor) -> Tensor:
        """Patches with their positions: (B, T, 3, S, S) and (B, 3, S', S') to (B, search + T * template tokens, C)."""
        batch, count = templates.shape[:2]
        search_part, template_part = self._project(search), self._project(templates.flatten(0, 1))
        if search_part.shape[1] != self.search_tokens or template_part.shape[1] != self.template_tokens:
            raise ValueError(
                f"the model was built for {self.search_tokens} search and {self.template_tokens} template patches, "
                f"the images give {search_part.shape[1]} and {template_part.shape[1]}: "
                f"search {tuple(search.shape[-2:])} px, template {tuple(templates.shape[-2:])} px"
            )
        search_part = search_part + self.pos_embed[:, : self.search_tokens]
        template_part = template_part + self.pos_embed[:, self.search_tokens :]
        template_part = template_part.reshape(batch, count * self.template_tokens, -1)
        return torch.cat((search_part, template_part), dim=1)

    def _project(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, patches, C), row-major: the patch convolution as one matrix product, which is faster
        than PyTorch's convolution on the CPU."""
        proj = self.patch_embed.proj
        patch = proj.kernel_size[0]
        batch, channels, height, width = images.shape
        if height % patch or width % patch:
            raise ValueError(f"an image of {height} x {width} px cannot be cut into patches of {patch} px")
        rows, columns = height // patch, width // patch
        pixels = images.reshape(batch, channels, rows, patch, columns, patch)
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch * patch)
        tokens = F.linear(pixels, proj.weight.flatten(1), proj.bias)
        normed: Tensor = self.patch_embed.norm(tokens)
        return normed

    def forward(self, templates: Tensor, search: Tensor, *, only_search: bool = False) -> Tensor:
        """Encode a search region together with its templates.

        Args:
            templates: (B, T, 3, S, S) normalised.
            search: (B, 3, S', S') normalised.
            only_search: return the search tokens only. The last block then computes only keys and values for the
                template tokens: the same numbers with 5 % less work at B256.

        Returns:
            (B, tokens, C): search tokens first, then the templates in order.
        """
        x = self.norm_pre(self.embed(templates, search))
        recompute = self.use_checkpoint and self.training and torch.is_grad_enabled()
        for index, block in enumerate(self.blocks):
            keep = self.search_tokens if only_search and index == len(self.blocks) - 1 else None
            if recompute:
                x = checkpoint(run_block, block, x, keep, use_reentrant=False, preserve_rng_state=self.is_random)
            else:
                x = run_block(block, x, keep)
        encoded: Tensor = self.norm(x)
        return encoded


class Encoder(nn.Module):
    """Gives the body its name in the authors' checkpoints."""

    def __init__(self, body: EncoderBody) -> None:
        super().__init__()
        self.body = body

    def forward(self, templates: Tensor, search: Tensor, *, only_search: bool = False) -> Tensor:
        encoded: Tensor = self.body(templates, search, only_search=only_search)
        return encoded


def run_block(block: nn.Module, x: Tensor, keep: int | None) -> Tensor:
    """Run one block on (B, N, C); with `keep`, compute the first `keep` tokens only, with all tokens as keys."""
    if keep is None:
        whole: Tensor = block(x)
        return whole
    if type(block) is not Block or type(block.attn) is not Attention or getattr(block.attn, "gate", None) is not None:
        whole = block(x)
        return whole[:, :keep]
    kept = x[:, :keep]
    kept = kept + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x), keep)))
    updated: Tensor = kept + block.drop_path2(block.ls2(block.mlp(block.norm2(kept))))
    return updated


def _attend(attn: Attention, x: Tensor, keep: int) -> Tensor:
    """timm's attention with queries for the first `keep` tokens only."""
    batch, tokens, _ = x.shape
    width = attn.num_heads * attn.head_dim
    weight, bias = attn.qkv.weight, attn.qkv.bias
    q = F.linear(x[:, :keep], weight[:width], None if bias is None else bias[:width])
    kv = F.linear(x, weight[width:], None if bias is None else bias[width:])
    q = q.reshape(batch, keep, attn.num_heads, attn.head_dim).transpose(1, 2)
    k, v = kv.reshape(batch, tokens, 2, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    out = out.transpose(1, 2).reshape(batch, keep, width)
    out = attn.norm(out) if hasattr(attn, "norm") else out
    projected: Tensor = attn.proj_drop(attn.proj(out))
    return projected

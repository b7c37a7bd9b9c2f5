"""The encoder: one plain ViT that encodes the search region and all templates jointly.

It is given its parts (patch projection, blocks, norms) as objects; `build.py` chooses their sizes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from seqtrack.model.spec import ModelSpec


class Encoder(nn.Module):
    """A ViT over search tokens followed by the tokens of each template, without class token.

    All templates share one part of the position table, as in released checkpoints, so the model cannot distinguish the
    first template from the second. `body` holds the parts under the authors' names.

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
        self.body = nn.Module()
        self.body.pos_embed = nn.Parameter(torch.empty(1, self.search_tokens + self.template_tokens, embed_dim))
        self.body.patch_embed = patch_embed
        self.body.norm_pre = norm_pre
        self.body.blocks = nn.ModuleList(blocks)
        self.body.norm = norm

    def _embed(self, images: Tensor, positions: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, patches, C), row-major: the patch convolution as one matrix product, which is faster
        than PyTorch's convolution on the CPU."""
        proj = self.body.patch_embed.proj
        patch = proj.kernel_size[0]
        batch, channels, height, width = images.shape
        rows, columns = height // patch, width // patch
        if (rows * patch, columns * patch, rows * columns) != (height, width, positions.shape[1]):
            raise ValueError(
                f"an image of {height} x {width} px; the model was built for {positions.shape[1]} patches of {patch} px"
            )
        pixels = images.reshape(batch, channels, rows, patch, columns, patch)
        pixels = pixels.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels * patch * patch)
        tokens: Tensor = self.body.patch_embed.norm(F.linear(pixels, proj.weight.flatten(1), proj.bias))
        return tokens + positions

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
        body = self.body
        parts = [self._embed(search, body.pos_embed[:, : self.search_tokens])]
        template_part = self._embed(templates.flatten(0, 1), body.pos_embed[:, self.search_tokens :])
        parts.append(template_part.reshape(templates.shape[0], -1, template_part.shape[-1]))
        x = body.norm_pre(torch.cat(parts, dim=1))
        recompute = self.use_checkpoint and self.training and torch.is_grad_enabled()
        for index, block in enumerate(body.blocks):
            keep = self.search_tokens if only_search and index == len(body.blocks) - 1 else None
            if recompute:
                x = checkpoint(run_block, block, x, keep, use_reentrant=False, preserve_rng_state=self.is_random)
            else:
                x = run_block(block, x, keep)
        encoded: Tensor = body.norm(x)
        return encoded


def run_block(block: nn.Module, x: Tensor, keep: int | None) -> Tensor:
    """Run one block on (B, N, C); with `keep`, compute the first `keep` tokens only, with all tokens as keys."""
    attn = getattr(block, "attn", None)
    if (
        keep is None
        or type(block) is not Block
        or type(attn) is not Attention
        or getattr(attn, "gate", None) is not None
    ):
        whole: Tensor = block(x)
        return whole[:, :keep]
    # timm's block and attention, with queries for these tokens only.
    y = block.norm1(x)
    batch, tokens, width = x.shape[0], x.shape[1], attn.num_heads * attn.head_dim
    weight, bias = attn.qkv.weight, attn.qkv.bias
    q = F.linear(y[:, :keep], weight[:width], None if bias is None else bias[:width])
    kv = F.linear(y, weight[width:], None if bias is None else bias[width:])
    q = q.reshape(batch, keep, attn.num_heads, attn.head_dim).transpose(1, 2)
    k, v = kv.reshape(batch, tokens, 2, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    out = out.transpose(1, 2).reshape(batch, keep, width)
    out = attn.norm(out) if hasattr(attn, "norm") else out
    kept = x[:, :keep] + block.drop_path1(block.ls1(attn.proj_drop(attn.proj(out))))
    updated: Tensor = kept + block.drop_path2(block.ls2(block.mlp(block.norm2(kept))))
    return updated

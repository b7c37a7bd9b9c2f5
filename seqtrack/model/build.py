"""Build a model from its spec: sizes of the known encoders, components, initial values.

Reads no file and uses no network; `weights.py` loads pretrained weights.
"""

from __future__ import annotations

import functools

import timm
import torch
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from seqtrack.errors import UserError
from seqtrack.model.decoder import Decoder, DecoderLayer, TokenEmbedding, TokenHead
from seqtrack.model.encoder import Encoder
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import CUSTOM_ENCODER, ModelSpec
from seqtrack.tokens import SEQUENCE_LENGTH, vocabulary_size

_Norm = functools.partial(LayerNorm, eps=1e-6)  # the epsilon of MAE and the authors

# Patches between the search region's rows and columns and the templates', for POS_INIT sincos2d_offset.
TEMPLATE_OFFSET = 64

# The authors' encoder types: width, blocks, heads.
ENCODERS: dict[str, tuple[int, int, int]] = {
    "vit_base_patch16": (768, 12, 12),
    "vit_large_patch16": (1024, 24, 16),
    "vit_huge_patch14": (1280, 32, 16),
}


def build_model(spec: ModelSpec, *, seed: int) -> SeqTrack:
    """A freshly initialised model in float32 on the CPU.

    The weights are a function of (spec, seed); torch's generators are unchanged.

    Raises:
        UserError: unknown or unsuitable encoder.
    """
    model = build_empty(spec)
    model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        initialise(model)
    return model


def build_empty(spec: ModelSpec) -> SeqTrack:
    """The model on the meta device: for counting, and for `load_state_dict(state, assign=True)`."""
    with torch.device("meta"):
        encoder = _encoder(spec)
        hidden, vocabulary = spec.hidden_dim, vocabulary_size(spec.bins)
        sizes = {"heads": spec.decoder_heads, "feedforward": spec.decoder_feedforward}
        layers = [
            DecoderLayer(hidden, **sizes, dropout=spec.dropout, pre_norm=spec.pre_norm)
            for _ in range(spec.decoder_layers)
        ]
        embedding = TokenEmbedding(vocabulary, hidden, sequence_length=SEQUENCE_LENGTH, dropout=spec.dropout)
        return SeqTrack(
            encoder,
            nn.Linear(encoder.body.pos_embed.shape[-1], hidden),
            Decoder(embedding, layers, nn.LayerNorm(hidden)),
            TokenHead(hidden, vocabulary),
            spec=spec,
        )


def _encoder(spec: ModelSpec) -> Encoder:
    name = spec.encoder_type
    if name in ENCODERS or name == CUSTOM_ENCODER:
        width, depth, heads = ENCODERS.get(name, (spec.embed_dim, spec.depth, spec.num_heads))
        options = {"mlp_ratio": 4, "qkv_bias": True, "norm_layer": _Norm, "act_layer": nn.GELU}
        rates = [spec.drop_path * index / max(1, depth - 1) for index in range(depth)]
        blocks = [Block(width, heads, drop_path=rate, **options) for rate in rates]  # type: ignore[arg-type]
        patch_embed = PatchEmbed(img_size=None, patch_size=spec.patch_size, in_chans=3, embed_dim=width)
        return Encoder(spec, patch_embed, blocks, _Norm(width), nn.Identity(), embed_dim=width)
    vit = None
    if timm.models.is_model_in_modules(name.partition(".")[0], ("vision_transformer", "deit")):
        vit = timm.create_model(
            name, pretrained=False, num_classes=0, img_size=spec.search_size, patch_size=spec.patch_size,
            drop_path_rate=spec.drop_path,
        )  # fmt: skip
    if not isinstance(vit, VisionTransformer) or type(vit.patch_embed) is not PatchEmbed:
        raise UserError(
            f"MODEL.ENCODER.TYPE {name!r} is none of {', '.join(ENCODERS)}, {CUSTOM_ENCODER}, and no plain ViT of timm "
            f"{timm.__version__} (timm.list_models('vit_*') lists them): only models whose tokens come from one patch "
            "projection and carry learned positions can encode search and templates together",
            code="model.unknown_encoder",
        )
    # Class token, register tokens and head are not used. Models that pool before their last norm call it fc_norm.
    norm = vit.norm if not isinstance(vit.norm, nn.Identity) else vit.fc_norm
    return Encoder(spec, vit.patch_embed, list(vit.blocks), norm, vit.norm_pre, embed_dim=vit.embed_dim)


@torch.no_grad()
def initialise(model: SeqTrack) -> None:
    """Initialise every parameter, drawing from torch's global generator.

    Encoder: truncated normal 0.02 for linears and positions, zeros for biases, torch's default for the patch
    projection. Decoder: Xavier-uniform for every parameter of more than one dimension, embeddings included, attention
    biases 0. Bottleneck and token head: torch's default. Memory positions: the 1-D sinusoidal table over the flattened
    patch index, as in the authors' code, although the memory is a 2-D grid.
    """
    for module in model.modules():
        # Norms get ones and zeros, linears and convolutions torch's default; some are overwritten below.
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    body = model.encoder.body
    for module in body.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.spec.pos_init == "trunc_normal":
        nn.init.trunc_normal_(body.pos_embed, std=0.02)
    else:
        # With the same table for both, nothing but training tells template tokens from the search region's first ones.
        first = TEMPLATE_OFFSET if model.spec.pos_init == "sincos2d_offset" else 0
        grids = ((model.spec.search_grid, 0), (model.spec.template_grid, first))
        tables = [sincos_2d(grid, body.pos_embed.shape[-1], first=first) for grid, first in grids]
        body.pos_embed.copy_(torch.cat(tables)[None])
    for parameter in model.decoder.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in model.decoder.modules():
        if isinstance(module, nn.MultiheadAttention):
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
    model.pos_embed.copy_(sinusoid_1d(model.spec.memory_tokens, model.spec.hidden_dim)[None])


def sinusoid_1d(length: int, dim: int) -> Tensor:
    """(length, dim) float32: the table of "Attention Is All You Need", sin on even channels, cos on odd, base 10000.

    The authors initialise the decoder's memory positions with it, over the flattened patch index.
    """
    channel = torch.arange(dim, dtype=torch.float64)
    rate = 10000.0 ** (-2 * torch.div(channel, 2, rounding_mode="floor") / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).to(torch.float32)


def sincos_2d(grid: int, dim: int, *, first: int = 0) -> Tensor:
    """(grid * grid, dim) float32, row-major, as in MAE: half of the channels for the column, half for the row.

    Rows and columns count from `first`. Each half is sin, then cos; `dim` must be a multiple of 4, which
    `config/loader.py` checks.
    """
    rate = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(first, first + grid, dtype=torch.float64)[:, None] * rate
    one_axis = torch.cat((angle.sin(), angle.cos()), dim=1)
    column, row = one_axis[None].expand(grid, grid, -1), one_axis[:, None].expand(grid, grid, -1)
    return torch.cat((column, row), dim=2).reshape(grid * grid, dim).to(torch.float32)

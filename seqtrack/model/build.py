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
from torch import nn

from seqtrack.errors import UserError
from seqtrack.model.decoder import Decoder, DecoderBody, DecoderLayer, TokenEmbedding, TokenHead
from seqtrack.model.encoder import Encoder, EncoderBody
from seqtrack.model.positions import sincos_2d, sinusoid_1d
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import CUSTOM_ENCODER, ModelSpec
from seqtrack.tokens import SEQUENCE_LENGTH, vocabulary_size

MLP_RATIO = 4
_Norm = functools.partial(LayerNorm, eps=1e-6)  # the epsilon of MAE and the authors

# The authors' encoder types: width, blocks, heads.
ENCODERS: dict[str, tuple[int, int, int]] = {
    "vit_base_patch16": (768, 12, 12),
    "vit_large_patch16": (1024, 24, 16),
    "vit_huge_patch14": (1280, 32, 16),
}

# The files of timm whose models may be plain ViTs.
TIMM_MODULES = ("vision_transformer", "deit")


def build_model(spec: ModelSpec, *, seed: int | None = None) -> SeqTrack:
    """A freshly initialised model in float32 on the CPU.

    Args:
        seed: makes the initial weights a function of (spec, seed) and leaves torch's generators unchanged; None draws
            from torch's global generator.

    Raises:
        UserError: unknown or unsuitable encoder.
    """
    model = build_empty(spec)
    model.to_empty(device="cpu")
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        initialise(model)
    return model


def build_empty(spec: ModelSpec) -> SeqTrack:
    """The model on the meta device: for counting, and for `load_state_dict(state, assign=True)`."""
    with torch.device("meta"):
        if spec.encoder_type in ENCODERS or spec.encoder_type == CUSTOM_ENCODER:
            body = _plain_body(spec, *ENCODERS.get(spec.encoder_type, (spec.embed_dim, spec.depth, spec.num_heads)))
        else:
            body = _timm_body(spec)
        hidden, vocabulary = spec.hidden_dim, vocabulary_size(spec.bins)
        sizes = {"heads": spec.decoder_heads, "feedforward": spec.decoder_feedforward}
        layers = [
            DecoderLayer(hidden, **sizes, dropout=spec.dropout, pre_norm=spec.pre_norm)
            for _ in range(spec.decoder_layers)
        ]
        embedding = TokenEmbedding(vocabulary, hidden, sequence_length=SEQUENCE_LENGTH, dropout=spec.dropout)
        return SeqTrack(
            Encoder(body),
            nn.Linear(body.pos_embed.shape[-1], hidden),
            Decoder(embedding, DecoderBody(layers, nn.LayerNorm(hidden))),
            TokenHead(hidden, vocabulary),
            spec=spec,
        )


def _plain_body(spec: ModelSpec, width: int, depth: int, heads: int) -> EncoderBody:
    rates = [spec.drop_path * index / max(1, depth - 1) for index in range(depth)]
    blocks = [
        Block(width, heads, mlp_ratio=MLP_RATIO, qkv_bias=True, drop_path=rate, norm_layer=_Norm, act_layer=nn.GELU)  # type: ignore[arg-type]
        for rate in rates
    ]
    patch_embed = PatchEmbed(img_size=None, patch_size=spec.patch_size, in_chans=3, embed_dim=width)
    return EncoderBody(spec, patch_embed, blocks, _Norm(width), nn.Identity(), embed_dim=width)


def _timm_body(spec: ModelSpec) -> EncoderBody:
    """The patch projection, blocks and norms of a timm ViT. Class token, register tokens and head are not used."""
    name = spec.encoder_type
    if not timm.is_model(name):
        raise UserError(
            f"MODEL.ENCODER.TYPE {name!r} is not known; expected one of {', '.join(ENCODERS)}, {CUSTOM_ENCODER}, "
            f"or a ViT of timm {timm.__version__} (timm.list_models('vit_*') lists them)",
            code="model.unknown_encoder",
        )
    vit = None
    if timm.models.is_model_in_modules(name.partition(".")[0], TIMM_MODULES):
        vit = timm.create_model(
            name, pretrained=False, num_classes=0, img_size=spec.search_size, patch_size=spec.patch_size,
            drop_path_rate=spec.drop_path,
        )  # fmt: skip
    if not isinstance(vit, VisionTransformer) or type(vit.patch_embed) is not PatchEmbed:
        raise UserError(
            f"MODEL.ENCODER.TYPE {name!r} is of another architecture: only plain ViTs, whose tokens come from one "
            "patch projection and carry learned positions, can encode search and templates together",
            code="model.not_a_plain_vit",
        )
    # Models that pool before their last norm call it fc_norm; the encoder needs it after the blocks.
    norm = vit.norm if not isinstance(vit.norm, nn.Identity) else vit.fc_norm
    return EncoderBody(spec, vit.patch_embed, list(vit.blocks), norm, vit.norm_pre, embed_dim=vit.embed_dim)


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
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    body = model.encoder.body
    for module in body.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if model.spec.pos_init == "sincos2d":
        width = body.pos_embed.shape[-1]
        tables = (sincos_2d(model.spec.search_grid, width), sincos_2d(model.spec.template_grid, width))
        body.pos_embed.copy_(torch.cat(tables)[None])
    else:
        nn.init.trunc_normal_(body.pos_embed, std=0.02)
    for parameter in model.decoder.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    for module in model.decoder.modules():
        if isinstance(module, nn.MultiheadAttention):
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
    model.pos_embed.copy_(sinusoid_1d(model.spec.memory_tokens, model.spec.hidden_dim)[None])

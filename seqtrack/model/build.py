"""Build a model from its spec: sizes of the known encoders, components, initial values.

Reads no file and uses no network; `weights.py` loads pretrained weights.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Sequence

import timm
import torch
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from seqtrack.errors import UserError
from seqtrack.model.decoder import Attention, Decoder, DecoderBody, DecoderLayer, TokenEmbedding, TokenHead
from seqtrack.model.encoder import Encoder, EncoderBody
from seqtrack.model.positions import sincos_2d, sinusoid_1d
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import CUSTOM_ENCODER, ModelSpec
from seqtrack.tokens import vocabulary_size

log = logging.getLogger(__name__)

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

_NOT_PLAIN = (
    "MODEL.ENCODER.TYPE {name!r} is {what}: only plain ViTs, whose tokens come from one patch projection and carry "
    "learned positions, can encode search and templates together"
)


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
        body = _encoder_body(spec)
        width = body.pos_embed.shape[-1]
        hidden, vocabulary = spec.hidden_dim, vocabulary_size(spec.bins)
        layers = [
            DecoderLayer(
                hidden,
                heads=spec.decoder_heads,
                feedforward=spec.decoder_feedforward,
                dropout=spec.dropout,
                pre_norm=spec.pre_norm,
            )
            for _ in range(spec.decoder_layers)
        ]
        embedding = TokenEmbedding(vocabulary, hidden, sequence_length=spec.sequence_length, dropout=spec.dropout)
        return SeqTrack(
            Encoder(body),
            nn.Linear(width, hidden),
            Decoder(embedding, DecoderBody(layers, nn.LayerNorm(hidden))),
            TokenHead(hidden, vocabulary),
            spec=spec,
        )


def _encoder_body(spec: ModelSpec) -> EncoderBody:
    if spec.encoder_type == CUSTOM_ENCODER:
        return _plain_body(spec, spec.embed_dim, spec.depth, spec.num_heads)
    if spec.encoder_type in ENCODERS:
        _warn_patch_size_mismatch(spec)
        return _plain_body(spec, *ENCODERS[spec.encoder_type])
    return _timm_body(spec)


def _plain_body(spec: ModelSpec, width: int, depth: int, heads: int) -> EncoderBody:
    rates = [spec.drop_path * index / max(1, depth - 1) for index in range(depth)]
    blocks = [
        Block(width, heads, mlp_ratio=MLP_RATIO, qkv_bias=True, drop_path=rate, norm_layer=_Norm, act_layer=nn.GELU)  # type: ignore[arg-type]
        for rate in rates
    ]
    patch_embed = PatchEmbed(img_size=None, patch_size=spec.patch_size, in_chans=3, embed_dim=width)
    return _body(spec, patch_embed, blocks, _Norm(width), width)


def _body(
    spec: ModelSpec,
    patch_embed: nn.Module,
    blocks: Sequence[nn.Module],
    norm: nn.Module,
    width: int,
    norm_pre: nn.Module | None = None,
) -> EncoderBody:
    return EncoderBody(
        patch_embed,
        blocks,
        norm,
        norm_pre=norm_pre,
        embed_dim=width,
        search_tokens=spec.search_tokens,
        template_tokens=spec.template_grid**2,
        use_checkpoint=spec.use_checkpoint,
    )


def _timm_body(spec: ModelSpec) -> EncoderBody:
    """The patch projection, blocks and norms of a timm ViT. Class token, register tokens and head are not used."""
    name = spec.encoder_type
    if not timm.is_model(name):
        raise UserError(
            f"MODEL.ENCODER.TYPE {name!r} is not known; expected one of {', '.join(ENCODERS)}, {CUSTOM_ENCODER}, "
            f"or a ViT of timm {timm.__version__} (timm.list_models('vit_*') lists them)",
            code="model.unknown_encoder",
        )
    if not timm.models.is_model_in_modules(name.partition(".")[0], TIMM_MODULES):
        raise UserError(_NOT_PLAIN.format(name=name, what="of another architecture"), code="model.not_a_plain_vit")
    _warn_patch_size_mismatch(spec)
    vit = timm.create_model(
        name, pretrained=False, num_classes=0, img_size=spec.search_size, patch_size=spec.patch_size,
        drop_path_rate=spec.drop_path,
    )  # fmt: skip
    if not isinstance(vit, VisionTransformer) or type(vit.patch_embed) is not PatchEmbed:
        what = f"a {type(vit).__name__} with {type(vit.patch_embed).__name__}"
        raise UserError(_NOT_PLAIN.format(name=name, what=what), code="model.not_a_plain_vit")
    # Models that pool before their last norm call it fc_norm; the encoder needs it after the blocks.
    norm = vit.norm if not isinstance(vit.norm, nn.Identity) else vit.fc_norm
    return _body(spec, vit.patch_embed, list(vit.blocks), norm, vit.embed_dim, vit.norm_pre)


def _warn_patch_size_mismatch(spec: ModelSpec) -> None:
    named = re.search(r"patch(\d+)", spec.encoder_type)
    if named and int(named[1]) != spec.patch_size:
        log.warning(
            "encoder %s is built with patches of %d px (MODEL.ENCODER.PATCH_SIZE), not the %s px of its name",
            spec.encoder_type, spec.patch_size, named[1],
        )  # fmt: skip


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
        if isinstance(module, Attention):
            nn.init.zeros_(module.in_proj_bias)
            nn.init.zeros_(module.out_proj.bias)
    model.pos_embed.copy_(sinusoid_1d(model.spec.memory_tokens, model.spec.hidden_dim)[None])

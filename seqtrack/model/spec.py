"""The sizes and variants of a model.

`ModelSpec` is all that `model/` knows of a configuration; `model_spec` makes it. A configuration that cannot be built
is refused by `config/loader.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seqtrack.config.schema import Config

CUSTOM_ENCODER = "vit_custom"


@dataclass(frozen=True)
class ModelSpec:
    """Sizes and variants of one model; the defaults are the authors' B256.

    Args:
        encoder_type: a name in `build.ENCODERS`, "vit_custom", or any name that timm knows for a plain ViT.
        patch_size: pixels; must divide both image sizes.
        embed_dim, depth, num_heads: only with "vit_custom".
        pos_init: initial values of the encoder's positions: "trunc_normal", "sincos2d" or "sincos2d_offset".
        drop_path: rate of the last block; grows linearly from 0 at the first.
        pretrain_type: "mae", "default" (ImageNet) or "scratch"; only `weights.load_pretrained` reads it.
        use_checkpoint: activation checkpointing of the encoder's blocks.
        search_size, template_size: pixels.
        feature_type: what the decoder attends to: "x" the search tokens, "xz" all tokens, "token" their mean.
    """

    encoder_type: str = "vit_base_patch16"
    patch_size: int = 16
    embed_dim: int = 0
    depth: int = 0
    num_heads: int = 0
    pos_init: str = "trunc_normal"
    drop_path: float = 0.0
    pretrain_type: str = "scratch"
    use_checkpoint: bool = False
    search_size: int = 256
    template_size: int = 256
    num_templates: int = 2
    hidden_dim: int = 256
    bins: int = 4000
    feature_type: str = "x"
    seq_format: str = "xywh"
    decoder_layers: int = 2
    decoder_heads: int = 8
    decoder_feedforward: int = 1024
    dropout: float = 0.1
    pre_norm: bool = False

    @property
    def search_grid(self) -> int:
        """Patches along one side of the search region; `template_grid`: of a template."""
        return self.search_size // self.patch_size

    @property
    def template_grid(self) -> int:
        return self.template_size // self.patch_size

    @property
    def search_tokens(self) -> int:
        return self.search_grid**2

    @property
    def encoder_tokens(self) -> int:
        """Tokens of the search region and all templates."""
        return self.search_tokens + self.num_templates * self.template_grid**2

    @property
    def memory_tokens(self) -> int:
        """Tokens that the decoder attends to."""
        return {"x": self.search_tokens, "xz": self.encoder_tokens, "token": 1}[self.feature_type]


def model_spec(config: Config) -> ModelSpec:
    """The model that a configuration describes."""
    model, encoder, decoder, data = config.MODEL, config.MODEL.ENCODER, config.MODEL.DECODER, config.DATA
    return ModelSpec(
        encoder_type=encoder.TYPE,
        patch_size=encoder.PATCH_SIZE,
        embed_dim=encoder.EMBED_DIM,
        depth=encoder.DEPTH,
        num_heads=encoder.NUM_HEADS,
        pos_init=encoder.POS_INIT,
        drop_path=encoder.DROP_PATH,
        pretrain_type=encoder.PRETRAIN_TYPE,
        use_checkpoint=encoder.USE_CHECKPOINT,
        search_size=data.SEARCH.SIZE,
        template_size=data.TEMPLATE.SIZE,
        num_templates=data.TEMPLATE.NUMBER,
        hidden_dim=model.HIDDEN_DIM,
        bins=model.BINS,
        feature_type=model.FEATURE_TYPE,
        seq_format=data.SEQ_FORMAT,
        decoder_layers=decoder.DEC_LAYERS,
        decoder_heads=decoder.NHEADS,
        decoder_feedforward=decoder.DIM_FEEDFORWARD,
        dropout=decoder.DROPOUT,
        pre_norm=decoder.PRE_NORM,
    )

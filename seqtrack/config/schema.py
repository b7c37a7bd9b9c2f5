"""Every key of an experiment: its type, default, limits, meaning, and whether a resumed run must have the same value.

The keys and their defaults are the authors', so that their YAML files load unchanged; the design's own keys are
next to them. Knows no file and no environment variable. `docs/configuration.md` is made from this file.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from seqtrack.config.fields import Name, Settings, section, setting

# Both choices change what a number means, so they are in one place.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Encoder(Settings):
    """MODEL.ENCODER: the vision transformer that sees search region and templates together."""

    TYPE: Name = setting("vit_base_patch16", "vit_base_patch16, vit_large_patch16, any ViT of timm, or vit_custom")
    PATCH_SIZE: int = setting(16, "side of a patch in pixels; halving it makes four times the tokens", ge=1, le=64)
    EMBED_DIM: int = setting(0, "width; only with vit_custom, otherwise 0: TYPE says it", ge=0, le=8192)
    DEPTH: int = setting(0, "blocks; only with vit_custom, otherwise 0: TYPE says it", ge=0, le=256)
    NUM_HEADS: int = setting(0, "attention heads; only with vit_custom, otherwise 0: TYPE says it", ge=0, le=256)
    POS_INIT: Literal["trunc_normal", "sincos2d"] = setting(
        "trunc_normal",
        "what positions start from when the encoder is not pretrained",
    )
    DROP_PATH: float = setting(0.0, "share of residual branches dropped in training", ge=0, le=0.99)
    PRETRAIN_TYPE: Literal["mae", "default", "scratch"] = setting(
        "mae", "weights the encoder starts from; scratch reads no file"
    )
    USE_CHECKPOINT: bool = setting(
        False, "activation checkpointing: recompute activations in the backward pass; less memory, more time"
    )


class Decoder(Settings):
    """MODEL.DECODER: the causal transformer that generates the box tokens."""

    NHEADS: int = setting(8, "attention heads", ge=1, le=256)
    DROPOUT: float = setting(0.1, "dropout in embedding, attention and feed-forward", ge=0, le=0.99)
    DIM_FEEDFORWARD: int = setting(1024, "width inside the feed-forward part", ge=1, le=65536)
    DEC_LAYERS: int = setting(6, "layers; every published experiment says 2", ge=1, le=64)
    PRE_NORM: bool = setting(False, "normalise before each part rather than after it")


class Model(Settings):
    """MODEL: the network."""

    HIDDEN_DIM: int = setting(256, "width of decoder and token head", ge=2, le=8192)
    BINS: int = setting(4000, "number of coordinate tokens", ge=2, le=1_000_000)
    FEATURE_TYPE: Literal["x", "xz", "token"] = setting(
        "x", "what the decoder sees: search tokens, all tokens, or their mean"
    )
    ENCODER: Encoder = section(Encoder)
    DECODER: Decoder = section(Decoder)


class Scheduler(Settings):
    """TRAIN.SCHEDULER: the learning rate as a function of epoch or step."""

    TYPE: Literal["step", "mstep", "cosine"] = setting(
        "step",
        "step drops every LR_DROP_EPOCH epochs, mstep at MILESTONES, cosine falls with every step",
    )
    DECAY_RATE: float = setting(0.1, "factor of each drop (step)", gt=0, le=1)
    MILESTONES: tuple[Annotated[int, Ge(1)], ...] = setting((), "epochs after which the rate drops, ascending (mstep)")
    GAMMA: float = setting(0.1, "factor of each drop (mstep)", gt=0, le=1)
    WARMUP_STEPS: int = setting(0, "optimizer steps over which the rate rises to LR at the start, with any TYPE", ge=0)
    FINAL_RATIO: float = setting(0.0, "last rate as a share of LR (cosine)", ge=0, le=1)


class Train(Settings):
    """TRAIN: optimisation, and how a run is carried out."""

    SEED: int = setting(42, "seed of everything random", ge=0, le=2**32 - 1)
    LR: float = setting(1e-4, "learning rate of decoder and head", gt=0, le=10)
    ENCODER_MULTIPLIER: float = setting(0.1, "the encoder's learning rate as a multiple of LR", ge=0, le=1000)
    WEIGHT_DECAY: float = setting(1e-4, "AdamW's weight decay, on every parameter", ge=0, le=10)
    EPOCH: int = setting(500, "epochs of the whole run", ge=1, le=100_000)
    LR_DROP_EPOCH: int = setting(400, "epochs after which the rate drops, and again after as many (step)", ge=1)
    BATCH_SIZE: int = setting(8, "samples of an optimizer step over all processes (the authors' is per GPU)", ge=1)
    ACCUMULATION_STEPS: int = setting(1, "parts in which a batch is computed, for small cards", ge=1, le=4096)
    NUM_WORKER: Annotated[int, Ge(0)] | Literal["auto"] = setting(
        "auto",
        "processes that prepare samples; 0 prepares them in the trainer, auto takes one per core, at most 12",
        must_match=False,
    )
    OPTIMIZER: Literal["ADAMW"] = setting("ADAMW", "the optimizer")
    FREEZE_ENCODER: bool = setting(False, "train the decoder only, and what ENCODER_OPEN names")
    ENCODER_OPEN: tuple[Name, ...] = setting((), "parts of encoder parameter names left free when it is frozen")
    CE_WEIGHT: float = setting(1.0, "weight of the cross-entropy", gt=0)
    PRINT_INTERVAL: int = setting(50, "samples between two log lines", ge=1, must_match=False)
    GRAD_CLIP_NORM: float = setting(0.1, "largest L2 norm of the whole gradient; 0 does not clip", ge=0)
    AMP: Literal["auto", "off", "bf16", "fp16"] = setting(
        "auto", "precision of the step; auto takes what the device is good at"
    )
    TF32: bool = setting(False, "float32 products on the matrix units of newer GPUs: faster, with 10 bits of precision")
    COMPILE: bool = setting(False, "run the model through torch.compile; a resumed run may differ in its last digits")
    DETERMINISTIC: bool = setting(True, "deterministic kernels; without them two runs differ in their bits")
    NUM_THREADS: int = setting(0, "compute threads of a process; 0 leaves torch's choice", ge=0, le=1024)
    SAVE_INTERVAL_S: float = setting(
        600.0, "seconds between two checkpoints inside an epoch; 0 makes none", ge=0, must_match=False
    )
    KEEP_CHECKPOINTS: int = setting(0, "newest epoch checkpoints kept on disk; 0 keeps all", ge=0, must_match=False)
    VALIDATION_INTERVAL: int = setting(
        0, "epochs between two evaluations while training; 0 never", ge=0, must_match=False
    )
    VALIDATION_SEQUENCES: int = setting(0, "sequences of such an evaluation; 0 takes all", ge=0, must_match=False)
    SCHEDULER: Scheduler = section(Scheduler)


class DataTrain(Settings):
    """DATA.TRAIN: what an epoch is drawn from."""

    DATASETS_NAME: tuple[Name, ...] = setting(("LASOT", "GOT10K_vottrain"), "data sets")
    DATASETS_RATIO: tuple[Annotated[float, Ge(0)], ...] = setting((1.0, 1.0), "share of each data set, in any unit")
    SAMPLE_PER_EPOCH: Annotated[int, Ge(1)] | Literal["auto"] = setting(
        60000, "samples of an epoch; auto is frames / frames of a sample"
    )


class Search(Settings):
    """DATA.SEARCH: the region in which the object is looked for."""

    NUMBER: Literal[1] = setting(1, "search regions of a sample")
    SIZE: int = setting(256, "side in pixels", ge=1, le=4096)
    FACTOR: float = setting(4.0, "side of the crop as a multiple of sqrt(w*h)", gt=0, le=100)
    CENTER_JITTER: float = setting(3.5, "how far the crop's centre moves in training, in sqrt(w*h)", ge=0, le=100)
    SCALE_JITTER: float = setting(0.5, "spread of the crop's size in training, in its logarithm", ge=0, le=10)


class Template(Settings):
    """DATA.TEMPLATE: the pictures of the object."""

    NUMBER: int = setting(1, "templates of a sample", ge=1, le=64)
    SIZE: int = setting(256, "side in pixels", ge=1, le=4096)
    FACTOR: float = setting(4.0, "side of the crop as a multiple of sqrt(w*h)", gt=0, le=100)
    CENTER_JITTER: float = setting(0.0, "how far the crop's centre moves in training, in sqrt(w*h)", ge=0, le=100)
    SCALE_JITTER: float = setting(0.0, "spread of the crop's size in training, in its logarithm", ge=0, le=10)


class Data(Settings):
    """DATA: where samples come from and how they are cut."""

    CLASSES: tuple[Name, ...] = setting((), "classes to train on; empty takes all")
    RANDOM_CLASSES: int = setting(0, "further classes, drawn from the others by the seed", ge=0)
    MEAN: tuple[Annotated[float, Ge(0), Le(1)], ...] = setting(
        IMAGENET_MEAN, "mean of red, green, blue, in [0, 1]", min_length=3, max_length=3
    )
    STD: tuple[Annotated[float, Gt(0), Le(1)], ...] = setting(
        IMAGENET_STD, "standard deviation of red, green, blue", min_length=3, max_length=3
    )
    MAX_SAMPLE_INTERVAL: int = setting(200, "frames from the base frame to the furthest frame of a sample", ge=1)
    SAMPLER_MODE: Literal["order", "causal"] = setting("order", "how the frames of a sample are drawn")
    SEQ_FORMAT: Literal["xywh", "whxy", "corner"] = setting(
        "xywh",
        "order of the coordinate tokens: xywh is cx, cy, w, h; whxy is w, h, cx, cy; corner is x0, y0, x1, y1",
    )
    TRAIN: DataTrain = section(DataTrain)
    SEARCH: Search = section(Search)
    TEMPLATE: Template = section(Template)


def _interval(default: int) -> Any:
    return setting(default, "frames between two updates of the template", ge=1, must_match=False)


def _threshold(default: float) -> Any:
    return setting(default, "score above which the template is updated, of 40", ge=0, le=40, must_match=False)


class UpdateIntervals(Settings):
    """TEST.UPDATE_INTERVALS: by data set; DEFAULT for every other."""

    DEFAULT: int = _interval(9999)
    LASOT: int = _interval(450)
    LASOT_EXTENSION_SUBSET: int = _interval(9999)
    GOT10K_TEST: int = _interval(1)
    TRACKINGNET: int = _interval(25)
    TNL2K: int = _interval(25)
    OTB: int = _interval(9999)
    NFS: int = _interval(9999)
    UAV: int = _interval(9999)
    VOT20: int = _interval(10)
    VOT21: int = _interval(10)
    VOT22: int = _interval(10)


class UpdateThreshold(Settings):
    """TEST.UPDATE_THRESHOLD: by data set; DEFAULT for every other."""

    DEFAULT: float = _threshold(0.6)
    VOT20: float = _threshold(0.475)
    VOT21: float = _threshold(0.475)
    VOT22: float = _threshold(0.475)


class Testing(Settings):
    """TEST: how a trained model tracks. Nothing here changes a training run."""

    TEMPLATE_FACTOR: float = setting(4.0, "as DATA.TEMPLATE.FACTOR", gt=0, le=100, must_match=False)
    TEMPLATE_SIZE: int = setting(256, "must equal DATA.TEMPLATE.SIZE", ge=1, le=4096, must_match=False)
    SEARCH_FACTOR: float = setting(4.0, "as DATA.SEARCH.FACTOR", gt=0, le=100, must_match=False)
    SEARCH_SIZE: int = setting(256, "must equal DATA.SEARCH.SIZE", ge=1, le=4096, must_match=False)
    WINDOW: bool = setting(False, "favour boxes near the middle by a Hann window", must_match=False)
    NUM_TEMPLATES: int = setting(1, "must equal DATA.TEMPLATE.NUMBER", ge=1, le=64, must_match=False)
    UPDATE_INTERVALS: UpdateIntervals = section(UpdateIntervals)
    UPDATE_THRESHOLD: UpdateThreshold = section(UpdateThreshold)


class Config(Settings):
    """One experiment, whole and frozen. Made by `seqtrack.config.loader`, which checks it."""

    MODEL: Model = section(Model)
    TRAIN: Train = section(Train)
    DATA: Data = section(Data)
    TEST: Testing = section(Testing)


# Keys of the authors' files that nothing reads, there or here. They are accepted with any value and not kept.
IGNORED_KEYS = frozenset({"MODEL.ENCODER.STRIDE", "DATA.LOADER", "TEST.EPOCH"})

# Keys that came later. At their default they do not enter the digest, so that older experiments keep theirs.
ADDED_KEYS = frozenset({"TRAIN.TF32"})


def _walk(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


KEYS: dict[str, FieldInfo] = dict(_walk(Config))
SECTIONS: frozenset[str] = frozenset(
    name.rsplit(".", depth)[0] for name in KEYS for depth in range(1, name.count(".") + 1)
)

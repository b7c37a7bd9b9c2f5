"""Every key of an experiment: type, default, limits, meaning, and whether a resumed run must have the same value.

The authors' keys have their names and defaults, so that their YAML files load unchanged. `docs/configuration.md` is
generated from this file.
"""

from collections.abc import Iterator
from functools import partial
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from pydantic.fields import FieldInfo

from seqtrack.config.fields import Name, Settings, setting

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
Positive = Annotated[int, Ge(1)]


class Encoder(Settings):
    """MODEL.ENCODER: the vision transformer that encodes search region and templates jointly."""

    TYPE: Name = setting("vit_base_patch16", "vit_base_patch16, vit_large_patch16, any ViT of timm, or vit_custom")
    PATCH_SIZE: int = setting(16, "side of a patch in pixels; half of it gives four times the tokens", ge=1, le=64)
    EMBED_DIM: int = setting(0, "width; only with vit_custom, otherwise 0", ge=0, le=8192)
    DEPTH: int = setting(0, "blocks; only with vit_custom, otherwise 0", ge=0, le=256)
    NUM_HEADS: int = setting(0, "attention heads; only with vit_custom, otherwise 0", ge=0, le=256)
    POS_INIT: Literal["trunc_normal", "sincos2d", "sincos2d_offset"] = setting(
        "trunc_normal", "initial positions without pretraining; offset: templates do not share the search region's"
    )
    DROP_PATH: float = setting(0.0, "stochastic depth: rate of dropped residual branches", ge=0, le=0.99)
    PRETRAIN_TYPE: Literal["mae", "default", "scratch"] = setting("mae", "pretrained weights; scratch: none")
    USE_CHECKPOINT: bool = setting(False, "activation checkpointing: less memory, more time")


class Decoder(Settings):
    """MODEL.DECODER: the causal transformer that generates the box tokens."""

    NHEADS: int = setting(8, "attention heads", ge=1, le=256)
    DROPOUT: float = setting(0.1, "dropout in embedding, attention and feed-forward", ge=0, le=0.99)
    DIM_FEEDFORWARD: int = setting(1024, "hidden width of the feed-forward network", ge=1, le=65536)
    DEC_LAYERS: int = setting(6, "layers; 2 in every published experiment", ge=1, le=64)
    PRE_NORM: bool = setting(False, "pre-norm instead of post-norm layers")


class Model(Settings):
    """MODEL: the network."""

    HIDDEN_DIM: int = setting(256, "width of decoder and token head", ge=2, le=8192)
    BINS: int = setting(4000, "number of coordinate tokens", ge=2, le=1_000_000)
    FEATURE_TYPE: Literal["x", "xz", "token"] = setting("x", "tokens that the decoder sees: search, all, or their mean")
    ENCODER: Encoder = Encoder()
    DECODER: Decoder = Decoder()


class Scheduler(Settings):
    """TRAIN.SCHEDULER: the learning rate as a function of epoch or step."""

    TYPE: Literal["step", "mstep", "cosine"] = setting(
        "step", "step: drops every LR_DROP_EPOCH epochs; mstep: at MILESTONES; cosine: decays with every step"
    )
    DECAY_RATE: float = setting(0.1, "factor of each drop (step)", gt=0, le=1)
    MILESTONES: tuple[Positive, ...] = setting((), "epochs after which the rate drops, ascending (mstep)")
    GAMMA: float = setting(0.1, "factor of each drop (mstep)", gt=0, le=1)
    WARMUP_STEPS: int = setting(0, "optimizer steps of linear warmup, with any TYPE", ge=0)
    FINAL_RATIO: float = setting(0.0, "final rate as a fraction of LR (cosine)", ge=0, le=1)


class Train(Settings):
    """TRAIN: optimization and execution."""

    SEED: int = setting(42, "seed of all random numbers", ge=0, le=2**32 - 1)
    INIT_FROM: str = setting(
        "",
        "fine-tuning: a checkpoint, a .pth.tar, hf://owner/name/PATH or nano with the first weights",
        must_match=False,
    )
    LR: float = setting(1e-4, "learning rate of decoder and head", gt=0, le=10)
    ENCODER_MULTIPLIER: float = setting(0.1, "the encoder's learning rate as a multiple of LR", ge=0, le=1000)
    WEIGHT_DECAY: float = setting(1e-4, "AdamW's weight decay, on every parameter", ge=0, le=10)
    EPOCH: int = setting(500, "number of epochs", ge=1, le=100_000)
    LR_DROP_EPOCH: int = setting(400, "epochs between two drops of the rate (step)", ge=1)
    BATCH_SIZE: int = setting(
        8, "samples per optimizer step over all processes (the authors' is per GPU)", ge=1, le=1_000_000
    )
    ACCUMULATION_STEPS: int = setting(1, "gradient accumulation: parts in which a batch is computed", ge=1, le=4096)
    SHARDS: int = setting(
        0,
        "parts of a batch, a power of two, whose sums give any number of processes the same bits; 0: one per process",
        ge=0,
        le=4096,
    )
    NUM_WORKER: Annotated[int, Ge(0)] | Literal["auto"] = setting(
        "auto", "data loading processes; 0: in the trainer, auto: one per core, at most 12", must_match=False
    )
    OPTIMIZER: Literal["ADAMW"] = setting("ADAMW", "the optimizer")
    FREEZE_ENCODER: bool = setting(False, "train only the decoder and the parameters of ENCODER_OPEN")
    ENCODER_OPEN: tuple[Name, ...] = setting((), "parts of names of encoder parameters that are trained nevertheless")
    CE_WEIGHT: float = setting(1.0, "weight of the cross-entropy", gt=0)
    PRINT_INTERVAL: int = setting(50, "samples between two log lines", ge=1, must_match=False)
    GRAD_CLIP_NORM: float = setting(0.1, "maximum L2 norm of the gradient; 0 does not clip", ge=0)
    AMP: Literal["auto", "off", "bf16", "fp16"] = setting(
        "auto", "precision; auto: bf16 or fp16 if supported, else off"
    )
    TF32: bool = setting(False, "TF32 matrix products on GPUs: faster, with a 10-bit mantissa")
    COMPILE: bool = setting(False, "torch.compile: needs a C compiler (not in the image); a resumed run may differ")
    DETERMINISTIC: bool = setting(True, "deterministic kernels; without them two runs are not bitwise equal")
    NUM_THREADS: int = setting(0, "compute threads per process; 0: torch's default", ge=0, le=1024)
    SAVE_INTERVAL_S: float = setting(600.0, "seconds between checkpoints in an epoch; 0: none", ge=0, must_match=False)
    CHECKPOINT_EPOCHS: int = setting(1, "epochs between checkpoint files; see `restore`", ge=1, must_match=False)
    KEEP_CHECKPOINTS: int = setting(0, "newest epoch checkpoints kept on disk; 0: all", ge=0, must_match=False)
    VALIDATION_INTERVAL: int = setting(0, "epochs between evaluations in training; 0: none", ge=0, must_match=False)
    VALIDATION_SEQUENCES: int = setting(0, "sequences of such an evaluation; 0: all", ge=0, must_match=False)
    SCHEDULER: Scheduler = Scheduler()


class DataTrain(Settings):
    """DATA.TRAIN: data sets and samples of an epoch."""

    DATASETS_NAME: tuple[Name, ...] = setting(("LASOT", "GOT10K_vottrain"), "data sets")
    DATASETS_RATIO: tuple[Annotated[float, Ge(0)], ...] = setting((1.0, 1.0), "sampling weight of each data set")
    SAMPLE_PER_EPOCH: Annotated[int, Ge(1), Le(1_000_000_000)] | Literal["auto"] = setting(
        60000, "samples per epoch; auto: frames / frames per sample"
    )


class Template(Settings):
    """DATA.TEMPLATE: the images of the object."""

    NUMBER: int = setting(1, "templates per sample", ge=1, le=64)
    SIZE: int = setting(256, "side in pixels", ge=1, le=4096)
    FACTOR: float = setting(4.0, "side of the crop as a multiple of sqrt(w*h)", gt=0, le=100)
    CENTER_JITTER: float = setting(0.0, "jitter of the crop's centre in training, in sqrt(w*h)", ge=0, le=100)
    SCALE_JITTER: float = setting(0.0, "standard deviation of the log of the crop's size in training", ge=0, le=10)


class Search(Template):
    """DATA.SEARCH: the search region."""

    NUMBER: Literal[1] = setting(1, "search regions per sample")
    CENTER_JITTER: float = setting(3.5, "jitter of the crop's centre in training, in sqrt(w*h)", ge=0, le=100)
    SCALE_JITTER: float = setting(0.5, "standard deviation of the log of the crop's size in training", ge=0, le=10)


class Data(Settings):
    """DATA: samples and how they are cropped."""

    CLASSES: tuple[Name, ...] = setting((), "classes to train on; empty: all")
    RANDOM_CLASSES: int = setting(0, "further classes, drawn at random from the others with the seed", ge=0)
    MEAN: tuple[Annotated[float, Ge(0), Le(1)], ...] = setting(
        IMAGENET_MEAN, "mean of red, green, blue, in [0, 1]", min_length=3, max_length=3
    )
    STD: tuple[Annotated[float, Gt(0), Le(1)], ...] = setting(
        IMAGENET_STD, "standard deviation of red, green, blue", min_length=3, max_length=3
    )
    MAX_SAMPLE_INTERVAL: int = setting(200, "maximum distance in frames from the base frame of a sample", ge=1)
    SAMPLER_MODE: Literal["order", "causal"] = setting("order", "the authors' frame sampling mode")
    SEQ_FORMAT: Literal["xywh", "whxy", "corner"] = setting(
        "xywh", "order of the coordinate tokens: xywh is cx, cy, w, h; whxy is w, h, cx, cy; corner is x0, y0, x1, y1"
    )
    TRAIN: DataTrain = DataTrain()
    SEARCH: Search = Search()
    TEMPLATE: Template = Template()


_interval = partial(setting, meaning="frames between two updates of the template", ge=1, must_match=False)
_threshold = partial(setting, meaning="score above which it is updated, from 0 to 40", ge=0, le=40, must_match=False)


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
    """TEST: tracking with a trained model; does not affect training."""

    TEMPLATE_FACTOR: float = setting(4.0, "as DATA.TEMPLATE.FACTOR", gt=0, le=100, must_match=False)
    TEMPLATE_SIZE: int = setting(256, "must equal DATA.TEMPLATE.SIZE", ge=1, le=4096, must_match=False)
    SEARCH_FACTOR: float = setting(4.0, "as DATA.SEARCH.FACTOR", gt=0, le=100, must_match=False)
    SEARCH_SIZE: int = setting(256, "must equal DATA.SEARCH.SIZE", ge=1, le=4096, must_match=False)
    WINDOW: bool = setting(False, "Hann window that favours boxes near the centre", must_match=False)
    NUM_TEMPLATES: int = setting(1, "must equal DATA.TEMPLATE.NUMBER", ge=1, le=64, must_match=False)
    CENTER_RATE: float = setting(
        1.0, "part of the way from the last box's centre to the found one that a box goes", gt=0, le=1, must_match=False
    )
    SIZE_RATE: float = setting(
        1.0, "the same for the logarithms of width and height; 1: the found box", ge=0, le=1, must_match=False
    )
    UPDATE_INTERVALS: UpdateIntervals = UpdateIntervals()
    UPDATE_THRESHOLD: UpdateThreshold = UpdateThreshold()


class Config(Settings):
    """One experiment. `seqtrack.config.loader` makes and checks it."""

    MODEL: Model = Model()
    TRAIN: Train = Train()
    DATA: Data = Data()
    TEST: Testing = Testing()


# Keys of the authors' files that nothing reads, there or here; accepted with any value and dropped.
IGNORED_KEYS = frozenset({"MODEL.ENCODER.STRIDE", "DATA.LOADER", "TEST.EPOCH"})


def _walk(kind: type[Settings], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from _walk(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


KEYS: dict[str, FieldInfo] = dict(_walk(Config))
SECTIONS = frozenset(name.rsplit(".", depth)[0] for name in KEYS for depth in range(1, name.count(".") + 1))

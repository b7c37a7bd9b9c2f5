"""Every key of an experiment: its type, default, limits, meaning, and whether a resumed run must have the same.

The keys and their defaults are the authors', so that their YAML files load unchanged; the design's own keys stand
beside them. Knows no file and no environment variable. `docs/configuration.md` is made from this file.
"""

# ruff: noqa: RUF009   (key() and section() return dataclass fields, which is what that rule asks for)

from dataclasses import dataclass

from seqtrack.config.fields import Key, key, section, walk

# Both choices change what a number means, so they stand at one place.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Encoder:
    """MODEL.ENCODER: the vision transformer that sees search region and templates together."""

    TYPE: str = key("vit_base_patch16", "vit_base_patch16, vit_large_patch16, any ViT of timm, or vit_custom")
    PATCH_SIZE: int = key(16, "side of a patch in pixels; halving it makes four times the tokens", low=1, high=64)
    EMBED_DIM: int = key(0, "width; only with vit_custom, otherwise 0: TYPE says it", low=0, high=8192)
    DEPTH: int = key(0, "blocks; only with vit_custom, otherwise 0: TYPE says it", low=0, high=256)
    NUM_HEADS: int = key(0, "attention heads; only with vit_custom, otherwise 0: TYPE says it", low=0, high=256)
    POS_INIT: str = key(
        "trunc_normal",
        "what positions start from when the encoder is not pretrained",
        choices=("trunc_normal", "sincos2d"),
    )
    DROP_PATH: float = key(0.0, "share of residual branches dropped in training", low=0, high=0.99)
    PRETRAIN_TYPE: str = key(
        "mae", "weights the encoder starts from; scratch reads no file", choices=("mae", "default", "scratch")
    )
    STRIDE: int = key(16, "accepted from the authors' files; never read, there or here", low=1, must_match=False)
    USE_CHECKPOINT: bool = key(False, "compute activations again in the backward pass: less memory, more time")


@dataclass(frozen=True)
class Decoder:
    """MODEL.DECODER: the causal transformer that spells the box."""

    NHEADS: int = key(8, "attention heads", low=1, high=256)
    DROPOUT: float = key(0.1, "dropout in embedding, attention and feed-forward", low=0, high=0.99)
    DIM_FEEDFORWARD: int = key(1024, "width inside the feed-forward part", low=1, high=65536)
    DEC_LAYERS: int = key(6, "layers; every published experiment says 2", low=1, high=64)
    PRE_NORM: bool = key(False, "normalise before each part rather than after it")


@dataclass(frozen=True)
class Model:
    """MODEL: the network."""

    HIDDEN_DIM: int = key(256, "width of decoder and word head", low=2, high=8192)
    BINS: int = key(4000, "coordinate words a box is spelled with", low=2, high=1_000_000)
    FEATURE_TYPE: str = key(
        "x", "what the decoder sees: search tokens, all tokens, or their mean", choices=("x", "xz", "token")
    )
    ENCODER: Encoder = section(Encoder)
    DECODER: Decoder = section(Decoder)


@dataclass(frozen=True)
class Scheduler:
    """TRAIN.SCHEDULER: the learning rate as a function of epoch or step."""

    TYPE: str = key(
        "step",
        "step drops every LR_DROP_EPOCH epochs, mstep at MILESTONES, cosine falls with every step",
        choices=("step", "mstep", "cosine"),
    )
    DECAY_RATE: float = key(0.1, "factor of each drop (step)", above=0, high=1)
    MILESTONES: tuple[int, ...] = key((), "epochs after which the rate drops, ascending (mstep)", low=1)
    GAMMA: float = key(0.1, "factor of each drop (mstep)", above=0, high=1)
    WARMUP_STEPS: int = key(0, "optimizer steps over which the rate rises to LR at the start, with any TYPE", low=0)
    FINAL_RATIO: float = key(0.0, "last rate as a share of LR (cosine)", low=0, high=1)


@dataclass(frozen=True)
class Train:
    """TRAIN: optimisation, and how a run is carried out."""

    SEED: int = key(42, "the number everything random is made from", low=0, high=2**32 - 1)
    LR: float = key(1e-4, "learning rate of decoder and head", above=0, high=10)
    ENCODER_MULTIPLIER: float = key(0.1, "the encoder's learning rate as a multiple of LR", low=0, high=1000)
    WEIGHT_DECAY: float = key(1e-4, "AdamW's weight decay, on every parameter", low=0, high=10)
    EPOCH: int = key(500, "epochs of the whole run", low=1, high=100_000)
    LR_DROP_EPOCH: int = key(400, "epochs after which the rate drops, and again after as many (step)", low=1)
    BATCH_SIZE: int = key(8, "samples of an optimizer step over all processes (the authors' is per GPU)", low=1)
    ACCUMULATION_STEPS: int = key(1, "parts in which a batch is computed, for small cards", low=1, high=4096)
    NUM_WORKER: int = key(8, "processes that prepare samples; 0 prepares them in the trainer", low=0, must_match=False)
    OPTIMIZER: str = key("ADAMW", "the optimizer", choices=("ADAMW",))
    FREEZE_ENCODER: bool = key(False, "train the decoder only, and what ENCODER_OPEN names")
    ENCODER_OPEN: tuple[str, ...] = key((), "parts of encoder parameter names left free when it is frozen")
    CE_WEIGHT: float = key(1.0, "weight of the cross-entropy", above=0)
    PRINT_INTERVAL: int = key(50, "samples between two log lines", low=1, must_match=False)
    GRAD_CLIP_NORM: float = key(0.1, "largest L2 norm of the whole gradient; 0 does not clip", low=0)
    AMP: str = key(
        "auto", "precision of the step; auto takes what the device is good at", choices=("auto", "off", "bf16", "fp16")
    )
    COMPILE: bool = key(False, "run the model through torch.compile")
    SAMPLING: str = key(
        "stateless",
        "stateless: new samples each epoch; fixed_per_epoch: every epoch repeats the first one's",
        choices=("stateless", "fixed_per_epoch"),
    )
    DETERMINISTIC: bool = key(True, "deterministic kernels; without them two runs differ in their bits")
    NUM_THREADS: int = key(0, "compute threads of a process; 0 leaves torch's choice", low=0, high=1024)
    SAVE_INTERVAL_S: float = key(
        600.0, "seconds between two checkpoints inside an epoch; 0 makes none", low=0, must_match=False
    )
    KEEP_CHECKPOINTS: int = key(0, "newest epoch checkpoints kept on disk; 0 keeps all", low=0, must_match=False)
    VALIDATION_INTERVAL: int = key(0, "epochs between two evaluations while training; 0 never", low=0, must_match=False)
    VALIDATION_SEQUENCES: int = key(0, "sequences of such an evaluation; 0 takes all", low=0, must_match=False)
    SCHEDULER: Scheduler = section(Scheduler)


@dataclass(frozen=True)
class DataTrain:
    """DATA.TRAIN: what an epoch is drawn from."""

    DATASETS_NAME: tuple[str, ...] = key(("LASOT", "GOT10K_vottrain"), "data sets")
    DATASETS_RATIO: tuple[float, ...] = key((1.0, 1.0), "share of each data set, in any unit", low=0)
    SAMPLE_PER_EPOCH: int | str = key(60000, "samples of an epoch; auto is frames / frames of a sample", low=1)


@dataclass(frozen=True)
class Search:
    """DATA.SEARCH: the region in which the object is looked for."""

    NUMBER: int = key(1, "search regions of a sample", choices=(1,))
    SIZE: int = key(256, "side in pixels", low=1, high=4096)
    FACTOR: float = key(4.0, "side of the crop as a multiple of sqrt(w*h)", above=0, high=100)
    CENTER_JITTER: float = key(3.5, "how far the crop's centre moves in training, in sqrt(w*h)", low=0, high=100)
    SCALE_JITTER: float = key(0.5, "spread of the crop's size in training, in its logarithm", low=0, high=10)


@dataclass(frozen=True)
class Template:
    """DATA.TEMPLATE: the pictures of the object."""

    NUMBER: int = key(1, "templates of a sample", low=1, high=64)
    SIZE: int = key(256, "side in pixels", low=1, high=4096)
    FACTOR: float = key(4.0, "side of the crop as a multiple of sqrt(w*h)", above=0, high=100)
    CENTER_JITTER: float = key(0.0, "how far the crop's centre moves in training, in sqrt(w*h)", low=0, high=100)
    SCALE_JITTER: float = key(0.0, "spread of the crop's size in training, in its logarithm", low=0, high=10)


@dataclass(frozen=True)
class Data:
    """DATA: where samples come from and how they are cut."""

    CLASSES: tuple[str, ...] = key((), "classes to train on; empty takes all")
    RANDOM_CLASSES: int = key(0, "further classes, drawn from the others by the seed", low=0)
    MEAN: tuple[float, ...] = key(IMAGENET_MEAN, "mean of red, green, blue, in [0, 1]", length=3, low=0, high=1)
    STD: tuple[float, ...] = key(IMAGENET_STD, "deviation of red, green, blue", length=3, above=0, high=1)
    MAX_SAMPLE_INTERVAL: int = key(200, "frames from the base frame to the furthest frame of a sample", low=1)
    SAMPLER_MODE: str = key(
        "order", "how the frames of a sample are drawn", choices=("order", "causal", "trident", "stark")
    )
    LOADER: str = key("tracking", "accepted from the authors' files", choices=("tracking",), must_match=False)
    SEQ_FORMAT: str = key(
        "xywh",
        "how a box is spelled: xywh is cx, cy, w, h; whxy is w, h, cx, cy; corner is x0, y0, x1, y1",
        choices=("xywh", "whxy", "corner"),
    )
    TRAIN: DataTrain = section(DataTrain)
    SEARCH: Search = section(Search)
    TEMPLATE: Template = section(Template)


def _interval(default: int) -> int:
    return key(default, "frames between two updates of the template", low=1, must_match=False)


def _threshold(default: float) -> float:
    return key(default, "score above which the template is updated, of 40", low=0, high=40, must_match=False)


@dataclass(frozen=True)
class UpdateIntervals:
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


@dataclass(frozen=True)
class UpdateThreshold:
    """TEST.UPDATE_THRESHOLD: by data set; DEFAULT for every other."""

    DEFAULT: float = _threshold(0.6)
    VOT20: float = _threshold(0.475)
    VOT21: float = _threshold(0.475)
    VOT22: float = _threshold(0.475)


@dataclass(frozen=True)
class Testing:
    """TEST: how a trained model tracks. Nothing here changes a training run."""

    TEMPLATE_FACTOR: float = key(4.0, "as DATA.TEMPLATE.FACTOR", above=0, high=100, must_match=False)
    TEMPLATE_SIZE: int = key(256, "must equal DATA.TEMPLATE.SIZE", low=1, high=4096, must_match=False)
    SEARCH_FACTOR: float = key(4.0, "as DATA.SEARCH.FACTOR", above=0, high=100, must_match=False)
    SEARCH_SIZE: int = key(256, "must equal DATA.SEARCH.SIZE", low=1, high=4096, must_match=False)
    EPOCH: int = key(500, "epoch whose checkpoint is tested", low=1, must_match=False)
    WINDOW: bool = key(False, "favour boxes near the middle by a Hann window", must_match=False)
    NUM_TEMPLATES: int = key(1, "must equal DATA.TEMPLATE.NUMBER", low=1, high=64, must_match=False)
    UPDATE_INTERVALS: UpdateIntervals = section(UpdateIntervals)
    UPDATE_THRESHOLD: UpdateThreshold = section(UpdateThreshold)


@dataclass(frozen=True)
class Config:
    """One experiment, whole and frozen. Made by `seqtrack.config.load`, which checks it."""

    MODEL: Model = section(Model)
    TRAIN: Train = section(Train)
    DATA: Data = section(Data)
    TEST: Testing = section(Testing)


KEYS: dict[str, Key] = {one.name: one for one in walk(Config)}
SECTIONS: frozenset[str] = frozenset(
    name.rsplit(".", depth)[0] for name in KEYS for depth in range(1, name.count(".") + 1)
)

"""Rules between keys: combinations of valid values that are refused (RULES) or logged as a warning (CAUTIONS).

Each rule names the keys it reads and is skipped when one of them is invalid already.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import attrgetter

from seqtrack.config.schema import Config


@dataclass(frozen=True)
class Rule:
    """`check` returns the problem, or None."""

    keys: tuple[str, ...]
    check: Callable[[Config], str | None]


RULES: list[Rule] = []
CAUTIONS: list[Rule] = []
Check = Callable[[Config], str | None]


def broken_rules(rules: Collection[Rule], config: Config, invalid: Collection[str]) -> list[str]:
    """The problems of a configuration, without rules that read a key in `invalid`."""
    answers = [rule.check(config) for rule in rules if not set(rule.keys) & set(invalid)]
    return [answer for answer in answers if answer is not None]


def _rule(*keys: str, table: list[Rule] = RULES) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        table.append(Rule(keys, check))
        return check

    return add


def _equal(trained: str, tested: str, otherwise: str, table: list[Rule] = RULES) -> None:
    """A training and a test key must be equal; `otherwise` is appended to the message."""

    def equal(config: Config) -> str | None:
        a, b = attrgetter(trained, tested)(config)
        return None if a == b else f"{trained} is {a:g} and {tested} is {b:g}{otherwise}"

    table.append(Rule((trained, tested), equal))


def _filled_with_patches(size_key: str) -> None:
    patch_key = "MODEL.ENCODER.PATCH_SIZE"

    def filled_with_patches(config: Config) -> str | None:
        size, patch = attrgetter(size_key, patch_key)(config)
        if size % patch == 0:
            return None
        down, up = size // patch * patch, (size // patch + 1) * patch
        near = f"{down} or {up}" if down else f"{up}"
        return f"{size_key} is {size}, which is not a multiple of the patch size {patch} ({patch_key}); use {near}"

    RULES.append(Rule((size_key, patch_key), filled_with_patches))


_equal("DATA.TEMPLATE.NUMBER", "TEST.NUM_TEMPLATES", "; the encoder takes a fixed number of templates")
_equal("DATA.SEARCH.SIZE", "TEST.SEARCH_SIZE", "; position embeddings are learned for one size: set both")
_equal("DATA.TEMPLATE.SIZE", "TEST.TEMPLATE_SIZE", "; position embeddings are learned for one size: set both")
_equal("DATA.SEARCH.FACTOR", "TEST.SEARCH_FACTOR", ": objects will look larger or smaller", CAUTIONS)
_equal("DATA.TEMPLATE.FACTOR", "TEST.TEMPLATE_FACTOR", ": objects will look larger or smaller", CAUTIONS)
_filled_with_patches("DATA.SEARCH.SIZE")
_filled_with_patches("DATA.TEMPLATE.SIZE")


@_rule("MODEL.ENCODER.TYPE", "MODEL.ENCODER.EMBED_DIM", "MODEL.ENCODER.DEPTH", "MODEL.ENCODER.NUM_HEADS")
def _custom_encoder(config: Config) -> str | None:
    encoder = config.MODEL.ENCODER
    custom = encoder.TYPE == "vit_custom"
    sizes = {"EMBED_DIM": encoder.EMBED_DIM, "DEPTH": encoder.DEPTH, "NUM_HEADS": encoder.NUM_HEADS}
    wrong = ", ".join(f"MODEL.ENCODER.{name}" for name, value in sizes.items() if (value == 0) == custom)
    if not wrong:
        return None
    if custom:
        return f"{wrong}: vit_custom has no size of its own; give a number above 0"
    return f"{wrong}: MODEL.ENCODER.TYPE {encoder.TYPE} has its own size; use vit_custom or leave 0"


@_rule("MODEL.ENCODER.TYPE", "MODEL.ENCODER.PRETRAIN_TYPE")
def _custom_weights(config: Config) -> str | None:
    encoder = config.MODEL.ENCODER
    if encoder.TYPE != "vit_custom" or encoder.PRETRAIN_TYPE == "scratch":
        return None
    return (
        f"MODEL.ENCODER.PRETRAIN_TYPE is {encoder.PRETRAIN_TYPE}, but there are no published weights for vit_custom; "
        "use scratch"
    )


@_rule("MODEL.ENCODER.EMBED_DIM", "MODEL.ENCODER.NUM_HEADS")
def _encoder_heads(config: Config) -> str | None:
    width, heads = config.MODEL.ENCODER.EMBED_DIM, config.MODEL.ENCODER.NUM_HEADS
    if heads == 0 or width % heads == 0:
        return None
    return f"MODEL.ENCODER.EMBED_DIM {width} is not a multiple of MODEL.ENCODER.NUM_HEADS {heads}"


@_rule("MODEL.ENCODER.EMBED_DIM", "MODEL.ENCODER.POS_INIT")
def _encoder_sinusoid(config: Config) -> str | None:
    encoder = config.MODEL.ENCODER
    if encoder.POS_INIT != "sincos2d" or encoder.EMBED_DIM % 4 == 0:
        return None
    return f"MODEL.ENCODER.EMBED_DIM is {encoder.EMBED_DIM}; POS_INIT sincos2d needs a multiple of 4"


@_rule("MODEL.HIDDEN_DIM", "MODEL.DECODER.NHEADS")
def _decoder_heads(config: Config) -> str | None:
    width, heads = config.MODEL.HIDDEN_DIM, config.MODEL.DECODER.NHEADS
    if width % heads == 0 and width % 2 == 0:
        return None
    return f"MODEL.HIDDEN_DIM is {width}; it must be even and a multiple of MODEL.DECODER.NHEADS ({heads})"


@_rule("DATA.TRAIN.DATASETS_NAME", "DATA.TRAIN.DATASETS_RATIO")
def _ratios(config: Config) -> str | None:
    names, ratios = config.DATA.TRAIN.DATASETS_NAME, config.DATA.TRAIN.DATASETS_RATIO
    if not names:
        return "DATA.TRAIN.DATASETS_NAME is empty; name at least one data set"
    if len(names) != len(ratios):
        return f"DATA.TRAIN.DATASETS_NAME has {len(names)} names and DATASETS_RATIO {len(ratios)} numbers"
    if len(set(names)) != len(names):
        return f"DATA.TRAIN.DATASETS_NAME names a data set twice: {', '.join(names)}"
    return None if sum(ratios) > 0 else "DATA.TRAIN.DATASETS_RATIO is 0 for every data set"


@_rule("DATA.CLASSES", "DATA.RANDOM_CLASSES")
def _classes(config: Config) -> str | None:
    classes = config.DATA.CLASSES
    twice = sorted({one for one in classes if classes.count(one) > 1})
    if twice:
        return f"DATA.CLASSES names {', '.join(twice)} more than once"
    if config.DATA.RANDOM_CLASSES and not classes:
        return "DATA.RANDOM_CLASSES adds classes at random, but DATA.CLASSES is empty, which takes all of them already"
    return None


@_rule("TRAIN.SCHEDULER.TYPE", "TRAIN.SCHEDULER.MILESTONES")
def _milestones(config: Config) -> str | None:
    schedule = config.TRAIN.SCHEDULER
    if any(a >= b for a, b in zip(schedule.MILESTONES, schedule.MILESTONES[1:], strict=False)):
        return f"TRAIN.SCHEDULER.MILESTONES {list(schedule.MILESTONES)} must ascend"
    if schedule.TYPE == "mstep" and not schedule.MILESTONES:
        return "TRAIN.SCHEDULER.TYPE is mstep, but TRAIN.SCHEDULER.MILESTONES is empty"
    return None


@_rule("TRAIN.BATCH_SIZE", "TRAIN.ACCUMULATION_STEPS")
def _accumulation(config: Config) -> str | None:
    batch, parts = config.TRAIN.BATCH_SIZE, config.TRAIN.ACCUMULATION_STEPS
    if parts <= batch:
        return None
    return f"TRAIN.ACCUMULATION_STEPS is {parts}, but a batch has only {batch} samples (TRAIN.BATCH_SIZE)"


@_rule("DATA.SEARCH.CENTER_JITTER", "DATA.SEARCH.FACTOR", table=CAUTIONS)
def _jitter(config: Config) -> str | None:
    search = config.DATA.SEARCH
    if search.CENTER_JITTER <= search.FACTOR:
        return None
    return (
        f"DATA.SEARCH.CENTER_JITTER {search.CENTER_JITTER:g} is above DATA.SEARCH.FACTOR {search.FACTOR:g}: "
        "some objects' centres will be outside their search region"
    )

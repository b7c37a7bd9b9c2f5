"""Rules between keys: combinations of valid values that are refused.

A message names every key that its rule reads in full, so that rules about a key that is invalid anyway can be left out.
"""

from collections.abc import Iterator

from seqtrack.config.schema import Config


def contradictions(config: Config) -> Iterator[str]:
    """The problems for which a configuration is refused."""
    yield from _sizes(config)
    yield from _encoder(config)
    yield from _data(config)
    width, heads = config.MODEL.HIDDEN_DIM, config.MODEL.DECODER.NHEADS
    if width % heads or width % 2:
        yield f"MODEL.HIDDEN_DIM is {width}; it must be even and a multiple of MODEL.DECODER.NHEADS ({heads})"
    train, schedule = config.TRAIN, config.TRAIN.SCHEDULER
    if list(schedule.MILESTONES) != sorted(set(schedule.MILESTONES)):
        yield f"TRAIN.SCHEDULER.MILESTONES {list(schedule.MILESTONES)} must ascend"
    if schedule.TYPE == "mstep" and not schedule.MILESTONES:
        yield "TRAIN.SCHEDULER.TYPE is mstep, but TRAIN.SCHEDULER.MILESTONES is empty"
    if train.ACCUMULATION_STEPS > train.BATCH_SIZE:
        yield (
            f"TRAIN.ACCUMULATION_STEPS is {train.ACCUMULATION_STEPS}, but a batch has only {train.BATCH_SIZE} samples "
            "(TRAIN.BATCH_SIZE)"
        )


def _sizes(config: Config) -> Iterator[str]:
    search, template, test, patch = (
        config.DATA.SEARCH,
        config.DATA.TEMPLATE,
        config.TEST,
        config.MODEL.ENCODER.PATCH_SIZE,
    )
    for trained_key, trained, tested_key, tested in (
        ("DATA.TEMPLATE.NUMBER", template.NUMBER, "TEST.NUM_TEMPLATES", test.NUM_TEMPLATES),
        ("DATA.SEARCH.SIZE", search.SIZE, "TEST.SEARCH_SIZE", test.SEARCH_SIZE),
        ("DATA.TEMPLATE.SIZE", template.SIZE, "TEST.TEMPLATE_SIZE", test.TEMPLATE_SIZE),
    ):
        if trained != tested:
            yield f"{trained_key} is {trained} and {tested_key} is {tested}; the model takes one only: set both"
    for key, size in (("DATA.SEARCH.SIZE", search.SIZE), ("DATA.TEMPLATE.SIZE", template.SIZE)):
        if size % patch:
            down = size // patch * patch
            text = f"{key} is {size}, which is not a multiple of the patch size {patch} (MODEL.ENCODER.PATCH_SIZE)"
            yield f"{text}; use {f'{down} or ' if down else ''}{down + patch}"


def _encoder(config: Config) -> Iterator[str]:
    encoder = config.MODEL.ENCODER
    custom = encoder.TYPE == "vit_custom"
    for name in ("EMBED_DIM", "DEPTH", "NUM_HEADS"):
        if custom == (getattr(encoder, name) == 0):
            wanted = "give a number above 0" if custom else "use vit_custom or leave 0"
            yield f"MODEL.ENCODER.{name} is {getattr(encoder, name)} with MODEL.ENCODER.TYPE {encoder.TYPE}; {wanted}"
    if custom and encoder.PRETRAIN_TYPE != "scratch":
        text = f"MODEL.ENCODER.PRETRAIN_TYPE is {encoder.PRETRAIN_TYPE}"
        yield f"{text}, but MODEL.ENCODER.TYPE vit_custom has no published weights; use scratch"
    if encoder.NUM_HEADS and encoder.EMBED_DIM % encoder.NUM_HEADS:
        yield (
            f"MODEL.ENCODER.EMBED_DIM {encoder.EMBED_DIM} is not a multiple of MODEL.ENCODER.NUM_HEADS "
            f"{encoder.NUM_HEADS}"
        )
    if encoder.POS_INIT == "sincos2d" and encoder.EMBED_DIM % 4:
        yield f"MODEL.ENCODER.EMBED_DIM is {encoder.EMBED_DIM}; MODEL.ENCODER.POS_INIT sincos2d needs a multiple of 4"


def _data(config: Config) -> Iterator[str]:
    names, ratios, classes = config.DATA.TRAIN.DATASETS_NAME, config.DATA.TRAIN.DATASETS_RATIO, config.DATA.CLASSES
    if not names or len(names) != len(ratios) or not sum(ratios):
        text = f"DATA.TRAIN.DATASETS_NAME has {len(names)} names and DATA.TRAIN.DATASETS_RATIO is {list(ratios)}"
        yield f"{text}; expected one number per name, and one above 0"
    for key, words in (("DATA.TRAIN.DATASETS_NAME", names), ("DATA.CLASSES", classes)):
        if len(set(words)) != len(words):
            yield f"{key} contains {', '.join(sorted({one for one in words if words.count(one) > 1}))} more than once"
    if config.DATA.RANDOM_CLASSES and not classes:
        yield "DATA.RANDOM_CLASSES adds classes at random, but DATA.CLASSES is empty, which takes all of them already"

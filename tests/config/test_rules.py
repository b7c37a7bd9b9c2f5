"""Rules between keys: each refuses a contradiction and accepts a similar valid case."""

import pytest

from seqtrack.config.loader import load_config
from seqtrack.config.rules import CAUTIONS, RULES
from seqtrack.config.schema import KEYS, Config
from seqtrack.errors import UserError

# experiment, overrides that are refused, overrides that are accepted
CASES = [
    ("seqtrack_b256", "TEST.NUM_TEMPLATES 1", "TEST.NUM_TEMPLATES 2"),
    ("seqtrack_b256", "DATA.SEARCH.SIZE 384", "DATA.SEARCH.SIZE 384 TEST.SEARCH_SIZE 384"),
    ("seqtrack_b256", "TEST.TEMPLATE_SIZE 128", "TEST.TEMPLATE_SIZE 128 DATA.TEMPLATE.SIZE 128"),
    ("seqtrack_b256", "DATA.SEARCH.SIZE 250 TEST.SEARCH_SIZE 250", "DATA.SEARCH.SIZE 240 TEST.SEARCH_SIZE 240"),
    ("seqtrack_b256", "DATA.TEMPLATE.SIZE 9 TEST.TEMPLATE_SIZE 9", "DATA.TEMPLATE.SIZE 16 TEST.TEMPLATE_SIZE 16"),
    ("seqtrack_b256", "MODEL.ENCODER.DEPTH 3", "MODEL.ENCODER.DEPTH 0"),
    ("demo", "MODEL.ENCODER.PATCH_SIZE 14", "MODEL.ENCODER.PATCH_SIZE 8"),
    ("demo", "MODEL.ENCODER.DEPTH 0", "MODEL.ENCODER.DEPTH 1"),
    ("demo", "MODEL.ENCODER.PRETRAIN_TYPE mae", "MODEL.ENCODER.PRETRAIN_TYPE scratch"),
    ("demo", "MODEL.ENCODER.NUM_HEADS 7", "MODEL.ENCODER.NUM_HEADS 4"),
    (
        "demo",
        "MODEL.ENCODER.EMBED_DIM 6 MODEL.ENCODER.NUM_HEADS 1",
        "MODEL.ENCODER.EMBED_DIM 12 MODEL.ENCODER.NUM_HEADS 1",
    ),
    ("demo", "MODEL.HIDDEN_DIM 100", "MODEL.HIDDEN_DIM 104"),
    ("demo", "MODEL.HIDDEN_DIM 101 MODEL.DECODER.NHEADS 1", "MODEL.HIDDEN_DIM 102 MODEL.DECODER.NHEADS 1"),
    (
        "demo",
        "DATA.TRAIN.DATASETS_NAME DEMO,LASOT",
        "DATA.TRAIN.DATASETS_NAME DEMO,LASOT DATA.TRAIN.DATASETS_RATIO 1,2",
    ),
    ("demo", "DATA.TRAIN.DATASETS_NAME [] DATA.TRAIN.DATASETS_RATIO []", ""),
    ("demo", "DATA.TRAIN.DATASETS_NAME DEMO,DEMO DATA.TRAIN.DATASETS_RATIO 1,1", ""),
    ("demo", "DATA.TRAIN.DATASETS_RATIO 0", "DATA.TRAIN.DATASETS_RATIO 0.1"),
    ("demo", "DATA.CLASSES disc,bar,disc", "DATA.CLASSES disc,bar"),
    ("demo", "DATA.RANDOM_CLASSES 1", "DATA.RANDOM_CLASSES 1 DATA.CLASSES disc"),
    ("demo", "TRAIN.SCHEDULER.MILESTONES 3,3", "TRAIN.SCHEDULER.MILESTONES 3,4"),
    ("demo", "TRAIN.SCHEDULER.TYPE mstep", "TRAIN.SCHEDULER.TYPE mstep TRAIN.SCHEDULER.MILESTONES 3"),
    ("demo", "TRAIN.ACCUMULATION_STEPS 17", "TRAIN.ACCUMULATION_STEPS 16"),
]


def pairs(text: str) -> list[tuple[str, str]]:
    words = text.split()
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize(("experiment", "bad", "good"), CASES)
def test_a_contradiction_is_refused_and_a_similar_valid_case_is_not(experiment: str, bad: str, good: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(experiment, overrides=pairs(bad))
    assert {problem.code for problem in caught.value.problems} == {"config.rule"}, caught.value.problems
    load_config(experiment, overrides=pairs(good))


def test_a_rule_is_skipped_for_a_key_that_is_already_invalid() -> None:
    with pytest.raises(UserError) as caught:
        load_config("seqtrack_b384", overrides=[("TEST.SEARCH_SIZE", "large"), ("DATA.TEMPLATE.SIZE", "[1, [2]]")])
    assert {problem.code for problem in caught.value.problems} == {"config.invalid_value"}


@pytest.mark.parametrize("rule", [*RULES, *CAUTIONS], ids=lambda rule: rule.check.__name__)
def test_a_rule_names_the_keys_that_it_reads(rule: object) -> None:
    keys: tuple[str, ...] = rule.keys  # type: ignore[attr-defined]
    assert set(keys) <= set(KEYS)
    assert rule.check(Config()) is None  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", ["I/checkpoints/SEQTRACK_ep0001.safetensors", "SEQTRACK_ep0500.pth.tar", "/x"])
def test_a_checkpoint_as_pretrained_weights_has_its_own_code(place: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_config("seqtrack_b256", overrides=[("MODEL.ENCODER.PRETRAIN_TYPE", place)])
    assert [problem.code for problem in refusal.value.problems] == ["config.no_fine_tuning"]
    with pytest.raises(UserError) as refusal:
        load_config("seqtrack_b256", overrides=[("MODEL.ENCODER.PRETRAIN_TYPE", "mea")])
    assert [problem.code for problem in refusal.value.problems] == ["config.invalid_value"]

"""Rules between keys: each refuses what contradicts, and lets the neighbouring good case through."""

import pytest

from seqtrack.config.loader import load_config
from seqtrack.config.rules import CAUTIONS, RULES
from seqtrack.config.schema import KEYS, Config
from seqtrack.errors import UserError

CASES: list[tuple[str, dict[str, str], dict[str, str], str]] = [
    ("seqtrack_b256", {"TEST.NUM_TEMPLATES": "1"}, {"TEST.NUM_TEMPLATES": "2"}, "the encoder takes one number of them"),
    (
        "seqtrack_b256",
        {"DATA.SEARCH.SIZE": "384"},
        {"DATA.SEARCH.SIZE": "384", "TEST.SEARCH_SIZE": "384"},
        "TEST.SEARCH_SIZE is 256",
    ),
    (
        "seqtrack_b256",
        {"TEST.TEMPLATE_SIZE": "128"},
        {"TEST.TEMPLATE_SIZE": "128", "DATA.TEMPLATE.SIZE": "128"},
        "DATA.TEMPLATE.SIZE is 256",
    ),
    (
        "seqtrack_b256",
        {"DATA.SEARCH.SIZE": "250", "TEST.SEARCH_SIZE": "250"},
        {"DATA.SEARCH.SIZE": "240", "TEST.SEARCH_SIZE": "240"},
        "use 240 or 256",
    ),
    (
        "seqtrack_b256",
        {"DATA.TEMPLATE.SIZE": "9", "TEST.TEMPLATE_SIZE": "9"},
        {"DATA.TEMPLATE.SIZE": "16", "TEST.TEMPLATE_SIZE": "16"},
        "use 16",
    ),
    ("demo", {"MODEL.ENCODER.PATCH_SIZE": "14"}, {"MODEL.ENCODER.PATCH_SIZE": "8"}, "patches of 14"),
    ("demo", {"MODEL.ENCODER.DEPTH": "0"}, {"MODEL.ENCODER.DEPTH": "1"}, "vit_custom has no size of its own"),
    ("seqtrack_b256", {"MODEL.ENCODER.DEPTH": "3"}, {"MODEL.ENCODER.DEPTH": "0"}, "has its own size"),
    ("demo", {"MODEL.ENCODER.PRETRAIN_TYPE": "mae"}, {"MODEL.ENCODER.PRETRAIN_TYPE": "scratch"}, "nobody has weights"),
    ("demo", {"MODEL.ENCODER.NUM_HEADS": "7"}, {"MODEL.ENCODER.NUM_HEADS": "4"}, "cannot be dealt"),
    (
        "demo",
        {"MODEL.ENCODER.EMBED_DIM": "6", "MODEL.ENCODER.NUM_HEADS": "1"},
        {"MODEL.ENCODER.EMBED_DIM": "12", "MODEL.ENCODER.NUM_HEADS": "1"},
        "needs a multiple of 4",
    ),
    ("demo", {"MODEL.HIDDEN_DIM": "100"}, {"MODEL.HIDDEN_DIM": "104"}, "a multiple of MODEL.DECODER.NHEADS (8)"),
    (
        "demo",
        {"MODEL.HIDDEN_DIM": "101", "MODEL.DECODER.NHEADS": "1"},
        {"MODEL.HIDDEN_DIM": "102", "MODEL.DECODER.NHEADS": "1"},
        "must be even",
    ),
    (
        "demo",
        {"DATA.TRAIN.DATASETS_NAME": "DEMO,LASOT"},
        {"DATA.TRAIN.DATASETS_NAME": "DEMO,LASOT", "DATA.TRAIN.DATASETS_RATIO": "1,2"},
        "has 2 names and DATASETS_RATIO 1 numbers",
    ),
    ("demo", {"DATA.TRAIN.DATASETS_NAME": "[]", "DATA.TRAIN.DATASETS_RATIO": "[]"}, {}, "name at least one data set"),
    (
        "demo",
        {"DATA.TRAIN.DATASETS_NAME": "DEMO,DEMO", "DATA.TRAIN.DATASETS_RATIO": "1,1"},
        {},
        "names a data set twice",
    ),
    ("demo", {"DATA.TRAIN.DATASETS_RATIO": "0"}, {"DATA.TRAIN.DATASETS_RATIO": "0.1"}, "nothing would be drawn"),
    ("demo", {"DATA.CLASSES": "disc,bar,disc"}, {"DATA.CLASSES": "disc,bar"}, "names disc more than once"),
    (
        "demo",
        {"DATA.RANDOM_CLASSES": "1"},
        {"DATA.RANDOM_CLASSES": "1", "DATA.CLASSES": "disc"},
        "takes all of them already",
    ),
    (
        "demo",
        {"TRAIN.SCHEDULER.MILESTONES": "3,3"},
        {"TRAIN.SCHEDULER.MILESTONES": "3,4"},
        "[3, 3] must ascend",
    ),
    (
        "demo",
        {"TRAIN.SCHEDULER.TYPE": "mstep"},
        {"TRAIN.SCHEDULER.TYPE": "mstep", "TRAIN.SCHEDULER.MILESTONES": "3"},
        "MILESTONES is empty",
    ),
    ("demo", {"TRAIN.ACCUMULATION_STEPS": "17"}, {"TRAIN.ACCUMULATION_STEPS": "16"}, "only 16 samples"),
]


@pytest.mark.parametrize(("experiment", "bad", "good", "_message"), CASES, ids=[case[3] for case in CASES])
def test_a_contradiction_is_refused_and_its_neighbour_is_not(
    experiment: str, bad: dict[str, str], good: dict[str, str], _message: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_config(experiment, overrides=list(bad.items()))
    assert {problem.code for problem in caught.value.problems} == {"config.rule"}, caught.value.problems
    load_config(experiment, overrides=list(good.items()))


def test_a_rule_is_not_asked_about_a_key_that_is_wrong_already() -> None:
    with pytest.raises(UserError) as caught:
        load_config("seqtrack_b384", overrides=[("TEST.SEARCH_SIZE", "large"), ("DATA.TEMPLATE.SIZE", "[1, [2]]")])
    assert {problem.code for problem in caught.value.problems} == {"config.invalid_value"}


@pytest.mark.parametrize("rule", [*RULES, *CAUTIONS], ids=lambda rule: rule.check.__name__)
def test_a_rule_names_the_keys_that_it_reads(rule: object) -> None:
    keys: tuple[str, ...] = rule.keys  # type: ignore[attr-defined]
    assert set(keys) <= set(KEYS)
    assert rule.check(Config()) is None  # type: ignore[attr-defined]


def test_the_defaults_break_no_rule() -> None:
    assert [rule.check(Config()) for rule in (*RULES, *CAUTIONS) if rule.check(Config())] == []


@pytest.mark.parametrize("place", ["I/checkpoints/SEQTRACK_ep0001.safetensors", "SEQTRACK_ep0500.pth.tar", "/x"])
def test_a_checkpoint_as_pretrained_weights_is_refused_with_what_to_do_instead(place: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_config("seqtrack_b256", overrides=[("MODEL.ENCODER.PRETRAIN_TYPE", place)])
    assert [problem.code for problem in refusal.value.problems] == ["config.no_fine_tuning"]
    with pytest.raises(UserError) as refusal:
        load_config("seqtrack_b256", overrides=[("MODEL.ENCODER.PRETRAIN_TYPE", "mea")])
    assert [problem.code for problem in refusal.value.problems] == ["config.invalid_value"]

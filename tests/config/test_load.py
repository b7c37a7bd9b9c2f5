"""Loading an experiment: every problem is reported at once, with its location and its code."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqtrack.config.loader import compare_configs, config_digest, config_from_text, dump_config, load_config
from seqtrack.config.schema import KEYS
from seqtrack.errors import UserError


def problems_of(text: str) -> list[tuple[str, str]]:
    """(code, key and location) of every problem of this YAML."""
    with pytest.raises(UserError) as caught:
        config_from_text(text, "my.yaml")
    return [(problem.code.removeprefix("config."), problem.split("): ")[0]) for problem in caught.value.problems]


def codes_of_pairs(experiment: str, *pairs: tuple[str, str]) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_config(experiment, overrides=pairs)
    return [problem.code.removeprefix("config.") for problem in caught.value.problems]


def test_all_problems_are_reported_once() -> None:
    text = """
TRAIN:
  LR: fast
  EPOCHS: 10
  EPOCH: null
DATA:
  MEAN: [0.4, red, 2]
  SEARCH: 256
  TEMPLATE: {SIZE: 384}
MODLE:
  BINS: 4000
"""
    *others, last = problems_of(text)
    found = [(code, int(place.rpartition(" ")[2])) for code, place in others]
    assert found[:3] == [("unknown_key", 4), ("not_a_section", 8), ("unknown_key", 10)]
    assert found[3:] == [("invalid_value", 3), ("invalid_value", 5), ("invalid_value", 7)]
    assert last[0] == "rule", "of values that are valid"
    with pytest.raises(UserError) as caught:
        config_from_text("LR: 1\nMODLE: {BINS: 3}\nTRAIN: {EPOCHS: 3, SCHEDULER: {TYPE: cosin}}", "my.yaml")
    for problem, meant in zip(caught.value.problems, ("TRAIN.LR", "MODEL", "TRAIN.EPOCH", "cosine"), strict=True):
        assert problem.endswith(f"{meant}?"), "the most similar name"


def test_a_key_of_a_course_file_is_refused_with_its_name_here() -> None:
    text = "TRAIN: {CHECKPOINT_INTERVAL: 5, WARMUP_EPOCHS: 1, LOSS_WEIGHTS: [1, 5]}\nLASOT: {ROOT: x}"
    with pytest.raises(UserError) as caught:
        config_from_text(f"{text}\nDATA: {{LASOT: {{TRAIN_SEQUENCES: 16}}}}", "my.yaml")
    meant = ("TRAIN.CHECKPOINT_EPOCHS", "TRAIN.SCHEDULER.WARMUP_STEPS", "TRAIN.CE_WEIGHT", "DATA.CLASSES", "DATA_DIR")
    for problem, name in zip(caught.value.problems, meant, strict=True):
        assert problem.code == "config.unknown_key" and name in problem.split("no such key")[1]


NAMES = ("../up", "a/b", "a b", "", ".hidden", "line\\nbreak", "x" * 101)


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        (
            "TRAIN.LR",
            {**dict.fromkeys(("1e-3", "1E-3", "0.001", ".001", "1.0e-3", "+0.001", "'0.001'"), 0.001), "1": 1.0},
            "0,001|1e|.|e5|nan|.nan|.inf|1e999|0x1|1:30|1_0|0|11|[1e-4]|null|~||Null|{a: 1}|!!python/name:os.system x",
        ),
        ("TRAIN.CE_WEIGHT", {"1": 1.0, "1e300": 1e300}, "1e999|-1"),
        ("TRAIN.BATCH_SIZE", {"16": 16}, f"010|1.0|1e3|0x10|1:30|0b1|true|{'9' * 5000}|1_6|0|null"),
        ("TRAIN.BATCH_SIZE", {"1000000": 10**6}, f"1000001|{'9' * 18}"),
        ("TRAIN.DETERMINISTIC", {"No": False, "off": False, "1": True, "'yes'": True}, "2|null|maybe"),
        ("TRAIN.AMP", {"off": "off", "BF16": "bf16"}, "false|fp8"),
        ("TRAIN.NUM_WORKER", {"Auto": "auto", "0": 0}, "-1|all"),
        ("DATA.CLASSES", {"[book, coin]": ("book", "coin"), "[]": ()}, "[book, null]|[{a: b}]|[[a]]"),
        ("DATA.CLASSES", {'["book"]': ("book",)}, "|".join(f'["{name}"]' for name in NAMES)),
        ("DATA.STD", {"[0.1, 0.2, 1]": (0.1, 0.2, 1.0)}, "[0.1, 0.2]|[0.1, 0.2, 2]|[0, 0.2, 1]|[a, 0.2, 1]"),
    ],
)  # fmt: skip
def test_texts_of_values(key: str, good: dict[str, object], bad: str) -> None:
    section, name = key.split(".")
    for text, value in good.items():
        found = getattr(getattr(config_from_text(f"{section}: {{{name}: {text}}}", "x"), section), name)
        assert (found, type(found)) == (value, type(value))
    for text in bad.split("|"):
        assert problems_of(f"{section}:\n  {name}: {text}") == [("invalid_value", f"{key} (my.yaml line 2")], text


@pytest.mark.parametrize(
    ("code", "texts"),
    [
        ("not_a_mapping", ["", "- a\n- b\n"]),
        ("not_yaml", ["TRAIN: {LR: [", "TRAIN: {LR: 1e-4}\n---\nTRAIN: {LR: 1e-4}\n", "[" * 5000, "TRAIN: \x00",
                      'TRAIN: {LR: "\\UFFFFFFFF"}']),
        ("unknown_key", ["? [a, b]\n: c\n", "base: &a {LR: 1e-4}\nTRAIN:\n  <<: *a\n", "TRAIN: &a {SCHEDULER: *a}"]),
        ("duplicate_key", ["TRAIN:\n  LR: 1e-4\n  EPOCH: 3\n  LR: 2e-4", "TRAIN: {LR: 1}\nTRAIN: {EPOCH: 3}"]),
    ],
)  # fmt: skip
def test_an_invalid_file_is_refused(code: str, texts: list[str], tmp_path: Path) -> None:
    for text in texts:
        assert {found for found, _ in problems_of(text)} == {code}
    (tmp_path / "folder.yaml").mkdir()
    for name in ("nothing.yaml", "folder.yaml", "a\x00b.yaml"):  # other bytes: tests/fuzz
        assert codes_of_pairs(str(tmp_path / name)) == ["unreadable"]


def test_pairs_override_variables_and_those_the_file_but_hide_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("TRAIN: {SEED: 0, EPOCH: 1, BATCH_SIZE: 5}")
    variables = [("SEED", "TRAIN.SEED", "1"), ("EPOCHS", "TRAIN.EPOCH", "2")]
    config = load_config(str(path), variables=variables, overrides=[("TRAIN.EPOCH", "3")])
    assert (config.TRAIN.BATCH_SIZE, config.TRAIN.SEED, config.TRAIN.EPOCH) == (5, 1, 3)
    path.write_text("TRAIN: {LR: fast}")
    assert codes_of_pairs(str(path), ("TRAIN.LR", "1e-3")) == ["invalid_value"]
    pairs = [("LR", "1"), ("TRAIN", "1"), ("TRAIN.SEED", "1"), ("TRAIN.SEED", "2")]
    assert codes_of_pairs("demo", *pairs) == ["unknown_key", "not_a_section", "duplicate_key"]


def test_a_list_in_a_pair_is_written_with_brackets_or_commas() -> None:
    texts = {"[book, coin]": 2, "book,coin": 2, "['book', \"coin\"]": 2, "[]": 0, "": 0}
    for text, count in texts.items():
        assert len(load_config("book_coin_192", overrides=[("DATA.CLASSES", text)]).DATA.CLASSES) == count
    for text in ("[book", "[book]]", "[[book]]", "book,,coin", "[\\"):
        assert codes_of_pairs("demo", ("DATA.CLASSES", text)) == ["invalid_value"]


def test_differences_have_key_both_values_and_must_match() -> None:
    a = load_config("demo")
    b = load_config("demo", overrides=[("TRAIN.NUM_WORKER", "4"), ("TRAIN.LR", "2e-3"), ("DATA.CLASSES", "disc")])
    assert [tuple(one) for one in compare_configs(a, b)] == [
        ("TRAIN.LR", 8e-4, 2e-3, True),
        ("TRAIN.NUM_WORKER", a.TRAIN.NUM_WORKER, 4, False),
        ("DATA.CLASSES", (), ("disc",), True),
    ]
    assert str(compare_configs(a, b)[2]) == "DATA.CLASSES: [] / ['disc']"
    assert config_digest(a) == config_digest(load_config("demo", overrides=[("TRAIN.NUM_WORKER", "4")]))


VALUES = ("0", "1", "2", "3", "0.5", "1e-05", "123456.7", "true", "false", "auto", "off", "corner", "[]", "[1, 2]",
          "[0.1, 0.2, 0.3]", "[on, 1e3, a.b+c]", "vit_custom", "scratch")  # fmt: skip
PAIRS = st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.sampled_from(VALUES)), max_size=8)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=25)
@given(name=st.sampled_from(["demo", "seqtrack_b256", "airplane_random_5"]), pairs=PAIRS)
def test_dump_and_load_are_inverse_and_the_digest_shows_what_must_match(
    name: str, pairs: list[tuple[str, str]]
) -> None:
    config = before = load_config(name)
    for pair in pairs:
        with contextlib.suppress(UserError):
            config = load_config(name, overrides=[pair])
        text = dump_config(config)
        again = config_from_text(text, "stored")
        assert (again, dump_config(again), config_digest(again)) == (config, text, config_digest(config))
        assert len(yaml.safe_load(text)) == 4  # standard YAML
        differences = compare_configs(before, config)
        assert (config_digest(before) != config_digest(config)) == any(one.must_match for one in differences)
        assert (before != config) == bool(differences)


# experiment, overrides that a rule between keys refuses, overrides that it accepts
RULES = [
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
    ("demo", "MODEL.ENCODER.EMBED_DIM 6 MODEL.ENCODER.NUM_HEADS 1",
     "MODEL.ENCODER.EMBED_DIM 12 MODEL.ENCODER.NUM_HEADS 1"),
    ("demo", "MODEL.HIDDEN_DIM 100", "MODEL.HIDDEN_DIM 104"),
    ("demo", "MODEL.HIDDEN_DIM 101 MODEL.DECODER.NHEADS 1", "MODEL.HIDDEN_DIM 102 MODEL.DECODER.NHEADS 1"),
    ("demo", "DATA.TRAIN.DATASETS_NAME DEMO,LASOT",
     "DATA.TRAIN.DATASETS_NAME DEMO,LASOT DATA.TRAIN.DATASETS_RATIO 1,2"),
    ("demo", "DATA.TRAIN.DATASETS_NAME [] DATA.TRAIN.DATASETS_RATIO []", ""),
    ("demo", "DATA.TRAIN.DATASETS_NAME DEMO,DEMO DATA.TRAIN.DATASETS_RATIO 1,1", ""),
    ("demo", "DATA.TRAIN.DATASETS_RATIO 0", "DATA.TRAIN.DATASETS_RATIO 0.1"),
    ("demo", "DATA.CLASSES disc,bar,disc", "DATA.CLASSES disc,bar"),
    ("demo", "DATA.RANDOM_CLASSES 1", "DATA.RANDOM_CLASSES 1 DATA.CLASSES disc"),
    ("demo", "TRAIN.SCHEDULER.MILESTONES 3,3", "TRAIN.SCHEDULER.MILESTONES 3,4"),
    ("demo", "TRAIN.SCHEDULER.TYPE mstep", "TRAIN.SCHEDULER.TYPE mstep TRAIN.SCHEDULER.MILESTONES 3"),
    ("demo", "TRAIN.ACCUMULATION_STEPS 17", "TRAIN.ACCUMULATION_STEPS 16"),
    ("demo", "TRAIN.SHARDS 32", "TRAIN.SHARDS 16"),
    ("demo", "TRAIN.SHARDS 3", "TRAIN.SHARDS 1"),
    ("demo", "TRAIN.SHARDS 2 TRAIN.ACCUMULATION_STEPS 2", "TRAIN.SHARDS 2"),
]  # fmt: skip


@pytest.mark.parametrize(("experiment", "bad", "good"), RULES)
def test_a_contradiction_is_refused_and_a_similar_valid_case_is_not(experiment: str, bad: str, good: str) -> None:
    bad_pairs, good_pairs = (list(zip(words[::2], words[1::2], strict=True)) for words in (bad.split(), good.split()))
    assert set(codes_of_pairs(experiment, *bad_pairs)) == {"rule"}
    load_config(experiment, overrides=good_pairs)

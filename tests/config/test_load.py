"""Loading an experiment: every problem is reported at once, with its location and its code."""

import logging
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from seqtrack.config.loader import compare_configs, config_digest, config_from_text, dump_config, load_config
from seqtrack.config.schema import KEYS, Config
from seqtrack.errors import UserError


def problems_of(text: str) -> list[tuple[str, str]]:
    """(code, key and location) of every problem of this YAML."""
    try:
        config_from_text(text, "my.yaml")
    except UserError as error:
        return [(problem.code.removeprefix("config."), problem.split("): ")[0]) for problem in error.problems]
    return []


def code_of(text: str) -> str:
    ((code, _),) = problems_of(text)
    return code


def test_all_problems_are_reported_once() -> None:
    text = """
TRAIN:
  LR: fast
  EPOCHS: 10
  EPOCH: null
DATA:
  MEAN: [0.4, red, 2]
  SEARCH: 256
MODLE:
  BINS: 4000
"""
    assert sorted(problems_of(text)) == [
        ("invalid_value", "DATA.MEAN[1] (my.yaml line 7"),
        ("invalid_value", "DATA.MEAN[2] (my.yaml line 7"),
        ("invalid_value", "TRAIN.EPOCH (my.yaml line 5"),
        ("invalid_value", "TRAIN.LR (my.yaml line 3"),
        ("not_a_section", "DATA.SEARCH (my.yaml line 8"),
        ("unknown_key", "MODLE (my.yaml line 9"),
        ("unknown_key", "TRAIN.EPOCHS (my.yaml line 4"),
    ]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("TRAIN: {EPOCHS: 3}", "TRAIN.EPOCH?"),
        ("MODLE: {BINS: 3}", "MODEL?"),
        ("LR: 1", "TRAIN.LR?"),
        ("TRAIN: {SCHEDULER: {TYPE: cosin}}", "cosine?"),
    ],
)
def test_the_most_similar_name_is_suggested(wrong: str, right: str) -> None:
    with pytest.raises(UserError) as caught:
        config_from_text(wrong, "my.yaml")
    assert caught.value.problems[0].endswith(right)


@pytest.mark.parametrize("null", ["null", "~", "", "Null", "NULL"])
@pytest.mark.parametrize("key", ["TRAIN.LR", "MODEL.ENCODER.TYPE", "TEST.WINDOW", "TRAIN.BATCH_SIZE", "DATA.MEAN"])
def test_null_is_invalid_for_any_key(key: str, null: str) -> None:
    section, *middle, last = key.split(".")
    inner = f"{middle[0]}: {{{last}: {null}}}" if middle else f"{last}: {null}"
    assert problems_of(f"{section}: {{{inner}}}") == [("invalid_value", f"{key} (my.yaml line 1")]


@pytest.mark.parametrize("one", [1, 1.0])
def test_an_integer_is_valid_for_a_float_with_the_same_digest(one: float) -> None:
    config = config_from_text(f"TRAIN: {{CE_WEIGHT: {one}}}", "my.yaml")
    assert type(config.TRAIN.CE_WEIGHT) is float
    assert config_digest(config) == config_digest(Config())


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "0.001", ".001", "1.0e-3", "+0.001", "'0.001'"])
def test_usual_number_formats_are_read(written: str) -> None:
    assert config_from_text(f"TRAIN: {{LR: {written}}}", "my.yaml").TRAIN.LR == 0.001


@pytest.mark.parametrize("written", ["0,001", "1e", ".", "e5", "nan", ".nan", ".inf", "1e999", "0x1", "1:30", "1_0"])
def test_other_text_is_not_a_finite_number(written: str) -> None:
    assert code_of(f"TRAIN:\n  LR: {written}") == "invalid_value"


def test_a_number_without_an_upper_limit_must_be_finite() -> None:
    assert code_of("TRAIN: {CE_WEIGHT: 1e999}") == "invalid_value"
    assert config_from_text("TRAIN: {CE_WEIGHT: 1e300}", "my.yaml").TRAIN.CE_WEIGHT == 1e300


@pytest.mark.parametrize("written", ["010", "1.0", "1e3", "0x10", "1:30", "0b1", "true", "9" * 5000, "1_6", "0"])
def test_an_integer_has_one_notation(written: str) -> None:
    assert code_of(f"TRAIN:\n  BATCH_SIZE: {written}") == "invalid_value"


def test_on_and_off_are_booleans_only_for_boolean_keys() -> None:
    config = config_from_text("TRAIN: {AMP: off, COMPILE: on, DETERMINISTIC: No}\nTEST: {WINDOW: 1}", "my.yaml")
    assert (config.TRAIN.AMP, config.TRAIN.COMPILE, config.TRAIN.DETERMINISTIC) == ("off", True, False)
    assert config.TEST.WINDOW is True
    assert code_of("TEST: {WINDOW: 2}") == "invalid_value"


def test_choices_are_case_insensitive() -> None:
    assert config_from_text("TRAIN: {OPTIMIZER: AdamW}", "my.yaml").TRAIN.OPTIMIZER == "ADAMW"
    assert code_of("DATA: {SEARCH: {NUMBER: 2}}") == "invalid_value"


@pytest.mark.parametrize("text", ["TRAIN:\n  LR: 1e-4\n  EPOCH: 3\n  LR: 2e-4", "TRAIN: {LR: 1}\nTRAIN: {EPOCH: 3}"])
def test_a_key_given_twice_is_refused(text: str) -> None:
    assert code_of(text) == "duplicate_key"


def test_lists_are_checked_by_element_and_by_length() -> None:
    assert problems_of("DATA: {CLASSES: [book, null]}") == [("invalid_value", "DATA.CLASSES[1] (my.yaml line 1")]
    assert problems_of("DATA: {CLASSES: [{a: b}]}") == [("invalid_value", "DATA.CLASSES[0] (my.yaml line 1")]
    assert problems_of("DATA: {STD: [0.1, 0.2]}") == [("invalid_value", "DATA.STD (my.yaml line 1")]
    assert code_of("TRAIN: {LR: [1e-4]}") == "invalid_value"
    assert config_from_text("DATA: {CLASSES: [book, coin]}", "my.yaml").DATA.CLASSES == ("book", "coin")


@pytest.mark.parametrize("name", ["../up", "a/b", "a b", "", ".hidden", "line\\nbreak", "x" * 101])
def test_an_unsafe_name_is_refused(name: str) -> None:
    assert code_of(f'DATA: {{CLASSES: ["{name}"]}}') == "invalid_value"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "not_a_mapping"),
        ("# only a comment\n", "not_a_mapping"),
        ("- a\n- b\n", "not_a_mapping"),
        ("TRAIN: {LR: [", "not_yaml"),
        ("TRAIN:\n  LR: 1e-4\n WRONG: 2\n", "not_yaml"),
        ("TRAIN: {LR: 1e-4}\n---\nTRAIN: {LR: 1e-4}\n", "not_yaml"),
        ("? [a, b]\n: c\n", "unknown_key"),
        ("[" * 5000, "not_yaml"),
        ('TRAIN: {LR: "\\UFFFFFFFF"}', "not_yaml"),
        ("TRAIN: \x00", "not_yaml"),
        ("x" * 1_000_001, "not_yaml"),
        ("base: &a {LR: 1e-4}\nTRAIN:\n  <<: *a\n", "unknown_key"),
        ("TRAIN: &a {SCHEDULER: *a}", "unknown_key"),
        ("MODEL: {ENCODER: {TYPE: !!python/name:os.system x}}", "invalid_value"),
    ],
)
def test_an_invalid_file_is_refused(text: str, code: str) -> None:
    assert {found for found, _ in problems_of(text)} == {code}


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    folder, binary = tmp_path / "folder.yaml", tmp_path / "binary.yaml"
    folder.mkdir()
    binary.write_bytes(b"TRAIN: {LR: \xff\xfe}")
    for name in (str(tmp_path / "nothing.yaml"), str(folder), str(binary), "a\x00b.yaml"):
        with pytest.raises(UserError) as caught:
            load_config(name)
        assert (caught.value.code, repr(name)[1:-1] in caught.value.problems[0]) == ("config.unreadable", True)
    with pytest.raises(UserError) as caught:
        load_config("seqtrack_b265")
    assert caught.value.code == "config.unknown_experiment"
    assert caught.value.problems[0].endswith("seqtrack_b256?")


def test_each_layer_overrides_the_previous_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("TRAIN: {SEED: 7, EPOCH: 9, BATCH_SIZE: 5}")
    environment = [("SEED", ("TRAIN.SEED", "1")), ("EPOCHS", ("TRAIN.EPOCH", "2"))]
    config = load_config(str(path), environment=environment, overrides=[("TRAIN.EPOCH", "3")])
    assert (config.TRAIN.BATCH_SIZE, config.TRAIN.SEED, config.TRAIN.EPOCH) == (5, 1, 3)


def test_an_overridden_invalid_value_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("TRAIN: {LR: fast}")
    with pytest.raises(UserError) as caught:
        load_config(str(path), overrides=[("TRAIN.LR", "1e-3")])
    assert [problem.code for problem in caught.value.problems] == ["config.invalid_value"]


def test_pairs_need_full_keys_without_duplicates() -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", overrides=[("LR", "1"), ("TRAIN", "1"), ("TRAIN.SEED", "1"), ("TRAIN.SEED", "2")])
    assert {problem.code for problem in caught.value.problems} == {
        "config.unknown_key",
        "config.not_a_section",
        "config.duplicate_key",
    }


@pytest.mark.parametrize("written", ["[book, coin]", "book,coin", "book, coin", "['book', \"coin\"]"])
def test_a_list_in_a_pair_is_written_with_brackets_or_commas(written: str) -> None:
    assert load_config("demo", overrides=[("DATA.CLASSES", written)]).DATA.CLASSES == ("book", "coin")


@pytest.mark.parametrize("written", ["[book", "[book]]", "[[book]]", "book,,coin", "[\\"])
def test_an_invalid_list_in_a_pair_is_refused(written: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", overrides=[("DATA.CLASSES", written)])
    assert caught.value.problems[0].startswith("DATA.CLASSES")


@pytest.mark.parametrize("written", ["[]", ""])
def test_an_empty_list_can_be_given(written: str) -> None:
    assert load_config("book_coin_192", overrides=[("DATA.CLASSES", written)]).DATA.CLASSES == ()


def test_a_configuration_is_immutable() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.TRAIN.LR = 1.0
    with pytest.raises(ValidationError):
        config.TRAIN.NEW = 1  # type: ignore[attr-defined]
    hash(config)  # lists are tuples, all the way down


def test_loading_has_no_side_effects() -> None:
    before = load_config("seqtrack_l384")
    load_config("demo")
    assert load_config("seqtrack_l384") == before
    assert Config() == Config()


def test_samples_of_an_epoch_are_a_number_or_auto() -> None:
    assert config_from_text("DATA: {TRAIN: {SAMPLE_PER_EPOCH: Auto}}", "x").DATA.TRAIN.SAMPLE_PER_EPOCH == "auto"
    assert config_from_text("DATA: {TRAIN: {SAMPLE_PER_EPOCH: 7}}", "x").DATA.TRAIN.SAMPLE_PER_EPOCH == 7
    assert code_of("DATA: {TRAIN: {SAMPLE_PER_EPOCH: 0}}") == "invalid_value"
    assert code_of("DATA: {TRAIN: {SAMPLE_PER_EPOCH: all}}") == "invalid_value"


def test_differences_have_key_both_values_and_must_match() -> None:
    a = load_config("demo")
    b = load_config("demo", overrides=[("TRAIN.NUM_WORKER", "4"), ("TRAIN.LR", "2e-3"), ("DATA.CLASSES", "disc")])
    assert [(one.key, one.a, one.b, one.must_match) for one in compare_configs(a, b)] == [
        ("TRAIN.LR", 8e-4, 2e-3, True),
        ("TRAIN.NUM_WORKER", a.TRAIN.NUM_WORKER, 4, False),
        ("DATA.CLASSES", (), ("disc",), True),
    ]
    assert str(compare_configs(a, b)[2]) == "DATA.CLASSES: [] / ['disc']"
    assert compare_configs(a, a) == []


def test_a_dump_has_every_key_and_is_standard_yaml() -> None:
    config = load_config("demo", overrides=[("TRAIN.AMP", "off"), ("DATA.CLASSES", "[on, 1e3, book]")])
    tree = yaml.safe_load(dump_config(config))
    assert tree["TRAIN"]["AMP"] == "off"
    assert tree["DATA"]["CLASSES"] == ["on", "1e3", "book"]
    for name in KEYS:
        branch = tree
        for part in name.split("."):
            branch = branch[part]


def test_cautions_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_config("demo")
        assert caplog.messages == []
        load_config("demo", overrides=[("TEST.SEARCH_FACTOR", "5"), ("DATA.SEARCH.CENTER_JITTER", "4.5")])
    assert [message.split(" ")[0] for message in caplog.messages] == ["DATA.SEARCH.FACTOR", "DATA.SEARCH.CENTER_JITTER"]

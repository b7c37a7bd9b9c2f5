"""Loading an experiment: everything wrong is said at once, in words that lead to the mistake; what is right stays."""

import dataclasses
import logging
from pathlib import Path

import pytest

from seqtrack.config.load import (
    compare_configs,
    config_digest,
    config_from_text,
    dump_config,
    load_config,
)
from seqtrack.config.schema import KEYS, Config
from seqtrack.errors import UserError


def problems_of(text: str) -> list[str]:
    """What loading this YAML complains of; an empty list if it does not."""
    try:
        config_from_text(text, "my.yaml")
    except UserError as error:
        return error.problems
    return []


def the_problem(text: str) -> str:
    problems = problems_of(text)
    assert len(problems) == 1, problems
    return problems[0]


def test_all_problems_are_reported_at_once_and_none_twice() -> None:
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
    assert problems_of(text) == [
        "TRAIN.EPOCHS (my.yaml line 4): there is no such key; did you mean TRAIN.EPOCH?",
        "DATA.SEARCH (my.yaml line 8): found '256', expected a section with keys below it",
        "MODLE (my.yaml line 9): there is no such key; did you mean MODEL?",
        "TRAIN.LR (my.yaml line 3): found 'fast', expected a number, above 0 and at most 10",
        "TRAIN.EPOCH (my.yaml line 5): found null (nothing), expected a whole number, at least 1 and at most 100000",
        "DATA.MEAN[1] (my.yaml line 7): found 'red', expected a list of 3 numbers, at least 0 and at most 1",
        "DATA.MEAN[2] (my.yaml line 7): found 2, expected a list of 3 numbers, at least 0 and at most 1",
    ]


@pytest.mark.parametrize("null", ["null", "~", "", "Null", "NULL"])
@pytest.mark.parametrize("key", ["TRAIN.LR", "MODEL.ENCODER.TYPE", "TEST.WINDOW", "TRAIN.BATCH_SIZE", "DATA.MEAN"])
def test_nothing_is_no_value_for_any_key(key: str, null: str) -> None:
    section, *middle, last = key.split(".")
    inner = f"{middle[0]}: {{{last}: {null}}}" if middle else f"{last}: {null}"
    assert key in the_problem(f"{section}: {{{inner}}}")


@pytest.mark.parametrize("one", [1, 1.0])
def test_a_whole_number_is_good_for_a_float_and_makes_the_same_experiment(one: float) -> None:
    config = config_from_text(f"TRAIN: {{CE_WEIGHT: {one}}}", "my.yaml")
    assert type(config.TRAIN.CE_WEIGHT) is float
    assert config_digest(config) == config_digest(Config())


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "0.001", ".001", "1.0e-3", "+0.001"])
def test_every_usual_way_to_write_a_number_is_read(written: str) -> None:
    assert config_from_text(f"TRAIN: {{LR: {written}}}", "my.yaml").TRAIN.LR == 0.001


@pytest.mark.parametrize(
    "written", ["'0.001'", "0,001", "1e", ".", "e5", "nan", ".nan", ".inf", "1e999", "0x1", "1:30"]
)
def test_what_is_no_finite_number_is_refused(written: str) -> None:
    assert the_problem(f"TRAIN:\n  LR: {written}").startswith("TRAIN.LR (my.yaml line 2): found ")


def test_a_number_without_an_upper_limit_is_still_finite() -> None:
    assert "which is too large" in the_problem("TRAIN: {CE_WEIGHT: 1e999}")
    assert config_from_text("TRAIN: {CE_WEIGHT: 1e300}", "my.yaml").TRAIN.CE_WEIGHT == 1e300


def test_a_number_may_have_choices_too() -> None:
    assert (
        the_problem("DATA: {SEARCH: {NUMBER: 2}}") == "DATA.SEARCH.NUMBER (my.yaml line 1): found 2, expected one of 1"
    )


@pytest.mark.parametrize("written", ["010", "1.0", "1e3", "0x10", "1:30", "'16'", "0b1", "true", "9" * 5000])
def test_a_whole_number_is_written_in_one_way_only(written: str) -> None:
    assert the_problem(f"TRAIN:\n  BATCH_SIZE: {written}").startswith("TRAIN.BATCH_SIZE (my.yaml line 2): found ")


def test_a_switch_word_is_a_switch_only_where_the_key_is_one() -> None:
    config = config_from_text("TRAIN: {AMP: off, COMPILE: on, DETERMINISTIC: No}", "my.yaml")
    assert (config.TRAIN.AMP, config.TRAIN.COMPILE, config.TRAIN.DETERMINISTIC) == ("off", True, False)
    assert "expected true or false" in the_problem("TEST: {WINDOW: 1}")


def test_choices_are_read_in_any_case_and_a_slip_is_answered_with_the_nearest() -> None:
    assert config_from_text("TRAIN: {OPTIMIZER: AdamW}", "my.yaml").TRAIN.OPTIMIZER == "ADAMW"
    assert the_problem("TRAIN: {SCHEDULER: {TYPE: cosin}}").endswith(
        "found 'cosin', expected one of step, mstep, cosine; did you mean cosine?"
    )


def test_a_key_given_twice_is_refused_with_both_lines() -> None:
    assert the_problem("TRAIN:\n  LR: 1e-4\n  EPOCH: 3\n  LR: 2e-4") == (
        "TRAIN.LR (my.yaml line 4): given twice, first on line 2"
    )
    assert (
        the_problem("TRAIN:\n  LR: 1e-4\nTRAIN:\n  EPOCH: 3") == "TRAIN (my.yaml line 3): given twice, first on line 1"
    )


def test_lists_are_checked_by_element_and_by_length() -> None:
    assert "[1]" in the_problem("DATA: {CLASSES: [book, null]}")
    assert "[0] (my.yaml line 1): found a mapping" in the_problem("DATA: {CLASSES: [{a: b}]}")
    assert "found 2 elements, expected a list of 3 numbers" in the_problem("DATA: {STD: [0.1, 0.2]}")
    assert "found 'book', expected a list of names" in the_problem("DATA: {CLASSES: book}")
    assert "found a list" in the_problem("TRAIN: {LR: [1e-4]}")
    assert config_from_text("DATA: {CLASSES: [book, coin]}", "my.yaml").DATA.CLASSES == ("book", "coin")


@pytest.mark.parametrize("name", ["../up", "a/b", "a b", "", ".hidden", "line\\nbreak", "x" * 101])
def test_a_name_that_would_leave_a_folder_or_a_line_is_refused(name: str) -> None:
    assert problems_of(f'DATA: {{CLASSES: ["{name}"]}}') != []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "expected `KEY: value` lines, found a list"),
        ("TRAIN: {LR: [", "line 1: this is not YAML"),
        ("TRAIN:\n  LR: 1e-4\n WRONG: 2\n", "line 3: this is not YAML"),
        ("TRAIN: {LR: 1e-4}\n---\nTRAIN: {LR: 1e-4}\n", "this is not YAML"),
        ("? [a, b]\n: c\n", "expected a key below the top, found a list"),
        ("[" * 5000, "this is not YAML"),
        ('TRAIN: {LR: "\\UFFFFFFFF"}', "this is not YAML"),
        ("TRAIN: \x00", "this is not YAML"),
        ("x" * 1_000_001, "this is no configuration file"),
        ("base: &a {LR: 1e-4}\nTRAIN:\n  <<: *a\n", "there is no such key"),
        ("TRAIN: &a {SCHEDULER: *a}", "TRAIN.SCHEDULER.SCHEDULER"),
        ("MODEL: {ENCODER: {TYPE: !!python/name:os.system x}}", "MODEL.ENCODER.TYPE"),
    ],
)
def test_a_broken_file_is_refused_in_words(text: str, message: str) -> None:
    assert any(message in problem for problem in problems_of(text)), problems_of(text)


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.yaml: cannot be read: No such file"):
        load_config(str(tmp_path / "nothing.yaml"))
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_config(str(folder))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"TRAIN: {LR: \xff\xfe}")
    with pytest.raises(UserError, match="byte 12 is not UTF-8"):
        load_config(str(binary))
    with pytest.raises(UserError, match="this is no path"):
        load_config("a\x00b.yaml")
    with pytest.raises(UserError, match="no such experiment; did you mean seqtrack_b256"):
        load_config("seqtrack_b265")


def test_a_file_of_the_users_is_loaded_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("TRAIN: {SEED: 7}")
    assert load_config(str(path)).TRAIN.SEED == 7


def test_each_layer_wins_over_the_one_before() -> None:
    environment = [("SEED", ("TRAIN.SEED", "1")), ("EPOCHS", ("TRAIN.EPOCH", "2"))]
    config = load_config("demo", environment=environment, overrides=[("TRAIN.EPOCH", "3")])
    assert (config.TRAIN.LR, config.TRAIN.SEED, config.TRAIN.EPOCH) == (8e-4, 1, 3)


def test_a_wrong_value_is_reported_even_where_a_later_layer_covers_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("TRAIN: {LR: fast}")
    with pytest.raises(UserError, match=r"TRAIN\.LR .*mine\.yaml line 1\): found 'fast'"):
        load_config(str(path), overrides=[("TRAIN.LR", "1e-3")])


def test_pairs_name_full_keys_once_each() -> None:
    with pytest.raises(UserError) as caught:
        load_config("demo", overrides=[("LR", "1"), ("TRAIN", "1"), ("TRAIN.SEED", "1"), ("TRAIN.SEED", "2")])
    assert caught.value.problems == [
        "LR (KEY VALUE pairs): there is no such key; did you mean TRAIN.LR?",
        "TRAIN (KEY VALUE pairs): this is a section; name one of its keys",
        "TRAIN.SEED (KEY VALUE pairs): given twice; leave one of them out",
    ]


@pytest.mark.parametrize("written", ["[book, coin]", "book,coin", "book, coin", "['book', \"coin\"]"])
def test_a_list_in_a_pair_is_written_with_brackets_or_commas(written: str) -> None:
    assert load_config("demo", overrides=[("DATA.CLASSES", written)]).DATA.CLASSES == ("book", "coin")


@pytest.mark.parametrize("written", ["[book", "[book]]", "[[book]]", "book,,coin", "[\\"])
def test_a_broken_list_in_a_pair_is_refused(written: str) -> None:
    with pytest.raises(UserError, match=r"DATA\.CLASSES"):
        load_config("demo", overrides=[("DATA.CLASSES", written)])


def test_an_empty_list_can_be_asked_for() -> None:
    assert load_config("book_coin_192", overrides=[("DATA.CLASSES", "[]")]).DATA.CLASSES == ()
    assert load_config("book_coin_192", overrides=[("DATA.CLASSES", "")]).DATA.CLASSES == ()


def test_a_configuration_cannot_be_changed_nor_grow_a_key() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.TRAIN.LR = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.TRAIN.NEW = 1  # type: ignore[attr-defined]
    hash(config)  # lists are tuples, all the way down


def test_loading_twice_mixes_nothing() -> None:
    before = load_config("seqtrack_l384")
    load_config("demo")
    assert load_config("seqtrack_l384") == before
    assert Config() == Config()


def test_samples_of_an_epoch_are_a_number_or_auto() -> None:
    assert config_from_text("DATA: {TRAIN: {SAMPLE_PER_EPOCH: Auto}}", "x").DATA.TRAIN.SAMPLE_PER_EPOCH == "auto"
    assert config_from_text("DATA: {TRAIN: {SAMPLE_PER_EPOCH: 7}}", "x").DATA.TRAIN.SAMPLE_PER_EPOCH == 7
    assert "auto" in the_problem("DATA: {TRAIN: {SAMPLE_PER_EPOCH: 0}}")
    assert "auto" in the_problem("DATA: {TRAIN: {SAMPLE_PER_EPOCH: all}}")


def test_differences_name_the_key_both_values_and_whether_they_matter() -> None:
    a = load_config("demo")
    b = load_config("demo", overrides=[("TRAIN.NUM_WORKER", "4"), ("TRAIN.LR", "2e-3"), ("DATA.CLASSES", "disc")])
    assert [(one.key, one.a, one.b, one.must_match) for one in compare_configs(a, b)] == [
        ("TRAIN.LR", 8e-4, 2e-3, True),
        ("TRAIN.NUM_WORKER", 1, 4, False),
        ("DATA.CLASSES", (), ("disc",), True),
    ]
    assert str(compare_configs(a, b)[2]) == "DATA.CLASSES: [] / ['disc']"
    assert compare_configs(a, a) == []


def test_the_digest_is_this_one_for_ever() -> None:
    # Checkpoints name it: a digest that moves with the code would refuse every resume after an update. A new key that
    # makes experiments differ changes it, knowingly.
    assert config_digest(load_config("demo")) == "119488aa21ab6bbb420fc1190ebc142d16ac2473221ad005ee142e844ea2af00"


def test_a_dump_names_every_key_and_is_yaml_that_other_readers_understand_alike() -> None:
    import yaml

    config = load_config("demo", overrides=[("TRAIN.AMP", "off"), ("DATA.CLASSES", "[on, 'null', 1e3, book]")])
    tree = yaml.safe_load(dump_config(config))
    assert tree["TRAIN"]["AMP"] == "off"
    assert tree["DATA"]["CLASSES"] == ["on", "null", "1e3", "book"]
    for name in KEYS:
        branch = tree
        for part in name.split("."):
            branch = branch[part]


def test_cautions_are_logged_and_refuse_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load_config("demo")
        assert caplog.messages == []
        load_config("demo", overrides=[("TEST.SEARCH_FACTOR", "5"), ("TRAIN.SAMPLING", "fixed_per_epoch")])
    assert caplog.messages == [
        "DATA.SEARCH.FACTOR is 4 and TEST.SEARCH_FACTOR is 5: objects will look larger or smaller",
        "TRAIN.SAMPLING is fixed_per_epoch: every epoch repeats the very samples of the first",
    ]

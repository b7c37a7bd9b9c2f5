"""Properties of random configurations and randomly corrupted files."""

import random
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import annotated_types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seqtrack.config.environment import VARIABLES, configure
from seqtrack.config.loader import (
    compare_configs,
    config_digest,
    config_from_text,
    dump_config,
    experiment_names,
    load_config,
)
from seqtrack.config.schema import KEYS, Config
from seqtrack.errors import UserError

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,20}", fullmatch=True)
EXPERIMENTS = {name: load_config(name) for name in experiment_names()}


def texts(annotation: Any, metadata: Iterable[Any] = ()) -> st.SearchStrategy[str]:
    """Valid texts of a type."""
    kind, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is Annotated:
        return texts(arguments[0], [*arguments[1:], *metadata])
    if kind in (typing.Union, types.UnionType):
        return st.one_of([texts(one, metadata) for one in arguments])
    if kind is Literal:
        return st.sampled_from([str(one) for one in arguments])
    if kind is tuple:
        size = next((item.min_length for item in metadata if isinstance(item, annotated_types.MinLen)), None)
        lists = st.lists(texts(arguments[0]), min_size=size or 0, max_size=size or 5)
        return lists.map(lambda parts: f"[{', '.join(parts)}]")
    if annotation is str:
        return NAMES
    if annotation is bool:
        return st.sampled_from(["true", "false"])
    limits = {name: getattr(item, name) for item in metadata for name in ("ge", "gt", "le") if hasattr(item, name)}
    low, high = limits.get("ge", limits.get("gt", -1000)), limits.get("le", 1_000_000)
    if annotation is int:
        return st.integers(int(low), int(high)).map(str)
    return st.floats(low, high, exclude_min="gt" in limits).map(repr)


PAIRS = st.lists(
    st.sampled_from(sorted(KEYS)).flatmap(
        lambda name: st.tuples(st.just(name), texts(KEYS[name].annotation, KEYS[name].metadata))
    ),
    max_size=6,
    unique_by=lambda pair: pair[0],
)


def changed(name: str, pairs: list[tuple[str, str]]) -> Config:
    """An experiment with as many of the pairs as are compatible."""
    config = EXPERIMENTS[name]
    kept: list[tuple[str, str]] = []
    for pair in pairs:
        try:
            config = load_config(name, overrides=[*kept, pair])
            kept.append(pair)
        except UserError as error:
            # A single good value may only be refused by a rule between keys.
            assert {problem.code for problem in error.problems} == {"config.rule"}, error.problems
    return config


@QUICK
@given(name=st.sampled_from(sorted(EXPERIMENTS)), pairs=PAIRS)
def test_dump_and_load_are_inverse(name: str, pairs: list[tuple[str, str]]) -> None:
    config = changed(name, pairs)
    text = dump_config(config)
    again = config_from_text(text, "stored")
    assert again == config
    assert dump_config(again) == text
    assert config_digest(again) == config_digest(config)


@QUICK
@given(name=st.sampled_from(sorted(EXPERIMENTS)), pairs=PAIRS)
def test_the_digest_changes_exactly_when_a_must_match_key_does(name: str, pairs: list[tuple[str, str]]) -> None:
    before, after = EXPERIMENTS[name], changed(name, pairs)
    matters = any(difference.must_match for difference in compare_configs(before, after))
    assert (config_digest(before) != config_digest(after)) == matters
    assert (before != after) == bool(compare_configs(before, after))


def damaged(text: str, chance: random.Random) -> str:
    """The text with a few characters or lines removed, duplicated, swapped or replaced."""
    pieces = "[]{}:,-#&*!|>'\"%@`?~ \n\t\x00\x85\u2028\ud7ff0123456789eE+._nulltrueTRAIN<<\\"
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(text) + 1)
        end = min(len(text), place + chance.randint(0, 12))
        lines = text.split("\n")
        action = chance.randrange(6)
        if action == 0:
            text = text[:place] + text[end:]
        elif action == 1:
            text = text[:place] + "".join(chance.choice(pieces) for _ in range(chance.randint(1, 6))) + text[place:]
        elif action == 2:
            text = text[:end] + text[place:]
        elif action == 3:
            lines.insert(chance.randrange(len(lines) + 1), chance.choice(lines))
            text = "\n".join(lines)
        elif action == 4:
            chance.shuffle(lines)
            text = "\n".join(lines)
        else:
            text = text[:place] + chance.choice(["null", "*a", "&a ", "!!int ", "'", '"\\U', "? ", "- ", "{", "[" * 9])
    return text


@MANY
@given(name=st.sampled_from(sorted(EXPERIMENTS)), seed=st.integers(0, 2**32))
def test_a_corrupt_file_gives_a_configuration_or_a_user_error(name: str, seed: int) -> None:
    text = damaged(dump_config(EXPERIMENTS[name]), random.Random(seed))
    try:
        config = config_from_text(text, "damaged.yaml")
    except UserError as error:
        assert error.problems and all(problem.isprintable() for problem in error.problems), error.problems
    else:
        assert isinstance(config, Config)


@MANY
@given(text=st.text(max_size=60))
def test_any_text_gives_a_configuration_or_a_user_error(text: str) -> None:
    for whole in (text, f"TRAIN:\n  LR: {text}", f"DATA: {{CLASSES: [{text}]}}"):
        try:
            config_from_text(whole, "any.yaml")
        except UserError as error:
            assert all(problem.isprintable() for problem in error.problems), error.problems


@MANY
@given(name=st.sampled_from(sorted(VARIABLES)), value=st.text(max_size=30).filter(lambda text: "\x00" not in text))
def test_any_value_of_a_variable_is_read_or_refused(name: str, value: str) -> None:
    try:
        configure({name: value})
    except UserError as error:
        assert all(problem.isprintable() for problem in error.problems), error.problems


@MANY
@given(key=st.one_of(st.sampled_from(sorted(KEYS)), st.text(max_size=20)), text=st.text(max_size=30))
def test_any_pair_gives_a_configuration_or_a_user_error(key: str, text: str) -> None:
    try:
        load_config("demo", overrides=[(key, text)])
    except UserError as error:
        assert all(problem.isprintable() for problem in error.problems), error.problems

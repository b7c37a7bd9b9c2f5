"""Properties of random configurations and texts."""

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

QUICK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
MANY = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
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
def test_dump_and_load_are_inverse_and_the_digest_shows_what_must_match(
    name: str, pairs: list[tuple[str, str]]
) -> None:
    config, before = changed(name, pairs), EXPERIMENTS[name]
    text = dump_config(config)
    again = config_from_text(text, "stored")
    assert (again, dump_config(again), config_digest(again)) == (config, text, config_digest(config))
    differences = compare_configs(before, config)
    assert (config_digest(before) != config_digest(config)) == any(one.must_match for one in differences)
    assert (before != config) == bool(differences)


@MANY
@given(
    text=st.text(max_size=60),
    variable=st.sampled_from(sorted(VARIABLES)),
    key=st.one_of(st.sampled_from(sorted(KEYS)), st.text(max_size=20)),
)
def test_any_text_gives_a_configuration_or_a_user_error(text: str, variable: str, key: str) -> None:
    for read in (
        lambda: config_from_text(text, "any.yaml"),
        lambda: config_from_text(f"TRAIN:\n  LR: {text}", "any.yaml"),
        lambda: config_from_text(f"DATA: {{CLASSES: [{text}]}}", "any.yaml"),
        lambda: load_config("demo", overrides=[(key, text)]),
        lambda: configure({variable: text.replace("\x00", "")}),
    ):
        try:
            read()
        except UserError as error:
            assert error.problems and all(problem.isprintable() for problem in error.problems), error.problems

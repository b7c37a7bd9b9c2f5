"""Properties of random configurations and texts."""

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
from seqtrack.config.schema import KEYS
from seqtrack.errors import UserError

SLOW = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
EXPERIMENTS = {name: load_config(name) for name in experiment_names()}
VALUES = ("0", "1", "2", "3", "0.5", "1e-05", "123456.7", "true", "false", "auto", "off", "corner", "[]", "[1, 2]",
          "[0.1, 0.2, 0.3]", "[on, 1e3, a.b+c]", "vit_custom", "scratch")  # fmt: skip
PAIRS = st.lists(st.tuples(st.sampled_from(sorted(KEYS)), st.sampled_from(VALUES)), max_size=8)


@settings(SLOW, max_examples=25)
@given(name=st.sampled_from(sorted(EXPERIMENTS)), pairs=PAIRS)
def test_dump_and_load_are_inverse_and_the_digest_shows_what_must_match(
    name: str, pairs: list[tuple[str, str]]
) -> None:
    config = before = EXPERIMENTS[name]
    for pair in pairs:
        try:
            config = load_config(name, overrides=[pair])
        except UserError:
            continue
        text = dump_config(config)
        again = config_from_text(text, "stored")
        assert (again, dump_config(again), config_digest(again)) == (config, text, config_digest(config))
        differences = compare_configs(before, config)
        assert (config_digest(before) != config_digest(config)) == any(one.must_match for one in differences)
        assert (before != config) == bool(differences)


@settings(SLOW, max_examples=50)
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

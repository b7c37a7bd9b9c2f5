"""Load, write, digest and compare experiments.

A YAML file, environment variables and `KEY VALUE` pairs are read as texts with the location of each key. Every text is
validated by itself, so that all problems are reported with their location; a yacs node merges them.
"""

import functools
import hashlib
import json
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from yacs.config import CfgNode

from seqtrack.config.fields import expected, must_match
from seqtrack.config.rules import contradictions
from seqtrack.config.schema import ADDED_KEYS, IGNORED_KEYS, KEYS, REMOVED_KEYS, SECTIONS, Config
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, did_you_mean, read_text, short_repr

EXPERIMENTS = Path(__file__).parent / "experiments"
Value = int | float | bool | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]


class Difference(NamedTuple):
    """One key in which two configurations differ; `must_match` if a resumed run must not."""

    key: str
    a: Value
    b: Value
    must_match: bool

    def __str__(self) -> str:
        a, b = (list(value) if isinstance(value, tuple) else value for value in (self.a, self.b))
        return f"{self.key}: {a} / {b}"


class _Given(NamedTuple):
    """The text of a key, or list of texts, and where it was given."""

    key: str
    text: Any
    where: str


def experiment_names() -> list[str]:
    """The names of the package's experiments."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def is_file_name(name_or_path: str) -> bool:
    """Whether CONFIG is a file of the user and not an experiment of the package."""
    return "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))


def load_config(
    name_or_path: str,
    *,
    variables: Sequence[tuple[str, str, str]] = (),
    overrides: Sequence[tuple[str, str]] = (),
) -> Config:
    """Load an experiment and validate it.

    Args:
        name_or_path: such as `seqtrack_b256`, or a path that ends in .yaml.
        variables: `(variable, key, text)`, over the file.
        overrides: `(key, text)` of OVERRIDES, with the highest precedence.

    Raises:
        UserError: every problem of the file, the variables and the pairs, and every violated rule.
    """
    problems: list[Problem] = []
    given = _read_file(name_or_path, problems)
    given += [_Given(key, text, f"environment variable {variable}") for variable, key, text in variables]
    for number, (key, text) in enumerate(overrides):
        if key in (one for one, _ in overrides[:number]):
            problems.append(_problem("duplicate_key", key, "OVERRIDES", "given twice; remove one"))
        elif key in KEYS:
            given.append(_Given(key, text.strip(), "OVERRIDES"))
        elif key not in IGNORED_KEYS:
            problems.append(_no_such_key(key, "OVERRIDES"))
    return _merge(given, problems)


def config_from_text(text: str, name: str) -> Config:
    """A configuration from YAML text, such as a run's; messages contain `name`.

    Raises:
        UserError: as `load_config`.
    """
    problems: list[Problem] = []
    return _merge(_read_yaml(text, name, problems), problems)


def dump_config(config: Config) -> str:
    """Every key as YAML, in the schema's order."""
    node = CfgNode(config.model_dump(mode="json"))
    return str(node.dump(sort_keys=False, default_flow_style=None, width=120))


def flat_values(config: Config) -> dict[str, Value]:
    """Full key to value, in the schema's order."""
    return {key: functools.reduce(getattr, key.split("."), config) for key in KEYS}  # type: ignore[misc]


def config_digest(config: Config) -> str:
    """sha256 of the keys that a resumed run must match; not of workers, log interval and the like."""
    values = {
        key: value
        for key, value in flat_values(config).items()
        if must_match(KEYS[key]) and not (key in ADDED_KEYS and value == KEYS[key].default)
    }
    text = json.dumps(values | REMOVED_KEYS, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def compare_configs(a: Config, b: Config) -> list[Difference]:
    """Every key in which two configurations differ, in the schema's order."""
    right = flat_values(b)
    return [
        Difference(key, value, right[key], must_match(KEYS[key]))
        for key, value in flat_values(a).items()
        if value != right[key]
    ]


def _problem(code: str, key: str, where: str, text: str) -> Problem:
    shown = key if key.isprintable() and 0 < len(key) <= 60 else short_repr(key)
    return Problem(f"{shown} ({where}): {text}", f"config.{code}")


def _no_such_key(key: str, where: str) -> Problem:
    if key in SECTIONS:
        return _problem("not_a_section", key, where, "a section; name one of its keys")
    return _problem("unknown_key", key, where, f"no such key{did_you_mean(key, [*KEYS, *SECTIONS])}")


def _read_file(name_or_path: str, problems: list[Problem]) -> list[_Given]:
    name = name_or_path if is_file_name(name_or_path) else f"{name_or_path}.yaml"
    known = experiment_names()
    if name == name_or_path or name_or_path in known:
        try:
            return _read_yaml(read_text(Path(name) if name == name_or_path else EXPERIMENTS / name), name, problems)
        except (OSError, ParseError, ValueError) as error:  # ValueError: a NUL character in the path
            text = f"{name!r}: cannot be read: {getattr(error, 'strerror', None) or error}"
            problems.append(Problem(text, "config.unreadable"))
            return []
    hint = did_you_mean(name_or_path, known) or f"; there are {', '.join(known)}, or give a path ending in .yaml"
    problems.append(Problem(f"{short_repr(name_or_path)}: no such experiment{hint}", "config.unknown_experiment"))
    return []


def _read_yaml(text: str, name: str, problems: list[Problem]) -> list[_Given]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # The parser raises ValueError and OverflowError for a broken \U escape, RecursionError for a thousand brackets.
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).split("\n")[0] or repr(error)
        where = f"{name} line {mark.line + 1}" if mark else name
        problems.append(Problem(f"{where}: not YAML: {reason}", "config.not_yaml"))
        return []
    if not isinstance(root, yaml.MappingNode):
        text = f"{name}: found {'no mapping' if root else 'an empty file'}, expected `KEY: value` lines"
        problems.append(Problem(f"{text} below MODEL, TRAIN, DATA, TEST", "config.not_a_mapping"))
        return []
    return _read_section(root, "", name, problems)


def _read_section(node: yaml.MappingNode, section: str, name: str, problems: list[Problem]) -> list[_Given]:
    given: list[_Given] = []
    lines: dict[str, int] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        key, where = f"{section}{_plain(key_node)}", f"{name} line {line}"
        if key in lines:
            problems.append(_problem("duplicate_key", key, where, f"given twice, first in line {lines[key]}"))
        elif key in SECTIONS and isinstance(value, yaml.MappingNode):
            given += _read_section(value, f"{key}.", name, problems)
        elif key in SECTIONS:
            text = f"found {_found(_plain(value))}, expected a section with keys below it"
            problems.append(_problem("not_a_section", key, where, text))
        elif key in KEYS:
            given.append(_Given(key, _plain(value), where))
        elif key not in IGNORED_KEYS:
            problems.append(_no_such_key(key, where))
        lines.setdefault(key, line)
    return given


def _plain(node: yaml.Node, *, nested: bool = False) -> Any:
    """A scalar as text, a list of them, or an empty mapping or list for what no key may contain."""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and node.value.lower() in ("", "~", "null"):
            return None
        # A tag such as !!python/object is not executed; it makes the text invalid for every type.
        standard = node.tag.startswith("tag:yaml.org,2002:") and ":python/" not in node.tag
        return node.value if standard else f"{node.tag} {node.value}"
    if isinstance(node, yaml.SequenceNode):
        return [] if nested else [_plain(element, nested=True) for element in node.value]
    return {}


def _merge(given: Sequence[_Given], problems: list[Problem]) -> Config:
    node = CfgNode(Config().model_dump())
    invalid = set()
    for one in given:
        refusal = _refusal(one)
        if refusal is not None:
            problems.append(refusal)
            invalid.add(one.key)
            continue
        *sections, last = one.key.split(".")
        functools.reduce(operator.getitem, sections, node)[last] = one.text
    node.freeze()
    config = Config.model_validate(node)
    for text in contradictions(config):
        if not any(key in text for key in invalid):
            problems.append(Problem(text, "config.rule"))
    if problems:
        raise UserError(problems)
    return config


def _refusal(given: _Given) -> Problem | None:
    """The problem of one value by itself."""
    key, tree = given.key, given.text
    for part in reversed(key.split(".")):
        tree = {part: tree}
    try:
        Config.model_validate(tree)
        return None
    except ValidationError:
        wanted = expected(KEYS[key])
    text = f"found {_found(given.text)}, expected {wanted}"
    if isinstance(given.text, str):
        text += did_you_mean(given.text, wanted.removeprefix("one of ").split(", "))
    if key == "MODEL.ENCODER.PRETRAIN_TYPE" and set("/.") & set(str(given.text)):
        text += "; training cannot start from a checkpoint, only resume one in its OUTPUT_DIR"
    return _problem("invalid_value", key, given.where, text)


def _found(value: Any) -> str:
    return {"None": "nothing", "{}": "a mapping"}.get(str(value)) or short_repr(value)

"""Load, write, digest and compare experiments.

Each layer (a YAML file, an environment variable, `KEY VALUE` pairs) is read as text with the location of each key and
validated by itself, so that every problem names its location; a yacs node merges the layers.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError
from yacs.config import CfgNode

from seqtrack.config.fields import did_you_mean, expected, must_match
from seqtrack.config.rules import CAUTIONS, RULES, broken_rules
from seqtrack.config.schema import ADDED_KEYS, IGNORED_KEYS, KEYS, REMOVED_KEYS, SECTIONS, Config
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, read_text, short_repr

EXPERIMENTS = Path(__file__).parent / "experiments"
# Larger than any configuration; a checkpoint given by mistake is not parsed for a minute.
MAX_CHARACTERS = 1_000_000
_MAX_DEPTH = 6
Value = int | float | bool | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """One key in which two configurations differ; `must_match` if a resumed run must not."""

    key: str
    a: Value
    b: Value
    must_match: bool

    def __str__(self) -> str:
        return f"{self.key}: {_plain(self.a)} / {_plain(self.b)}"


_NO_FINE_TUNING = (
    "Training cannot start from a checkpoint's weights yet: continue the run that wrote the checkpoint (the same "
    "OUTPUT_DIR, more EPOCHS), or train from the published encoder weights (mae, default)"
)


@dataclass
class _Layer:
    """One source of values: a tree of strings and lists, the location of each key, and the problems found."""

    name: str
    tree: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, code: str, text: str) -> None:
        self.problems.append(Problem(text, f"config.{code}"))


def experiment_names() -> list[str]:
    """The names of the package's experiments."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def is_file_name(name_or_path: str) -> bool:
    """Whether CONFIG is a file of the user and not an experiment of the package."""
    return "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))


def load_config(
    name_or_path: str,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    environment: Sequence[tuple[str, tuple[str, str]]] = (),
    overrides_from: str = "KEY VALUE pairs",
) -> Config:
    """Load an experiment and validate it.

    Args:
        name_or_path: such as `seqtrack_b256`, or a path that ends in .yaml.
        overrides: `(key, text)` pairs with the highest precedence.
        environment: `(variable, (key, text))`, over the file; messages name the variable.
        overrides_from: the origin of `overrides` for messages.

    Raises:
        UserError: every problem of every layer, and every violated rule.
    """
    layers = [_read_file(name_or_path)]
    layers += [_read_pairs([pair], f"environment variable {variable}") for variable, pair in environment]
    return _merge([*layers, _read_pairs(overrides, overrides_from)])


def config_from_text(text: str, name: str) -> Config:
    """A configuration from YAML text, such as a run's; messages contain `name`.

    Raises:
        UserError: as `load_config`.
    """
    return _merge([_read_yaml(text, name)])


def dump_config(config: Config) -> str:
    """Every key as YAML, in the schema's order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=120)


def flat_values(config: Config) -> dict[str, Value]:
    """Full key to value, in the schema's order."""
    return {key: _get(config, key) for key in KEYS}


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
    left, right = flat_values(a), flat_values(b)
    return [
        Difference(key, left[key], right[key], must_match(field))
        for key, field in KEYS.items()
        if left[key] != right[key]
    ]


def _get(config: Any, key: str) -> Value:
    for part in key.split("."):
        config = getattr(config, part)
    return cast(Value, config)


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read_file(name_or_path: str) -> _Layer:
    if is_file_name(name_or_path):
        path, name = Path(name_or_path), name_or_path
    else:
        path, name = EXPERIMENTS / f"{name_or_path}.yaml", f"{name_or_path}.yaml"
        if name_or_path not in experiment_names():
            known = experiment_names()
            hint = (
                did_you_mean(name_or_path, known) or f"; there are {', '.join(known)}, or give a path ending in .yaml"
            )
            layer = _Layer(name)
            layer.refuse("unknown_experiment", f"{short_repr(name_or_path)}: no such experiment{hint}")
            return layer
    try:
        return _read_yaml(read_text(path), name)
    except (OSError, ParseError, ValueError) as error:  # ValueError: a NUL character in the path
        layer = _Layer(name)
        layer.refuse("unreadable", f"{name!r}: cannot be read: {getattr(error, 'strerror', None) or error}")
        return layer


def _read_yaml(text: str, name: str) -> _Layer:
    """Read a YAML document of nested mappings as strings with their lines."""
    layer = _Layer(name)
    if len(text) > MAX_CHARACTERS:
        layer.refuse("not_yaml", f"{name}: {len(text)} characters; this is not a configuration file")
        return layer
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # The parser also raises ValueError and OverflowError for a broken \U escape, and RecursionError for a thousand
        # brackets.
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).split("\n")[0] or repr(error)
        layer.refuse("not_yaml", f"{name}{line}: not YAML: {reason}")
        return layer
    if isinstance(root, yaml.MappingNode):
        layer.tree = _read_node(root, "", layer, 0)
    else:
        found = "an empty file" if root is None else "no mapping"
        layer.refuse(
            "not_a_mapping", f"{name}: found {found}, expected `KEY: value` lines below MODEL, TRAIN, DATA, TEST"
        )
    return layer


def _read_node(node: yaml.Node, key: str, layer: _Layer, depth: int) -> Any:
    """Strings, lists and dictionaries of a node, to a limited depth: a document may refer to itself."""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None and node.value.lower() in ("", "~", "null"):
            return None
        # A tag such as !!python/object is not executed; it makes the text invalid for every type.
        standard = node.tag.startswith("tag:yaml.org,2002:") and ":python/" not in node.tag
        return node.value if standard else f"{node.tag} {node.value}"
    if depth > _MAX_DEPTH:
        return None
    if isinstance(node, yaml.SequenceNode):
        return [_read_node(element, key, layer, depth + 1) for element in node.value]
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            layer.refuse("unknown_key", f"{layer.name} line {line}: expected a key, found a list or a mapping")
            continue
        full = f"{key}.{key_node.value}".lstrip(".")
        if key_node.value in tree:
            layer.refuse(
                "duplicate_key", f"{_shown(full)} ({layer.name} line {line}): given twice, first at {layer.where[full]}"
            )
            continue
        layer.where[full] = f"{layer.name} line {line}"
        value = _read_node(value_node, full, layer, depth + 1)
        if full not in IGNORED_KEYS:
            tree[key_node.value] = value
    return tree


def _read_pairs(pairs: Sequence[tuple[str, str]], name: str) -> _Layer:
    layer = _Layer(name)
    for key, text in pairs:
        if key in layer.where:
            layer.refuse("duplicate_key", f"{key} ({name}): given twice; remove one")
        elif key in SECTIONS:
            layer.refuse("not_a_section", f"{key} ({name}): a section; name one of its keys")
        elif key not in KEYS:
            if key not in IGNORED_KEYS:
                layer.refuse("unknown_key", f"{_shown(key)} ({name}): no such key{_nearest(key)}")
        else:
            layer.where[key] = name
            _set(layer.tree, key, text.strip())
    return layer


def _merge(layers: Sequence[_Layer]) -> Config:
    node = CfgNode(Config().model_dump())
    problems: list[Problem] = []
    invalid: set[str] = set()
    for layer in layers:
        found, keys = _check(layer)
        problems += [*layer.problems, *found]
        invalid |= keys
        for key in layer.where:
            if key in KEYS and key not in keys:
                _set(node, key, _lookup(layer.tree, key))
    node.freeze()
    config = Config.model_validate(node)
    problems += [Problem(text, "config.rule") for text in broken_rules(RULES, config, invalid)]
    if problems:
        raise UserError(problems)
    for caution in broken_rules(CAUTIONS, config, ()):
        _log.warning("%s", caution)
    return config


def _check(layer: _Layer) -> tuple[list[Problem], set[str]]:
    """The problems of one layer, and the known keys that they are about."""
    try:
        Config.model_validate(layer.tree)
    except ValidationError as error:
        found = {}
        # Elements of a list come last.
        for item in sorted(error.errors(include_url=False, include_context=False), key=lambda item: len(item["loc"])):
            key, index = _split(item["loc"])
            place = f"{_shown(key)}{'' if index is None else f'[{index}]'}"
            where = layer.where.get(key, layer.name)
            if item["type"] == "extra_forbidden":
                code, text = "unknown_key", f"no such key{_nearest(key)}"
            elif key in SECTIONS:
                code, text = "not_a_section", f"found {_found(item['input'])}, expected a section with keys below it"
            else:
                hint = did_you_mean(item["input"], _choices(key)) if isinstance(item["input"], str) else ""
                code, text = "invalid_value", f"found {_found(item['input'])}, expected {expected(KEYS[key])}{hint}"
            if key == "MODEL.ENCODER.PRETRAIN_TYPE" and any(letter in str(item["input"]) for letter in "/."):
                code, text = "no_fine_tuning", f"{text}. {_NO_FINE_TUNING}"
            found[place] = (key, Problem(f"{place} ({where}): {text}", f"config.{code}"))
            if index is not None:
                found.pop(key, None)  # without its invalid elements the list is also too short
        return [problem for _, problem in found.values()], {key for key, _ in found.values()} & set(KEYS)
    return [], set()


def _split(loc: tuple[int | str, ...]) -> tuple[str, int | None]:
    """The key of an error's location and the index in a list, without what pydantic adds for unions."""
    key = ""
    for depth, part in enumerate(loc):
        if isinstance(part, int):
            return key, part
        key = f"{key}.{part}".lstrip(".")
        if key in KEYS:
            following = loc[depth + 1 :]
            return key, next((item for item in following if isinstance(item, int)), None)
    return key, None


def _choices(key: str) -> list[str]:
    text = expected(KEYS[key])
    return text.removeprefix("one of ").split(", ") if text.startswith("one of ") else []


def _nearest(key: str) -> str:
    return did_you_mean(key, [*KEYS, *SECTIONS])


def _shown(key: str) -> str:
    return key if key.isprintable() and 0 < len(key) <= 60 else short_repr(key)


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return short_repr(value)


def _set(tree: Any, key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for part in sections:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree

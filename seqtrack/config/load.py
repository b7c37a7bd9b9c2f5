"""Experiments in and out: load one from its layers, write it, digest it, compare two.

The layers are the schema's defaults, a YAML file, environment variables, and `KEY VALUE` pairs; the later wins. All
problems of all layers are reported together. yacs' CfgNode carries the tree while the layers are laid upon each other;
what leaves this module is frozen. Knows files of text; knows no environment variable by name.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from yacs.config import CfgNode

from seqtrack.config.fields import Value
from seqtrack.config.rules import CAUTIONS, RULES, broken_rules
from seqtrack.config.schema import KEYS, Config
from seqtrack.config.text import Entry, Reading, nearest, read_pairs, read_yaml
from seqtrack.config.values import convert
from seqtrack.errors import UserError

EXPERIMENTS = Path(__file__).parent / "experiments"

_log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Difference:
    """One key in which two configurations differ; `must_match` if that makes them two experiments."""

    key: str
    a: Value
    b: Value
    must_match: bool

    def __str__(self) -> str:
        return f"{self.key}: {_plain(self.a)} / {_plain(self.b)}"


def experiment_names() -> list[str]:
    """The experiments that come with the package, by name."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def is_file_name(name_or_path: str) -> bool:
    """Whether CONFIG names a file of the user's rather than an experiment of the package."""
    return "/" in name_or_path or name_or_path.endswith((".yaml", ".yml"))


def load_config(
    name_or_path: str,
    *,
    overrides: Sequence[tuple[str, str]] = (),
    environment: Sequence[tuple[str, tuple[str, str]]] = (),
    overrides_from: str = "KEY VALUE pairs",
) -> Config:
    """Load an experiment and check it whole.

    Args:
        name_or_path: `seqtrack_b256` and the like, or a path that ends in .yaml.
        overrides: `(key, text)` pairs; they win over everything else.
        environment: `(variable, (key, text))`; they win over the file. The variable is named in messages.
        overrides_from: what messages call the origin of `overrides`.

    Raises:
        UserError: every problem of every layer, and every rule between keys that is broken.
    """
    readings = [_read_file(name_or_path)]
    readings += [read_pairs([pair], f"environment variable {variable}") for variable, pair in environment]
    readings.append(read_pairs(overrides, overrides_from))
    return _build(readings)


def config_from_text(text: str, name: str) -> Config:
    """A configuration from YAML text, such as one stored beside a run; `name` stands in the messages.

    Raises:
        UserError: as `load_config`.
    """
    return _build([read_yaml(text, name)])


def dump_config(config: Config) -> str:
    """Every key as YAML, in the schema's order; equal configurations give equal text."""
    return yaml.safe_dump(_tree(config), sort_keys=False, default_flow_style=None, width=120)


def flat_values(config: Config) -> dict[str, Value]:
    """Full key to value, in the schema's order."""
    return {name: _get(config, name) for name in KEYS}


def config_digest(config: Config) -> str:
    """sha256, as hex, over the keys that make the experiment; workers, log interval and the like do not enter."""
    values = {name: value for name, value in flat_values(config).items() if KEYS[name].must_match}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def compare_configs(a: Config, b: Config) -> list[Difference]:
    """Every key in which two configurations differ, in the schema's order."""
    left, right = flat_values(a), flat_values(b)
    return [
        Difference(name, left[name], right[name], described.must_match)
        for name, described in KEYS.items()
        if left[name] != right[name]
    ]


def _read_file(name_or_path: str) -> Reading:
    if is_file_name(name_or_path):
        path, shown = Path(name_or_path), name_or_path
    else:
        path, shown = EXPERIMENTS / f"{name_or_path}.yaml", f"{name_or_path}.yaml"
        if name_or_path not in experiment_names():
            known = experiment_names()
            hint = nearest(name_or_path, known) or f"; there are {', '.join(known)}, or give a path that ends in .yaml"
            return Reading(problems=[f"{name_or_path}: there is no such experiment{hint}"])
    try:
        return read_yaml(path.read_text(encoding="utf-8"), shown)
    except UnicodeDecodeError as error:
        return Reading(problems=[f"{shown}: not a text file: byte {error.start} is not UTF-8"])
    except OSError as error:
        return Reading(problems=[f"{shown}: cannot be read: {error.strerror}"])
    except ValueError:
        return Reading(problems=[f"{shown!r}: this is no path"])  # a NUL character inside it


def _build(readings: Sequence[Reading]) -> Config:
    problems = [problem for reading in readings for problem in reading.problems]
    node = CfgNode(_tree(Config()))
    wrong = {key for reading in readings for key in reading.wrong}
    for entry in _winners(readings, problems):
        value, found = convert(KEYS[entry.key], entry)
        problems += found
        if value is None:
            wrong.add(entry.key)
        else:
            _set(node, entry.key, value)
    node.freeze()
    config = _freeze(node, Config)
    problems += broken_rules(RULES, config, wrong)
    if problems:
        raise UserError(problems)
    for caution in broken_rules(CAUTIONS, config, ()):
        _log.warning("%s", caution)
    return config


def _winners(readings: Sequence[Reading], problems: list[str]) -> list[Entry]:
    """The last entry of each key. A wrong word that a later layer covers up is still a wrong word, and is reported."""
    last: dict[str, Entry] = {}
    for reading in readings:
        for entry in reading.entries:
            covered = last.get(entry.key)
            if covered is not None:
                problems += convert(KEYS[entry.key], covered)[1]
            last[entry.key] = entry
    return list(last.values())


def _get(config: Any, name: str) -> Value:
    for part in name.split("."):
        config = getattr(config, part)
    return cast(Value, config)


def _set(node: CfgNode, name: str, value: Value) -> None:
    *sections, last = name.split(".")
    for part in sections:
        node = node[part]
    node[last] = value


def _plain(value: Value) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _tree(config: Any) -> dict[str, Any]:
    """Nested plain dictionaries and lists, as YAML and yacs know them."""
    tree = {}
    for field in fields(config):
        value = getattr(config, field.name)
        tree[field.name] = _tree(value) if is_dataclass(value) else _plain(value)
    return tree


def _freeze(node: CfgNode, schema: type[T]) -> T:
    values = {}
    for field in fields(cast(Any, schema)):
        value = node[field.name]
        if isinstance(value, CfgNode):
            values[field.name] = _freeze(value, cast(Any, field.type))
        else:
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return schema(**values)

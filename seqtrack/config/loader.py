"""Load, write, digest and compare experiments.

A YAML file, environment variables and `KEY VALUE` pairs are read as texts with the location of each key. Every text is
validated by itself, so that all problems are reported with their location; a yacs node merges them; rules check what
concerns several keys.
"""

import functools
import hashlib
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError
from yacs.config import CfgNode

from seqtrack.config.fields import expected, fact
from seqtrack.config.schema import IGNORED_KEYS, KEYS, SECTIONS, Config
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import decode_text, did_you_mean, short_repr

# Keys that decide nothing but the learning rate of each step, and how many steps there are.
SCHEDULE = ("TRAIN.EPOCH", "TRAIN.LR_DROP_EPOCH", "TRAIN.SCHEDULER.")
# Last parts of keys that course files have and the authors' do not, and what they are here.
_NAMED_HERE = {
    "CHECKPOINT_INTERVAL": "TRAIN.CHECKPOINT_EPOCHS",
    "WARMUP_EPOCHS": "TRAIN.SCHEDULER.WARMUP_STEPS, in optimizer steps",
    "LOSS_WEIGHTS": "TRAIN.CE_WEIGHT: the cross-entropy is the only loss",
    "LASOT": "DATA.CLASSES and the environment variable DATA_DIR",
}
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
    """The text of a key, or list of texts, and where it was given; {} for a section of YAML."""

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
    name_or_path: str, *, variables: Sequence[tuple[str, str, str]] = (), overrides: Sequence[tuple[str, str]] = ()
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
    given = _known(_read_file(name_or_path, problems), problems)
    given += [_Given(key, text, f"environment variable {variable}") for variable, key, text in variables]
    given += _known([_Given(key, text.strip(), "OVERRIDES") for key, text in overrides], problems)
    return _merge(given, problems)


def config_from_text(text: str, name: str) -> Config:
    """A configuration from YAML text, such as a run's; messages contain `name`.

    Raises:
        UserError: as `load_config`.
    """
    problems: list[Problem] = []
    return _merge(_known(_read_yaml(text, name, problems), problems), problems)


def dump_config(config: Config) -> str:
    """Every key as YAML, in the schema's order."""
    node = CfgNode(config.model_dump(mode="json"))
    return str(node.dump(sort_keys=False, default_flow_style=None, width=120))


def flat_values(config: Config) -> dict[str, Value]:
    """Full key to value, in the schema's order."""
    return {key: functools.reduce(getattr, key.split("."), config) for key in KEYS}  # type: ignore[misc]


def config_digest(config: Config) -> str:
    """sha256 of the keys that a resumed run must match; not of workers, log interval and the like."""
    values = {key: value for key, value in flat_values(config).items() if fact(KEYS[key], "must_match")}
    values["TRAIN.SAMPLING"] = "stateless"  # a key that no longer exists, with its only value
    for key in ("TRAIN.TF32", "TRAIN.SHARDS"):  # added later; without them an experiment keeps its digest
        if not values[key]:
            del values[key]
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def compare_configs(a: Config, b: Config) -> list[Difference]:
    """Every key in which two configurations differ, in the schema's order."""
    pairs = zip(KEYS, flat_values(a).values(), flat_values(b).values(), strict=True)
    return [Difference(key, one, other, fact(KEYS[key], "must_match")) for key, one, other in pairs if one != other]


def training_differences(theirs: Config, ours: Config) -> list[Difference]:
    """The differences on which training depends, given the values of the other keys."""
    unused = [] if theirs.TRAIN.FREEZE_ENCODER or ours.TRAIN.FREEZE_ENCODER else ["TRAIN.ENCODER_OPEN"]
    unused += ["DATA.TRAIN.DATASETS_RATIO"] if len(ours.DATA.TRAIN.DATASETS_NAME) == 1 else []
    return [one for one in compare_configs(theirs, ours) if one.must_match and one.key not in unused]


def _read_file(name_or_path: str, problems: list[Problem]) -> Iterable[_Given]:
    known = experiment_names()
    if not is_file_name(name_or_path) and name_or_path not in known:
        hint = did_you_mean(name_or_path, known) or f"; there are {', '.join(known)}, or give a path ending in .yaml"
        problems.append(Problem(f"{short_repr(name_or_path)}: no such experiment{hint}", "config.unknown_experiment"))
        return []
    path = Path(name_or_path) if is_file_name(name_or_path) else EXPERIMENTS / f"{name_or_path}.yaml"
    try:
        return _read_yaml(decode_text(path.read_bytes()), name_or_path, problems)
    except (OSError, ValueError) as error:  # ValueError: not a text, or a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        problems.append(Problem(f"{name_or_path!r}: cannot be read: {reason}", "config.unreadable"))
        return []


def _read_yaml(text: str, name: str, problems: list[Problem]) -> Iterable[_Given]:
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
    return _entries(root, "", name)


def _entries(node: yaml.MappingNode, section: str, name: str) -> Iterator[_Given]:
    """Every section and key, in the file's order."""
    for key_node, value in node.value:
        key = f"{section}{_plain(key_node)}"
        yield _Given(key, _plain(value), f"{name} line {key_node.start_mark.line + 1}")
        if key in SECTIONS and isinstance(value, yaml.MappingNode):
            yield from _entries(value, f"{key}.", name)


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


def _known(entries: Iterable[_Given], problems: list[Problem]) -> list[_Given]:
    """Those whose key exists, is no section, and occurs once."""
    given: list[_Given] = []
    first: dict[str, str] = {}
    for one in entries:
        if one.key in first:
            problems.append(_problem(one, "duplicate_key", f"given twice, first in {first[one.key]}"))
        elif one.key in SECTIONS and one.text != {}:
            problems.append(
                _problem(one, "not_a_section", f"found {_found(one.text)}, expected keys below this section")
            )
        elif one.key in KEYS:
            given.append(one)
        elif one.key not in SECTIONS | IGNORED_KEYS:
            named = _NAMED_HERE.get(one.key.rsplit(".", 1)[-1])
            hint = f"; here it is {named}" if named else did_you_mean(one.key, [*KEYS, *SECTIONS])
            problems.append(_problem(one, "unknown_key", f"no such key{hint}"))
        first.setdefault(one.key, one.where)
    return given


def _merge(given: Sequence[_Given], problems: list[Problem]) -> Config:
    node = CfgNode(Config().model_dump())
    invalid = set()
    for one in given:
        *sections, last = one.key.split(".")
        tree = {last: one.text}
        for section in reversed(sections):
            tree = {section: tree}
        try:
            Config.model_validate(tree)
            functools.reduce(operator.getitem, sections, node)[last] = one.text
        except ValidationError:
            invalid.add(one.key)
            wanted = expected(KEYS[one.key].annotation, KEYS[one.key].metadata)
            hint = did_you_mean(str(one.text), wanted.removeprefix("one of ").split(", "))
            problems.append(_problem(one, "invalid_value", f"found {_found(one.text)}, expected {wanted}{hint}"))
    node.freeze()
    config = Config.model_validate(node)
    broken = [text for text in contradictions(config) if not any(key in text for key in invalid)]
    problems += [Problem(text, "config.rule") for text in broken]
    if problems:
        raise UserError(problems)
    return config


def _problem(given: _Given, code: str, text: str) -> Problem:
    shown = given.key if given.key.isprintable() and 0 < len(given.key) <= 60 else short_repr(given.key)
    return Problem(f"{shown} ({given.where}): {text}", f"config.{code}")


def _found(value: Any) -> str:
    return {"None": "nothing", "{}": "a mapping"}.get(str(value)) or short_repr(value)


def contradictions(config: Config) -> Iterator[str]:
    """Combinations of valid values for which a configuration is refused.

    A text names every key that its rule reads in full, so that rules about a key that is invalid anyway are left out.
    """
    encoder, train, data, test = config.MODEL.ENCODER, config.TRAIN, config.DATA, config.TEST
    for trained_key, trained, tested_key, tested in (
        ("DATA.TEMPLATE.NUMBER", data.TEMPLATE.NUMBER, "TEST.NUM_TEMPLATES", test.NUM_TEMPLATES),
        ("DATA.SEARCH.SIZE", data.SEARCH.SIZE, "TEST.SEARCH_SIZE", test.SEARCH_SIZE),
        ("DATA.TEMPLATE.SIZE", data.TEMPLATE.SIZE, "TEST.TEMPLATE_SIZE", test.TEMPLATE_SIZE),
    ):
        if trained != tested:
            yield f"{trained_key} is {trained} and {tested_key} is {tested}; the model takes one only: set both"
    for key, size in (("DATA.SEARCH.SIZE", data.SEARCH.SIZE), ("DATA.TEMPLATE.SIZE", data.TEMPLATE.SIZE)):
        if size % encoder.PATCH_SIZE:
            text = f"{key} is {size}, which is not a multiple of MODEL.ENCODER.PATCH_SIZE, {encoder.PATCH_SIZE}"
            yield f"{text}; the next one is {size + -size % encoder.PATCH_SIZE}"
    custom = encoder.TYPE == "vit_custom"
    for name in ("EMBED_DIM", "DEPTH", "NUM_HEADS"):
        if custom == (getattr(encoder, name) == 0):
            wanted = "give a number above 0" if custom else "use vit_custom or leave 0"
            yield f"MODEL.ENCODER.{name} is {getattr(encoder, name)} with MODEL.ENCODER.TYPE {encoder.TYPE}; {wanted}"
    if custom and encoder.PRETRAIN_TYPE != "scratch":
        text = f"MODEL.ENCODER.PRETRAIN_TYPE is {encoder.PRETRAIN_TYPE}"
        yield f"{text}, but MODEL.ENCODER.TYPE vit_custom has no published weights; use scratch"
    if train.INIT_FROM and encoder.PRETRAIN_TYPE != "scratch":
        text = f"MODEL.ENCODER.PRETRAIN_TYPE is {encoder.PRETRAIN_TYPE}, but TRAIN.INIT_FROM replaces all weights"
        yield f"{text}; set PRETRAIN_TYPE to scratch"
    if encoder.NUM_HEADS and encoder.EMBED_DIM % encoder.NUM_HEADS:
        text = f"MODEL.ENCODER.EMBED_DIM {encoder.EMBED_DIM} is not a multiple of MODEL.ENCODER.NUM_HEADS"
        yield f"{text} {encoder.NUM_HEADS}"
    if encoder.POS_INIT != "trunc_normal" and encoder.EMBED_DIM % 4:
        text = f"MODEL.ENCODER.EMBED_DIM is {encoder.EMBED_DIM}"
        yield f"{text}; MODEL.ENCODER.POS_INIT {encoder.POS_INIT} needs a multiple of 4"
    width, heads = config.MODEL.HIDDEN_DIM, config.MODEL.DECODER.NHEADS
    if width % heads or width % 2:
        yield f"MODEL.HIDDEN_DIM is {width}; it must be even and a multiple of MODEL.DECODER.NHEADS ({heads})"
    names, ratios = data.TRAIN.DATASETS_NAME, data.TRAIN.DATASETS_RATIO
    if not names or len(names) != len(ratios) or not sum(ratios):
        text = f"DATA.TRAIN.DATASETS_NAME has {len(names)} names and DATA.TRAIN.DATASETS_RATIO is {list(ratios)}"
        yield f"{text}; expected one number per name, and one above 0"
    for key, words in (("DATA.TRAIN.DATASETS_NAME", names), ("DATA.CLASSES", data.CLASSES)):
        if len(set(words)) != len(words):
            yield f"{key} contains {', '.join(sorted({one for one in words if words.count(one) > 1}))} more than once"
    if data.RANDOM_CLASSES and not data.CLASSES:
        yield "DATA.RANDOM_CLASSES adds classes at random, but DATA.CLASSES is empty, which takes all of them already"
    milestones = list(train.SCHEDULER.MILESTONES)
    if milestones != sorted(set(milestones)):
        yield f"TRAIN.SCHEDULER.MILESTONES {milestones} must ascend"
    if train.SCHEDULER.TYPE == "mstep" and not milestones:
        yield "TRAIN.SCHEDULER.TYPE is mstep, but TRAIN.SCHEDULER.MILESTONES is empty"
    if train.ACCUMULATION_STEPS > train.BATCH_SIZE:
        text = f"TRAIN.ACCUMULATION_STEPS is {train.ACCUMULATION_STEPS}"
        yield f"{text}, but TRAIN.BATCH_SIZE has only {train.BATCH_SIZE} samples"
    if train.SHARDS & (train.SHARDS - 1):
        yield f"TRAIN.SHARDS is {train.SHARDS}; it must be a power of two such as {1 << train.SHARDS.bit_length()}"
    if train.SHARDS > train.BATCH_SIZE:
        yield f"TRAIN.SHARDS is {train.SHARDS}, but TRAIN.BATCH_SIZE has only {train.BATCH_SIZE} samples"
    if train.SHARDS and train.ACCUMULATION_STEPS > 1:
        text = f"TRAIN.SHARDS is {train.SHARDS} and TRAIN.ACCUMULATION_STEPS {train.ACCUMULATION_STEPS}"
        yield f"{text}; shards are computed one after another already, so leave the second 1"

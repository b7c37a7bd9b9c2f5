"""Text to entries: which key got which words, and on which line.

YAML is read as text, not as values: the schema says what a word has to be, so that `AMP: off` stays a name, `LR: 1e-4`
is a number and nothing in a file can build an object. Knows sections only to see where a mapping has to be; does not
judge values. Everything wrong is collected, nothing is raised: the caller reports it together with what else is wrong.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import yaml

from seqtrack.config.schema import KEYS, SECTIONS

# Larger than any configuration; a checkpoint given by mistake should not be parsed for a minute.
MAX_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Scalar:
    """One word of a file. `quoted` words are names, never numbers."""

    text: str
    quoted: bool = False


@dataclass(frozen=True)
class Entry:
    """What was written for one key, and where (`demo.yaml line 3`, `environment variable SEED`)."""

    key: str
    value: Scalar | tuple[Scalar, ...]
    where: str


@dataclass
class Reading:
    """What a text said: entries in their order, every problem met on the way, and the known keys among them."""

    entries: list[Entry] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)

    def refuse(self, key: str, problem: str) -> None:
        """Note that what was written for a known key is no value at all."""
        self.wrong.add(key)
        self.problems.append(problem)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the known name that looks most like `name`, or nothing."""
    names = list(known)
    by_upper = {one.upper(): one for one in names}
    close = difflib.get_close_matches(name.upper(), by_upper, n=1, cutoff=0.6)
    if not close:
        # A right name in a wrong place (`LR` for `TRAIN.LR`) looks unlike the full name.
        last = name.upper().rsplit(".", 1)[-1]
        tails = {one.upper().rsplit(".", 1)[-1]: one for one in names}
        close_tails = difflib.get_close_matches(last, tails, n=1, cutoff=0.8)
        return f"; did you mean {tails[close_tails[0]]}?" if close_tails else ""
    return f"; did you mean {by_upper[close[0]]}?"


def unknown_key(name: str, where: str) -> str:
    """The message for a key that the schema does not have."""
    return f"{_key_shown(name)} ({where}): there is no such key{nearest(name, [*KEYS, *SECTIONS])}"


def read_yaml(text: str, name: str) -> Reading:
    """Read a YAML document of nested mappings.

    Args:
        text: the document.
        name: what the messages call it, usually the file.
    """
    reading = Reading()
    if len(text) > MAX_CHARACTERS:
        reading.problems.append(f"{name}: {len(text)} characters; this is no configuration file")
        return reading
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        reading.problems.append(f"{name}{line}: this is not YAML: {what}")
        return reading
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        # Beside its own errors the parser lets out ValueError and OverflowError for a broken \U escape, and
        # RecursionError for a thousand brackets.
        reading.problems.append(f"{name}: this is not YAML: {str(error).splitlines()[0] if str(error) else error!r}")
        return reading
    if root is None:
        reading.problems.append(f"{name}: the file is empty; expected MODEL, TRAIN, DATA or TEST")
    elif not isinstance(root, yaml.MappingNode):
        reading.problems.append(
            f"{name} line {root.start_mark.line + 1}: expected `KEY: value` lines, found {_describe(root)}"
        )
    else:
        _read_mapping(root, "", name, reading)
    return reading


def read_pairs(pairs: Sequence[tuple[str, str]], where: str) -> Reading:
    """Read `KEY VALUE` pairs; a list is written `[a, b]` or `a,b`."""
    reading = Reading()
    seen: set[str] = set()
    for key, text in pairs:
        if key in SECTIONS:
            reading.problems.append(f"{key} ({where}): this is a section; name one of its keys")
        elif key not in KEYS:
            reading.problems.append(unknown_key(key, where))
        elif key in seen:
            reading.problems.append(f"{key} ({where}): given twice; leave one of them out")
        else:
            seen.add(key)
            _read_pair(key, text.strip(), where, reading)
    return reading


def _read_pair(key: str, text: str, where: str, reading: Reading) -> None:
    if not KEYS[key].is_list:
        reading.entries.append(Entry(key, Scalar(text), where))
    elif text.startswith("["):
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
            reading.refuse(key, f"{key} ({where}): found {shown(text)}, expected {KEYS[key].expected} as [a, b]")
        else:
            _read_leaf(key, node, where, reading)
    else:
        words = [word.strip() for word in text.split(",")] if text else []
        reading.entries.append(Entry(key, tuple(Scalar(word) for word in words), where))


def shown(text: str) -> str:
    """A value as messages show it: on one line, and not longer than a line."""
    cut = text if len(text) <= 60 else text[:57] + "..."
    return repr(cut)


def _key_shown(name: str) -> str:
    return name if name.isprintable() and 0 < len(name) <= 60 else shown(name)


def _describe(node: yaml.Node | None) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return shown(str(node.value)) if isinstance(node, yaml.ScalarNode) else "nothing"


def _read_mapping(mapping: yaml.MappingNode, prefix: str, name: str, reading: Reading) -> None:
    """Walk one section. Goes no deeper than the schema, so a document that refers to itself ends too."""
    first_lines: dict[str, int] = {}
    for key_node, value_node in mapping.value:
        line = key_node.start_mark.line + 1
        where = f"{name} line {line}"
        if not isinstance(key_node, yaml.ScalarNode):
            reading.problems.append(f"{where}: expected a key below {prefix or 'the top'}, found {_describe(key_node)}")
            continue
        key = prefix + key_node.value
        if key in first_lines:
            reading.problems.append(f"{_key_shown(key)} ({where}): given twice, first on line {first_lines[key]}")
            continue
        first_lines[key] = line
        if key in SECTIONS:
            if isinstance(value_node, yaml.MappingNode):
                _read_mapping(value_node, key + ".", name, reading)
            else:
                found = _describe(value_node)
                reading.problems.append(f"{key} ({where}): found {found}, expected a section with keys below it")
        elif key in KEYS:
            _read_leaf(key, value_node, where, reading)
        else:
            reading.problems.append(unknown_key(key, where))


def _read_leaf(key: str, node: yaml.Node | None, where: str, reading: Reading) -> None:
    expected = KEYS[key].expected
    if isinstance(node, yaml.ScalarNode):
        reading.entries.append(Entry(key, _scalar(node), where))
    elif isinstance(node, yaml.SequenceNode):
        elements = [element for element in node.value if isinstance(element, yaml.ScalarNode)]
        wrong = [index for index, element in enumerate(node.value) if not isinstance(element, yaml.ScalarNode)]
        for index in wrong:
            found = _describe(node.value[index])
            reading.refuse(key, f"{key}[{index}] ({where}): found {found}, expected {expected}")
        if not wrong:
            reading.entries.append(Entry(key, tuple(_scalar(element) for element in elements), where))
    else:
        reading.refuse(key, f"{key} ({where}): found {_describe(node)}, expected {expected}")


def _scalar(node: yaml.ScalarNode) -> Scalar:
    # A tag such as !!python/object is not obeyed; it makes the word one that no number or name can be.
    standard = node.tag.startswith("tag:yaml.org,2002:") and ":python/" not in node.tag
    return Scalar(node.value if standard else f"{node.tag} {node.value}", quoted=node.style is not None)

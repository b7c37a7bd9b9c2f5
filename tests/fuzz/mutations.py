"""Damaged copies of valid inputs, for every test that feeds a reader with them.

`mutate(data, rng)` changes bytes, `mutate_json(text, rng)` the values of a document that stays JSON, `cases(...)` gives
the inputs of a whole test. The same seed gives the same inputs, so a failing one is named by its number.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

# What breaks readers: limits of integer types, spellings of numbers, structure characters, bytes that are not UTF-8.
_TOKENS: tuple[bytes, ...] = (
    b"-1", b"0", b"1", b"2147483648", b"9223372036854775808", b"1e999", b"1_000", b"NaN", b"Infinity", b"-0.0", b"0x10",
    b"null", b"true", b'""', b"[]", b"{}", b'"x"', b"[[[[[[[[", b",", b":", b'"', b"\\u0000", b"../", b"\x00",
    b"\xef\xbb\xbf", b"\r\n", b"\xc3\x28", b"\xff" * 8, b"\x00" * 8, b"\xff\xfe",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**19, 0.5, -0.0, 1e308, "", "x", "0", "1", "nan", "../../x",
    "\u0000", "\ud83d\ude00", "0" * 64, "x" * 5000, [], [0], [[]], {}, {"x": 1}, [None], [1, "x"],
)  # fmt: skip
_NUMBER_OR_STRING = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|"[^"\\]{0,80}"')


def mutate(data: bytes, rng: random.Random, *, other: bytes | None = None) -> bytes:
    """`data` with one to three changes; often still close to valid.

    Args:
        other: a second valid input of the same kind; a part of it may replace a part of `data`.
    """
    changed = data
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        change = rng.choice(_CHANGES)
        changed = change(changed, rng, other if other is not None else data)
    return changed


def mutate_json(text: str | bytes, rng: random.Random) -> bytes:
    """A JSON document with one value replaced, removed, doubled or given another key; it stays JSON.

    Duplicate keys and NaN are among the results.
    """
    tree = json.loads(text)
    places = list(_places(tree))
    if not places:
        return json.dumps(rng.choice(_VALUES)).encode()
    container, key = rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, dict):
        container[f"{key}{rng.choice(('', ' ', '_', 'x'))}x"] = container.pop(key)
    elif action == 2:
        from_container, from_key = rng.choice(places)
        container[key] = json.loads(json.dumps(from_container[from_key]))
    elif action == 3:
        container[key] = float(rng.choice(("nan", "inf", "-inf")))
    else:
        container[key] = rng.choice(_VALUES)
    written = json.dumps(tree).encode()
    if rng.random() < 0.1 and isinstance(tree, dict) and tree:
        twice = rng.choice(list(tree))
        written = (
            written[:-1] + b", " + json.dumps(twice).encode() + b": " + json.dumps(rng.choice(_VALUES)).encode() + b"}"
        )
    return written


def cases(
    originals: Sequence[bytes], count: int, *, seed: int = 0, is_json: bool = False
) -> Iterator[tuple[int, bytes]]:
    """`count` numbered damaged inputs, spread over the valid `originals`; every second JSON one keeps its syntax."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        original = originals[number % len(originals)]
        if is_json and rng.random() < 0.5:
            yield number, mutate_json(original, rng)
        else:
            yield number, mutate(original, rng, other=rng.choice(originals))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a nested document."""
    for key, value in list(
        tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    ):
        yield tree, key
        yield from _places(value)


def _flip_bits(data: bytes, rng: random.Random, other: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _truncate(data: bytes, rng: random.Random, other: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut_out(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + data[end:]


def _insert(data: bytes, rng: random.Random, other: bytes) -> bytes:
    place = rng.randrange(len(data) + 1)
    piece = rng.choice(_TOKENS) if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 40))
    return data[:place] + piece + data[place:]


def _duplicate(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _span(data, rng)
    return data[:end] + data[start:]


def _swap_tokens(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """Replace a number or a string of a text by another one of it, or by one that breaks readers."""
    found = [match.span() for match in _NUMBER_OR_STRING.finditer(data[:200_000])]
    if not found:
        return _insert(data, rng, other)
    start, end = rng.choice(found)
    source = slice(*rng.choice(found))
    piece = data[source] if rng.random() < 0.4 else rng.choice(_TOKENS)
    return data[:start] + piece + data[end:]


def _splice(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _span(data, rng)
    from_start, from_end = _span(other, rng)
    return data[:start] + other[from_start:from_end] + data[end:]


def _overwrite(data: bytes, rng: random.Random, other: bytes) -> bytes:
    start, end = _span(data, rng)
    return data[:start] + rng.randbytes(end - start) + data[end:]


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A part of `data`; mostly a short one, near the start or the end as often as in the middle, where heads lie."""
    length = min(len(data), rng.choice((1, 2, 4, 8, 16, 64, 512)))
    last = len(data) - length
    start = rng.choice((rng.randint(0, last), rng.randint(0, min(last, 512)), rng.randint(max(0, last - 512), last)))
    return start, start + length


_CHANGES: tuple[Callable[[bytes, random.Random, bytes], bytes], ...] = (
    _flip_bits, _flip_bits, _truncate, _cut_out, _insert, _duplicate, _swap_tokens, _swap_tokens, _splice, _overwrite,
)  # fmt: skip

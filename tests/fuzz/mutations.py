"""Damaged copies of valid inputs, for every test that feeds a reader with them.

`cases(...)` gives the inputs of a whole test: bytes changed, or values of a document that stays JSON. The same seed
gives the same inputs, so a failing one is named by its number.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

# What breaks readers: limits of integer types, spellings of numbers, structure characters, bytes that are not UTF-8.
_TOKENS: tuple[bytes, ...] = (
    b"-1", b"0", b"1", b"2147483648", b"9223372036854775808", b"1e999", b"1_000", b"NaN", b"Infinity", b"-0.0", b"0x10",
    b"null", b"true", b'""', b"[]", b"{}", b'"x"', b"[[[[[[[[", b",", b":", b'"', b"\\u0000", b"../", b"\x00",
    b"\xef\xbb\xbf", b"\r\n", b"\xc3\x28", b"\xff" * 8, b"\x00" * 8, b"\xff\xfe",
)  # fmt: skip
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**19, 0.5, -0.0, 1e308, "", "x", "0", "1", "nan", "../../x",
    "\u0000", "\ud83d\ude00", "0" * 64, "x" * 5000, [], [0], [[]], {}, {"x": 1}, [None], [1, "x"],
    float("nan"), float("inf"), float("-inf"),
)  # fmt: skip
_NUMBER_OR_STRING = re.compile(rb'-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|"[^"\\]{0,80}"')


def counts(short: int, long: int) -> pytest.MarkDecorator:
    """A few inputs in the usual form of a test, and many in its long form."""
    return pytest.mark.parametrize(
        "count", [short, pytest.param(long, marks=(pytest.mark.long, pytest.mark.timeout(3600)))]
    )


def cases(
    originals: Sequence[bytes], count: int, *, seed: int = 0, is_json: bool = False
) -> Iterator[tuple[int, bytes]]:
    """`count` numbered damaged inputs, spread over the valid `originals`; every second JSON one keeps its syntax."""
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        data = originals[number % len(originals)]
        if is_json and rng.random() < 0.5:
            yield number, _change_json(data, rng)
            continue
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = _change_bytes(data, rng, rng.choice(originals))
        yield number, data


def _change_json(text: bytes, rng: random.Random) -> bytes:
    """One value replaced, removed, or given another key, or a key that appears twice."""
    tree = json.loads(text)
    places = list(_places(tree))
    (container, key), (other, other_key) = rng.choice(places), rng.choice(places)
    action = rng.randrange(6)
    if action == 0:
        del container[key]
    elif action == 1 and isinstance(container, dict):
        container[f"{key}{rng.choice(('', ' ', '_', 'x'))}x"] = container.pop(key)
    else:
        container[key] = json.loads(json.dumps(other[other_key])) if action == 2 else rng.choice(_VALUES)
    written = json.dumps(tree).encode()
    if rng.random() < 0.1 and isinstance(tree, dict) and tree:
        key, value = (json.dumps(one).encode() for one in (rng.choice(list(tree)), rng.choice(_VALUES)))
        written = b"%b, %b: %b}" % (written[:-1], key, value)
    return written


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a nested document."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(value)


def _change_bytes(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """One change; often still close to valid. A part of `other`, a valid input of the same kind, may replace a part."""
    start, end = _span(data, rng)
    change = rng.randrange(10)
    if change == 0:
        return data[:start]
    if change <= 2 and start < end:
        flipped = data[start] ^ 1 << rng.randrange(8)
        return data[:start] + bytes([flipped]) + data[start + 1 :]
    found = [match.span() for match in _NUMBER_OR_STRING.finditer(data[:200_000])]
    if change <= 5 and found:
        # A number or a string of a text, replaced by another one of it or by one that breaks readers.
        start, end = rng.choice(found)
        piece = data[slice(*rng.choice(found))] if rng.random() < 0.4 else rng.choice(_TOKENS)
    elif change <= 6:
        end, piece = start, rng.choice((*_TOKENS, rng.randbytes(20)))
    else:
        piece = rng.choice((b"", data[start:end] * 2, other[slice(*_span(other, rng))], rng.randbytes(end - start)))
    return data[:start] + piece + data[end:]


def _span(data: bytes, rng: random.Random) -> tuple[int, int]:
    """A part of `data`; near the start or the end as often as in the middle, where heads lie."""
    length = min(len(data), rng.choice((1, 2, 4, 8, 16, 64, 512)))
    last = len(data) - length
    start = rng.choice((rng.randint(0, last), rng.randint(0, min(last, 512)), rng.randint(max(0, last - 512), last)))
    return start, start + length

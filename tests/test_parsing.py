"""Numbers, text files, JSON and YAML are parsed strictly: nothing ambiguous is accepted."""

from collections.abc import Callable

import pytest

from seqtrack.parsing import ParseError, decode_text, parse_float, parse_int, parse_json, parse_yaml

PARSED: list[tuple[Callable[[str], object], dict[str, object]]] = [
    (parse_int, {"0": 0, "-12": -12, "+3": 3, " 7\t": 7, "007": 7}),
    (parse_float, {"1": 1.0, "-1.5": -1.5, ".5": 0.5, "5.": 5.0, "1e-4": 1e-4, "2E+3": 2000.0}),
    (parse_json, {'{"a": [1, 2.5, "x", null, true], "b": 1}': {"a": [1, 2.5, "x", None, True], "b": 1}}),
    (parse_json, {"18446744073709551615": 2**64 - 1}),
    (parse_yaml, {"": None, "a: [1, x]\nb: {a: 1}": {"a": [1, "x"], "b": {"a": 1}}}),
    (parse_yaml, {"a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}": {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}}),
]
NESTED_TWICE = '{"x": {"a": 1, "a": 1}}'
REFUSED: list[tuple[Callable[..., object], list[str | bytes]]] = [
    (parse_int, ["", "1_0", "1.0", "0x10", "1e3", "٣", "--1", "1 2", "9" * 19]),
    (parse_float, ["", ".", "nan", "inf", "-Infinity", "1e999", "1_0.5", "0x1p3", "1,5", "١"]),
    (parse_json, ["", "{", '{"a": 1, "a": 2}', NESTED_TWICE, "NaN", "[Infinity]", "1e999", "9" * 5000, "[" * 100_000]),
    (parse_yaml, ["a: 1\nb: 2\na: 1", "a: {b: 1, 'b': 2}", "- {a: 1, a: 2}", "a: [1", "2024-13-01", "[" * 5000]),
    (decode_text, ["a".encode("utf-16"), b"\xff\x80", b"a\0b"]),
]


@pytest.mark.parametrize(("parse", "cases"), PARSED)
def test_a_text_is_parsed(parse: Callable[[str], object], cases: dict[str, object]) -> None:
    assert {text: parse(text) for text in cases} == cases


@pytest.mark.parametrize(("parse", "text"), [(parse, text) for parse, texts in REFUSED for text in texts])
def test_other_text_is_refused(parse: Callable[[str | bytes], object], text: str | bytes) -> None:
    with pytest.raises(ParseError) as caught:
        parse(text)
    assert caught.value.__cause__ is not caught.value, "whoever follows the causes would never end"

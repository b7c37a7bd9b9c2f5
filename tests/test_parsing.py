"""Numbers, text files and JSON are parsed strictly: nothing ambiguous is accepted."""

from pathlib import Path

import pytest

from seqtrack.parsing import ParseError, decode_text, parse_float, parse_int, parse_json, read_text


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("-12", -12), ("+3", 3), (" 7\t", 7), ("007", 7)])
def test_an_integer_is_parsed(text: str, value: int) -> None:
    assert parse_int(text) == value


@pytest.mark.parametrize("text", ["", "1_0", "1.0", "0x10", "1e3", "٣", "--1", "1 2", "9" * 19])
def test_other_text_is_not_an_integer(text: str) -> None:
    with pytest.raises(ParseError):
        parse_int(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1.0), ("-1.5", -1.5), (".5", 0.5), ("5.", 5.0), ("1e-4", 1e-4), ("2E+3", 2000.0)]
)
def test_a_number_is_parsed(text: str, value: float) -> None:
    assert parse_float(text) == value


@pytest.mark.parametrize("text", ["", ".", "nan", "inf", "-Infinity", "1e999", "1_0.5", "0x1p3", "1,5", "١"])
def test_other_text_is_not_a_number(text: str) -> None:
    with pytest.raises(ParseError):
        parse_float(text)


def test_any_line_ends_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(tmp_path / "f") == "a\nb\nc\n"


@pytest.mark.parametrize("data", ["a".encode("utf-16"), b"\xff\x80", b"a\0b"])
def test_bytes_that_are_not_text_are_refused(data: bytes) -> None:
    with pytest.raises(ParseError):
        decode_text(data)


def test_json_is_parsed() -> None:
    assert parse_json(b'{"a": [1, 2.5, "x", null, true], "b": 18446744073709551615}') == {
        "a": [1, 2.5, "x", None, True],
        "b": 2**64 - 1,
    }


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"a": 1, "a": 2}', '{"x": {"a": 1, "a": 1}}', "NaN", "[Infinity]", "1e999", "9" * 5000, "[" * 100_000],
)
def test_ambiguous_or_invalid_json_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse_json(text)

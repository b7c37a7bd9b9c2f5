"""`scripts/vocabulary.py` finds a replaced word where it is wrong and nowhere else."""

import pytest
import vocabulary


@pytest.mark.parametrize(
    ("where", "text", "lines"),
    [
        ("README.md", "one line\nthe manifest is beside it", [2]),
        ("README.md", "a standard, apart from others", []),
        ("seqtrack/model/decoder.py", "# scores of all words", [1]),
        ("seqtrack/data/lasot.py", "words of a class name", []),
        ("docs/formats.md", "100 samples a second\n100 samples per second", [1]),
    ],
)
def test_a_replaced_word_is_reported_with_file_line_and_replacement(where: str, text: str, lines: list[int]) -> None:
    assert [line.split(": ")[0] for line in vocabulary.check(text, where)] == [f"{where}:{line}" for line in lines]

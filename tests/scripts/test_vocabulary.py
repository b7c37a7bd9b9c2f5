"""`scripts/vocabulary.py` finds a replaced word where it is wrong and nowhere else."""

import pytest
import vocabulary


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("README.md", "one line\nthe manifest is beside it"),
        ("seqtrack/uploads/scan.py", "def survey(): ..."),
        ("seqtrack/model/decoder.py", "# scores of all words"),
        ("docs/formats.md", "100 samples a second"),
    ],
)
def test_a_replaced_word_is_reported_with_file_line_and_replacement(where: str, text: str) -> None:
    (line,) = vocabulary.check(text, where)
    assert line.startswith(f"{where}:{len(text.splitlines())}: ")


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("README.md", "a standard, apart from others"),
        ("docs/architecture.md", "a Docker container; is there a reason?"),
        ("seqtrack/data/lasot.py", "words of a class name"),
        ("docs/formats.md", "100 samples per second"),
    ],
)
def test_other_words_are_not_reported(where: str, text: str) -> None:
    assert list(vocabulary.check(text, where)) == []

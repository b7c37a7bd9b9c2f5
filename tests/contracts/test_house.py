"""No file mentions the machine it was written on, or files that are not in the repository."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Strings that belong to one machine or to the project's history, joined here so that this file does not contain them.
FOREIGN = {
    "/".join(("", "work", "")): "a folder of one machine",
    "/".join(("", "tmp", "w", "")): "a folder of one machine",
    "/".join(("", "opt", "py" + "pi")): "a folder of one machine",
    "DESIGN" + ".md": "a file that is not here",
    "STYLE" + ".md": "a file that is not here",
    "SPEC" + ".md": "a file that is not here",
    "GLOSSARY" + ".md": "a file that is not here",
    "HUB" + ".md": "a file that is not here",
    "TO" + "DO": "belongs into the issue tracker",
    "FIX" + "ME": "belongs into the issue tracker",
}


def foreign_words(name: str, text: str) -> list[str]:
    return [
        f"{name}:{number}: {word!r} is {why}"
        for number, line in enumerate(text.splitlines(), start=1)
        for word, why in FOREIGN.items()
        if re.search(rf"(?<![\w.]){re.escape(word)}", line)
    ]


def test_no_file_mentions_a_machine() -> None:
    listed = subprocess.run(
        ["git", "grep", "-I", "--name-only", "-z", "--untracked", "-e", ""],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("not a clone: git does not list its files")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 150
    assert [text for name in names for text in foreign_words(name, (ROOT / name).read_text("utf-8", "replace"))] == []


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("see network/ and /home/me/workshop/x", "cd " + "/".join(("", "work", "main"))),
        ("what is to do", "# " + "TO" + "DO: later"),
    ],
)
def test_a_foreign_word_is_found_and_nothing_else(good: str, bad: str) -> None:
    assert foreign_words("some.py", good) == []
    assert len(foreign_words("some.py", bad)) == 1

"""No file mentions the machine it was written on, or files that are not in the repository."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Strings that belong to one machine or to the project's history, split so that this file does not contain them.
FOREIGN = [
    *("/".join(("", *parts, "")) for parts in (("work",), ("tmp", "w"), ("opt", "py" + "pi"))),
    *(name + ".md" for name in ("DESIGN", "STYLE", "SPEC", "GLOSSARY", "HUB")), "TO" + "DO", "FIX" + "ME",
]  # fmt: skip
_FOREIGN = re.compile(rf"(?<![\w.])({'|'.join(map(re.escape, FOREIGN))})")


def test_no_file_mentions_a_machine() -> None:
    assert all(_FOREIGN.search(f"see {word}x") for word in FOREIGN)
    assert not _FOREIGN.search("see network/ and /home/me/workshop/x; what is to do")
    words = ["git", "grep", "-I", "-z", "--untracked", "-e", ""]
    listed = subprocess.run([*words, "--name-only"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    if listed.returncode != 0:
        pytest.skip("not a clone: git does not list its files")
    names = [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]
    assert len(names) > 150
    lines = [(name, line) for name in names for line in (ROOT / name).read_text("utf-8", "replace").splitlines()]
    assert [place for place in lines if _FOREIGN.search(place[1])] == []

"""docs/configuration.md documents every key, variable and experiment."""

import re
from pathlib import Path

import pytest

from seqtrack.config.docs import render
from seqtrack.config.environment import VARIABLES
from seqtrack.config.loader import experiment_names
from seqtrack.config.schema import KEYS

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_tables_are_up_to_date() -> None:
    assert render(DOCUMENT) == DOCUMENT, "run: python -m seqtrack.config.docs docs/configuration.md"
    assert render(DOCUMENT.replace("| `TRAIN.LR` |", "| `TRAIN.RATE` |")) == DOCUMENT
    with pytest.raises(ValueError):
        render(DOCUMENT.replace("<!-- end of keys -->", ""))


def test_every_name_is_documented_in_one_line() -> None:
    assert [name for name in experiment_names() if f"`{name}`" not in DOCUMENT] == []
    texts = [field.description for field in (*KEYS.values(), *VARIABLES.values())]
    assert [text for text in texts if not text or "\n" in text] == []
    example = re.findall(r"^([A-Z_]+)=", (REPOSITORY / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    assert [name for name in example if name not in VARIABLES] == []

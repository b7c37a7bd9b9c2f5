"""docs/configuration.md documents every key and every variable."""

import re
from pathlib import Path

import pytest

from seqtrack.config.docs import render
from seqtrack.config.environment import VARIABLES
from seqtrack.config.loader import experiment_names
from seqtrack.config.rules import RULES
from seqtrack.config.schema import KEYS

REPOSITORY = Path(__file__).parents[2]
DOCUMENT = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_tables_are_up_to_date() -> None:
    assert render(DOCUMENT) == DOCUMENT, "run: python -m seqtrack.config.docs docs/configuration.md"


def test_an_outdated_table_is_replaced() -> None:
    assert render(DOCUMENT.replace("| `TRAIN.LR` |", "| `TRAIN.RATE` |")) == DOCUMENT
    with pytest.raises(ValueError):
        render(DOCUMENT.replace("<!-- end of keys -->", ""))


def test_every_experiment_is_mentioned() -> None:
    assert [name for name in experiment_names() if f"`{name}`" not in DOCUMENT] == []


def test_every_key_of_a_rule_is_in_the_section_on_rules() -> None:
    rules = DOCUMENT.split("## Rules between keys")[1]
    last_parts = {key.rsplit(".", 1)[1] for rule in RULES for key in rule.keys}
    assert [part for part in sorted(last_parts) if part not in rules] == []


def test_every_variable_in_the_files_for_users_is_in_the_table() -> None:
    example = (REPOSITORY / ".env.example").read_text(encoding="utf-8")
    names = re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)
    assert [name for name in names if name not in VARIABLES] == []
    usual = {"DATASET", "CLASSES", "CONFIG", "EPOCHS", "SEED", "RESUME_EPOCH", "HF_REPO", "HF_TOKEN_PATH", "OUTPUT_DIR"}
    assert usual - set(names) == set()


def test_every_description_is_one_line() -> None:
    texts = [field.description for field in (*KEYS.values(), *VARIABLES.values())]
    assert [text for text in texts if not text or "\n" in text] == []

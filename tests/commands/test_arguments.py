"""Command lines: what is misspelt is refused with the nearest name, and options set variables."""

import os
import re
from pathlib import Path

import pytest

from seqtrack.cli import main
from seqtrack.commands.parsers import SETTINGS, command_parsers, variables_of
from seqtrack.config.environment import Environment


@pytest.mark.parametrize(
    ("words", "code", "nearest"),
    [
        ("trian", "cli.command", "train"),
        ("evalute --checkpoint last", "cli.command", "evaluate"),
        ("train --epcohs 3", "cli.argument", "--epochs"),
        ("plan --batchsize 4", "cli.argument", "--batch-size"),
        ("verify a b --ouput c", "cli.argument", "--output"),
        ("train TRAIN.LR", "cli.override", "TRAIN.LR=2e-4"),
        ("train TRAIN.LRR=2", "config.unknown_key", "TRAIN.LR"),
        ("train --config demoo", "config.unknown_experiment", "demo"),
        ("train TRAIN.LR=1e-4 --config demo TRAIN.LRR=2", "config.unknown_key", "TRAIN.LR"),
        ("train --epochs three", "variable.invalid_value", "EPOCHS"),
    ],
)
def test_what_is_misspelt_is_refused_with_the_nearest_name(
    words: str, code: str, nearest: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert main(words.split()) == 2
    error = capsys.readouterr().err
    assert re.findall(r"error \[(.+?)\]", error)[-1] == code
    assert nearest in error


def test_options_and_keys_of_training_set_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERRIDES", "TRAIN.AMP off")
    parser = command_parsers()[1]["train"]
    given = parser.parse_args(["--epochs", "3", "--hf-repo", "a/b", "TRAIN.LR=2e-4", "DATA.CLASSES=a b"])
    assert variables_of(given) == {
        "EPOCHS": "3",
        "HF_REPO": "a/b",
        "OVERRIDES": "TRAIN.AMP off TRAIN.LR 2e-4 DATA.CLASSES 'a b'",
    }
    assert {name.lower() for name in SETTINGS} <= set(Environment.model_fields)


def test_every_command_reads_dotenv_and_the_environment_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPUT_DIR", "here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("OUTPUT_DIR=elsewhere\n")
    assert main(["report"]) == 2
    assert "here (OUTPUT_DIR)" in capsys.readouterr().err
    monkeypatch.delenv("OUTPUT_DIR")
    assert main(["report"]) == 2
    assert "elsewhere (OUTPUT_DIR)" in capsys.readouterr().err
    monkeypatch.delenv("OUTPUT_DIR")  # as read from the file
    (tmp_path / ".env").write_text("not a setting\n")
    assert main(["verify"]) == 2
    error = capsys.readouterr().err
    assert "[dotenv.malformed]" in error and str(tmp_path / ".env") in error

"""Command lines: options set variables, and every command reads .env."""

from pathlib import Path

import pytest
from reference import parsers

from seqtrack.cli import main
from seqtrack.commands.parsers import SETTINGS, command_parsers, variables_of
from seqtrack.config.environment import Environment


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
    assert parser.format_help()
    assert [action.dest for action in parser._actions if not action.help] == []


def test_no_option_has_a_number_grammar_of_its_own() -> None:
    """`int` and `float` take `1_0`, other alphabets and `nan`."""
    types = [(name, action.dest, action.type) for name, _, parser in parsers() for action in parser._actions]
    assert [(name, dest) for name, dest, kind in types if kind in (int, float)] == []
    assert len([kind for *_, kind in types if kind is not None and kind is not Path]) > 15


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


def test_ctrl_c_ends_any_command_with_75_and_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("seqtrack.commands.report.run", interrupted)
    assert main(["report"]) == 75
    assert len(capsys.readouterr().err.splitlines()) == 1

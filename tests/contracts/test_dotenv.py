"""Every command reads `.env` in the current folder; the environment takes precedence."""

from pathlib import Path

import pytest

from seqtrack.cli import main


def test_a_command_uses_the_values_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OUTPUT_DIR", "here")
    (tmp_path / ".env").write_text("OUTPUT_DIR=elsewhere\n")
    assert main(["report"]) == 2
    assert "here (OUTPUT_DIR)" in capsys.readouterr().err
    monkeypatch.delenv("OUTPUT_DIR")
    assert main(["report"]) == 2
    assert "elsewhere (OUTPUT_DIR)" in capsys.readouterr().err
    monkeypatch.delenv("OUTPUT_DIR")  # as read from the file
    (tmp_path / ".env").write_text("not a setting\n")
    assert main(["verify"]) == 2
    said = capsys.readouterr().err
    assert "[dotenv.malformed]" in said and str(tmp_path / ".env") in said

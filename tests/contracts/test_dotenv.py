"""Every command reads `.env` in the current folder; the environment takes precedence."""

from pathlib import Path

import pytest
import runs

KEPT = ("PATH", "HOME", "PYTHONPATH")


def said(folder: Path, *words: str, **variables: str) -> runs.Ended:
    env = runs.environment(folder, folder, {})
    bare = {name: value for name, value in env.items() if name in KEPT}
    return runs.command(*words, env={**bare, **variables}, cwd=folder)


@pytest.mark.parametrize("command", ["verify", "report"])
def test_a_command_uses_the_values_of_the_file(command: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OUTPUT_DIR=elsewhere\n")
    ended = said(tmp_path, command)
    assert ended.code == 2
    assert "elsewhere" in ended.said
    overridden = said(tmp_path, command, OUTPUT_DIR="here")
    assert "elsewhere" not in overridden.said and "here" in overridden.said


def test_an_invalid_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("not a setting\n")
    ended = said(tmp_path, "verify")
    assert ended.code == 2
    assert "[dotenv.malformed]" in ended.said and str(tmp_path / ".env") in ended.said

"""`.env` in the current folder holds for every command alike, and the real environment wins."""

from pathlib import Path

import pytest
import runs

KEPT = ("PATH", "HOME", "PYTHONPATH")


def said(folder: Path, *words: str, **variables: str) -> runs.Ended:
    env = runs.environment(folder, folder, {})
    bare = {name: value for name, value in env.items() if name in KEPT}
    return runs.command(*words, env={**bare, **variables}, cwd=folder)


@pytest.mark.parametrize("command", ["verify", "report"])
def test_a_command_looks_where_the_file_says(command: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OUTPUT_DIR=elsewhere\n")
    ended = said(tmp_path, command)
    assert ended.code == 2
    assert "elsewhere" in ended.said
    overruled = said(tmp_path, command, OUTPUT_DIR="here")
    assert "elsewhere" not in overruled.said and "here" in overruled.said


def test_a_broken_file_is_a_mistake_to_mend(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("this is no setting\n")
    ended = said(tmp_path, "verify")
    assert ended.code == 2
    assert ".env line 1" in ended.said

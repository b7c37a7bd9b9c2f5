"""`seqtrack report` from the outside."""

from pathlib import Path

import pytest

from seqtrack.cli import main


def test_writes_markdown_for_every_folder_and_the_page_on_request(
    finished_run: Path, team_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPUT_DIR", str(finished_run))
    assert main(["report", "--team", str(team_file), "--member", "Grace Hopper", "--html"]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [
        str(finished_run / name) for name in ("report.md", "phase_1/report.md", "phase_2/report.md", "report.html")
    ]
    assert "Grace Hopper" in (finished_run / "report.html").read_text()


def test_nothing_to_report_is_told_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTPUT_DIR", str(tmp_path))
    assert main(["report"]) == 2
    assert "nothing to report" in capsys.readouterr().err

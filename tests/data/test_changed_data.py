"""Unusable data end a run before its folder is created, and changed data are named."""

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import environment

from data.makers import cmyk, huge, jpeg, picture, write_sequence
from seqtrack.checkpoints.side_files import DatasetRecord, read_side_file
from seqtrack.cli import main


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Callable[..., int]:
    """Train a tiny model on `data` into a folder of this name, both in the current folder."""
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        write_sequence(tmp_path / "data" / "book" / f"book-{number}")

    def run(output: str, **variables: str) -> int:
        keys = {"DATA.TRAIN.SAMPLE_PER_EPOCH": "16"}
        settings = {"CONFIG": "demo", "DATASET": "lasot", "EPOCHS": "2", **variables}
        for name, value in environment(tmp_path / output, tmp_path / "data", keys, **settings).items():
            monkeypatch.setenv(name, value)
        return main(["train"])

    return run


def test_unusable_frames_end_it_before_a_folder_is_made(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path("data/book/book-2/img")
    for number, change in ((5, cmyk), (6, cmyk), (7, huge)):
        path = images / f"{number:08d}.jpg"
        path.write_bytes(change(path.read_bytes()))
    assert train("output") == 2
    said = capsys.readouterr().err
    assert said.count("error [data.frame]") == 3 and all(f"{number:08d}.jpg" in said for number in (5, 6, 7))
    assert not Path("output").exists()


def test_a_resume_after_frames_were_replaced_names_the_data_and_so_does_verify(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("output") == 0
    recorded = read_side_file(Path("output/phase_1/dataset.json"), DatasetRecord)
    assert recorded is not None and recorded.frames_covered_by == "size"
    Path("data/book/book-1/img/00000009.jpg").write_bytes(jpeg(picture(77)))
    for phase in ("2", "1"):
        capsys.readouterr()
        assert train("output", PHASE=phase, RESUME_EPOCH="1") == 2
        assert "error [data.changed]" in capsys.readouterr().err
    assert not Path("output/phase_2").exists()
    # A separate run on the changed images differs, and `verify` names the cause.
    assert train("other", PHASE="1", RESUME_EPOCH="") == 0
    capsys.readouterr()
    code = main(["verify", "output/phase_1", "other/phase_1"])
    said = capsys.readouterr().out
    assert code == 1 and "data_digest" in said and said.split()[-1] == "differs"

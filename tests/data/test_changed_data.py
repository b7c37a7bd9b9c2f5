"""Unusable data end a run before its folder is created, and changed data are named."""

from pathlib import Path

import pytest
from runs import environment

from data.conftest import Make
from data.makers import cmyk, huge, jpeg, picture
from seqtrack.checkpoints.side_files import DatasetRecord, read_side_file
from seqtrack.cli import main


def test_unusable_frames_end_a_run_before_it_begins_and_replaced_ones_are_named_by_a_resume_and_by_verify(
    make_lasot: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    images = make_lasot("book-1", "book-2") / "book" / "book-2" / "img"

    def train(output: str, **variables: str) -> int:
        settings = {"CONFIG": "demo", "DATASET": "lasot", "EPOCHS": "2", **variables}
        keys = {"DATA.TRAIN.SAMPLE_PER_EPOCH": "16"}
        for name, value in environment(tmp_path / output, tmp_path / "data", keys, **settings).items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        return main(["train"])

    originals = {path: path.read_bytes() for path in sorted(images.iterdir())[4:7]}
    for (path, data), change in zip(originals.items(), (cmyk, cmyk, huge), strict=True):
        path.write_bytes(change(data))
    assert train("output") == 2
    said = capsys.readouterr().err
    assert said.count("error [data.frame]") == 3 and all(path.name in said for path in originals)
    assert not Path("output").exists()

    for path, data in originals.items():
        path.write_bytes(data)
    assert train("output") == 0
    recorded = read_side_file(Path("output/phase_1/dataset.json"), DatasetRecord)
    assert recorded is not None and recorded.frames_covered_by == "size"
    (images / "00000009.jpg").write_bytes(jpeg(picture(77)))
    for phase in ("2", "1"):
        assert train("output", PHASE=phase, RESUME_EPOCH="1") == 2
        assert "error [data.changed]" in capsys.readouterr().err
    assert not Path("output/phase_2").exists()
    # A separate run on the changed images differs, and `verify` names the cause.
    assert train("other", PHASE="1", RESUME_EPOCH="") == 0
    capsys.readouterr()
    code = main(["verify", "output/phase_1", "other/phase_1"])
    said = capsys.readouterr().out
    assert code == 1 and "data_digest" in said and said.split()[-1] == "differs"

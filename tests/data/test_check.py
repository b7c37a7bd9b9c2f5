"""`seqtrack data` check, show and prepare, and what a run reports about unusable and changed data."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from runs import environment

from data.conftest import Make
from data.makers import jpeg, make_got10k, picture, tree
from seqtrack.checkpoints.side_files import DatasetRecord, read_side_file
from seqtrack.cli import main
from seqtrack.data.check import Report, check_layout
from seqtrack.data.lasot import find_layout


def _check(root: Path, *, decode: bool = False) -> Report:
    return check_layout(find_layout(root), decode=decode)


def _data(*arguments: str | Path) -> int:
    return main(["data", *map(str, arguments)])


def _named(report: Report, *wanted: str) -> bool:
    """Whether each of these is in exactly one problem, and there is no other problem."""
    found = [[problem for problem in report.problems if one in problem] for one in wanted]
    return [len(problems) for problems in found] == [1] * len(report.problems)


def test_the_table_counts_the_files(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "book-3", "coin-1", "coin-99")
    folder = root / "book" / "book-1"
    (folder / "out_of_view.txt").write_text(",".join("11" + "0" * 22))
    rows = (folder / "groundtruth.txt").read_text().splitlines()
    (folder / "groundtruth.txt").write_text("\n".join(["0,0,0,0", *rows[1:]]))
    (folder / "img" / "1.jpg").write_bytes(jpeg(picture(1)))
    report = _check(root)
    train, test = (next(r for r in report.rows if (r.class_name, r.split) == ("book", s)) for s in ("train", "test"))
    assert (train.sequences, train.sequences_expected, train.frames_expected, train.frames_found) == (2, 16, 48, 48)
    assert (train.boxes, train.absent) == (47, 2)
    frames = [p for n in (1, 2) for p in (root / f"book/book-{n}/img").glob("0*.jpg")]
    assert train.bytes_ == sum(path.stat().st_size for path in frames)
    assert (test.sequences, test.frames_expected, test.boxes) == (1, 24, 24)
    assert report.problems == []
    assert all(any(name in note for note in report.notes) for name in ("'1.jpg'", "book-16", "coin-99"))


def test_every_kind_of_problem_is_found_at_once_and_decoding_finds_what_counting_cannot(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "coin-1", "coin-2")
    images = root / "book/book-2/img"
    for number, cut in ((3, 500), (5, 900)):
        whole = (images / f"{number:08d}.jpg").read_bytes()
        (images / f"{number:08d}.jpg").write_bytes(whole[:-cut] + whole[-2:])
    rows = (root / "book/book-2/groundtruth.txt").read_text().splitlines()
    (root / "book/book-2/groundtruth.txt").write_text("\n".join([*rows[:6], "500,500,9,9", *rows[7:]]))
    assert _check(root).problems == []
    report = _check(root, decode=True)
    assert report.decoded == 96 and _named(report, "00000003.jpg", "00000005.jpg", "00000007.jpg")
    (root / "book/book-1/groundtruth.txt").write_text("1,2,3,4\n1,2\n")
    (root / "book/book-2/img/00000004.jpg").unlink()
    (root / "coin/coin-1/img/00000025.jpg").write_bytes(jpeg(picture(1)))
    (root / "coin/coin-2/img/00000002.jpg").write_bytes(b"")
    before = tree(root)
    found = ("book-1/groundtruth.txt, line 2", "book/book-2:", "coin-1/img:", "coin-2/img/00000002.jpg")
    assert _named(_check(root), *found) and tree(root) == before


def test_the_command_exits_0_without_and_1_with_problems_and_2_on_wrong_usage(
    make_lasot: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_lasot("book-1", "book-3", "coin-1")
    arguments = ["check", "--data-dir", root, "--dataset", "lasot"]
    assert _data(*arguments) == 0
    lines = [line.split()[:3] for line in capsys.readouterr().out.splitlines()]
    assert ["book", "train", "1"] in lines and ["book", "test", "1"] in lines
    (root / "book/book-1/groundtruth.txt").write_text("1,2,3\n")
    assert _data(*arguments, "--json") == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False and "line 1" in answer["problems"][0] and answer["rows"][0]["class_name"] == "book"
    for wrong, code in (
        (("--data-dir", "/nowhere"), "data.no_folder"),
        (("--classes", "buk"), "data.unknown_class"),
        (("--dataset", "cocoa"), "data.unknown_data_set"),
    ):
        assert _data(*arguments, *wrong) == 2
        assert f"error [{code}]" in capsys.readouterr().err


def test_show_writes_an_image_and_prepare_refuses_what_it_cannot_make(
    make_lasot: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def given(dataset: str, data_dir: Path, classes: str = "") -> None:
        for name, value in {"CONFIG": "demo", "DATASET": dataset, "DATA_DIR": data_dir, "CLASSES": classes}.items():
            monkeypatch.setenv(name, str(value))

    def refused(*arguments: str | Path) -> str:
        assert _data(*arguments) == 2
        return capsys.readouterr().err.partition("]")[0].partition("error [")[2]

    given("lasot", make_lasot("book-1", "book-2"), "book")
    assert _data("show", "-o", tmp_path / "one.png", "--count", "5") == 0
    assert _data("show", "-o", tmp_path / "two.png", "--count", "5", "--first", "7") == 0
    one, two = (cv2.imread(str(tmp_path / name)) for name in ("one.png", "two.png"))
    assert one is not None and two is not None and one.shape == two.shape and one.shape[0] > 5 * 192
    assert len(np.unique(one)) > 50 and (one != two).any()
    assert refused("show", "-o", tmp_path / "no" / "a.png") == "data.output"
    assert _data("prepare") == 0
    (tmp_path / "demo").mkdir()  # not the demo data set
    for dataset, code in (("LASOT", "no_folder"), ("demo", "demo_other"), ("got10k_vottrain", "no_folder")):
        given(dataset, tmp_path / ("empty" if dataset == "LASOT" else ""))
        assert refused("prepare") == f"data.{code}"
    make_got10k(tmp_path)
    given("got10k_vottrain", tmp_path)
    assert _data("prepare") == 0 and capsys.readouterr().out.split()[:2] == ["GOT10K_VOTTRAIN:", "2"]


def test_a_resume_on_changed_frames_is_refused(
    make_lasot: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    images, output = make_lasot("book-1", "book-2") / "book" / "book-2" / "img", tmp_path / "output"

    def train(**variables: str) -> int:
        settings = {"CONFIG": "demo", "DATASET": "lasot", "EPOCHS": "2", **variables}
        keys = {"DATA.TRAIN.SAMPLE_PER_EPOCH": "16"}
        for name, value in environment(output, tmp_path / "data", keys, **settings).items():
            monkeypatch.setenv(name, value)
        return main(["train"])

    assert train() == 0
    recorded = read_side_file(output / "phase_1" / "dataset.json", DatasetRecord)
    assert recorded is not None and recorded.frames_covered_by == "size"
    (images / "00000009.jpg").write_bytes(jpeg(picture(77)))
    for phase in ("2", "1"):
        capsys.readouterr()
        assert train(PHASE=phase, RESUME_EPOCH="1") == 2
        assert "error [data.changed]" in capsys.readouterr().err
    assert not (output / "phase_2").exists()

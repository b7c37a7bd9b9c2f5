"""`data check` counts what is there, finds what is wrong, changes nothing, and says it with its exit code."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.makers import jpeg, picture, tree, write_sequence
from seqtrack.commands import data as command
from seqtrack.data.check import Report, check_layout
from seqtrack.data.lasot import find_layout
from seqtrack.errors import UserError


def _check(root: Path, *, decode: bool = False) -> Report:
    return check_layout(find_layout(root), decode=decode)


def _run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seqtrack", "data", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path.cwd()), **environment},
    )


def test_the_table_counts_what_is_there(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "book-3", "coin-1")
    folder = root / "book" / "book-1"
    (folder / "out_of_view.txt").write_text(",".join("11" + "0" * 22))
    rows = (folder / "groundtruth.txt").read_text().splitlines()
    rows[0] = "0,0,0,0"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    report = _check(root)
    train, test = (next(r for r in report.rows if (r.class_name, r.split) == ("book", s)) for s in ("train", "test"))
    assert (train.sequences, train.sequences_expected, train.frames_expected, train.frames_found) == (2, 16, 48, 48)
    assert (train.boxes, train.absent) == (47, 2)
    assert train.bytes_ == sum(p.stat().st_size for n in (1, 2) for p in (root / f"book/book-{n}/img").iterdir())
    assert (test.sequences, test.frames_expected, test.boxes) == (1, 24, 24)
    assert report.problems == [] and any("not there" in note for note in report.notes)


def test_every_kind_of_problem_is_found_at_once(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "book-3", "coin-1", "coin-2", "coin-3")
    (root / "book/book-1/groundtruth.txt").write_text("1,2,3,4\n1,2\n")
    (root / "book/book-2/img/00000004.jpg").unlink()
    (root / "coin/coin-1/img/00000025.jpg").write_bytes(jpeg(picture(1)))
    (root / "coin/coin-2/img/00000002.jpg").write_bytes(b"")
    (root / "coin/coin-2/img/notes.txt").write_bytes(b"x")
    shutil.copy(root / "book/book-2/img/00000001.jpg", root / "coin/coin-3/img/00000001.jpg")
    before = tree(root)
    report = _check(root)
    text = "\n".join(report.problems)
    assert "book-1/groundtruth.txt, line 2" in text
    assert "book-2: 1 frame files are missing, and not sampled: 4" in text
    assert "coin-1/img: groundtruth.txt has 24 rows" in text
    assert "00000002.jpg: is empty" in text
    assert "leak: test sequence coin-3 begins with the same picture as training sequence book-2" in text
    assert len(report.problems) == 5 and any("notes.txt" in note for note in report.notes)
    assert tree(root) == before, "a doctor changes nothing"


def test_decoding_finds_what_counting_cannot(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2")
    images = root / "book/book-1/img"
    for number, cut in ((3, 500), (4, 900)):
        whole = (images / f"{number:08d}.jpg").read_bytes()
        (images / f"{number:08d}.jpg").write_bytes(whole[:-cut] + whole[-2:])
    (root / "book/book-2/img/00000005.jpg").write_bytes(jpeg(picture(9, 40, 40)))
    rows = (root / "book/book-1/groundtruth.txt").read_text().splitlines()
    rows[6] = "500,500,9,9"
    (root / "book/book-1/groundtruth.txt").write_text("\n".join(rows))
    assert _check(root).problems == []
    report = _check(root, decode=True)
    text = "\n".join(report.problems)
    assert report.decoded == 48 and len(report.problems) == 4
    assert "00000003.jpg: is a damaged JPEG" in text and "00000004.jpg: is a damaged JPEG" in text
    assert "frames of 2 sizes: 40x40, 96x72" in text
    assert "book-1/groundtruth.txt, line 7: the box lies wholly outside the 96x72 frame" in text


def test_the_command_prints_the_table_and_exits_0_when_all_is_well(make_lasot) -> None:  # type: ignore[no-untyped-def]
    done = _run("check", "--data-dir", make_lasot("book-1", "coin-1"), "--dataset", "lasot")
    assert done.returncode == 0 and "no problem found" in done.stdout and "Traceback" not in done.stderr
    head = next(line for line in done.stdout.splitlines() if line.startswith("class"))
    assert all(word in head for word in ("sequences", "frames expected", "found", "boxes", "absent", "MB"))


def test_the_command_exits_1_when_something_is_wrong_and_json_says_the_same(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    (root / "book/book-1/groundtruth.txt").write_text("1,2,3\n")
    done = _run("check", "--data-dir", root, "--dataset", "lasot", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 1 and answer["ok"] is False and "line 1" in answer["problems"][0]
    assert answer["rows"][0]["class_name"] == "book"


@pytest.mark.parametrize(
    "arguments",
    [("--data-dir", "/nowhere"), ("--classes", "buk"), ("--dataset", "cocoa"), ("--list", "/nowhere"), ("--dekode",)],
)
def test_wrong_usage_exits_2(make_lasot, arguments: tuple[str, ...]) -> None:  # type: ignore[no-untyped-def]
    done = _run("check", "--data-dir", make_lasot("book-1"), "--dataset", "lasot", *arguments)
    assert done.returncode == 2 and "error" in done.stderr and "Traceback" not in done.stderr


def test_a_custom_list_is_checked_against_the_test_list(make_lasot, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-3")
    (tmp_path / "mine.txt").write_text("book-1\nbook-3\n")
    done = _run("check", "--data-dir", root, "--dataset", "lasot", "--list", tmp_path / "mine.txt")
    assert done.returncode == 1 and "book-3 is in the training list and in the test list" in done.stdout


def test_the_real_data_is_sound_to_the_last_pixel(test_data: Path) -> None:
    report = _check(test_data / "lasot_mini", decode=True)
    assert report.problems == [] and report.decoded == 1511
    assert sum(row.absent for row in report.rows) == 29


def test_show_writes_a_picture_of_samples(make_lasot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    for name, value in {"DATASET": "lasot", "DATA_DIR": str(make_lasot("book-1", "book-2")), "CONFIG": "demo"}.items():
        monkeypatch.setenv(name, value)

    def show(path: Path, *options: str) -> int:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.run(parser.parse_args(["show", "-o", str(path), "--count", "5", *options]))

    assert show(tmp_path / "one.png") == show(tmp_path / "two.png") == 0
    one = cv2.imread(str(tmp_path / "one.png"))
    assert one is not None and one.shape[0] > 2 * 192 and len(np.unique(one)) > 50
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert show(tmp_path / "three.png", "--first", "7") == 0
    assert (tmp_path / "one.png").read_bytes() != (tmp_path / "three.png").read_bytes()
    with pytest.raises(UserError, match="cannot be written"):
        show(tmp_path / "no" / "a.png")


def test_prepare_draws_the_demo_and_is_content_with_classes_that_are_there(make_lasot, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    done = _run("prepare", DATASET="lasot", DATA_DIR=str(root), CLASSES="book", CONFIG="demo")
    assert done.returncode == 0, done.stderr
    done = _run("prepare", DATASET="lasot", DATA_DIR=str(tmp_path / "empty"), CONFIG="demo")
    assert done.returncode == 2 and "name the classes" in done.stderr
    done = _run("prepare", DATASET="demo", DATA_DIR=str(tmp_path / "demo_dir"))
    assert done.returncode == 0 and (tmp_path / "demo_dir" / "demo" / "demo.json").is_file()


def test_a_frame_of_another_name_is_a_note_and_no_frame(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "data" / "book" / "book-1")
    (folder / "img" / "1.jpg").write_bytes(jpeg(picture(1)))
    report = _check(tmp_path / "data")
    assert report.problems == [] and any("'1.jpg'" in note for note in report.notes)

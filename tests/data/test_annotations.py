"""The folder of a sequence: boxes that can be trained on, and frame files that belong to their rows."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.makers import write_sequence
from seqtrack.data.annotations import read_annotation
from seqtrack.errors import Problem, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sequence(tmp_path / "book-1", 24, empty=True)


def _rows(folder: Path) -> list[str]:
    return (folder / "groundtruth.txt").read_text().splitlines()


def _problems(folder: Path) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        read_annotation(folder)
    return caught.value.problems


def test_a_good_sequence_is_read_as_it_is(folder: Path) -> None:
    rows = _rows(folder)
    rows[3], rows[4] = "-5,-38,12.5,7", "0,0,0,0"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (folder / "full_occlusion.txt").write_text(",".join("0" * 5 + "1" + "0" * 18))
    (folder / "out_of_view.txt").write_text("\n".join("0" * 4 + "1" + "0" * 19) + "\n")
    annotation = read_annotation(folder)
    assert annotation.boxes_xywh.dtype == np.float64
    assert annotation.boxes_xywh[3].tolist() == [-5.0, -38.0, 12.5, 7.0]
    assert np.flatnonzero(annotation.absent).tolist() == [4, 5]
    assert not annotation.missing.any()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1,2,3", "file.columns"),
        ("1,2,nan,4", "file.entry"),
        ("1,2,3,1_0", "file.entry"),
        ("1e30,2,3,4", "data.box"),
        ("1,2,100001,4", "data.box"),
        ("1,2,-3,4", "data.box"),
        ("1,2,3,-0.5", "data.box"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_reported_with_its_line(folder: Path, text: str, code: str) -> None:
    rows = _rows(folder)
    rows[7] = text
    (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    (problem,) = _problems(folder)
    assert problem.code == code and problem.startswith(f"{folder / 'groundtruth.txt'}, line 8")


def test_all_malformed_rows_and_files_are_reported_at_once(folder: Path) -> None:
    rows = _rows(folder)
    rows[0], rows[9] = "a,b,c,d", "1,2"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (folder / "full_occlusion.txt").write_text("0,0,2")
    (folder / "out_of_view.txt").unlink()
    problems = _problems(folder)
    assert {problem.code for problem in problems} == {"file.entry", "file.columns", "file.missing"}
    text = "\n".join(problems)
    assert "line 1," in text and "line 10:" in text and "full_occlusion.txt" in text and "out_of_view.txt" in text


@pytest.mark.parametrize("name", ["groundtruth.txt", "full_occlusion.txt", "out_of_view.txt"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n") + b"\r\n",
        lambda data: data.replace(b",", b", "),
        lambda data: data.replace(b",", b"\t"),
        lambda data: data.rstrip() + b",",
        lambda data: data.rstrip() + b"\n\n",
        lambda data: re.sub(rb"\b0\b", b"0.0", data),
    ],
    ids=["mark", "crlf", "blanks", "tabs", "comma", "lines", "decimals"],
)
def test_another_spelling_is_the_same_data(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / "out_of_view.txt").write_text(",".join("0" * 20 + "1" * 4))
    before = read_annotation(folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    after = read_annotation(folder)
    assert before.boxes_xywh.tobytes() == after.boxes_xywh.tobytes()
    assert before.absent.tobytes() == after.absent.tobytes()


@pytest.mark.parametrize("text", ["", "0", "0," * 24 + ",", "0,0;0", "2" + ",0" * 23, ",".join("0" * 25), "0,,0"])
def test_flags_that_do_not_fit_are_refused(folder: Path, text: str) -> None:
    (folder / "out_of_view.txt").write_text(text)
    assert all("out_of_view.txt" in problem for problem in _problems(folder))


def test_rows_and_frames_that_differ_in_number_are_refused(folder: Path) -> None:
    (folder / "img" / "00000025.jpg").write_bytes(b"")
    (problem,) = _problems(folder)
    assert problem.code == "data.frame_count" and "24 rows" in problem and "1 to 25 (25 files)" in problem


def test_a_missing_tail_of_frames_is_refused_as_a_cut_copy(folder: Path) -> None:
    for number in (23, 24):
        (folder / "img" / f"{number:08d}.jpg").unlink()
    (problem,) = _problems(folder)
    assert problem.code == "data.frame_count" and "1 to 22" in problem


def test_a_frame_missing_in_between_is_marked_and_nothing_else(folder: Path) -> None:
    (folder / "img" / "00000005.jpg").unlink()
    annotation = read_annotation(folder)
    assert np.flatnonzero(annotation.missing).tolist() == [4]


def test_a_folder_named_like_a_frame_is_refused(folder: Path) -> None:
    (folder / "img" / "00000005.jpg").unlink()
    (folder / "img" / "00000005.jpg").mkdir()
    (problem,) = _problems(folder)
    assert problem.code == "data.frame" and str(folder / "img" / "00000005.jpg") in problem


def test_a_sequence_without_frames_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "img").rename(tmp_path / "elsewhere")
    assert [problem.code for problem in _problems(folder)] == ["data.no_frames"]
    (folder / "img").mkdir()
    assert [problem.code for problem in _problems(folder)] == ["data.no_frames"]
    (folder / "img" / "1.jpg").touch()
    assert [problem.code for problem in _problems(folder)] == ["data.no_frames"]


def test_the_five_published_rows_of_negative_size_are_accepted_and_no_other(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "pool-14", 146, empty=True)
    rows = _rows(folder)
    rows[145] = "1,1,-1,-1"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    annotation = read_annotation(folder)
    assert annotation.boxes_xywh[145].tolist() == [1, 1, -1, -1]
    rows[144] = "1,1,-1,-1"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (problem,) = _problems(folder)
    assert problem.code == "data.box" and "line 145" in problem

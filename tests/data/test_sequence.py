"""The folder of a sequence: boxes that can be trained on, and frame files that belong to their rows."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.makers import write_sequence
from seqtrack.data.sequence import Sequence, read_sequence
from seqtrack.errors import Problem, UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sequence(tmp_path / "book-1", 24, empty=True)


def _read(folder: Path) -> Sequence:
    return read_sequence(folder, "book")


def _rows(folder: Path) -> list[str]:
    return (folder / "groundtruth.txt").read_text().splitlines()


def _write(folder: Path, rows: list[str]) -> None:
    (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n")


def _problems(folder: Path) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        _read(folder)
    return caught.value.problems


def test_a_good_sequence_is_read_unchanged(folder: Path) -> None:
    rows = _rows(folder)
    rows[3], rows[4], rows[6] = "-5,-38,12.5,7", "0,0,0,0", "5,5,0,9"
    _write(folder, rows)
    (folder / "full_occlusion.txt").write_text(",".join("0" * 5 + "1" + "0" * 18))
    (folder / "out_of_view.txt").write_text("\n".join("0" * 4 + "1" + "0" * 19) + "\n")
    (folder / "img" / "00000009.jpg").unlink()
    sequence = _read(folder)
    assert (sequence.name, sequence.class_name, sequence.num_frames) == ("book-1", "book", 24)
    assert sequence.boxes_xywh.dtype == np.float64 and sequence.boxes_xywh[3].tolist() == [-5.0, -38.0, 12.5, 7.0]
    assert np.flatnonzero(sequence.absent).tolist() == [4, 5]
    assert np.flatnonzero(sequence.missing).tolist() == [8]
    assert np.flatnonzero(~sequence.visible).tolist() == [4, 5, 6, 8]
    assert sequence.frame_path(5) == folder / "img" / "00000006.jpg"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1,2,3", "file.columns"),
        ("1,2,nan,4", "file.entry"),
        ("1e30,2,3,4", "data.box"),
        ("1,2,100001,4", "data.box"),
        ("1,2,-3,4", "data.box"),
        ("1,2,3,-0.5", "data.box"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_reported_with_its_line(folder: Path, text: str, code: str) -> None:
    rows = _rows(folder)
    rows[7] = text
    _write(folder, rows)
    (problem,) = _problems(folder)
    assert problem.code == code and problem.startswith(f"{folder / 'groundtruth.txt'}, line 8")


def test_all_malformed_rows_and_files_are_reported_at_once(folder: Path) -> None:
    rows = _rows(folder)
    rows[0], rows[9] = "a,b,c,d", "1,2"
    _write(folder, rows)
    (folder / "full_occlusion.txt").write_text("0,0,2")
    (folder / "out_of_view.txt").unlink()
    problems = _problems(folder)
    assert {problem.code for problem in problems} == {"file.entry", "file.columns", "file.missing"}
    text = "\n".join(problems)
    assert all(part in text for part in ("line 1,", "line 10:", "full_occlusion.txt", "out_of_view.txt"))


@pytest.mark.parametrize("name", ["groundtruth.txt", "out_of_view.txt"])
@pytest.mark.parametrize(
    "change",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b"\n", b"\r\n") + b"\r\n",
        lambda data: data.replace(b",", b", "),
        lambda data: data.replace(b",", b"\t"),
        lambda data: data.rstrip() + b",",
        lambda data: re.sub(rb"\b0\b", b"0.0", data),
    ],
    ids=["mark", "crlf", "blanks", "tabs", "comma", "decimals"],
)
def test_another_spelling_is_the_same_data(folder: Path, name: str, change: Callable[[bytes], bytes]) -> None:
    (folder / "out_of_view.txt").write_text(",".join("0" * 20 + "1" * 4))
    before = _read(folder)
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    after = _read(folder)
    assert before.boxes_xywh.tobytes() == after.boxes_xywh.tobytes()
    assert before.absent.tobytes() == after.absent.tobytes()


@pytest.mark.parametrize("text", ["", "0", "0," * 24 + ",", "0,0;0", "2" + ",0" * 23, ",".join("0" * 25), "0,,0"])
def test_flags_that_do_not_fit_are_refused(folder: Path, text: str) -> None:
    (folder / "out_of_view.txt").write_text(text)
    assert all("out_of_view.txt" in problem for problem in _problems(folder))


def test_a_different_number_of_rows_and_frames_is_refused(folder: Path) -> None:
    images = folder / "img"
    (images / "00000025.jpg").write_bytes(b"")
    (problem,) = _problems(folder)
    assert problem.code == "data.frame_count" and "24" in problem and "25" in problem
    for number in (23, 24, 25):
        (images / f"{number:08d}.jpg").unlink()
    (problem,) = _problems(folder)
    assert problem.code == "data.frame_count" and "22" in problem


def test_a_folder_with_the_name_of_a_frame_is_refused(folder: Path) -> None:
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


def test_only_the_published_rows_of_negative_size_are_accepted(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "pool-14", 146, empty=True)
    rows = _rows(folder)
    rows[145] = "1,1,-1,-1"
    _write(folder, rows)
    assert _read(folder).boxes_xywh[145].tolist() == [1, 1, -1, -1]
    rows[144] = "1,1,-1,-1"
    _write(folder, rows)
    (problem,) = _problems(folder)
    assert problem.code == "data.box" and "line 145" in problem

"""Annotation files are read strictly: a good one as it is, a bad one with the file and the line."""

from pathlib import Path

import numpy as np
import pytest

from data.makers import write_sequence
from seqtrack.data.annotations import read_annotation


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sequence(tmp_path / "book-1", 24, empty=True)


def _rows(folder: Path) -> list[str]:
    return (folder / "groundtruth.txt").read_text().splitlines()


def test_a_good_sequence_is_read_as_it_stands(folder: Path) -> None:
    rows = _rows(folder)
    rows[3], rows[4] = "-5,-38,12.5,7", "0,0,0,0"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (folder / "full_occlusion.txt").write_text(",".join("0" * 5 + "1" + "0" * 18))
    (folder / "out_of_view.txt").write_text("\n".join("0" * 4 + "1" + "0" * 19) + "\n")
    annotation, problems = read_annotation(folder)
    assert problems == [] and annotation is not None
    assert annotation.boxes_xywh.dtype == np.float64
    assert annotation.boxes_xywh[3].tolist() == [-5.0, -38.0, 12.5, 7.0]
    assert np.flatnonzero(annotation.absent).tolist() == [4, 5]
    assert not annotation.missing.any()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1,2,3", "expected four numbers"),
        ("1,2,3,4,5", "expected four numbers"),
        ("", "expected four numbers"),
        ("1,2,nan,4", "expected four numbers"),
        ("1,2,inf,4", "expected four numbers"),
        ("1\t2\t3\t4", "expected four numbers"),
        ("1, 2, 3, 4", "expected four numbers"),
        ("1,2,3,0x4", "expected four numbers"),
        ("1,2,3,1_0", "expected four numbers"),
        ("1,2,3,+4", "expected four numbers"),
        ("١,٢,٣,٤", "expected four numbers"),  # digits of another script, which int() and float() would take
        ("1,2,3,4\x00", "expected four numbers"),
        ("1e30,2,3,4", "beyond any image"),
        ("1,2,100001,4", "beyond any image"),
        ("1,2,-3,4", "negative width or height"),
        ("1,2,3,-0.5", "negative width or height"),
    ],
)
def test_a_malformed_row_is_reported_with_its_line(folder: Path, text: str, says: str) -> None:
    rows = _rows(folder)
    rows[7] = text
    (folder / "groundtruth.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
    annotation, problems = read_annotation(folder)
    assert annotation is None
    assert len(problems) == 1 and f"{folder / 'groundtruth.txt'}, line 8: " in problems[0] and says in problems[0]


def test_all_malformed_rows_and_files_are_reported_at_once(folder: Path) -> None:
    rows = _rows(folder)
    rows[0], rows[9] = "a,b,c,d", "1,2"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (folder / "full_occlusion.txt").write_text("0,0,2")
    (folder / "out_of_view.txt").unlink()
    _, problems = read_annotation(folder)
    text = "\n".join(problems)
    assert (
        "line 1:" in text and "line 10:" in text and "full_occlusion.txt" in text and "out_of_view.txt: no such" in text
    )


def test_a_thousand_malformed_rows_are_counted_and_not_all_printed(folder: Path) -> None:
    (folder / "groundtruth.txt").write_text("x\n" * 1000)
    _, problems = read_annotation(folder)
    assert len(problems) < 30 and any("980 more malformed rows" in problem for problem in problems)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda data: b"\xef\xbb\xbf" + data, "line 1: starts with a byte order mark"),
        (lambda data: data.replace(b"\n", b"\r\n"), "line 1: ends with a carriage return"),
        (lambda data: data.replace(b"\n", b"\r"), "line 1: ends with a carriage return"),
        (lambda data: data.decode().encode("utf-16"), "expected four numbers"),
        (lambda data: b"", "empty"),
        (lambda data: b"\n \n", "empty"),
        (lambda data: data + b"\n", "line 25: found ''"),
    ],
)
def test_a_file_in_another_form_is_refused(folder: Path, change, says: str) -> None:  # type: ignore[no-untyped-def]
    path = folder / "groundtruth.txt"
    path.write_bytes(change(path.read_bytes()))
    annotation, problems = read_annotation(folder)
    assert annotation is None and any(says in problem for problem in problems), problems


@pytest.mark.parametrize("text", ["", "0", "0," * 24, "0,0;0", "2" + ",0" * 23, ",".join("0" * 25), "0,,0"])
def test_flags_that_do_not_fit_are_refused(folder: Path, text: str) -> None:
    (folder / "out_of_view.txt").write_text(text)
    annotation, problems = read_annotation(folder)
    assert annotation is None and "out_of_view.txt" in problems[0]


def test_rows_and_frames_that_differ_in_number_are_refused(folder: Path) -> None:
    (folder / "img" / "00000025.jpg").write_bytes(b"")
    annotation, problems = read_annotation(folder)
    assert annotation is None
    assert "24 rows" in problems[0] and "1 to 25 (25 files)" in problems[0]


def test_a_missing_tail_of_frames_is_refused_as_a_cut_copy(folder: Path) -> None:
    for number in (23, 24):
        (folder / "img" / f"{number:08d}.jpg").unlink()
    annotation, problems = read_annotation(folder)
    assert annotation is None and "1 to 22" in problems[0]


def test_a_frame_missing_in_between_is_marked_and_nothing_else(folder: Path) -> None:
    (folder / "img" / "00000005.jpg").unlink()
    annotation, problems = read_annotation(folder)
    assert problems == [] and annotation is not None
    assert np.flatnonzero(annotation.missing).tolist() == [4]


def test_a_folder_named_like_a_frame_is_refused(folder: Path) -> None:
    (folder / "img" / "00000005.jpg").unlink()
    (folder / "img" / "00000005.jpg").mkdir()
    annotation, problems = read_annotation(folder)
    assert annotation is None and "00000005.jpg: not a file" in problems[0]


def test_a_sequence_without_frames_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "img").rename(tmp_path / "elsewhere")
    assert "no such folder" in read_annotation(folder)[1][0]
    (folder / "img").mkdir()
    assert "no frame" in read_annotation(folder)[1][0]


def test_the_five_published_rows_of_negative_size_are_accepted_and_no_other(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "pool-14", 146, empty=True)
    rows = _rows(folder)
    rows[145] = "1,1,-1,-1"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    annotation, problems = read_annotation(folder)
    assert problems == [] and annotation is not None and annotation.boxes_xywh[145].tolist() == [1, 1, -1, -1]
    rows[144] = "1,1,-1,-1"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    assert "line 145" in read_annotation(folder)[1][0]

"""Annotation files, result files and lists: what can be read in one way is read, all else is refused with its place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from seqtrack.annotation_files import (
    read_archive,
    read_box_archive,
    read_boxes,
    read_flags,
    read_labels,
    read_names,
    read_places,
)
from seqtrack.evaluation.boxfiles import write_boxes

from seqtrack import annotation_files
from seqtrack.errors import Problem, UserError

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        (tmp_path / "file.txt").write_bytes(data)
        return tmp_path / "file.txt"

    return write


File = Callable[[bytes], Path]


def refused(read: Callable[..., object], *arguments: object) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        read(*arguments)
    return caught.value.problems


@pytest.mark.parametrize(
    "data",
    [
        b"1,2.5,-3,4e1\n5,6,7,8\n",
        b"1,2.5,-3,4e1\n5,6,7,8",
        b"1,2.5,-3,4e1\r\n5,6,7,8\r\n",
        b"1,2.5,-3,4e1\r5,6,7,8\r",
        BOM + b"1,2.5,-3,4e1\n5,6,7,8\n",
        b"1,2.5,-3,4e1,\n5,6,7,8,\n",
        b"1, 2.5, -3, 4e1\n5 , 6 , 7 , 8 \n",
        b"1\t2.5\t-3\t4e1\n5\t6\t7\t8\n",
        b"  1  2.5  -3  4e1\n  5    6   7    8\n",
        b"1;2.5;-3;4e1\n5;6;7;8\n",
        b"+1,2.5,-3.,40\n5.0,6.,7,8\n\n \n\r\n",
    ],
)
def test_rows_are_read_however_they_are_spelt(file: File, data: bytes) -> None:
    assert read_boxes(file(data)).tolist() == [[1, 2.5, -3, 40], [5, 6, 7, 8]]


def test_minus_zero_is_zero_in_every_spelling(file: File) -> None:
    for data in (b"-0,1,2,3\n", b"-0.0,1,2,3\n", b"-0 1 2 3\n"):
        assert not np.signbit(read_boxes(file(data))).any(), data


@pytest.mark.parametrize(
    ("row", "code", "found"),
    [
        (b"10_00,2,3,4", "file.entry", "10_00"),
        (b"1,2,3,0x4", "file.entry", "0x4"),
        (b"1,2,3,1e999", "file.entry", "1e999"),
        (b"1,2,nan,4", "file.entry", "nan"),
        (b"1,2,3,\xd9\xa4", "file.entry", "\u0664"),
        (b"1,2 3,4", "file.entry", "2 3"),
        (b"1,,2,3,4", "file.entry", "entry 2: found ''"),
        (b"1,2,3,4,,", "file.entry", "entry 5: found ''"),
        (b",1,2,3,4", "file.entry", "entry 1: found ''"),
        (b"", "file.entry", "entry 1: found ''"),
        (b"1\xc2\xa02\xc2\xa03\xc2\xa04", "file.entry", "1"),
        (b"1\x0b2\x0b3\x0b4", "file.entry", "1"),
        (b"1,2,3", "file.columns", "found 3 in '1,2,3'"),
        (b"1,2,3,4,5", "file.columns", "found 5"),
        (b"1,5;2,5;3,5;4,5", "file.separator", "1,5;2,5"),
        (b"1;2;3,4", "file.separator", "1;2;3,4"),
    ],
)
def test_what_could_be_read_in_two_ways_or_none_is_refused_with_its_place(
    file: File, row: bytes, code: str, found: str
) -> None:
    path = file(b"1,2,3,4\n" + row + b"\n1,2,3,4\n")
    (problem,) = refused(read_boxes, path)
    assert problem.code == code and problem.startswith(f"{path}, line 2") and found in problem


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "file.empty"),
        (b"\r\n \n", "file.empty"),
        (BOM, "file.empty"),
        ("1,2,3,4".encode("utf-16"), "file.not_text"),
        (b"1,2,3,4\xff", "file.not_text"),
        (b"1,2,3,\0004", "file.not_text"),
    ],
)
def test_what_is_no_text_is_refused(file: File, data: bytes, code: str) -> None:
    for read in (read_boxes, read_flags):
        assert [problem.code for problem in refused(read, file(data))] == [code]


def test_a_file_that_is_not_there_a_folder_and_a_huge_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "huge").touch()
    with (tmp_path / "huge").open("r+b") as opened:
        opened.truncate(10**9)
    for name, code in (("gone", "file.missing"), ("", "file.unreadable"), ("huge", "file.too_large")):
        for read in (read_boxes, read_flags, read_names):
            assert refused(read, tmp_path / name)[0].code == code


def test_every_malformed_line_is_named_and_very_many_are_counted(file: File) -> None:
    path = file(b"1,2,3,4\n1,2,3\nhello\n\n1,2,3,4,5\n")
    assert [problem.split(":")[0].split(", entry")[0] for problem in refused(read_boxes, path)] == [
        f"{path}, line {line}" for line in (2, 3, 4, 5)
    ]
    problems = refused(read_boxes, file(b"x\n" * 1000))
    assert len(problems) == 21 and "980 more" in problems[-1]


def test_a_trackers_not_finite_numbers_are_read_where_they_are_allowed(file: File) -> None:
    path = file(b"NaN,inf,-Inf,-nan\n1,2,3,4\n")
    np.testing.assert_array_equal(
        read_boxes(path, allow_not_finite=True), [[np.nan, np.inf, -np.inf, np.nan], [1, 2, 3, 4]]
    )
    assert len(refused(read_boxes, path)) == 4
    assert refused(lambda p: read_boxes(p, allow_not_finite=True), file(b"nano,1,2,3\n"))[0].code == "file.entry"


def test_boxes_written_and_read_again_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    boxes = np.random.default_rng(1).normal(200, 1e3, (50, 4))
    boxes[3] = [0.1, 1 / 3, 1e-17, 123456789.123456789]
    write_boxes(tmp_path / "boxes.txt", boxes)
    np.testing.assert_array_equal(read_boxes(tmp_path / "boxes.txt"), boxes)


@pytest.mark.parametrize(
    "data",
    [
        b"0,1,1", b"0\n1\n1\n", b"0 1 1", b"0\r\n1\r\n1\r\n", b"0,1,1\r\n", b"0, 1, 1", b"0.0,1.0,1.", b"0,1,1,",
        b"0,1,1,\r\n", BOM + b"0,1,1", b"0\t1\t1\n", b"0,1,\n1,\n", b"0;1;1",
    ],
)  # fmt: skip
def test_flags_are_read_however_they_are_spelt(file: File, data: bytes) -> None:
    assert read_flags(file(data)).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"0,2,1", "line 1, entry 2: found '2'"),
        (b"0,,1", "line 1, entry 2: found ''"),
        (b"0,1,,", "line 1, entry 3: found ''"),
        (b"0\n\n1", "line 2, entry 1: found ''"),
        (b"0\n01\n1", "line 2, entry 1: found '01'"),
        (b"0,1,0.5", "line 1, entry 3: found '0.5'"),
        (b"0,-1,1", "line 1, entry 2: found '-1'"),
        (b"0,1_0,1", "line 1, entry 2: found '1_0'"),
    ],
)
def test_what_is_no_flag_is_shown_with_its_position_and_the_number_of_entries(
    file: File, data: bytes, place: str
) -> None:
    (problem,) = refused(read_flags, file(data))
    assert place in problem and "3 entries" in problem and problem.code == "file.entry"


def test_labels_have_a_range(file: File) -> None:
    assert read_labels(file(b"8\n0\n3.0\n"), largest=8).tolist() == [8, 0, 3]
    for data in (b"8\n9\n", b"8\n10\n"):
        assert refused(lambda p: read_labels(p, largest=8), file(data))[0].code == "file.entry"


@pytest.mark.parametrize(
    "data", [b"a-1\nb-2\n", BOM + b"a-1\r\nb-2", b"a-1, b-2\n", b" a-1\tb-2 \n\n", b"\n\na-1\rb-2,"]
)
def test_names_are_read_however_they_are_listed(file: File, data: bytes) -> None:
    assert read_names(file(data)) == ["a-1", "b-2"]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"a-1\n../val\n", "file.name"),
        (b"a-1\n.hidden\n", "file.name"),
        (b"a-1\nb\\c\n", "file.name"),
        ("a-1\n\ufeffb-2\n".encode(), "file.name"),
        ("a-1\nb\u00a02\n".encode(), "file.name"),
        (b"a-1\nb-2\nb-2\n", "file.duplicate"),
        (b"a-1\n\xff\n", "file.not_text"),
    ],
)
def test_what_is_no_list_of_names_is_refused(file: File, data: bytes, code: str) -> None:
    assert [problem.code for problem in refused(read_names, file(data))] == [code]


def test_an_empty_list_names_nothing(file: File) -> None:
    assert read_names(file(b"")) == [] and read_names(file(BOM + b"\r\n")) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"0\n3\n", "file.entry"),
        (b"-1\n", "file.entry"),
        (b"9" * 5000, "file.entry"),
        (b"0\n1_0\n", "file.entry"),
        (b"0\n2\n0\n", "file.duplicate"),
        (b"\n", "file.empty"),
    ],
)
def test_places_are_different_and_inside_the_list(file: File, data: bytes, code: str) -> None:
    assert read_places(file(BOM + b"0\r\n2\r\n"), 3) == [0, 2]
    assert refused(read_places, file(data), 3)[0].code == code


class TestArchives:
    def write(self, path: Path, **changes: object) -> Path:
        arrays: dict[str, object] = {
            "names": np.array(["a-1", "b-2"]),
            "offsets": np.array([0, 2, 3]),
            "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        }
        arrays.update(changes)
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
        return path

    @pytest.mark.parametrize("offsets", [np.array([0, 2, 3]), np.array([0, 2, 3], dtype=np.uint64)])
    def test_boxes_are_dealt_to_their_sequences(self, tmp_path: Path, offsets: object) -> None:
        found = read_box_archive(self.write(tmp_path / "results.npz", offsets=offsets))
        assert {name: boxes.tolist() for name, boxes in found.items()} == {
            "a-1": [[0, 1, 2, 3], [4, 5, 6, 7]],
            "b-2": [[8, 9, 10, 11]],
        }

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"boxes": None}, "file.archive"),
            ({"boxes": np.zeros((3, 5))}, "file.archive"),
            ({"boxes": np.zeros((3, 4), dtype=complex)}, "file.archive"),
            ({"boxes": np.full((3, 4), "1_0")}, "file.archive"),
            ({"boxes": np.zeros((3, 4), dtype="M8[s]")}, "file.archive"),
            ({"offsets": np.array([0, 2])}, "file.archive"),
            ({"offsets": np.array([0, 2, 9])}, "file.archive"),
            ({"offsets": np.array([0, 4, 3])}, "file.archive"),
            ({"offsets": np.array([0, 4, 3], dtype=np.uint32)}, "file.archive"),
            ({"offsets": np.array([0, 2.5, 3])}, "file.archive"),
            ({"offsets": np.array([0, np.nan, 3])}, "file.archive"),
            ({"names": np.array([1, 2])}, "file.archive"),
            ({"names": np.array(["a-1", "a-1"])}, "file.duplicate"),
            ({"names": np.array([{"a": 1}, None], dtype=object)}, "file.archive"),
        ],
    )
    def test_another_form_is_refused(self, tmp_path: Path, changes: dict[str, object], code: str) -> None:
        assert refused(read_box_archive, self.write(tmp_path / "results.npz", **changes))[0].code == code

    def test_what_is_no_archive_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_text("not an archive")
        np.save(tmp_path / "b.npy", np.zeros(3))
        for name in ("a.npz", "b.npy", "missing.npz"):
            assert name in refused(read_box_archive, tmp_path / name)[0]

    def test_an_archive_that_claims_more_memory_than_boxes_need_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(annotation_files, "_LARGEST_ARCHIVE_BYTES", 100_000)
        np.savez_compressed(tmp_path / "bomb.npz", n=np.zeros(100_000, dtype=np.uint8))
        assert (tmp_path / "bomb.npz").stat().st_size < 2000
        assert refused(read_archive, tmp_path / "bomb.npz", {"n": "iu"})[0].code == "file.too_large"

    def test_an_archive_that_breaks_off_is_refused_wherever_it_is_cut(self, tmp_path: Path) -> None:
        whole = self.write(tmp_path / "results.npz").read_bytes()
        for length in range(0, len(whole), 37):
            (tmp_path / "cut.npz").write_bytes(whole[:length])
            assert "cut.npz" in refused(read_box_archive, tmp_path / "cut.npz")[0]

"""Annotation files, result files and lists: what can be read in one way is read, all else is refused with its place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from seqtrack.data import annotations
from seqtrack.data.annotations import (
    read_annotations,
    read_box_archive,
    read_boxes,
    read_flags,
    read_indices,
    read_labels,
    read_names,
    write_boxes,
)
from seqtrack.errors import Problem, UserError

BOM = b"\xef\xbb\xbf"
File = Callable[[bytes], Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(data: bytes) -> Path:
        (tmp_path / "file.txt").write_bytes(data)
        return tmp_path / "file.txt"

    return write


def refused(read: Callable[..., object], *arguments: object, **options: object) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        read(*arguments, **options)
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
def test_boxes_are_read_in_every_spelling(file: File, data: bytes) -> None:
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
        (b"1,,2,3,4", "file.entry", "entry 2"),
        (b"1,2,3,4,,", "file.entry", "entry 5"),
        (b",1,2,3,4", "file.entry", "entry 1"),
        (b"", "file.entry", "entry 1"),
        (b"1\xc2\xa02\xc2\xa03\xc2\xa04", "file.entry", "1"),
        (b"1,2,3", "file.columns", "'1,2,3'"),
        (b"1,2,3,4,5", "file.columns", "5"),
        (b"1,5;2,5;3,5;4,5", "file.separator", "1,5;2,5"),
    ],
)
def test_an_ambiguous_or_invalid_row_is_refused_with_its_line(file: File, row: bytes, code: str, found: str) -> None:
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
def test_other_bytes_are_refused(file: File, data: bytes, code: str) -> None:
    for read in (read_boxes, read_flags):
        assert [problem.code for problem in refused(read, file(data))] == [code]


def test_a_missing_file_a_folder_and_a_huge_file_are_refused(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as opened:
        opened.truncate(10**9)
    for name, code in (("gone", "file.missing"), ("", "file.unreadable"), ("huge", "file.too_large")):
        for read in (read_boxes, read_flags, read_names):
            assert refused(read, tmp_path / name)[0].code == code


def test_every_malformed_line_is_named_and_very_many_are_counted(file: File) -> None:
    path = file(b"1,2,3,4\n1,2,3\nhello\n\n1,2,3,4,5\n")
    named = [problem.split(":")[0].split(", entry")[0] for problem in refused(read_boxes, path)]
    assert named == [f"{path}, line {line}" for line in (2, 3, 4, 5)]
    problems = refused(read_boxes, file(b"x\n" * 1000))
    assert len(problems) == 21 and "980" in problems[-1]


def test_numbers_that_are_not_finite_are_read_only_where_they_are_allowed(file: File) -> None:
    path = file(b"NaN,inf,-Inf,-nan\n1,2,3,4\n")
    expected = [[np.nan, np.inf, -np.inf, np.nan], [1, 2, 3, 4]]
    np.testing.assert_array_equal(read_boxes(path, allow_not_finite=True), expected)
    assert len(refused(read_boxes, path)) == 4
    assert refused(read_boxes, file(b"nano,1,2,3\n"), allow_not_finite=True)[0].code == "file.entry"


def test_written_boxes_are_read_to_the_last_bit(tmp_path: Path) -> None:
    boxes = np.random.default_rng(1).normal(200, 1e3, (50, 4))
    boxes[3] = [0.1, 1 / 3, 1e-17, 123456789.123456789]
    write_boxes(tmp_path / "boxes.txt", boxes)
    np.testing.assert_array_equal(read_boxes(tmp_path / "boxes.txt"), boxes)


@pytest.mark.parametrize(
    "data",
    [
        b"0,1,1", b"0\n1\n1\n", b"0 1 1", b"0\r\n1\r\n1\r\n", b"0, 1, 1", b"0.0,1.0,1.", b"0,1,1,\r\n", BOM + b"0,1,1",
        b"0\t1\t1\n", b"0,1,\n1,\n", b"0;1;1",
    ],
)  # fmt: skip
def test_flags_are_read_in_every_spelling(file: File, data: bytes) -> None:
    assert read_flags(file(data)).tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"0,2,1", "line 1, entry 2"),
        (b"0,,1", "line 1, entry 2"),
        (b"0,1,,", "line 1, entry 3"),
        (b"0\n01\n1", "line 2, entry 1"),
        (b"0,-1,1", "line 1, entry 2"),
        (b"0,1_0,1", "line 1, entry 2"),
    ],
)
def test_an_invalid_flag_is_refused_with_its_position_and_the_number_of_entries(
    file: File, data: bytes, place: str
) -> None:
    (problem,) = refused(read_flags, file(data))
    assert problem.code == "file.entry" and place in problem and " 3 " in problem


def test_labels_have_a_range(file: File) -> None:
    assert read_labels(file(b"8\n0\n3.0\n"), largest=8).tolist() == [8, 0, 3]
    for data in (b"8\n9\n", b"8\n10\n"):
        assert refused(read_labels, file(data), largest=8)[0].code == "file.entry"


@pytest.mark.parametrize(
    "data", [b"a-1\nb-2\n", BOM + b"a-1\r\nb-2", b"a-1, b-2\n", b" a-1\tb-2 \n\n", b"\n\na-1\rb-2,"]
)
def test_names_are_read_in_every_spelling(file: File, data: bytes) -> None:
    assert read_names(file(data)) == ["a-1", "b-2"]
    assert read_names(file(BOM + b"\r\n")) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"a-1\n../val\n", "file.name"),
        (b"a-1\n.hidden\n", "file.name"),
        (b"a-1\nb\\c\n", "file.name"),
        ("a-1\n\ufeffb-2\n".encode(), "file.name"),
        (b"a-1\nb-2\nb-2\n", "file.duplicate"),
        (b"a-1\n\xff\n", "file.not_text"),
    ],
)
def test_an_invalid_list_of_names_is_refused(file: File, data: bytes, code: str) -> None:
    assert [problem.code for problem in refused(read_names, file(data))] == [code]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"0\n3\n", "file.entry"),
        (b"-1\n", "file.entry"),
        (b"9" * 5000, "file.entry"),
        (b"0\n2\n0\n", "file.duplicate"),
        (b"\n", "file.empty"),
    ],
)
def test_indices_are_distinct_and_inside_the_list(file: File, data: bytes, code: str) -> None:
    assert read_indices(file(BOM + b"0\r\n2\r\n"), 3) == [0, 2]
    assert refused(read_indices, file(data), 3)[0].code == code


class TestArchives:
    def write(self, path: Path, **changes: object) -> Path:
        arrays: dict[str, object] = {
            "names": np.array(["a-1", "b-2"]),
            "offsets": np.array([0, 2, 3]),
            "boxes": np.arange(12, dtype=np.float32).reshape(3, 4),
        }
        arrays.update(changes)
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})  # type: ignore[arg-type]
        return path

    def test_boxes_are_assigned_to_their_sequences(self, tmp_path: Path) -> None:
        for kind in (np.int64, np.uint64):
            found = read_box_archive(self.write(tmp_path / "results.npz", offsets=np.array([0, 2, 3], dtype=kind)))
            lists = {name: boxes.tolist() for name, boxes in found.items()}
            assert lists == {"a-1": [[0, 1, 2, 3], [4, 5, 6, 7]], "b-2": [[8, 9, 10, 11]]}

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"boxes": None}, "file.archive"),
            ({"boxes": np.zeros((3, 5))}, "file.archive"),
            ({"boxes": np.zeros((3, 4), dtype=complex)}, "file.archive"),
            ({"boxes": np.full((3, 4), "1_0")}, "file.archive"),
            ({"offsets": np.array([0, 2])}, "file.archive"),
            ({"offsets": np.array([0, 2, 9])}, "file.archive"),
            ({"offsets": np.array([0, 4, 3], dtype=np.uint32)}, "file.archive"),
            ({"offsets": np.array([0, np.nan, 3])}, "file.archive"),
            ({"names": np.array([1, 2])}, "file.archive"),
            ({"names": np.array(["a-1", "a-1"])}, "file.duplicate"),
            ({"names": np.array([{"a": 1}, None], dtype=object)}, "file.archive"),
        ],
    )
    def test_another_format_is_refused(self, tmp_path: Path, changes: dict[str, object], code: str) -> None:
        assert refused(read_box_archive, self.write(tmp_path / "results.npz", **changes))[0].code == code

    def test_a_file_that_is_not_an_archive_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.npz").write_text("not an archive")
        np.save(tmp_path / "b.npy", np.zeros(3))
        for name in ("a.npz", "b.npy", "missing.npz"):
            assert name in refused(read_box_archive, tmp_path / name)[0]

    def test_an_archive_that_claims_more_memory_than_boxes_need_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(annotations, "_MAX_ARCHIVE_BYTES", 100_000)
        np.savez_compressed(tmp_path / "bomb.npz", names=["a"], offsets=[0, 1], boxes=np.zeros((100_000, 4)))
        assert (tmp_path / "bomb.npz").stat().st_size < 20_000
        assert refused(read_box_archive, tmp_path / "bomb.npz")[0].code == "file.too_large"

    def test_a_truncated_archive_is_refused_wherever_it_ends(self, tmp_path: Path) -> None:
        whole = self.write(tmp_path / "results.npz").read_bytes()
        for length in range(0, len(whole), 37):
            (tmp_path / "cut.npz").write_bytes(whole[:length])
            assert "cut.npz" in refused(read_box_archive, tmp_path / "cut.npz")[0]


BOXES = {"cat-1": [[1, 2, 3, 4], [5, 6, 7, 8]], "big-cat-10": [[9, 9, 9, 9]], "cat-2": [[1, 1, 1, 1]] * 3}
ABSENT = {"cat-1": [0, 1], "big-cat-10": [0], "cat-2": [0, 0, 1]}


def text(rows: list[list[int]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def as_archive(folder: Path) -> Path:
    lengths = [len(rows) for rows in BOXES.values()]
    np.savez(
        folder / "gt.npz",
        names=np.array(list(BOXES)),
        offsets=np.cumsum([0, *lengths]),
        boxes=np.concatenate([np.array(rows, dtype=np.int16) for rows in BOXES.values()]),
        absent=np.packbits(np.concatenate([np.array(flags, dtype=np.uint8) for flags in ABSENT.values()])),
        n=np.array(sum(lengths)),
    )
    return folder / "gt.npz"


def as_toolkit_folder(folder: Path) -> Path:
    (folder / "annos" / "absent").mkdir(parents=True)
    for name, rows in BOXES.items():
        (folder / "annos" / f"{name}.txt").write_text(text(rows))
        (folder / "annos" / "absent" / f"{name}.txt").write_text("\n".join(map(str, ABSENT[name])))
    return folder


def as_lasot_layout(folder: Path) -> Path:
    for name, rows in BOXES.items():
        place = folder / name.rsplit("-", 1)[0] / name
        place.mkdir(parents=True)
        (place / "groundtruth.txt").write_text(text(rows))
        (place / "full_occlusion.txt").write_text(",".join(str(flag) for flag in ABSENT[name]))
        (place / "out_of_view.txt").write_text(",".join("0" for _ in rows))
    return folder


class TestAnnotationsWithoutFrames:
    @pytest.mark.parametrize("make", [as_archive, as_toolkit_folder, as_lasot_layout])
    def test_each_layout_gives_the_same(self, tmp_path: Path, make: Callable[[Path], Path]) -> None:
        found = read_annotations(make(tmp_path))
        assert {one.name: one.boxes_xywh.tolist() for one in found} == BOXES
        assert {one.name: one.absent.astype(int).tolist() for one in found} == ABSENT
        assert {one.name: one.class_name for one in found} == {"cat-1": "cat", "big-cat-10": "big-cat", "cat-2": "cat"}

    def test_the_real_test_set_is_the_same_as_text_and_as_archive(self, test_data: Path) -> None:
        folder = test_data / "lasot_eval"
        archive = {one.name: one for one in read_annotations(folder / "lasot_test_gt.npz")}
        assert len(archive) == 280
        for one in read_annotations(folder / "mini_txt"):
            assert (one.boxes_xywh == archive[one.name].boxes_xywh).all()
            assert (one.absent == archive[one.name].absent).all()

    def test_a_place_without_annotations_is_refused(self, tmp_path: Path) -> None:
        for name in ("nothing", ""):
            assert refused(read_annotations, tmp_path / name)[0].code == "annotations.none"

    def test_every_wrong_file_is_reported_at_once(self, tmp_path: Path) -> None:
        folder = as_toolkit_folder(tmp_path) / "annos"
        (folder / "cat-1.txt").write_text("1,2,3\n")
        (folder / "absent" / "cat-2.txt").write_text("0")
        (folder / "big-cat-10.txt").write_text("1,2,nan,4\n")
        problems = refused(read_annotations, tmp_path)
        assert [one.code for one in problems] == ["file.entry", "file.columns", "file.count"]
        assert "big-cat-10.txt, line 1, entry 3" in problems[0] and "cat-1.txt, line 1" in problems[1]

    def test_an_inconsistent_archive_is_refused(self, tmp_path: Path) -> None:
        path = as_archive(tmp_path)
        with np.load(path) as stored:
            arrays = dict(stored)
        np.savez(path, **{**arrays, "n": np.array(99)})
        assert refused(read_annotations, path)[0].code == "file.archive"

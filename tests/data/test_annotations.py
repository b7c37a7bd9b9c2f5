"""Annotation files, result files and lists: what can be read in one way is read, all else is refused with its place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.makers import refused
from seqtrack.data.annotations import read_annotations, read_archive, read_boxes, read_labels, read_names, write_boxes

BOM = b"\xef\xbb\xbf"
Read = Callable[[Path], object]
File = Callable[[bytes], Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(data: bytes) -> Path:
        (tmp_path / "file.txt").write_bytes(data)
        return tmp_path / "file.txt"

    return write


def boxes(path: Path) -> object:
    return read_boxes(path).tolist()


def results(path: Path) -> object:
    return str(read_boxes(path, allow_not_finite=True).tolist())


def labels(largest: int) -> Read:
    return lambda path: read_labels(path, largest).tolist()


flags, indices = labels(1), labels(11)


SPELLINGS: list[tuple[Read, object, list[bytes]]] = [
    (
        boxes,
        [[1, 2.5, -3, 40], [5, 6, 7, 8]],
        [
            b"1,2.5,-3,4e1\n5,6,7,8\n", b"1,2.5,-3,40\r\n5,6,7,8", b"1,2.5,-3,40\r5,6,7,8\r",
            BOM + b"1,2.5,-3,40.0\n5,6,7,8\n\n \n\r\n", b"1,2.5,-3,40,\n5,6,7,8,\n",
            b"1, 2.5, -3, 40\n5 , 6 , 7 , 8 \n", b"1\t2.5\t-3\t40\n5\t6\t7\t8\n",
            b"  1  2.5  -3  40\n  5    6   7    8\n", b"1;2.5;-3;40\n5;6;7;8\n", b"+1,2.5,-3.,40\n5.0,6.,7,8",
        ],
    ),
    (results, "[[nan, inf, -inf, nan], [1.0, 2.0, 3.0, 4.0]]", [b"NaN,inf,-Inf,-nan\n1,2,3,4\n"]),
    (flags, [0, 1, 1], [b"0,1,1", b"0\n1\n1\n", BOM + b"0\r\n1\r\n1\r\n", b"0, 1, 1,\r\n", b"0.0,1.0,1", b"0 1\t1\n"]),
    (indices, [0, 11], [b"0\n11\n", BOM + b"0\r\n11 \r\n"]),
    (read_names, ["a-1", "b-2"], [b"a-1\nb-2", BOM + b"a-1\r\nb-2", b" a-1, b-2\n", b"\n\na-1\rb-2,", b"a-1\tb-2 \n"]),
    (read_names, [], [b"", BOM + b"\r\n"]),
]  # fmt: skip


@pytest.mark.parametrize(("read", "expected", "spellings"), SPELLINGS)
def test_every_spelling_is_read(read: Read, expected: object, spellings: list[bytes], file: File) -> None:
    for data in spellings:
        assert read(file(data)) == expected, data
    for data in (b"-0,1,2,3\n", b"-0.0,1,2,3\n", b"-0 1 2 3\n"):
        assert not np.signbit(read_boxes(file(data))).any(), data


ROWS = (
    b"10_00,2,3,4", b"1,2,3,0x4", b"1,2,3,1e999", b"1,2,nan,4", b"1,2,3,\xd9\xa4", b"1,,2,3,4", b"1,2,3,4,,",
    b",1,2,3,4", b"", b"1\xc2\xa02\xc2\xa03\xc2\xa04", b"1,2,3", b"1,2,3,4,5", b"1,5;2,5;3,5;4,5", b"hello",
)  # fmt: skip


def test_an_invalid_row_or_flag_is_refused_with_its_place_and_what_was_found(file: File) -> None:
    for row in ROWS:
        path = file(b"1,2,3,4\n" + row + b"\n1,2,3,4\n")
        (problem,) = refused(read_boxes, path)
        assert problem.code == "file.row" and problem.startswith(f"{path}, line 2") and repr(row.decode()) in problem
    for data in (b"0,2,1", b"0,,1", b"0,01,1", b"0\n-1\n1", b"0,1_0,1", b"0 0.5 1", b"0;\xd9\xa1;0"):
        (problem,) = refused(flags, file(data))
        assert problem.code == "file.row" and "entry 2 of 3" in problem
    path = file(b"1,2,3,4\n1,2,3\nhello\n\n1,2,3,4,5\n")
    assert [one.split(":")[0] for one in refused(read_boxes, path)] == [f"{path}, line {line}" for line in (2, 3, 4, 5)]
    problems = refused(read_boxes, file(b"x\n" * 1000))
    assert len(problems) == 21 and "980" in problems[-1], "very many are counted"


@pytest.mark.parametrize(
    ("read", "code", "contents"),
    [
        (results, "file.row", [b"nano,1,2,3\n", b"+-nan,1,2,3\n"]), (boxes, "file.empty", [b"", BOM + b"\r\n \n"]),
        (boxes, "file.unreadable", ["1,2,3,4".encode("utf-16")]), (flags, "file.empty", [b""]),
        (flags, "file.unreadable", [b"0,\0,1"]), (indices, "file.row", [b"0\n12\n", b"9" * 5000]),
        (indices, "file.empty", [b"\n"]), (read_names, "file.duplicate", [b"a-1\nb-2\nb-2\n"]),
        (read_names, "file.name", [b"a-1\n../val\n", b"a-1\n.hidden\n", b"a-1\nb\\c\n", "a-1\n\ufeffb-2\n".encode()]),
        (read_names, "file.unreadable", [b"a-1\n\xff\n"]),
    ],
)  # fmt: skip
def test_other_contents_are_refused(read: Read, code: str, contents: list[bytes], file: File, tmp_path: Path) -> None:
    assert [refused(read, tmp_path / name)[0].code for name in ("gone", "")] == ["file.missing", "file.unreadable"]
    for data in contents:
        (problem,) = refused(read, file(data))
        assert problem.code == code and "file.txt" in problem and len(problem) < 500


def test_written_boxes_are_read_to_the_last_bit(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(scale=1e3, size=(200, 4))
    values[3, 1] = 1e-17
    write_boxes(tmp_path / "boxes.txt", values)
    assert read_boxes(tmp_path / "boxes.txt").tobytes() == values.tobytes()


ARRAYS: dict[str, np.ndarray] = {
    "names": np.array(["cat-1", "big-cat-10", "cat-2"]),
    "offsets": np.array([0, 2, 3, 6]),
    "boxes": np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 9, 9, 9], *[[1, 1, 1, 1]] * 3], dtype=np.int16),
    "absent": np.packbits([0, 1, 0, 0, 0, 1]),
}


def by_name(values: np.ndarray) -> dict[str, list[object]]:
    return {str(name): part.tolist() for name, part in zip(ARRAYS["names"], np.split(values, [2, 3]), strict=True)}


BOXES, ABSENT = by_name(ARRAYS["boxes"]), by_name(np.array([0, 1, 0, 0, 0, 1]))


def as_archive(folder: Path, **changes: np.ndarray) -> Path:
    np.savez(folder / "results.npz", **{**ARRAYS, **changes})  # type: ignore[arg-type]
    return folder / "results.npz"


def as_lasot_layout(folder: Path) -> Path:
    for name, rows in BOXES.items():
        place = folder / name.rsplit("-", 1)[0] / name
        place.mkdir(parents=True)
        write_boxes(place / "groundtruth.txt", np.array(rows))
        (place / "full_occlusion.txt").write_text(",".join(map(str, ABSENT[name])))
        (place / "out_of_view.txt").write_text(",".join("0" for _ in rows))
    return folder


@pytest.mark.parametrize("make", [as_archive, as_lasot_layout])
def test_each_layout_of_annotations_gives_the_same(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    found = read_annotations(make(tmp_path))
    assert {one.name: one.boxes_xywh.tolist() for one in found} == BOXES
    assert {one.name: one.absent.astype(int).tolist() for one in found} == ABSENT
    assert {one.name: one.class_name for one in found} == {"cat-1": "cat", "big-cat-10": "big-cat", "cat-2": "cat"}


def test_the_real_annotations_have_their_published_numbers_as_archive_and_as_text(test_data: Path) -> None:
    train = read_annotations(test_data / "lasot_train_annos.npz")
    assert (len(train), sum(one.num_frames for one in train)) == (1120, 2_831_982)
    assert sum(int(one.absent.sum()) for one in train) == 79_622
    archive = {one.name: one for one in read_annotations(test_data / "lasot_eval" / "lasot_test_gt.npz")}
    assert len(archive) == 280
    for one in read_annotations(test_data / "lasot_eval" / "mini_txt"):  # a folder `annos`
        assert (one.boxes_xywh == archive[one.name].boxes_xywh).all()
        assert (one.absent == archive[one.name].absent).all()


def test_missing_annotations_and_every_wrong_file_are_reported(tmp_path: Path) -> None:
    for name in ("nothing", ""):
        assert refused(read_annotations, tmp_path / name)[0].code == "annotations.none"
    root = as_lasot_layout(tmp_path)
    (root / "big-cat" / "big-cat-10" / "groundtruth.txt").write_text("1,2,3\n")
    (root / "cat" / "cat-1" / "groundtruth.txt").write_text("1,2\n1,2,3,4\n")
    (root / "cat" / "cat-2" / "out_of_view.txt").write_text("0\n")
    problems = refused(read_annotations, root)
    assert [one.code for one in problems] == ["file.row", "file.row", "file.count"]
    places = ("big-cat-10/groundtruth.txt, line 1", "cat-1/groundtruth.txt, line 1", "cat-2/out_of_view.txt")
    assert all(place in problem for place, problem in zip(places, problems, strict=True))


def test_lists_and_files_of_an_operating_system_are_no_annotations_and_none_is_there_twice(tmp_path: Path) -> None:
    root = as_lasot_layout(tmp_path)
    before = [one.name for one in read_annotations(root)]
    (root / "testing_set.txt").write_text("cat-1\n")
    assert [one.name for one in read_annotations(root)] == before
    shutil.copytree(root / "cat" / "cat-1", root / "cat-1")
    assert [one.code for one in refused(read_annotations, root)] == ["file.duplicate"]
    (tmp_path / "texts").mkdir()
    for name, text in (("cat-1.txt", "1,2,3,4\n"), ("._cat-1.txt", "\0\5")):
        (tmp_path / "texts" / name).write_text(text)
    assert [one.name for one in read_annotations(tmp_path / "texts")] == ["cat-1"]


CHANGES: list[dict[str, np.ndarray]] = [
    {"boxes": np.zeros((6, 5))}, {"boxes": np.zeros((6, 4), dtype=complex)}, {"boxes": np.full((6, 4), "1_0")},
    {"offsets": np.array([0, 2, 6])}, {"offsets": np.array([0, 2, 3, 9])}, {"offsets": np.array([0, 7, 3, 6])},
    {"offsets": np.array([0, np.nan, 3, 6])}, {"offsets": np.array([1, 2, 3, 6])}, {"names": np.array([1, 2, 3])},
    {"names": np.array(["a-1", "a-1", "b-1"])}, {"names": np.array([{"a": 1}, None, 1], dtype=object)},
    {"absent": np.zeros(2, dtype=np.uint8)}, {"boxes": np.full((6, 4), np.inf)}, {"offsets": np.array([0, 2, 2, 6])},
]  # fmt: skip


def test_an_archive_of_another_format_is_refused(tmp_path: Path, file: File) -> None:
    for changes in CHANGES:
        assert refused(read_annotations, as_archive(tmp_path, **changes))[0].code == "file.archive"
    path = as_archive(tmp_path, offsets=ARRAYS["offsets"].astype(np.uint64))
    assert {name: one.boxes_xywh.tolist() for name, one in read_archive(path).items()} == BOXES
    for data in (b"not an archive", b"\x93NUMPY", path.read_bytes()[:-97]):
        assert "file.txt" in refused(read_archive, file(data))[0]
    assert refused(read_archive, tmp_path / "missing.npz")[0].code == "file.unreadable"

"""LaSOT's and GOT-10k's folders: where sequences are found, which split and classes apply, and what is refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.conftest import Make
from data.makers import make_got10k, tree, write_sequence
from seqtrack.cli import main
from seqtrack.data.lasot import find_layout, official_split, open_lasot
from seqtrack.data.sequence import Sequence, read_sequence
from seqtrack.data.sources import SOURCES, describe, open_source
from seqtrack.errors import Problem, UserError


def refused(read: Callable[[], object]) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        read()
    return caught.value.problems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sequence(tmp_path / "book-1", 24, empty=True)


def read(folder: Path) -> Sequence:
    return read_sequence(folder, "book")


def set_rows(folder: Path, rows: dict[int, str]) -> None:
    """Replace rows of the annotation, counted from 1."""
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    for number, text in rows.items():
        lines[number - 1] = text
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")


def test_a_sequence_is_read_unchanged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_rows(folder, {4: "-5,-38,12.5,7", 5: "0,0,0,0", 7: "5,5,0,9"})
    (folder / "full_occlusion.txt").write_text(",".join("0" * 5 + "1" + "0" * 18))
    (folder / "out_of_view.txt").write_text("\n".join("0" * 4 + "1" + "0" * 19) + "\n")
    (folder / "img" / "00000009.jpg").unlink()
    sequence = read(folder)
    assert (sequence.name, sequence.class_name, sequence.num_frames) == ("book-1", "book", 24)
    assert sequence.boxes_xywh.dtype == np.float64 and sequence.boxes_xywh[3].tolist() == [-5.0, -38.0, 12.5, 7.0]
    assert np.flatnonzero(sequence.absent).tolist() == [4, 5]
    assert np.flatnonzero(sequence.missing).tolist() == [8]
    assert np.flatnonzero(~sequence.visible).tolist() == [4, 5, 6, 8]
    assert sequence.frame_path(5) == folder / "img" / "00000006.jpg"
    assert [record.args for record in caplog.records] == [(folder, 1, [9])]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1,2,3", "file.row"), ("1,nan,3,4", "file.row"), ("1,2,100001,4", "data.box"), ("1,2,-3,4", "data.box"),
        ("1,2,3,-0.5", "data.box"), ("1,1,-1,-1", "data.box"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_trained_on_is_reported_with_its_line(folder: Path, text: str, code: str) -> None:
    set_rows(folder, {8: text})
    (problem,) = refused(lambda: read(folder))
    assert problem.code == code and problem.startswith(f"{folder / 'groundtruth.txt'}, line 8: found ")


def test_the_published_rows_of_negative_size_are_accepted(tmp_path: Path) -> None:
    folder = write_sequence(tmp_path / "pool-14", 24, empty=True)
    set_rows(folder, {7: "1,1,-1,-1"})
    assert read(folder).boxes_xywh[6].tolist() == [1, 1, -1, -1] and not read(folder).visible[6]


def _add_a_frame(images: Path) -> None:
    (images / "00000025.jpg").write_bytes(b"")


def _make_a_frame_a_folder(images: Path) -> None:
    (images / "00000005.jpg").unlink()
    (images / "00000005.jpg").mkdir()


def _rename_to_one(images: Path) -> None:
    shutil.rmtree(images)
    images.mkdir()
    (images / "1.jpg").touch()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_add_a_frame, "data.frame_count"),
        (lambda images: (images / "00000024.jpg").unlink(), "data.frame_count"),
        (lambda images: (images / "00000000.jpg").touch(), "data.frame_count"),
        (_make_a_frame_a_folder, "data.frame"),
        (shutil.rmtree, "data.no_frames"),
        (_rename_to_one, "data.no_frames"),
    ],
)
def test_frames_that_do_not_belong_to_the_rows_are_refused(
    folder: Path, change: Callable[[Path], object], code: str
) -> None:
    change(folder / "img")
    (problem,) = refused(lambda: read(folder))
    assert problem.code == code and str(folder / "img") in problem


# --- the layout


def names(root: Path, *, classes: tuple[str, ...] = (), split: str = "train") -> list[str]:
    return [sequence.name for sequence in open_lasot(root, classes=classes, split=split)]


def test_the_split_is_the_published_one(test_data: Path) -> None:
    split = official_split()
    assert list(split["train"]) == (test_data / "lasot_train_split.txt").read_text().split()
    assert list(split["test"]) == (test_data / "lasot_eval" / "testing_set.txt").read_text().split()
    assert {key: len(names) for key, names in split.items()} == {"train": 1120, "test": 280}


def test_sequences_are_found_in_every_layout_and_sorted_by_class_and_number(make_lasot: Make) -> None:
    root = make_lasot("coin-10", "coin-9", "book-20", "book-4", "racing-4")
    shutil.move(root / "book" / "book-4", root / "book-4")
    (root / "racing" / "racing").mkdir()
    shutil.move(root / "racing" / "racing-4", root / "racing" / "racing" / "racing-4")
    (root / "racing" / "notes").mkdir()
    assert list(find_layout(root).folders) == names(root) == ["book-4", "book-20", "coin-9", "coin-10", "racing-4"]
    assert names(root, classes=("coin", "book")) == ["book-4", "book-20", "coin-9", "coin-10"]
    assert names(root, classes=("coin",)) == ["coin-9", "coin-10"]
    shutil.move(root / "book-4", root / "lasot" / "book-4")
    assert names(root) == ["book-4"], "a folder of the data set's name takes precedence"


def test_the_official_split_applies_unless_the_folder_has_its_own_lists(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "book-3", "a-b-1")
    assert names(root, classes=("book",)) == ["book-1", "book-2"] and names(root, split="test") == ["book-3"]
    (root / "testing_set.txt").write_text("book-2\n")
    assert refused(lambda: names(root))[0].code == "data.leak", "a training sequence of the official split"
    (root / "training_set.txt").write_text("book-3\na-b-1\n")
    (root / "testing_set.txt").write_bytes(b"\xef\xbb\xbfbook-1\r\nbook-2\r\n")
    assert names(root) == ["a-b-1", "book-3"] and names(root, split="test") == ["book-1", "book-2"]
    assert names(root, classes=("a-b",)) == ["a-b-1"]
    (root / "training_set.txt").write_text("book-1\nbook-1\n")
    assert refused(lambda: names(root))[0].code == "file.duplicate"


def test_listed_sequences_that_do_not_exist_are_logged(make_lasot: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = make_lasot("book-1", "book-2")
    names(root)
    assert [record.args[:3] for record in caplog.records] == [(14, 16, "train")]  # type: ignore[index]
    gone = [f"book-{number}" for number in range(30, 50)] + ["zebra-7"]
    (root / "training_set.txt").write_text("\n".join(["book-1", *gone]))
    (root / "testing_set.txt").write_text("book-2\n")
    assert names(root) == ["book-1"] and all(name in caplog.text for name in gone)


def test_missing_places_and_classes_and_a_sequence_that_exists_twice_are_refused(
    make_lasot: Make, tmp_path: Path
) -> None:
    assert refused(lambda: names(tmp_path / "nowhere"))[0].code == "data.no_folder"
    assert refused(lambda: names(tmp_path))[0].code == "data.no_sequence"
    root = make_lasot("book-1", "coin-1")
    first, second = refused(lambda: names(root, classes=("boook", "coin", "kite")))
    assert first.code == second.code == "data.unknown_class"
    assert "book, coin" in first and "mean book" in first and "--classes kite" in second
    shutil.copytree(root / "book" / "book-1", root / "book-1")
    assert refused(lambda: names(root))[0].code == "data.sequence_twice"
    (problem,) = refused(lambda: open_source("cocoa", root, classes=(), split="train"))
    assert problem.code == "data.unknown_data_set" and all(name in problem for name in SOURCES)


def test_problems_of_all_sequences_are_reported_at_once_and_nothing_is_changed(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "coin-1")
    set_rows(root / "book" / "book-1", {1: "a,b,c,d", 10: "1,2"})
    (root / "book" / "book-1" / "full_occlusion.txt").write_text("0,0,2")
    (root / "book" / "book-1" / "out_of_view.txt").unlink()
    _add_a_frame(root / "coin" / "coin-1" / "img")
    before = tree(root)
    problems = refused(lambda: names(root, classes=("book", "coin", "buk")))
    codes = ["data.unknown_class", "file.row", "file.row", "file.row", "file.missing", "data.frame_count"]
    assert [problem.code for problem in problems] == codes and tree(root) == before
    named = ("buk", "line 1:", "line 10:", "full_occlusion.txt", "out_of_view.txt", "coin-1")
    assert all(part in problem for part, problem in zip(named, problems, strict=True))


def test_the_digest_covers_every_box_flag_name_and_size_and_no_path(make_lasot: Make, tmp_path: Path) -> None:
    root = make_lasot("book-1", "book-2", "coin-1")

    def digest(folder: Path = root) -> str:
        return describe([open_source("lasot", folder, classes=(), split="train")]).digest

    digests = [digest()]
    assert digest(shutil.copytree(root, tmp_path / "elsewhere")) in digests
    set_rows(root / "book" / "book-2", {4: "1,1,9,9"})
    digests.append(digest())
    (root / "coin" / "coin-1" / "out_of_view.txt").write_text(",".join("0" * 23 + "1"))
    digests.append(digest())
    (root / "coin" / "coin-1" / "img" / "00000004.jpg").unlink()
    digests.append(digest())
    write_sequence(root / "coin" / "coin-2")
    digests.append(digest())
    with (root / "book" / "book-1" / "img" / "00000009.jpg").open("ab") as frame:
        frame.write(b"\0")
    digests.append(digest())
    assert len(set(digests)) == 6


def test_the_real_sequences_open(test_data: Path) -> None:
    sequences = open_lasot(test_data / "lasot_mini", classes=("person", "car"), split="train")
    assert [s.name for s in sequences[:2]] == ["car-1", "car-3"] and len(sequences) == 10
    (person,) = [s for s in sequences if s.name == "person-6"]
    assert int(person.absent.sum()) == 4
    (car,) = [s for s in open_lasot(test_data / "lasot_mini", classes=("car",), split="test") if s.name == "car-6"]
    assert int((~car.visible).sum()) == 25


# --- GOT-10k


@pytest.fixture
def got10k(tmp_path: Path) -> Path:
    make_got10k(tmp_path)
    return tmp_path


def numbers(data_dir: Path, dataset: str, split: str = "train") -> list[str]:
    return [one.name[-6:] for one in open_source(dataset, data_dir, classes=(), split=split).sequences]


def test_vots_list_selects_training_sequences_by_index_and_leaves_the_test_split_alone(got10k: Path) -> None:
    vot_list = got10k / "got10k" / "got10k_vot_train_split.txt"
    assert numbers(got10k, "GOT10K_train_full") == ["000001", "000002", "000003"]
    assert numbers(got10k, "GOT10K_vottrain") == ["000001", "000003"]
    assert numbers(got10k, "GOT10K_vottrain", "test") == numbers(got10k, "GOT10K_train_full", "test")
    vot_list.write_text("0\n1\n2\n")
    both = [open_source(name, got10k, classes=(), split="train") for name in ("GOT10K_vottrain", "GOT10K_train_full")]
    assert describe(both[:1]).digest != describe(both[1:]).digest, "two data sets, even with the same sequences"
    vot_list.unlink()
    assert numbers(got10k, "GOT10K_train_full")
    (problem,) = refused(lambda: numbers(got10k, "GOT10K_vottrain"))
    assert problem.code == "file.missing" and vot_list.name in problem


FIRST = "train/GOT-10k_Train_000001"


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("got10k_vot_train_split.txt", b"0\n3\n", "file.row"), ("train/list.txt", b"\xff\xfe", "file.unreadable"),
        ("train/list.txt", b"", "data.no_sequence"), (f"{FIRST}/absence.label", None, "file.missing"),
        (f"{FIRST}/cover.label", b"8\n" * 23, "file.count"), (f"{FIRST}/groundtruth.txt", b"1,2\n" * 24, "file.row"),
    ],
)  # fmt: skip
def test_a_malformed_file_of_got10k_is_named(got10k: Path, file: str, content: bytes | None, code: str) -> None:
    path = got10k / "got10k" / file
    path.unlink() if content is None else path.write_bytes(content)
    problems = refused(lambda: numbers(got10k, "GOT10K_train_full" if "list" in file else "GOT10K_vottrain"))
    assert problems[0].code == code and path.name in problems[0]


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("train/list.txt", lambda data: BOM + data.replace(b"\n", b"\r\n\r\n")),
        ("got10k_vot_train_split.txt", lambda data: BOM + data.replace(b"\n", b" \r\n")),
        (f"{FIRST}/absence.label", lambda data: BOM + data.replace(b"\n", b".0\r\n")),
        (f"{FIRST}/cover.label", lambda data: data.replace(b"\n", b",")),
        (f"{FIRST}/groundtruth.txt", lambda data: BOM + re.sub(rb"([0-9])\b", rb"\1.0000", data)),
        (f"{FIRST}/meta_info.ini", lambda data: BOM + data.replace(b"\n", b"\r\n")),
    ],
)
def test_another_spelling_is_the_same_data(got10k: Path, file: str, change: Callable[[bytes], bytes]) -> None:
    before = describe([open_source("GOT10K_vottrain", got10k, classes=(), split="train")])
    path = got10k / "got10k" / file
    path.write_bytes(change(path.read_bytes()))
    assert describe([open_source("GOT10K_vottrain", got10k, classes=(), split="train")]) == before


def test_a_sequence_without_a_description_has_a_class_of_its_own(got10k: Path) -> None:
    (got10k / "got10k" / "train" / "GOT-10k_Train_000002" / "meta_info.ini").unlink()
    opened = open_source("GOT10K_train_full", got10k, classes=(), split="train").sequences
    assert [one.class_name for one in opened] == ["bear", "object", "bear"]


def test_prepare_counts_the_sequences_and_refuses_what_cannot_be_downloaded(
    got10k: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"DATASET": "got10k_vottrain", "CONFIG": "seqtrack_b256_got", "DATA_DIR": str(got10k)}.items():
        monkeypatch.setenv(name, value)
    assert main(["data", "prepare"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["GOT10K_VOTTRAIN:", "2"]
    monkeypatch.setenv("DATA_DIR", str(got10k / "elsewhere"))
    assert main(["data", "prepare"]) == 2
    assert "error [data.no_folder]" in capsys.readouterr().err

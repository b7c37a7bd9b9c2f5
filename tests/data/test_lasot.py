"""LaSOT's and GOT-10k's folders: where sequences are found, which split and classes apply, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.conftest import Make
from data.makers import make_got10k, refused, tree, write_sequence
from seqtrack.data.lasot import find_layout, official_split, open_lasot
from seqtrack.data.sequence import read_sequence
from seqtrack.data.sources import SOURCES, describe, open_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_sequence(tmp_path / "pool-14", 24, empty=True)


def set_rows(folder: Path, rows: dict[int, str]) -> None:
    """Replace rows of the annotation, counted from 1."""
    lines = (folder / "groundtruth.txt").read_text().splitlines()
    for number, text in rows.items():
        lines[number - 1] = text
    (folder / "groundtruth.txt").write_text("\n".join(lines) + "\n")


def test_a_sequence_is_read_unchanged(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    set_rows(folder, {2: "1,1,-1,-1", 4: "-5,-38,12.5,7", 5: "0,0,0,0", 7: "5,5,0,9"})  # 2 is a published row
    (folder / "full_occlusion.txt").write_text(",".join("0" * 5 + "1" + "0" * 18))
    (folder / "out_of_view.txt").write_text("\n".join("0" * 4 + "1" + "0" * 19) + "\n")
    (folder / "img" / "00000009.jpg").unlink()
    sequence = read_sequence(folder, "pool")
    assert (sequence.name, sequence.class_name, sequence.num_frames) == ("pool-14", "pool", 24)
    assert sequence.boxes_xywh.dtype == np.float64 and sequence.boxes_xywh[3].tolist() == [-5.0, -38.0, 12.5, 7.0]
    assert np.flatnonzero(sequence.absent).tolist() == [4, 5]
    assert np.flatnonzero(sequence.missing).tolist() == [8]
    assert np.flatnonzero(~sequence.visible).tolist() == [1, 4, 5, 6, 8]
    assert sequence.frame_path(5) == folder / "img" / "00000006.jpg"
    assert [record.args for record in caplog.records] == [(folder / "img", 1, [9])]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda images: (images / "00000025.jpg").touch(), "data.frame_count"),
        (lambda images: (images / "00000024.jpg").unlink(), "data.frame_count"),
        (lambda images: (images / "00000000.jpg").touch(), "data.frame_count"),
        (lambda images: ((images / "00000005.jpg").unlink(), (images / "00000005.jpg").mkdir()), "data.frame"),
        (shutil.rmtree, "data.no_frames"),
        (lambda images: (shutil.rmtree(images), images.mkdir(), (images / "1.jpg").touch()), "data.no_frames"),
    ],
)
def test_frames_that_do_not_belong_to_the_rows_are_refused(
    folder: Path, change: Callable[[Path], object], code: str
) -> None:
    change(folder / "img")
    (problem,) = refused(read_sequence, folder, "pool")
    assert problem.code == code and str(folder / "img") in problem


def test_rows_that_cannot_be_trained_on_are_reported_with_their_lines(folder: Path) -> None:
    rows = {3: "1,2,100001,4", 4: "1,2,-3,4", 5: "1,2,3,-0.5", 8: "2,2,-1,-1"}
    set_rows(folder, rows)
    for problem, (line, text) in zip(refused(read_sequence, folder, "pool"), rows.items(), strict=True):
        assert problem.code == "data.box"
        assert problem.startswith(f"{folder / 'groundtruth.txt'}, line {line}: found {text}")


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
    shutil.move(root / "book-4", root / "lasot" / "book-4")
    assert names(root) == ["book-4"], "a folder of the data set's name takes precedence"


def test_the_official_split_applies_unless_the_folder_has_its_own_lists(
    make_lasot: Make, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_lasot("book-1", "book-2", "book-3", "a-b-1")
    assert names(root, classes=("book",)) == ["book-1", "book-2"] and names(root, split="test") == ["book-3"]
    assert caplog.records[0].args[:3] == (14, 16, "train"), "the others are logged"  # type: ignore[index]
    (root / "testing_set.txt").write_text("book-2\n")
    assert refused(names, root)[0].code == "data.leak", "a training sequence of the official split"
    (root / "training_set.txt").write_text("book-3\na-b-1\nzebra-7\n")
    (root / "testing_set.txt").write_bytes(b"\xef\xbb\xbfbook-1\r\nbook-2\r\n")
    assert names(root) == ["a-b-1", "book-3"] and names(root, split="test") == ["book-1", "book-2"]
    assert names(root, classes=("a-b",)) == ["a-b-1"] and "zebra-7" in caplog.text
    (root / "training_set.txt").write_text("book-1\nbook-1\n")
    assert refused(names, root)[0].code == "file.duplicate"


def test_missing_places_and_classes_and_a_sequence_that_exists_twice_are_refused(
    make_lasot: Make, tmp_path: Path
) -> None:
    assert refused(names, tmp_path)[0].code == "data.no_sequence"
    root = make_lasot("book-1", "coin-1")
    first, second = refused(names, root, classes=("boook", "coin", "kite"))
    assert first.code == second.code == "data.unknown_class"
    assert "book, coin" in first and "mean book" in first and "--classes kite" in second
    shutil.copytree(root / "book" / "book-1", root / "book-1")
    assert refused(names, root)[0].code == "data.sequence_twice"
    (problem,) = refused(open_source, "cocoa", root, classes=(), split="train")
    assert problem.code == "data.unknown_data_set" and all(name in problem for name in SOURCES)


def test_problems_of_all_sequences_are_reported_at_once_and_nothing_is_changed(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "coin-1")
    set_rows(root / "book" / "book-1", {1: "a,b,c,d", 10: "1,2"})
    (root / "book" / "book-1" / "full_occlusion.txt").write_text("0,0,2")
    (root / "book" / "book-1" / "out_of_view.txt").unlink()
    (root / "coin" / "coin-1" / "img" / "00000025.jpg").touch()
    before = tree(root)
    problems = refused(names, root, classes=("book", "coin", "buk"))
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
    coin = root / "coin" / "coin-1"
    changes: list[Callable[[], object]] = [
        lambda: set_rows(root / "book" / "book-2", {4: "1,1,9,9"}),
        lambda: (coin / "out_of_view.txt").write_text(",".join("0" * 23 + "1")),
        lambda: (coin / "img" / "00000004.jpg").unlink(),
        lambda: write_sequence(root / "coin" / "coin-2"),
        lambda: (coin / "img" / "00000009.jpg").write_bytes(b""),
    ]
    for change in changes:
        change()
        digests.append(digest())
    assert len(set(digests)) == 6


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
    vot_list.write_text("0\n3\n")
    assert refused(numbers, got10k, "GOT10K_vottrain")[0].code == "file.row", "there are three"
    vot_list.unlink()
    (problem,) = refused(numbers, got10k, "GOT10K_vottrain")
    assert problem.code == "file.missing" and vot_list.name in problem
    (got10k / "got10k" / "train" / "GOT-10k_Train_000002" / "meta_info.ini").unlink()
    opened = open_source("GOT10K_train_full", got10k, classes=(), split="train").sequences
    assert [one.class_name for one in opened] == ["bear", "object", "bear"]

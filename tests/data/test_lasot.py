"""LaSOT's layout: where sequences are found, which split and classes apply, and what is refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from data.makers import tree, write_sequence
from seqtrack.data.lasot import find_layout, official_split, open_lasot
from seqtrack.data.sources import SOURCES, describe, open_source
from seqtrack.errors import UserError


def _names(root: Path, *, classes: tuple[str, ...] = (), split: str = "train") -> list[str]:
    return [sequence.name for sequence in open_lasot(root, classes=classes, split=split)]


def test_the_official_split_has_1120_and_280_sequences_of_70_classes() -> None:
    split = official_split()
    assert {key: len(names) for key, names in split.items()} == {"train": 1120, "test": 280}
    for names, each in ((split["train"], 16), (split["test"], 4)):
        classes = [name.rsplit("-", 1)[0] for name in names]
        assert len(set(classes)) == 70 and all(classes.count(name) == each for name in set(classes))
    assert not set(split["train"]) & set(split["test"])
    assert {"book-3", "book-10", "book-11", "book-19", "coin-3", "kite-15"} <= set(split["test"])


def test_the_split_is_the_published_one(test_data: Path) -> None:
    assert list(official_split()["train"]) == (test_data / "lasot_train_split.txt").read_text().split()
    assert list(official_split()["test"]) == (test_data / "lasot_eval" / "testing_set.txt").read_text().split()


def test_class_folders_flat_folders_and_doubly_nested_ones_are_all_found(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "racing-4")
    shutil.move(root / "book" / "book-2", root / "book-2")
    (root / "racing" / "racing").mkdir()
    shutil.move(root / "racing" / "racing-4", root / "racing" / "racing" / "racing-4")
    (root / "racing" / "notes").mkdir()
    assert list(find_layout(root).folders) == ["book-1", "book-2", "racing-4"]
    assert _names(root) == ["book-1", "book-2", "racing-4"]


def test_sequences_come_by_class_and_number_and_not_by_text(make_lasot) -> None:  # type: ignore[no-untyped-def]
    assert _names(make_lasot("coin-10", "coin-9", "book-20", "book-4")) == ["book-4", "book-20", "coin-9", "coin-10"]


def test_a_folder_named_lasot_inside_the_data_folder_wins(make_lasot, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    make_lasot("book-1", root="data/lasot")
    make_lasot("coin-1", root="data")
    assert _names(tmp_path / "data") == ["book-1"]


def test_a_class_whose_name_has_a_hyphen_is_one_class(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("a-b-1", "a-b-2")
    (root / "training_set.txt").write_text("a-b-1\na-b-2\n")
    (root / "testing_set.txt").write_text("")
    sequences = open_lasot(root, classes=("a-b",), split="train")
    assert {sequence.class_name for sequence in sequences} == {"a-b"}


def test_the_official_split_applies_unless_the_folder_has_lists_of_its_own(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "book-3")
    assert _names(root) == ["book-1", "book-2"] and _names(root, split="test") == ["book-3"]
    (root / "training_set.txt").write_text("book-3\n")
    (root / "testing_set.txt").write_text("book-1\nbook-2\n")
    assert _names(root) == ["book-3"] and _names(root, split="test") == ["book-1", "book-2"]


def test_one_list_alone_is_refused_if_it_says_something_else(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "book-3")
    (root / "testing_set.txt").write_text("book-3\n")
    assert _names(root) == ["book-1", "book-2"], "it says what the official split says"
    (root / "testing_set.txt").write_text("book-2\n")
    with pytest.raises(UserError, match="give both lists"):
        _names(root)


def test_a_custom_list_is_used_and_a_sequence_in_both_lists_is_a_leak(make_lasot, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "book-3")
    custom = tmp_path / "mine.txt"
    custom.write_text("book-2\n")
    sequences = open_lasot(root, classes=(), split="train", lists={"train": custom})
    assert [sequence.name for sequence in sequences] == ["book-2"]
    custom.write_text("book-2\nbook-3\n")
    with pytest.raises(UserError, match="book-3 is in the training list and in the test list"):
        open_lasot(root, classes=(), split="train", lists={"train": custom})


def test_only_the_chosen_classes_are_opened(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "coin-1", "kite-1")
    assert _names(root, classes=("kite", "book")) == ["book-1", "kite-1"], "in an order that the choice does not change"


def test_an_unknown_class_is_answered_with_those_that_exist_and_the_nearest(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "coin-1")
    with pytest.raises(UserError) as caught:
        _names(root, classes=("buk", "coin", "kite"))
    first, second = caught.value.problems
    assert "unknown class 'buk'" in first and "book, coin" in first and "did you mean 'book'?" in first
    assert "'kite' is not in" in second and "data download --classes kite" in second


def test_a_missing_folder_and_an_empty_one_are_errors_that_end(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        _names(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no sequence in .*data download"):
        _names(tmp_path)


def test_a_sequence_that_is_twice_is_refused(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    shutil.copytree(root / "book" / "book-1", root / "book-1")
    with pytest.raises(UserError, match="book-1") as caught:
        _names(root)
    assert caught.value.code == "data.sequence_twice"


def test_everything_that_is_wrong_is_reported_at_once(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "coin-1")
    (root / "book" / "book-1" / "groundtruth.txt").write_text("1,2,3\n")
    (root / "coin" / "coin-1" / "img" / "00000025.jpg").write_bytes(b"")
    before = tree(root)
    with pytest.raises(UserError) as caught:
        _names(root, classes=("book", "coin", "buk"))
    text = "\n".join(caught.value.problems)
    assert "'buk'" in text and "book-1" in text and "line 1" in text and "coin-1" in text and "24 rows" in text
    assert tree(root) == before, "nothing was changed"


def test_sequences_named_by_the_split_but_not_there_are_said(make_lasot, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2")
    _names(root)
    assert "14 of 16 train sequences are not in" in caplog.text


def test_visible_means_in_view_with_an_area_and_a_file(make_lasot) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1")
    folder = root / "book" / "book-1"
    (folder / "full_occlusion.txt").write_text(",".join("1" + "0" * 23))
    (folder / "out_of_view.txt").write_text(",".join("01" + "0" * 22))
    rows = (folder / "groundtruth.txt").read_text().splitlines()
    rows[2], rows[3] = "5,5,0,9", "5,5,9,0"
    (folder / "groundtruth.txt").write_text("\n".join(rows))
    (folder / "img" / "00000005.jpg").unlink()
    (sequence,) = open_lasot(root, classes=(), split="train")
    assert np.flatnonzero(~sequence.visible).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(sequence.absent).tolist() == [0, 1]
    assert np.flatnonzero(sequence.missing).tolist() == [4]
    assert sequence.frame_path(5).read_bytes() and sequence.frame_path(5).name == "00000006.jpg"


def test_the_description_counts_and_its_digest_knows_every_box_flag_and_name(make_lasot, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2", "coin-1")

    def digest() -> str:
        return str(describe([open_source("lasot", root, classes=(), split="train")])["digest"])

    description = describe([open_source("lasot", root, classes=(), split="train")])
    (source,) = description["sources"]
    assert source["classes"]["book"]["sequences"] == 2 and source["classes"]["book"]["frames"] == 48
    first = digest()
    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert describe([open_source("LASOT", moved, classes=(), split="train")])["digest"] == first
    changes = {first}
    rows = (root / "book" / "book-2" / "groundtruth.txt").read_text().splitlines()
    rows[3] = "1,1,9,9"
    (root / "book" / "book-2" / "groundtruth.txt").write_text("\n".join(rows))
    changes.add(digest())
    (root / "coin" / "coin-1" / "out_of_view.txt").write_text(",".join("0" * 23 + "1"))
    changes.add(digest())
    (root / "coin" / "coin-1" / "img" / "00000004.jpg").unlink()
    changes.add(digest())
    write_sequence(root / "coin" / "coin-2")
    changes.add(digest())
    with (root / "book" / "book-1" / "img" / "00000009.jpg").open("ab") as frame:
        frame.write(b"\0")
    changes.add(digest())
    assert len(changes) == 6


def test_a_name_of_a_list_of_ones_own_never_disappears_in_silence(make_lasot, caplog: pytest.LogCaptureFixture) -> None:  # type: ignore[no-untyped-def]
    root = make_lasot("book-1", "book-2")
    gone = [f"book-{number}" for number in range(30, 50)] + ["zebra-7"]
    (root / "training_set.txt").write_text("\n".join(["book-1", *gone]))
    (root / "testing_set.txt").write_bytes(b"\xef\xbb\xbfbook-2\r\n")
    assert _names(root) == ["book-1"]
    assert all(name in caplog.text for name in gone)
    assert _names(root, split="test") == ["book-2"]
    (root / "training_set.txt").write_text("book-1\nbook-1\n")
    with pytest.raises(UserError) as caught:
        _names(root)
    assert caught.value.code == "file.duplicate"


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'cocoa'; known are .*DEMO.*LASOT"):
        open_source("cocoa", tmp_path, classes=(), split="train")
    assert set(SOURCES) >= {"LASOT", "DEMO"}


def test_the_real_sequences_open(test_data: Path) -> None:
    sequences = open_lasot(test_data / "lasot_mini", classes=("person", "car"), split="train")
    assert [s.name for s in sequences[:2]] == ["car-1", "car-3"] and len(sequences) == 10
    person = next(s for s in sequences if s.name == "person-6")
    assert int(person.absent.sum()) == 4
    (car,) = [s for s in open_lasot(test_data / "lasot_mini", classes=("car",), split="test") if s.name == "car-6"]
    assert int((~car.visible).sum()) == 25

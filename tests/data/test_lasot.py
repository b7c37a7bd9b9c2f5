"""LaSOT's layout: where sequences are found, which split and classes apply, and what is refused."""

import shutil
from pathlib import Path

import pytest

from data.conftest import Make
from data.makers import tree, write_sequence
from seqtrack.data.lasot import find_layout, official_split, open_lasot
from seqtrack.data.sources import SOURCES, describe, open_source
from seqtrack.errors import UserError


def _names(root: Path, *, classes: tuple[str, ...] = (), split: str = "train") -> list[str]:
    return [sequence.name for sequence in open_lasot(root, classes=classes, split=split)]


def _refused(root: Path, **options: tuple[str, ...]) -> UserError:
    with pytest.raises(UserError) as caught:
        _names(root, **options)  # type: ignore[arg-type]
    return caught.value


def test_the_official_split_has_1120_and_280_sequences_of_70_classes() -> None:
    split = official_split()
    assert {key: len(names) for key, names in split.items()} == {"train": 1120, "test": 280}
    for names, each in ((split["train"], 16), (split["test"], 4)):
        classes = [name.rsplit("-", 1)[0] for name in names]
        assert len(set(classes)) == 70 and all(classes.count(name) == each for name in set(classes))
    assert not set(split["train"]) & set(split["test"])


def test_the_split_is_the_published_one(test_data: Path) -> None:
    assert list(official_split()["train"]) == (test_data / "lasot_train_split.txt").read_text().split()
    assert list(official_split()["test"]) == (test_data / "lasot_eval" / "testing_set.txt").read_text().split()


def test_class_folders_flat_folders_and_doubly_nested_ones_are_all_found(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "racing-4")
    shutil.move(root / "book" / "book-2", root / "book-2")
    (root / "racing" / "racing").mkdir()
    shutil.move(root / "racing" / "racing-4", root / "racing" / "racing" / "racing-4")
    (root / "racing" / "notes").mkdir()
    assert list(find_layout(root).folders) == ["book-1", "book-2", "racing-4"]
    assert _names(root) == ["book-1", "book-2", "racing-4"]


def test_sequences_are_sorted_by_class_and_number(make_lasot: Make) -> None:
    root = make_lasot("coin-10", "coin-9", "book-20", "book-4")
    assert _names(root) == ["book-4", "book-20", "coin-9", "coin-10"]
    assert _names(root, classes=("coin", "book")) == ["book-4", "book-20", "coin-9", "coin-10"]
    assert _names(root, classes=("coin",)) == ["coin-9", "coin-10"]


def test_a_folder_named_lasot_inside_the_data_folder_takes_precedence(make_lasot: Make, tmp_path: Path) -> None:
    make_lasot("book-1", root="data/lasot")
    make_lasot("coin-1", root="data")
    assert _names(tmp_path / "data") == ["book-1"]


def test_the_official_split_applies_unless_the_folder_has_its_own_lists(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "book-3")
    assert _names(root) == ["book-1", "book-2"] and _names(root, split="test") == ["book-3"]
    (root / "testing_set.txt").write_text("book-3\n")
    assert _names(root) == ["book-1", "book-2"], "a single list that agrees with the official split"
    (root / "testing_set.txt").write_text("book-2\n")
    assert _refused(root).code == "data.one_list"
    (root / "training_set.txt").write_text("book-3\n")
    (root / "testing_set.txt").write_bytes(b"\xef\xbb\xbfbook-1\r\nbook-2\r\n")
    assert _names(root) == ["book-3"] and _names(root, split="test") == ["book-1", "book-2"]


def test_a_class_name_may_contain_a_hyphen(make_lasot: Make) -> None:
    root = make_lasot("a-b-1", "a-b-2")
    (root / "training_set.txt").write_text("a-b-1\na-b-2\n")
    (root / "testing_set.txt").write_text("")
    assert {one.class_name for one in open_lasot(root, classes=("a-b",), split="train")} == {"a-b"}


def test_a_custom_list_is_used_and_a_sequence_in_both_lists_is_a_leak(make_lasot: Make, tmp_path: Path) -> None:
    root = make_lasot("book-1", "book-2", "book-3")
    custom = tmp_path / "mine.txt"
    custom.write_text("book-2\n")
    sequences = open_lasot(root, classes=(), split="train", lists={"train": custom})
    assert [sequence.name for sequence in sequences] == ["book-2"]
    custom.write_text("book-2\nbook-3\n")
    with pytest.raises(UserError, match="book-3") as caught:
        open_lasot(root, classes=(), split="train", lists={"train": custom})
    assert caught.value.code == "data.leak"


def test_listed_sequences_that_do_not_exist_are_logged(make_lasot: Make, caplog: pytest.LogCaptureFixture) -> None:
    root = make_lasot("book-1", "book-2")
    _names(root)
    assert [record.args[:3] for record in caplog.records] == [(14, 16, "train")]  # type: ignore[index]
    gone = [f"book-{number}" for number in range(30, 50)] + ["zebra-7"]
    (root / "training_set.txt").write_text("\n".join(["book-1", *gone]))
    (root / "testing_set.txt").write_text("book-2\n")
    assert _names(root) == ["book-1"] and all(name in caplog.text for name in gone)
    (root / "training_set.txt").write_text("book-1\nbook-1\n")
    assert _refused(root).code == "file.duplicate"


def test_an_unknown_class_is_answered_with_those_that_exist_and_the_nearest(make_lasot: Make) -> None:
    first, second = _refused(make_lasot("book-1", "coin-1"), classes=("buk", "coin", "kite")).problems
    assert first.code == "data.unknown_class" and "book, coin" in first and "'book'" in first
    assert second.code == "data.class_missing" and "--classes kite" in second


def test_a_missing_folder_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    assert _refused(tmp_path / "nowhere").code == "data.no_folder"
    assert _refused(tmp_path).code == "data.no_sequence"


def test_a_sequence_that_exists_twice_is_refused(make_lasot: Make) -> None:
    root = make_lasot("book-1")
    shutil.copytree(root / "book" / "book-1", root / "book-1")
    assert _refused(root).code == "data.sequence_twice"


def test_every_problem_is_reported_at_once(make_lasot: Make) -> None:
    root = make_lasot("book-1", "book-2", "coin-1")
    (root / "book" / "book-1" / "groundtruth.txt").write_text("1,2,3\n")
    (root / "coin" / "coin-1" / "img" / "00000025.jpg").write_bytes(b"")
    before = tree(root)
    problems = _refused(root, classes=("book", "coin", "buk")).problems
    codes = [problem.code for problem in problems]
    assert codes == ["data.unknown_class", "file.columns", "data.frame_count"]
    assert "book-1" in problems[1] and "coin-1" in problems[2] and tree(root) == before


def test_the_digest_covers_every_box_flag_name_and_size_and_no_path(make_lasot: Make, tmp_path: Path) -> None:
    root = make_lasot("book-1", "book-2", "coin-1")

    def digest(folder: Path = root) -> str:
        return str(describe([open_source("lasot", folder, classes=(), split="train")])["digest"])

    (source,) = describe([open_source("LASOT", root, classes=(), split="train")])["sources"]
    assert source["classes"]["book"]["sequences"] == 2 and source["classes"]["book"]["frames"] == 48
    digests = {digest()}
    assert digest(shutil.copytree(root, tmp_path / "elsewhere")) in digests
    rows = (root / "book" / "book-2" / "groundtruth.txt").read_text().splitlines()
    rows[3] = "1,1,9,9"
    (root / "book" / "book-2" / "groundtruth.txt").write_text("\n".join(rows))
    digests.add(digest())
    (root / "coin" / "coin-1" / "out_of_view.txt").write_text(",".join("0" * 23 + "1"))
    digests.add(digest())
    (root / "coin" / "coin-1" / "img" / "00000004.jpg").unlink()
    digests.add(digest())
    write_sequence(root / "coin" / "coin-2")
    digests.add(digest())
    with (root / "book" / "book-1" / "img" / "00000009.jpg").open("ab") as frame:
        frame.write(b"\0")
    digests.add(digest())
    assert len(digests) == 6


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_source("cocoa", tmp_path, classes=(), split="train")
    assert caught.value.code == "data.unknown_data_set" and all(name in str(caught.value) for name in SOURCES)


def test_the_real_sequences_open(test_data: Path) -> None:
    sequences = open_lasot(test_data / "lasot_mini", classes=("person", "car"), split="train")
    assert [s.name for s in sequences[:2]] == ["car-1", "car-3"] and len(sequences) == 10
    person = next(s for s in sequences if s.name == "person-6")
    assert int(person.absent.sum()) == 4
    (car,) = [s for s in open_lasot(test_data / "lasot_mini", classes=("car",), split="test") if s.name == "car-6"]
    assert int((~car.visible).sum()) == 25

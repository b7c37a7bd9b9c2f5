"""Damaged text files and archives: each is refused with a code, or read as an independent slow parser reads it.

Inputs are drawn from their number alone, so a failing one can be run again. CI draws a few hundred of each kind.
"""

import io
import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from data.makers import make_got10k, write_sequence

from fuzz.mutations import cases
from seqtrack.config.environment import configure
from seqtrack.config.loader import EXPERIMENTS, config_from_text, flat_values, load_config
from seqtrack.data.annotations import (
    read_box_archive,
    read_boxes,
    read_flags,
    read_indices,
    read_labels,
    read_names,
)
from seqtrack.data.got10k import open_got10k
from seqtrack.data.lasot import open_lasot
from seqtrack.errors import UserError

SHORT, LONG = 150, 7000


def slow_lines(data: bytes) -> list[list[str]]:
    """Entries by line, letter by letter; a file that is accepted must be text in this sense."""
    text = data.decode("utf-8-sig")
    assert "\0" not in text
    lines, at, current = [], 0, ""
    while at < len(text):
        letter = text[at]
        if letter in "\r\n":
            lines.append(current)
            current = ""
            at += 2 if text[at : at + 2] == "\r\n" else 1
        else:
            current += letter
            at += 1
    lines.append(current)
    while lines and not lines[-1].strip(" \t"):
        lines.pop()
    return [slow_entries(line) for line in lines]


def slow_entries(line: str) -> list[str]:
    separators = {letter for letter in line if letter in ",;"}
    assert len(separators) < 2, line
    if not separators:
        return [entry for entry in line.replace("\t", " ").split(" ") if entry]
    entries = [entry.strip(" \t") for entry in line.split(separators.pop())]
    return entries[:-1] if not entries[-1] else entries


def slow_number(text: str) -> float:
    assert text and set(text) <= set("+-.0123456789eE"), text
    return float(Decimal(text)) + 0.0


def slow_boxes(data: bytes) -> list[list[float]]:
    rows = [[slow_number(entry) for entry in entries] for entries in slow_lines(data)]
    assert rows and all(len(row) == 4 for row in rows)
    return rows


def slow_tracker_boxes(data: bytes) -> list[list[float]]:
    def number(text: str) -> float:
        word = text.lower().lstrip("+-")
        return float(text) if word in ("nan", "inf", "infinity") else slow_number(text)

    return [[number(entry) for entry in entries] for entries in slow_lines(data)]


def slow_labels(data: bytes) -> list[int]:
    numbers = [slow_number(entry) for entries in slow_lines(data) for entry in entries]
    assert all(number == int(number) for number in numbers)
    return [int(number) for number in numbers]


def slow_names(data: bytes) -> list[str]:
    text = data.decode("utf-8-sig")
    for separator in ",;\t\r\n":
        text = text.replace(separator, " ")
    return [name for name in text.split(" ") if name]


def slow_archive(data: bytes) -> dict[str, list[list[float]]]:
    with np.load(io.BytesIO(data)) as stored:
        names, offsets, boxes = stored["names"].tolist(), stored["offsets"].tolist(), stored["boxes"].tolist()
    assert len(set(names)) == len(names) == len(offsets) - 1 and offsets[-1] == len(boxes)
    return {name: boxes[offsets[i] : offsets[i + 1]] for i, name in enumerate(names)}


def archive(**changes: Any) -> bytes:
    arrays = {"names": np.array(["a-1", "b-2"]), "offsets": np.array([0, 2, 3]), "boxes": np.arange(12.0).reshape(3, 4)}
    file = io.BytesIO()
    np.savez(file, **{**arrays, **changes})
    return file.getvalue()


ROWS = b"1,2,3,4\n50,60,70,80\n-5,7,9,11\n"
BOXES = [ROWS, b"1.25,2.5,3e1,4\n50,60,70,80\n", ROWS.replace(b",", b"\t"), ROWS.replace(b",", b" "), b"1, 2, 3, 4\r\n"]
FLAGS = [b"0,0,1,1,0", b"0\n1\n0\n", b"0, 1.0, 0,\r\n"]
LISTS = [b"book-1\nbook-2\ncoin-10\n", b"\xef\xbb\xbfbook-1\r\nbook-2\r\n", b"a,b,c"]
ARCHIVES = [
    archive(),
    archive(boxes=np.arange(12, dtype=np.float32).reshape(3, 4), offsets=np.array([0, 2, 3], dtype=np.uint32)),
    archive(boxes=np.arange(12, dtype=np.int16).reshape(3, 4)),
]


def plain(value: Any) -> Any:
    """Arrays as lists; the tracker's NaN is made comparable."""
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "nan" if value != value else value


READERS: dict[str, tuple[Callable[[Path], Any], Callable[[bytes], Any], list[bytes]]] = {
    "boxes": (read_boxes, slow_boxes, BOXES),
    "tracker boxes": (
        lambda path: read_boxes(path, allow_not_finite=True), slow_tracker_boxes, [*BOXES, b"nan,inf,-inf,1\n1 2 3 4"],
    ),
    "flags": (read_flags, slow_labels, FLAGS),
    "labels": (lambda path: read_labels(path, largest=8), slow_labels, [b"8\n0\n3\n", b"8\r\n7.0\r\n"]),
    "names": (read_names, slow_names, LISTS),
    "places": (lambda path: read_indices(path, 90), slow_labels, [b"0\n2\n7\n", b"0\r\n89\r\n1"]),
    "archive": (read_box_archive, slow_archive, ARCHIVES),
}  # fmt: skip


def try_reader(kind: str, count: int, path: Path) -> None:
    read, slow, originals = READERS[kind]
    accepted = 0
    for number, data in [*((-1 - i, one) for i, one in enumerate(originals)), *cases(originals, count)]:
        path.write_bytes(data)
        try:
            found = read(path)
        except UserError as error:
            assert number >= 0, "the undamaged files are read"
            assert all(one.code.startswith("file.") and len(one) < 1000 for one in error.problems), (number, data)
        else:
            accepted += 1
            assert plain(found) == plain(slow(data)), (kind, number, data)
    assert len(originals) < accepted < len(originals) + count, "both ways were taken"


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_refused_or_read_right(kind: str, tmp_path: Path) -> None:
    try_reader(kind, SHORT, tmp_path / "file")


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", READERS)
def test_seven_thousand_damaged_files_are_refused_or_read_right(kind: str, tmp_path: Path) -> None:
    try_reader(kind, LONG, tmp_path / "file")


def try_data_sets(count: int, root: Path) -> None:
    """Every text file of both layouts in turn, opened as training opens it."""
    logging.disable(logging.WARNING)
    write_sequence(root / "lasot" / "book" / "book-1", 24, empty=True)
    (root / "lasot" / "training_set.txt").write_text("book-1\n")
    (root / "lasot" / "testing_set.txt").write_text("book-3\n")
    make_got10k(root)
    opened: dict[str, Callable[[], Any]] = {
        "lasot": lambda: open_lasot(root / "lasot", classes=(), split="train"),
        "got10k": lambda: open_got10k(root, classes=(), split="train"),
        "vot": lambda: open_got10k(root, classes=(), split="train", without_vot=True),
    }
    sequence = "got10k/train/GOT-10k_Train_000002"
    files = [
        ("lasot", f"lasot/book/book-1/{name}") for name in ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt")
    ]
    files += [
        ("lasot", "lasot/training_set.txt"),
        ("lasot", "lasot/testing_set.txt"),
        ("got10k", "got10k/train/list.txt"),
    ]
    files += [("vot", "got10k/got10k_vot_train_split.txt"), ("got10k", f"{sequence}/meta_info.ini")]
    files += [("got10k", f"{sequence}/{name}") for name in ("groundtruth.txt", "absence.label", "cover.label")]
    try:
        for dataset, name in files:
            original = (root / name).read_bytes()
            for number, data in cases([original], count, seed=1):
                (root / name).write_bytes(data)
                try:
                    sequences = opened[dataset]()
                except UserError as error:
                    assert {one.code.split(".")[0] for one in error.problems} <= {"file", "data"}, (name, number, data)
                else:
                    assert all(one.num_frames == 24 for one in sequences), (name, number, data)
            (root / name).write_bytes(original)
    finally:
        logging.disable(logging.NOTSET)


def test_a_data_set_with_a_damaged_text_is_refused_or_opened(tmp_path: Path) -> None:
    try_data_sets(SHORT // 10, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_data_sets_with_seven_thousand_damaged_texts_are_refused_or_opened(tmp_path: Path) -> None:
    try_data_sets(LONG // 11, tmp_path)


def assert_same_numbers(text: str, values: dict[str, Any]) -> None:
    """Every number of an accepted configuration is the decimal number that the file shows."""

    def leaves(tree: Any, prefix: str) -> None:
        for key, value in tree.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict):
                leaves(value, f"{name}.")
            elif isinstance(value, str) and type(values.get(name)) in (int, float):
                assert values[name] == float(Decimal(value)) and "_" not in value, (name, value)

    leaves(yaml.load(text, Loader=yaml.BaseLoader), "")


def try_configurations(count: int) -> None:
    originals = [(EXPERIMENTS / f"{name}.yaml").read_bytes() for name in ("demo", "seqtrack_b256")]
    for number, data in cases(originals, count):
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            continue  # a file of other bytes is `test_a_configuration_file_of_other_bytes_is_refused`'s
        try:
            config = config_from_text(text, "fuzz.yaml")
        except UserError as error:
            assert error.problems, number
        else:
            assert_same_numbers(text, flat_values(config))


def try_overrides(count: int) -> None:
    original = b"TRAIN.LR 0.0002 TRAIN.EPOCH 3 DATA.CLASSES book,coin DATA.MEAN [0.4,0.4,0.4] TRAIN.AMP off"
    for number, data in cases([original], count):
        text = data.decode("utf-8", "surrogateescape")
        if "\0" in text:
            continue  # no environment can hold it
        try:
            _, config = configure({"CONFIG": "demo", "OVERRIDES": text})
        except UserError as error:
            assert error.problems, number
        else:
            assert isinstance(config.TRAIN.LR, float) and isinstance(config.TRAIN.EPOCH, int), number


def test_a_damaged_configuration_is_refused_or_read_right() -> None:
    try_configurations(SHORT // 5)
    try_overrides(SHORT // 5)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_seven_thousand_damaged_configurations_are_refused_or_read_right() -> None:
    try_configurations(LONG // 2)
    try_overrides(LONG // 2)


@pytest.mark.parametrize("data", [b"\xff\xfeT\0", b"TRAIN: {LR: \xff}", b"TRAIN: {LR: \0}"])
def test_a_configuration_file_of_other_bytes_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "fuzz.yaml").write_bytes(data)
    with pytest.raises(UserError):
        load_config(str(tmp_path / "fuzz.yaml"))

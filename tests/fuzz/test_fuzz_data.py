"""Damaged data: a text is read as an independent slow parser reads it, or refused with a code; a data set ends in a
report and exit code 1 or 2, without a traceback.
"""

import logging
import re
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from data.makers import make_got10k, write_sequence

from fuzz.mutations import cases, counts
from seqtrack.cli import main
from seqtrack.data.annotations import read_boxes, read_labels, read_names
from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.sources import open_source
from seqtrack.errors import UserError


def slow_lines(data: bytes) -> list[list[str]]:
    text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").rstrip("\n\t ")
    assert "\0" not in text
    lines = [re.sub(r"[ \t]*[,;][ \t]*", ",", line.strip(" \t")).replace("\t", " ") for line in text.split("\n")]
    return [re.split(",| +", line.removesuffix(",")) for line in lines]


def slow_number(text: str) -> float:
    assert text and set(text) <= set("+-.0123456789eE"), text
    return float(Decimal(text)) + 0.0


def slow_boxes(data: bytes) -> list[list[float]]:
    return [[slow_number(entry) for entry in entries] for entries in slow_lines(data)]


def slow_labels(data: bytes) -> list[float]:
    return [
        slow_number(entry)
        for entries in slow_lines(data.replace(b"\n", b" ").replace(b"\r", b" "))
        for entry in entries
    ]


ROWS = b"1,2,3,4\n50,60,70,80\n-5,7,9,11\n"
BOXES = [ROWS, b"1.25,2.5,3e1,4\n50,60,70,80\n", ROWS.replace(b",", b"\t"), ROWS.replace(b",", b" "), b"1, 2, 3, 4\r\n"]
READERS: dict[str, tuple[Callable[[Path], Any], Callable[[bytes], Any], list[bytes]]] = {
    "boxes": (lambda path: read_boxes(path).tolist(), slow_boxes, BOXES),
    "labels": (
        lambda path: read_labels(path, 8).tolist(), slow_labels, [b"8\n0\n3\n", b"8, 1.0, 7,\r\n", b"0,0,1"],
    ),
    "names": (
        read_names, lambda data: re.findall(r"[^,\s]+", data.decode("utf-8-sig")),
        [b"book-1\nbook-2\ncoin-10\n", b"\xef\xbb\xbfbook-1\r\nbook-2\r\n", b"a,b,c"],
    ),
}  # fmt: skip


@counts(150, 7000)
@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_refused_or_read_right(kind: str, count: int, tmp_path: Path) -> None:
    read, slow, originals = READERS[kind]
    path, accepted = tmp_path / "file", 0
    for number, data in [*((-1 - i, one) for i, one in enumerate(originals)), *cases(originals, count)]:
        path.write_bytes(data)
        try:
            found = read(path)
        except UserError as error:
            assert number >= 0, "the undamaged files are read"
            assert all(one.code.startswith("file.") and len(one) < 1000 for one in error.problems), (number, data)
        else:
            accepted += 1
            assert found == slow(data), (kind, number, data)
    assert len(originals) < accepted < len(originals) + count, "both ways were taken"


FILES = {
    **{f"lasot/book/book-1/{name}": "LASOT" for name in ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt")},
    **{f"lasot/{split}ing_set.txt": "LASOT" for split in ("train", "test")},
    "lasot/book/book-1/img/00000007.jpg": "LASOT",
    "got10k/train/list.txt": "GOT10K_TRAIN_FULL",
    "got10k/got10k_vot_train_split.txt": "GOT10K_VOTTRAIN",
    **{
        f"got10k/train/GOT-10k_Train_000002/{name}": "GOT10K_TRAIN_FULL"
        for name in ("groundtruth.txt", "absence.label", "cover.label", "meta_info.ini")
    },
}


@counts(12, 600)
def test_a_data_set_with_a_damaged_file_is_refused_or_opened(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_sequence(tmp_path / "lasot" / "book" / "book-1", 24)
    (tmp_path / "lasot" / "training_set.txt").write_text("book-1\n")
    (tmp_path / "lasot" / "testing_set.txt").write_text("book-3\n")
    make_got10k(tmp_path)
    logging.disable(logging.WARNING)
    for name, dataset in FILES.items():
        original = (tmp_path / name).read_bytes()
        for number, data in cases([original], count, seed=1):
            (tmp_path / name).write_bytes(data)
            try:
                source = open_source(dataset, tmp_path, classes=(), split="train")
                assert all(one.num_frames == 24 for one in source.sequences), (name, number, data)
                TrackingDataset([source], [1.0], SampleSpec(template_size=16, search_size=16), seed=0).sample(0, number)
            except UserError as error:
                areas = {one.code.split(".")[0] for one in error.problems}
                assert areas <= {"file", "data"} and len(str(error)) < 30_000, (name, number, data)
            if dataset == "LASOT" and number % 4 == 0:
                code = main(["data", "check", "--dataset", "lasot", "--decode", "--data-dir", str(tmp_path)])
                said = capsys.readouterr()
                assert (code == 0) == ("problem: " not in said.out and "error [" not in said.err), (name, number, data)
        (tmp_path / name).write_bytes(original)
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", ["groundtruth.txt", "out_of_view.txt", "img", "img/00000009.jpg"])
def test_a_link_to_itself_in_place_of_a_file_ends_in_a_report(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_sequence(tmp_path / "book" / "book-1", 24) / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.name)
    assert main(["data", "check", "--dataset", "lasot", "--data-dir", str(tmp_path)]) == 1
    assert "problem: " in capsys.readouterr().out

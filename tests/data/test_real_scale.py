"""At LaSOT's full size the numbers of frames are the published ones."""

import os
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from seqtrack.data.annotations import class_of
from seqtrack.data.lasot import open_lasot
from seqtrack.data.sources import describe, open_source

# Published for the official split.
TRAIN_FRAMES = {"book": 33_210, "coin": 30_548, "kite": 50_572, "airplane": 67_691, "bicycle": 31_674}


def _write_annotations(root: Path, test_data: Path, *, classes: Collection[str] | None, frames: str) -> None:
    """LaSOT's annotation files from the real boxes and flags, and empty frame files: "all", or the "last" only."""
    stored = np.load(test_data / "lasot_train_annos.npz")
    names, offsets, boxes = stored["names"], stored["offsets"], stored["boxes"]
    absent = np.unpackbits(stored["absent"])[: len(boxes)]
    for place, name in enumerate(str(n) for n in names):
        if classes is not None and class_of(name) not in classes:
            continue
        rows = slice(offsets[place], offsets[place + 1])
        folder = root / class_of(name) / name
        (folder / "img").mkdir(parents=True)
        (folder / "groundtruth.txt").write_text("\n".join(",".join(map(str, row)) for row in boxes[rows].tolist()))
        (folder / "full_occlusion.txt").write_text(",".join(map(str, absent[rows].tolist())))
        (folder / "out_of_view.txt").write_text(",".join("0" * len(boxes[rows])))
        count = len(boxes[rows])
        for number in range(1, count + 1) if frames == "all" else (count,):
            os.close(os.open(folder / "img" / f"{number:08d}.jpg", os.O_CREAT))


@pytest.mark.long  # makes 213,695 files
def test_the_numbers_of_training_frames_are_the_published_ones(test_data: Path, tmp_path: Path) -> None:
    classes = tuple(TRAIN_FRAMES)
    _write_annotations(tmp_path, test_data, classes=classes, frames="all")
    source = open_source("lasot", tmp_path, classes=classes, split="train")
    table = describe([source])["sources"][0]["classes"]
    for name in classes:
        assert (table[name]["sequences"], table[name]["frames"], table[name]["missing"]) == (16, TRAIN_FRAMES[name], 0)
    stored = np.load(test_data / "lasot_train_annos.npz")
    first = source.sequences[0]
    start = stored["offsets"][stored["names"].tolist().index(first.name)]
    np.testing.assert_array_equal(first.boxes_xywh, stored["boxes"][start : start + first.num_frames])


def test_all_1120_sequences_open(test_data: Path, tmp_path: Path) -> None:
    """Only the last frame file of each sequence is made: 2.8 million files would take minutes to make."""
    root = tmp_path / "lasot"
    _write_annotations(root, test_data, classes=None, frames="last")
    sequences = open_lasot(root, classes=(), split="train")
    assert len(sequences) == 1120 and sum(one.num_frames for one in sequences) == 2_831_982
    assert sum(int(one.absent.sum()) for one in sequences) == 79_622
    for name, count in TRAIN_FRAMES.items():
        assert sum(one.num_frames for one in sequences if one.class_name == name) == count

"""At LaSOT's full size the numbers of sequences, frames and absent targets are the published ones."""

import os
from pathlib import Path

import numpy as np
import pytest

from seqtrack.data.annotations import class_of
from seqtrack.data.lasot import open_lasot

# Published for the official split.
TRAIN_FRAMES = {"book": 33_210, "coin": 30_548, "kite": 50_572, "airplane": 67_691, "bicycle": 31_674}


@pytest.mark.parametrize("classes", [tuple(TRAIN_FRAMES), pytest.param((), marks=pytest.mark.long)])
def test_the_training_sequences_open(test_data: Path, tmp_path: Path, classes: tuple[str, ...]) -> None:
    """Only the last frame file of each sequence is made: 2.8 million files would take minutes to make."""
    stored = np.load(test_data / "lasot_train_annos.npz")
    offsets, boxes = stored["offsets"], stored["boxes"]
    absent = np.unpackbits(stored["absent"])[: len(boxes)]
    places = {str(name): slice(offsets[place], offsets[place + 1]) for place, name in enumerate(stored["names"])}
    for name, rows in places.items():
        if classes and class_of(name) not in classes:
            continue
        folder = tmp_path / "lasot" / class_of(name) / name
        (folder / "img").mkdir(parents=True)
        (folder / "groundtruth.txt").write_text("\n".join(",".join(map(str, row)) for row in boxes[rows].tolist()))
        (folder / "full_occlusion.txt").write_text(",".join(map(str, absent[rows].tolist())))
        (folder / "out_of_view.txt").write_text(",".join("0" * len(boxes[rows])))
        os.close(os.open(folder / "img" / f"{len(boxes[rows]):08d}.jpg", os.O_CREAT))
    sequences = open_lasot(tmp_path / "lasot", classes=(), split="train")
    if not classes:
        assert len(sequences) == 1120 and sum(one.num_frames for one in sequences) == 2_831_982
        assert sum(int(one.absent.sum()) for one in sequences) == 79_622
    for name, count in TRAIN_FRAMES.items():
        assert sum(one.num_frames for one in sequences if one.class_name == name) == count
    for one in sequences[::20]:
        np.testing.assert_array_equal(one.boxes_xywh, boxes[places[one.name]])

"""The contract of every data set in the registry."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.makers import make_got10k, write_sequence

from seqtrack.data.sources import SOURCES, describe, open_source
from seqtrack.errors import UserError


def _make_lasot(data_dir: Path) -> None:
    for name in ("book-1", "book-2", "book-3", "coin-1", "coin-3"):
        folder = write_sequence(data_dir / "lasot" / name.rsplit("-", 1)[0] / name, 24)
        (folder / "full_occlusion.txt").write_text(",".join("0" * 23 + "1"))


MAKERS: dict[str, Callable[[Path], None]] = {
    "LASOT": _make_lasot,
    "GOT10K_TRAIN_FULL": make_got10k,
    "GOT10K_VOTTRAIN": make_got10k,
}


@pytest.mark.parametrize("name", SOURCES)
def test_sequences_have_the_documented_types_are_the_same_again_and_of_the_chosen_split_and_class(
    name: str, demo_data: Path, tmp_path: Path
) -> None:
    if name == "DEMO":
        tmp_path = demo_data
    else:
        MAKERS[name](tmp_path)
    source = open_source(name, tmp_path, classes=(), split="train")
    assert source.split == "train" and len({sequence.name for sequence in source.sequences}) == len(source.sequences)
    for sequence in source.sequences:
        n = sequence.num_frames
        assert sequence.boxes_xywh.shape == (n, 4) and sequence.boxes_xywh.dtype == np.float64
        for flags in (sequence.visible, sequence.absent, sequence.missing):
            assert flags.shape == (n,) and flags.dtype == np.bool_
        assert not (sequence.visible & (sequence.absent | sequence.missing)).any()
        assert (sequence.boxes_xywh[sequence.visible][:, 2:] > 0).all()
        assert all(sequence.frame_path(int(index)).is_file() for index in np.flatnonzero(~sequence.missing))
    assert any(sequence.absent.any() and not sequence.visible.all() for sequence in source.sequences)
    again = open_source(name.lower(), tmp_path, classes=(), split="train")
    assert [s.name for s in again.sequences] == [s.name for s in source.sequences]
    assert describe([again]) == describe([source])
    test = open_source(name, tmp_path, classes=(), split="test")
    assert test.sequences and not {s.name for s in test.sequences} & {s.name for s in source.sequences}
    assert describe([test]).digest != describe([source]).digest
    wanted = source.sequences[-1].class_name
    chosen = open_source(name, tmp_path, classes=(wanted,), split="train").sequences
    assert wanted and [s.name for s in chosen] == [s.name for s in source.sequences if s.class_name == wanted]
    with pytest.raises(UserError, match=wanted):
        open_source(name, tmp_path, classes=("no such class",), split="train")


@pytest.mark.parametrize("name", MAKERS)
def test_missing_data_and_a_malformed_row_are_a_users_error(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=folder.name):
            open_source(name, folder, classes=(), split="train")
    MAKERS[name](tmp_path)
    path = min(tmp_path.rglob("groundtruth.txt"))
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:4], "1,2,3", *rows[5:]]))
    with pytest.raises(UserError, match=r"groundtruth\.txt, line 5"):
        for split in ("train", "test"):
            open_source(name, tmp_path, classes=(), split=split)

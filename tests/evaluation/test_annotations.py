"""The three ways annotations are kept give the same, and each refuses what it cannot read."""

from pathlib import Path

import numpy as np
import pytest
from seqtrack.evaluation.annotations import Annotation, choose, from_sequences, read_annotations

from seqtrack.data.sequence import Sequence
from seqtrack.errors import UserError

from .conftest import EvaluationData

BOXES = {"cat-1": [[1, 2, 3, 4], [5, 6, 7, 8]], "big-cat-10": [[9, 9, 9, 9]], "cat-2": [[1, 1, 1, 1]] * 3}
ABSENT = {"cat-1": [0, 1], "big-cat-10": [0], "cat-2": [0, 0, 1]}


def text(rows: list[list[int]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


def as_archive(folder: Path) -> Path:
    lengths = [len(rows) for rows in BOXES.values()]
    np.savez(
        folder / "gt.npz",
        names=np.array(list(BOXES)),
        offsets=np.cumsum([0, *lengths]),
        boxes=np.concatenate([np.array(rows, dtype=np.int16) for rows in BOXES.values()]),
        absent=np.packbits(np.concatenate([np.array(flags, dtype=np.uint8) for flags in ABSENT.values()])),
        n=np.array(sum(lengths)),
    )
    return folder / "gt.npz"


def as_toolkit_folder(folder: Path) -> Path:
    (folder / "annos" / "absent").mkdir(parents=True)
    for name, rows in BOXES.items():
        (folder / "annos" / f"{name}.txt").write_text(text(rows))
        (folder / "annos" / "absent" / f"{name}.txt").write_text("\n".join(map(str, ABSENT[name])))
    return folder


def as_lasot_layout(folder: Path) -> Path:
    for name, rows in BOXES.items():
        place = folder / name.rsplit("-", 1)[0] / name
        place.mkdir(parents=True)
        (place / "groundtruth.txt").write_text(text(rows))
        # Half of the flags in each file: absent is either of them.
        (place / "full_occlusion.txt").write_text(",".join(str(flag) for flag in ABSENT[name]))
        (place / "out_of_view.txt").write_text(",".join("0" for _ in rows))
    return folder


@pytest.mark.parametrize("make", [as_archive, as_toolkit_folder, as_lasot_layout])
def test_each_way_gives_the_same_annotations(tmp_path: Path, make: object) -> None:
    found = read_annotations(make(tmp_path))  # type: ignore[operator]
    assert {one.name: one.boxes_xywh.tolist() for one in found} == BOXES
    assert {one.name: (~one.visible).astype(int).tolist() for one in found} == ABSENT
    assert {one.name: one.class_name for one in found} == {"cat-1": "cat", "big-cat-10": "big-cat", "cat-2": "cat"}


def test_the_real_test_set_reads_alike_as_text_and_as_archive(lasot_eval: EvaluationData) -> None:
    archive = {one.name: one for one in read_annotations(lasot_eval.folder / "lasot_test_gt.npz")}
    assert len(archive) == 280
    for one in read_annotations(lasot_eval.folder / "mini_txt"):
        assert (one.boxes_xywh == archive[one.name].boxes_xywh).all()
        assert (one.visible == archive[one.name].visible).all()


def test_absent_frames_of_a_source_are_those_that_are_not_visible(sequences: list[Sequence]) -> None:
    annotations = from_sequences(sequences)
    assert any((~one.visible).any() for one in annotations), "the drawn videos have an occlusion"
    for one, sequence in zip(annotations, sequences, strict=True):
        assert (one.visible == ~sequence.absent).all()


@pytest.mark.parametrize("place", ["nothing", "empty"])
def test_a_place_without_annotations_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no annotations found"):
        read_annotations(tmp_path / place)


def test_every_wrong_file_is_told_at_once(tmp_path: Path) -> None:
    folder = as_toolkit_folder(tmp_path) / "annos"
    (folder / "cat-1.txt").write_text("1,2,3\n")
    (folder / "absent" / "cat-2.txt").write_text("0")
    (folder / "big-cat-10.txt").write_text("1,2,nan,4\n")
    with pytest.raises(UserError) as caught:
        read_annotations(tmp_path)
    told = "\n".join(caught.value.problems)
    assert "cat-1.txt, line 1" in told and "cat-2.txt: 1 entries, but cat-2.txt has 3 rows" in told
    assert "big-cat-10.txt, line 1, entry 3: found 'nan'" in told
    assert [one.code for one in caught.value.problems] == ["file.entry", "file.columns", "file.count"]


def test_an_archive_that_disagrees_with_itself_is_refused(tmp_path: Path) -> None:
    path = as_archive(tmp_path)
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **{**arrays, "n": np.array(99)})
    with pytest.raises(UserError, match="6 frames"):
        read_annotations(path)


class TestChoosing:
    annotations = tuple(
        Annotation(name, name[0], np.ones((1, 4)), np.ones(1, dtype=bool)) for name in ("a-1", "a-2", "b-1", "c-1")
    )

    def test_nothing_named_means_all(self) -> None:
        assert choose(self.annotations) == list(self.annotations)

    def test_classes_and_names_narrow_in_the_order_of_the_set(self) -> None:
        assert [one.name for one in choose(self.annotations, classes=["b", "a"])] == ["a-1", "a-2", "b-1"]
        assert [one.name for one in choose(self.annotations, classes=["a"], names=["a-2"])] == ["a-2"]

    def test_what_is_not_there_is_told_all_at_once(self) -> None:
        with pytest.raises(UserError) as caught:
            choose(self.annotations, classes=["a", "x"], names=["y-1", "z-1"])
        assert len(caught.value.problems) == 3

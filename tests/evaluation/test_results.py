"""Other trackers' files: what is scored, what is noted, what is refused; and the selection of sequences."""

from pathlib import Path

import numpy as np
import pytest

from seqtrack.data.annotations import Annotation, write_boxes
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.metrics import score
from seqtrack.evaluation.results import (
    Naming,
    TrackerResult,
    choose,
    oracle_crop_result,
    read_results,
    result_files,
    static_box_result,
)

NAN = float("nan")


def annotation(name: str, frames: int) -> Annotation:
    boxes = np.tile([10.0, 10.0, 20.0, 20.0], (frames, 1))
    return Annotation(name, name.rsplit("-", 1)[0], boxes, np.zeros(frames, dtype=bool))


ANNOTATIONS = [annotation("cat-1", 4), annotation("dog-2", 3)]


def tracker_folder(place: Path, **rows: object) -> Path:
    """A folder with good boxes, except for the given sequences (as cat_1=rows)."""
    place.mkdir(parents=True, exist_ok=True)
    for one in ANNOTATIONS:
        given = rows.get(one.name.replace("-", "_"), one.boxes_xywh)
        if given is not None:
            write_boxes(place / f"{one.name}.txt", np.array(given, dtype=np.float64))
    return place


def read(place: Path, **options: str) -> list[TrackerResult]:
    return read_results([place], ANNOTATIONS, **options)  # type: ignore[arg-type]


def refusal(place: Path, **options: str) -> list[Problem]:
    with pytest.raises(UserError) as caught:
        read(place, **options)
    return caught.value.problems


def test_trackers_are_folders_and_archives_and_get_distinct_names(tmp_path: Path) -> None:
    for name in ("a/B", "a/A++", "b/B"):
        tracker_folder(tmp_path / name)
    (tmp_path / "a" / "B" / "zebra-1.txt").write_text("nonsense")
    (tmp_path / "a" / "B" / "cat-1_time.txt").write_text("0.03\n")
    archive = {"names": np.array(["cat-1", "dog-2"]), "offsets": np.array([0, 4, 7]), "boxes": np.ones((7, 4))}
    np.savez(tmp_path / "b" / "results_x.npz", **archive)
    (tmp_path / "a" / "plots").mkdir()
    assert [one.record.name for one in read(tmp_path / "a" / "B")] == ["B"]
    assert [one.record.name for one in read(tmp_path / "a")] == ["A++", "B"]
    found = read_results([tmp_path / "a", tmp_path / "b"], ANNOTATIONS)
    assert [one.record.name for one in found] == ["A++", "a/B", "b/B", "x"]
    assert set(found[1].record.sequences) == {"cat-1", "dog-2"}
    assert found[3].tracks["dog-2"].boxes_xywh.shape == (3, 4)
    assert (found[0].record.mean["fps"], found[0].record.mean["ms_a_frame"]) == (None, None)


def test_too_few_boxes_and_missing_files_are_refused_all_at_once(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        assert refusal(place)[0].code == "results.none"
    tracker_folder(tmp_path / "A", cat_1=[[1, 1, 5, 5]] * 3)
    tracker_folder(tmp_path / "B", dog_2=None)
    np.savez(tmp_path / "results_x.npz", names=np.array(["cat-1"]), offsets=[0, 4], boxes=np.ones((4, 4)))
    problems = refusal(tmp_path)
    assert [one.code for one in problems] == ["results.count", "file.missing", "results.sequence"]
    assert "cat-1.txt" in problems[0] and "dog-2.txt" in problems[1] and "dog-2" in problems[2]


LOST = [[10, 10, 20, 20], [5, 5, 0, 9], [0, 0, 0, 0], [10, 10, 20, 20]]  # size zero means lost


@pytest.mark.parametrize(("rows", "note"), [([[10, 10, 20, 20]] * 6, "cat-1.txt: 6 "), (LOST, "cat-1.txt:2: 2 rows")])
def test_what_is_scored_with_a_note(tmp_path: Path, rows: list[list[float]], note: str) -> None:
    (found,) = read(tracker_folder(tmp_path / "A", cat_1=rows))
    assert len(found.record.notes) == 1 and note in found.record.notes[0]


@pytest.mark.parametrize("row", [[NAN, 1, 2, 3], [1, 1, float("inf"), 3], [1, 1, -2, 3]])
def test_rows_of_a_broken_run_are_refused_unless_the_toolkits_repair_is_requested(
    tmp_path: Path, row: list[float]
) -> None:
    place = tracker_folder(tmp_path / "A", cat_1=[[10, 10, 20, 20], [12, 10, 20, 20], row, row])
    (problem,) = refusal(place)
    assert problem.code == "results.row" and "cat-1.txt:3" in problem and "--repair official" in problem
    (found,) = read(place, repair="official")
    assert "cat-1.txt:3: 2 rows" in found.record.notes[0]
    one = ANNOTATIONS[0]
    repeated = np.array([[10, 10, 20, 20], *[[12, 10, 20, 20]] * 3], dtype=np.float64)
    assert found.record.sequences["cat-1"]["auc"] == score(repeated, one.boxes_xywh, ~one.absent).auc
    # The annotation replaces the first row, and yet a broken one is refused.
    place = tracker_folder(tmp_path / "B", cat_1=[row, *[[10, 10, 20, 20]] * 3])
    assert "cat-1.txt:1" in refusal(place)[0]
    assert read(place, repair="official")[0].record.notes == []


def boxes_text(frames: int, separator: str, shift: int = 0) -> str:
    return f"{separator.join(('10', str(10 + shift), '20', '20'))}\n" * frames


def test_result_files_are_found_under_the_names_in_use(tmp_path: Path) -> None:
    """The authors' folders and prefix, other cases and separators, a folder per sequence with its runs, an alias."""
    naming = Naming("uav_", {"dog-2": "Hound"}, frozenset({"uav"}), fills=True)
    layouts = {
        "A": {"b256/uav/uav_cat-1.txt": "\t", "b256/uav/uav_dog-2.txt": "\t", "b256/otb/cat-1.txt": ","},
        "B": {"CAT_1.txt": ",", "dog.2.txt": ", ", "cat-1_time.txt": " "},
        "C": {"cat-1.txt": " ", "Hound.txt": ";", "dog-21.txt": ","},
    }
    for tracker, files in layouts.items():
        for name, separator in files.items():
            (tmp_path / tracker / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / tracker / name).write_text(boxes_text(4, separator))
        (one,) = read_results([tmp_path / tracker], ANNOTATIONS, naming=naming)
        assert (one.record.name, one.record.mean["op75"]) == ("b256" if tracker == "A" else tracker, 100)
    (tmp_path / "B" / "cat.1.txt").write_text("1,2,3,4\n")  # now two files may be meant
    assert refusal(tmp_path / "B")[0].code == "file.missing"
    (tmp_path / "B" / "cat.1.txt").unlink()
    files = result_files(tmp_path / "B", ["cat-1", "CAT_1", "dog-2"], naming)
    assert "cat-1" not in files, "the file of a sequence is no other spelling of another one's"
    (tmp_path / "C" / "cat-1.txt").write_text(boxes_text(2, ","))
    assert refusal(tmp_path / "C")[0].code == "results.count"
    (one,) = read_results([tmp_path / "C"], ANNOTATIONS, naming=naming)
    assert one.record.mean["op75"] == (50 + 100) / 2, "frames without a row do not repeat the last one"


@pytest.mark.parametrize("rows", [[[10, 10, 20, 20]] * 2, [[10, 10, 20, 20], [0, 0, 0, 0]], [[99, 99, 0, 0]] * 2])
def test_frames_after_the_end_of_a_file_have_zero_boxes(tmp_path: Path, rows: list[list[float]]) -> None:
    """Two good frames of four; the centre of a zero box, (-0.5, -0.5), is 20 * sqrt(2) px from the annotation's."""
    (found,) = read_results([tracker_folder(tmp_path, cat_1=rows)], ANNOTATIONS, naming=Naming(fills=True))
    one = found.record.sequences["cat-1"]
    assert [one[name] for name in ("op75", "p20", "p_norm", "mean_iou")] == [50] * 4
    assert one["auc"] == pytest.approx(50 * 20 / 21)


def test_a_sequence_without_any_row_has_its_first_box(tmp_path: Path) -> None:
    archive = {"names": np.array(["cat-1", "dog-2"]), "offsets": np.array([0, 0, 3]), "boxes": np.ones((3, 4))}
    np.savez(tmp_path / "results_x.npz", **archive)
    (found,) = read_results([tmp_path], ANNOTATIONS, naming=Naming(fills=True))
    assert [one["op75"] for one in found.record.sequences.values()] == [25, pytest.approx(100 / 3)]


def test_runs_are_merged_by_sequence(tmp_path: Path) -> None:
    for name, shifts in (("cat-1", (0, 30)), ("dog-2", (0, 0))):
        (tmp_path / "G" / name).mkdir(parents=True)
        frames = 4 if name == "cat-1" else 3
        for run, shift in enumerate(shifts):
            (tmp_path / "G" / name / f"{name}_{run + 1:03d}.txt").write_text(boxes_text(frames, ",", shift))
            (tmp_path / f"T_{run:03d}").mkdir(exist_ok=True)
            (tmp_path / f"T_{run:03d}" / f"{name}.txt").write_text(boxes_text(frames, ",", shift))
    (nested,) = read(tmp_path / "G")
    (merged,) = read_results([tmp_path / "T_000", tmp_path / "T_001"], ANNOTATIONS, merge_runs=True)
    assert [one.record.name for one in (nested, merged)] == ["G", "T"]
    for one in (nested, merged):  # frame 1 is the annotation, so that a quarter of the second run is right
        assert one.record.sequences["cat-1"]["op50"] == (100 + 25) / 2 and one.record.sequences["dog-2"]["op50"] == 100
    assert len(read_results([tmp_path / "T_000", tmp_path / "T_001"], ANNOTATIONS)) == 2
    (tmp_path / "G" / "dog-2" / "dog-2_002.txt").unlink()
    assert refusal(tmp_path / "G")[0].code == "results.runs"


def test_the_oracle_sees_only_what_lies_in_its_search_region() -> None:
    """A region of 80 px around a box of 20: a target that leaves it is lost until it comes back."""
    rows = [[100, 100, 20, 20], [110, 100, 20, 20], [155, 100, 20, 20], [400, 100, 20, 20], [150, 100, 20, 20]]
    one = Annotation("cat-1", "cat", np.array(rows, dtype=np.float64), np.array([0, 0, 0, 0, 1], dtype=bool))
    found = oracle_crop_result([one]).tracks["cat-1"].boxes_xywh.tolist()
    assert found[1] == [110, 100, 20, 20] and found[2] == [155, 100, 5, 20], "cut at the region's edge, x = 160"
    assert found[3] == found[2] and found[4] == found[2], "outside, and absent"


def test_the_static_box_baseline_repeats_the_first_box() -> None:
    moving = annotation("cat-1", 3)
    moving.boxes_xywh[1:, 0] += [5, 10]
    assert (static_box_result([moving]).tracks["cat-1"].boxes_xywh == moving.boxes_xywh[0]).all()


def test_classes_and_sequences_are_chosen_in_the_order_of_the_set() -> None:
    annotations = [annotation(name, 1) for name in ("a-1", "a-2", "b-1", "c-1")]
    assert [one.name for one in choose(annotations, classes=["b", "a"])] == ["a-1", "a-2", "b-1"]
    assert [one.name for one in choose(annotations, classes=["a"], names=["a-2"])] == ["a-2"]
    with pytest.raises(UserError) as caught:
        choose(annotations, classes=["a", "x"], names=["y-1", "z-1"])
    assert [one.code for one in caught.value.problems] == ["annotations.class", *["annotations.sequence"] * 2]

"""Other trackers' files: what is scored, what is remarked, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from seqtrack.evaluation.annotations import Annotation
from seqtrack.evaluation.boxfiles import write_boxes

from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import mean_scores, score
from seqtrack.evaluation.results import read_results

from .conftest import EvaluationData

NAN = float("nan")


def annotation(name: str, frames: int) -> Annotation:
    boxes = np.tile([10.0, 10.0, 20.0, 20.0], (frames, 1))
    return Annotation(name, name.rsplit("-", 1)[0], boxes, np.ones(frames, dtype=bool))


ANNOTATIONS = [annotation("cat-1", 4), annotation("dog-2", 3)]


def tracker_folder(place: Path, **rows: object) -> Path:
    """A folder with good boxes, but for the sequences given (as cat_1=rows)."""
    place.mkdir(parents=True, exist_ok=True)
    for one in ANNOTATIONS:
        given = rows.get(one.name.replace("-", "_"), one.boxes_xywh)
        if given is not None:
            write_boxes(place / f"{one.name}.txt", np.array(given, dtype=np.float64))
    return place


def refusal(place: Path, **options: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        read_results(place, ANNOTATIONS, **options)
    return caught.value.problems


def test_a_folder_is_one_tracker_and_a_folder_of_folders_is_many(tmp_path: Path) -> None:
    tracker_folder(tmp_path / "B")
    tracker_folder(tmp_path / "A++")
    (tmp_path / "plots").mkdir()
    assert [one.name for one in read_results(tmp_path / "B", ANNOTATIONS)] == ["B"]
    assert [one.name for one in read_results(tmp_path, ANNOTATIONS)] == ["A++", "B"]


def test_an_archive_is_a_tracker_as_well(tmp_path: Path) -> None:
    np.savez(tmp_path / "results_x.npz", names=np.array(["cat-1", "dog-2"]), offsets=[0, 4, 7], boxes=np.ones((7, 4)))
    for place in (tmp_path, tmp_path / "results_x.npz"):
        (found,) = read_results(place, ANNOTATIONS)
        assert found.name == "x" and found.boxes["dog-2"].shape == (3, 4)


def test_files_of_other_sequences_and_times_are_left_alone(tmp_path: Path) -> None:
    place = tracker_folder(tmp_path / "A")
    (place / "zebra-1.txt").write_text("nonsense")
    (place / "cat-1_time.txt").write_text("0.03\n")
    assert set(read_results(place, ANNOTATIONS)[0].boxes) == {"cat-1", "dog-2"}


def test_a_place_without_results_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "missing"):
        assert "no results found for the 2 sequences" in refusal(place)[0]


def test_fewer_boxes_than_frames_and_missing_files_are_refused_all_at_once(tmp_path: Path) -> None:
    tracker_folder(tmp_path / "A", cat_1=[[1, 1, 5, 5]] * 3)
    tracker_folder(tmp_path / "B", dog_2=None)
    problems = refusal(tmp_path)
    assert len(problems) == 2
    assert "cat-1.txt: 3 boxes, but the sequence has 4 annotated frames" in problems[0]
    assert "dog-2.txt" in problems[1]


def test_more_boxes_than_frames_are_cut_and_remarked(tmp_path: Path) -> None:
    (found,) = read_results(tracker_folder(tmp_path / "A", cat_1=[[10, 10, 20, 20]] * 6), ANNOTATIONS)
    assert found.notes == (f"{tmp_path}/A/cat-1.txt: 6 boxes for 4 frames; the last 2 are cut",)
    one = ANNOTATIONS[0]
    assert score(found.boxes["cat-1"], one.boxes_xywh, one.visible).frames == 4


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([NAN, 1, 2, 3], "not finite"),
        ([1, 1, float("inf"), 3], "not finite"),
        ([1, 1, -2, 3], "negative width or height"),
        ([1, 1, 2, -3], "negative width or height"),
    ],
)
def test_rows_of_a_broken_run_are_refused_unless_the_toolkits_repair_is_asked_for(
    tmp_path: Path, row: list[float], said: str
) -> None:
    place = tracker_folder(tmp_path / "A", cat_1=[[10, 10, 20, 20], [12, 10, 20, 20], row, row])
    (problem,) = refusal(place)
    assert "cat-1.txt:3" in problem and said in problem and "2 such rows" in problem and "--repair official" in problem
    (found,) = read_results(place, ANNOTATIONS, repair="official")
    assert "2 rows are no boxes" in found.notes[0]
    one = ANNOTATIONS[0]
    repeated = np.array([[10, 10, 20, 20], *[[12, 10, 20, 20]] * 3], dtype=np.float64)
    assert (
        score(found.boxes["cat-1"], one.boxes_xywh, one.visible).auc == score(repeated, one.boxes_xywh, one.visible).auc
    )


def test_rows_of_size_zero_are_a_trackers_way_to_say_lost(tmp_path: Path) -> None:
    (found,) = read_results(
        tracker_folder(tmp_path / "A", cat_1=[[10, 10, 20, 20], [5, 5, 0, 9], [0, 0, 0, 0], [10, 10, 20, 20]]),
        ANNOTATIONS,
    )
    assert found.notes == (f"{tmp_path}/A/cat-1.txt:2: 2 rows are no boxes; the last good box is repeated there",)


def test_the_first_row_is_refused_too_when_it_is_broken(tmp_path: Path) -> None:
    """It is replaced by the annotation, but a tracker that begins with NaN has not tracked."""
    place = tracker_folder(tmp_path / "A", cat_1=[[NAN] * 4, *[[10, 10, 20, 20]] * 3])
    assert "cat-1.txt:1" in refusal(place)[0]
    assert read_results(place, ANNOTATIONS, repair="official")[0].notes == ()


def test_published_trackers_score_alike_from_text_and_from_archive(lasot_eval: EvaluationData) -> None:
    from seqtrack.evaluation.annotations import read_annotations

    annotations = read_annotations(lasot_eval.folder / "mini_txt")
    texts = {one.name: one for one in read_results(lasot_eval.folder / "mini_txt" / "results", annotations)}
    archives = {one.name: one for one in read_results(lasot_eval.folder, annotations)}
    for text, archive in (("ATOM", "atom"), ("SiamRPN++", "siamrpnpp")):
        aucs = [
            mean_scores([score(found.boxes[one.name], one.boxes_xywh, one.visible) for one in annotations]).auc
            for found in (texts[text], archives[archive])
        ]
        assert aucs[0] == pytest.approx(aucs[1], abs=1e-4)


def test_atoms_rows_without_height_are_scored_and_told(lasot_eval: EvaluationData) -> None:
    from seqtrack.evaluation.annotations import read_annotations

    annotations = read_annotations(lasot_eval.folder / "lasot_test_gt.npz")
    (atom,) = read_results(lasot_eval.folder / "results_atom.npz", annotations)
    assert len(atom.notes) == 1 and "horse-15" in atom.notes[0] and "18 rows" in atom.notes[0]

"""The rules of LaSOT's protocol, each on a few frames, with its negative control."""

import numpy as np
import pytest

from seqtrack.evaluation import metrics

BOX = [100.0, 80.0, 40.0, 20.0]


def frames(*boxes: list[float]) -> np.ndarray:
    return np.array(boxes, dtype=np.float64)


def moved(dx: float = 0.0, dy: float = 0.0) -> list[float]:
    return [BOX[0] + dx, BOX[1] + dy, BOX[2], BOX[3]]


def all_visible(count: int) -> np.ndarray:
    return np.ones(count, dtype=bool)


def test_the_annotation_itself_scores_all_but_the_last_threshold() -> None:
    boxes = frames(BOX, moved(5), moved(9))
    scores = metrics.score(boxes, boxes, all_visible(3))
    # IoU > 1 is never true: a perfect tracker reaches 20 of 21 thresholds.
    assert scores.metrics() == pytest.approx(
        {"auc": 100 * 20 / 21, "op50": 100, "op75": 100, "p20": 100, "p_norm": 100, "mean_iou": 100}
    )


def test_a_box_elsewhere_scores_only_the_given_first_frame() -> None:
    annotated = frames(BOX, BOX, BOX, BOX)
    scores = metrics.score(frames(*[moved(500, 500)] * 4), annotated, all_visible(4))
    assert scores.metrics()["op50"] == scores.metrics()["p20"] == scores.metrics()["p_norm"] == 25
    assert scores.auc == pytest.approx(25 * 20 / 21)


def test_an_overlap_that_equals_a_threshold_is_not_above_it() -> None:
    annotated = frames(BOX, [0.0 + 1, 1, 10, 10], [1, 1, 10, 10])
    half, more = [1.0, 1, 10, 5], [1.0, 1, 10, 5.001]
    scores = metrics.score(frames(BOX, half, more), annotated, all_visible(3))
    assert scores.metrics()["op50"] == pytest.approx(100 * 2 / 3)


def test_a_distance_that_equals_a_threshold_is_within_it() -> None:
    annotated = frames(BOX, BOX, BOX)
    scores = metrics.score(frames(BOX, moved(20), moved(20.001)), annotated, all_visible(3))
    assert scores.metrics()["p20"] == pytest.approx(100 * 2 / 3)


def test_normalised_distance_is_counted_in_widths_and_heights_of_the_annotation() -> None:
    annotated = frames(BOX, BOX, BOX)
    # 6 px are 0.15 of the width of 40, and 0.3 of the height of 20.
    scores = metrics.score(frames(BOX, moved(dx=6), moved(dy=6)), annotated, all_visible(3))
    assert scores.metrics()["p_norm"] == pytest.approx(100 * 2 / 3)


def test_the_centre_is_that_of_integer_pixels() -> None:
    """A box one pixel wider has its centre half a pixel further: it is x + (w - 1) / 2."""
    errors = metrics.frame_errors(frames(BOX, [100, 80, 41, 20]), frames(BOX, BOX), all_visible(2))
    assert errors.center.tolist() == [0, 0.5]
    # In annotation sizes the halves do not cancel as they would with x + w / 2: both are divided by the annotation's.
    assert errors.norm_center[1] == pytest.approx(0.5 / 40)


def test_an_absent_frame_counts_in_the_denominator_only() -> None:
    annotated = frames(BOX, BOX, BOX, BOX)
    visible = np.array([True, True, False, False])
    scores = metrics.score(annotated, annotated, visible)
    assert scores.metrics()["op50"] == scores.metrics()["p20"] == scores.metrics()["p_norm"] == 50
    assert scores.mean_iou == 100  # the mean IoU is over visible frames
    assert metrics.score(annotated, annotated, all_visible(4)).metrics()["op50"] == 100


@pytest.mark.parametrize(
    "row", [[np.nan, 1, 2, 3], [1, 1, 0, 5], [1, 1, 5, 0], [1, 1, -3, 5], [1, 1, 5, -3], [np.inf, 1, 2, 3]]
)
def test_a_row_that_is_no_box_repeats_the_last_one_that_is(row: list[float]) -> None:
    repaired = metrics.repair(frames(moved(1), moved(2), row, row, moved(3)), np.array(BOX))
    assert repaired.tolist() == [BOX, moved(2), moved(2), moved(2), moved(3)]


def test_a_box_of_less_than_a_pixel_is_a_box() -> None:
    tiny = [1, 1, 0.01, 0.01]
    assert metrics.repair(frames(BOX, tiny), np.array(BOX)).tolist() == [BOX, tiny]


def test_rows_that_are_no_boxes_from_the_start_repeat_the_annotation() -> None:
    nothing = [np.nan] * 4
    assert metrics.repair(frames(nothing, nothing, moved(3)), np.array(BOX)).tolist() == [BOX, BOX, moved(3)]


def test_repairing_does_not_change_the_trackers_array() -> None:
    predicted = frames(moved(1), [1, 1, 0, 0])
    metrics.repair(predicted, np.array(BOX))
    assert predicted.tolist() == [moved(1), [1, 1, 0, 0]]


def test_frames_beyond_the_annotation_are_cut() -> None:
    annotated = frames(BOX, BOX)
    longer = metrics.score(frames(BOX, moved(3), moved(99), moved(99)), annotated, all_visible(2))
    exact = metrics.score(frames(BOX, moved(3)), annotated, all_visible(2))
    assert longer.metrics() == exact.metrics()


def test_fewer_boxes_than_frames_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\b3\b"):
        metrics.score(frames(BOX, BOX), frames(BOX, BOX, BOX), all_visible(3))


@pytest.mark.parametrize(("boxes", "visible"), [(np.zeros((0, 4)), 0), (np.zeros((3, 5)), 3), (np.zeros((3, 4)), 2)])
def test_arrays_of_another_shape_are_refused(boxes: np.ndarray, visible: int) -> None:
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        metrics.score(boxes, boxes, all_visible(visible))


@pytest.mark.parametrize("annotation", [[0, 0, 0, 0], [5, 5, 10, 0], [0, 5, 10, 10], [5, -1, 10, 10]])
def test_a_visible_frame_without_a_usable_annotation_is_a_failure_and_a_hit(annotation: list[float]) -> None:
    """The toolkit writes -1 for both: no overlap is below it, and every distance threshold is above it."""
    annotated = frames(BOX, annotation)
    toolkit = metrics.score(frames(BOX, moved(1)), annotated, all_visible(2)).metrics()
    assert (toolkit["op50"], toolkit["p20"], toolkit["p_norm"]) == (50, 100, 100)
    python = metrics.score(frames(BOX, moved(1)), annotated, all_visible(2), convention=metrics.PYTRACKING).metrics()
    if min(annotation[2:]) > 0:  # only width and height are required
        assert (python["p20"], python["p_norm"]) == (50, 50)
    else:
        assert (python["op50"], python["p20"], python["p_norm"]) == (50, 50, 100)
    absent = metrics.score(frames(BOX, moved(1)), annotated, np.array([True, False])).metrics()
    assert (absent["op50"], absent["p20"], absent["p_norm"]) == (50, 50, 50)


def test_every_sequence_has_the_same_weight() -> None:
    short = metrics.score(frames(BOX), frames(BOX), all_visible(1))
    far = frames(*[moved(500)] * 9)
    long = metrics.score(far, frames(*[BOX] * 9), all_visible(9))
    mean = metrics.mean_scores([short, long])
    assert mean.auc == pytest.approx((short.auc + long.auc) / 2)
    assert mean.frames == 10
    pooled = metrics.score(np.vstack([frames(BOX), far]), frames(*[BOX] * 10), all_visible(10))
    assert abs(pooled.auc - mean.auc) > 10


def test_no_scores_have_no_mean() -> None:
    with pytest.raises(ValueError, match="mean"):
        metrics.mean_scores([])


def test_iou_of_boxes_that_touch_is_zero_and_of_empty_ones_too() -> None:
    a = frames([0, 0, 10, 10], [0, 0, 10, 10], [3, 3, 0, 0], [0, 0, 4, 4])
    b = frames([10, 0, 10, 10], [5, 0, 10, 10], [3, 3, 0, 0], [1, 1, 2, 2])
    assert metrics.iou_xywh(a, b).tolist() == pytest.approx([0, 1 / 3, 0, 0.25])

"""Rules of LaSOT's protocol that neither the published trackers nor the golden tests meet, each on a few frames."""

import numpy as np
import pytest

from seqtrack.evaluation import metrics

BOX = [100.0, 80.0, 40.0, 20.0]


def moved(dx: float = 0.0, dy: float = 0.0) -> list[float]:
    return [BOX[0] + dx, BOX[1] + dy, BOX[2], BOX[3]]


def test_an_absent_frame_counts_in_the_denominator_only() -> None:
    annotated = np.array([BOX] * 4)
    found = metrics.score(annotated, annotated, np.array([True, True, False, False])).metrics()
    assert found["op50"] == found["op75"] == found["p20"] == found["p_norm"] == 50
    assert found["auc"] == pytest.approx(50 * 20 / 21), "IoU > 1 is never true"
    assert found["mean_iou"] == 100  # over visible frames
    more = metrics.score(np.array([BOX, moved(3), moved(99)]), annotated[:2], np.array([True, True])).metrics()
    assert more["p20"] == more["op50"] == 100, "more boxes than frames"


@pytest.mark.parametrize("row", [[np.nan] * 4, [1, 1, 0, 5], [1, 1, 5, -3], [np.inf, 1, 2, 3]])
def test_a_row_that_is_no_box_repeats_the_last_one_that_is(row: list[float]) -> None:
    predicted = np.array([moved(1), moved(2), row, row, moved(3), [1, 1, 0.01, 0.01]])
    before = predicted.copy()
    expected = [BOX, moved(2), moved(2), moved(2), moved(3), [1, 1, 0.01, 0.01]]
    assert metrics.repair(predicted, np.array(BOX)).tolist() == expected
    assert np.array_equal(predicted, before, equal_nan=True)
    assert metrics.repair(np.array([row, row, moved(3)]), np.array(BOX)).tolist() == [BOX, BOX, moved(3)]


def test_arrays_that_do_not_fit_are_refused() -> None:
    for boxes, annotated, visible in (((0, 4), 0, 0), ((3, 5), 3, 3), ((3, 4), 3, 2)):
        with pytest.raises(ValueError, match=r"\(N, 4\)"):
            metrics.score(np.zeros(boxes), np.zeros((annotated, 4)), np.ones(visible, dtype=bool))


@pytest.mark.parametrize("annotation", [[0, 0, 0, 0], [5, 5, 10, 0], [0, 5, 10, 10], [5, -1, 10, 10]])
def test_a_visible_frame_without_a_usable_annotation_is_a_failure_and_a_hit(annotation: list[float]) -> None:
    """The toolkit writes -1 for both: no overlap is below it, and every distance threshold is above it."""

    def found(*visible: bool, convention: metrics.Convention = metrics.TOOLKIT) -> list[float]:
        boxes, truth = np.array([BOX, moved(1)]), np.array([BOX, annotation], dtype=np.float64)
        values = metrics.score(boxes, truth, np.array(visible), convention=convention).metrics()
        return [values[name] for name in ("op50", "p20", "p_norm")]

    assert found(True, True) == [50, 100, 100]
    assert found(True, False) == [50, 50, 50]
    only_size = min(annotation[2:]) > 0  # only width and height are required there
    python = found(True, True, convention=metrics.AUTHORS)
    assert python[1:] == [50, 50] if only_size else python == [50, 50, 100]

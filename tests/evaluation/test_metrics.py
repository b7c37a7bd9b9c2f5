"""The rules of LaSOT's protocol, each on a few frames."""

import numpy as np
import pytest

from seqtrack.evaluation import metrics

BOX = [100.0, 80.0, 40.0, 20.0]
SMALL = [1.0, 1, 10, 10]


def moved(dx: float = 0.0, dy: float = 0.0) -> list[float]:
    return [BOX[0] + dx, BOX[1] + dy, BOX[2], BOX[3]]


def scored(predicted: list[list[float]], annotated: list[list[float]] | None = None) -> metrics.Scores:
    """Against boxes that do not move, all visible."""
    truth = np.array(annotated or [BOX] * len(predicted))
    return metrics.score(np.array(predicted), truth, np.ones(len(truth), dtype=bool))


@pytest.mark.parametrize(
    ("predicted", "annotated", "expected"),
    [
        # IoU > 1 is never true: a perfect tracker reaches 20 of 21 thresholds.
        pytest.param(
            [BOX, moved(5), moved(9)], [BOX, moved(5), moved(9)],
            {"auc": 100 * 20 / 21, "op50": 100, "op75": 100, "p20": 100, "p_norm": 100, "mean_iou": 100}, id="perfect",
        ),
        pytest.param(
            [moved(500, 500)] * 4, None, {"auc": 500 / 21, "op50": 25, "p20": 25, "p_norm": 25}, id="first frame only",
        ),
        pytest.param(
            [BOX, [1, 1, 10, 5], [1, 1, 10, 5.001]], [BOX, SMALL, SMALL], {"op50": 200 / 3}, id="IoU of a threshold",
        ),
        pytest.param([BOX, moved(20), moved(20.001)], None, {"p20": 200 / 3}, id="distance of a threshold"),
        # 6 px are 0.15 of the width of 40, and 0.3 of the height of 20.
        pytest.param([BOX, moved(6), moved(dy=6)], None, {"p_norm": 200 / 3}, id="annotation sizes"),
        pytest.param([BOX, moved(3), moved(99)], [BOX, BOX], {"p20": 100, "op50": 100}, id="more boxes than frames"),
    ],
)  # fmt: skip
def test_thresholds(
    predicted: list[list[float]], annotated: list[list[float]] | None, expected: dict[str, float]
) -> None:
    found = scored(predicted, annotated).metrics()
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_centre_is_that_of_integer_pixels() -> None:
    """A box one pixel wider has its centre half a pixel further: it is x + (w - 1) / 2."""
    errors = metrics.frame_errors(np.array([BOX, [100, 80, 41, 20]]), np.array([BOX, BOX]), np.ones(2, dtype=bool))
    assert errors.center.tolist() == [0, 0.5]
    # In annotation sizes the halves do not cancel as they would with x + w / 2: both are divided by the annotation's.
    assert errors.norm_center[1] == pytest.approx(0.5 / 40)


def test_an_absent_frame_counts_in_the_denominator_only() -> None:
    annotated = np.array([BOX] * 4)
    found = metrics.score(annotated, annotated, np.array([True, True, False, False])).metrics()
    assert found["op50"] == found["p20"] == found["p_norm"] == 50
    assert found["mean_iou"] == 100  # over visible frames


@pytest.mark.parametrize("row", [[np.nan] * 4, [1, 1, 0, 5], [1, 1, 5, -3], [np.inf, 1, 2, 3]])
def test_a_row_that_is_no_box_repeats_the_last_one_that_is(row: list[float]) -> None:
    predicted = np.array([moved(1), moved(2), row, row, moved(3), [1, 1, 0.01, 0.01]])
    before = predicted.copy()
    expected = [BOX, moved(2), moved(2), moved(2), moved(3), [1, 1, 0.01, 0.01]]
    assert metrics.repair(predicted, np.array(BOX)).tolist() == expected
    assert np.array_equal(predicted, before, equal_nan=True)
    assert metrics.repair(np.array([row, row, moved(3)]), np.array(BOX)).tolist() == [BOX, BOX, moved(3)]


def test_arrays_that_do_not_fit_are_refused() -> None:
    for boxes, annotated, visible in (((2, 4), 3, 3), ((0, 4), 0, 0), ((3, 5), 3, 3), ((3, 4), 3, 2)):
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
    python = found(True, True, convention=metrics.PYTRACKING)
    assert python[1:] == [50, 50] if only_size else python == [50, 50, 100]

"""Every metric of the tables: best for the annotation itself, worse with distance."""

import numpy as np
import pytest

from seqtrack.evaluation.metrics import METRICS, Metric, Scores, mean_scores, score
from seqtrack.evaluation.tables import COLUMNS, HEADINGS

ANNOTATED = np.array([[10.0 + 3 * i, 20.0 + 2 * i, 30.0, 40.0] for i in range(20)])
VISIBLE = np.ones(20, dtype=bool)


def metrics(predicted: np.ndarray, visible: np.ndarray = VISIBLE) -> dict[str, float]:
    return score(predicted, ANNOTATED, visible).metrics()


def test_every_metric_is_a_column_with_a_heading() -> None:
    assert tuple(metrics(ANNOTATED)) == tuple(METRICS)
    assert set(METRICS) < set(COLUMNS)
    assert [HEADINGS[name] for name in METRICS] == [metric.heading for metric in METRICS.values()]
    assert len(set(HEADINGS.values())) == len(COLUMNS)


def test_a_metric_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "op90" not in metrics(ANNOTATED)
    monkeypatch.setitem(METRICS, "op90", Metric("OP90", lambda one: one.success[18] * 100))
    assert metrics(ANNOTATED)["op90"] == 100
    assert metrics(ANNOTATED + np.array([4.0, 0, 0, 0]))["op90"] < 100


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_falls_with_distance_and_stays_a_percentage(name: str) -> None:
    shifts = [0.0, 4.0, 12.0, 40.0, 400.0]
    values = [metrics(ANNOTATED + np.array([shift, 0, 0, 0]))[name] for shift in shifts]
    assert values == sorted(values, reverse=True)
    assert values[0] > 95 and values[-1] < 10
    assert all(0 <= value <= 100 for value in values)


@pytest.mark.parametrize("name", [name for name in METRICS if name != "mean_iou"])
def test_an_absent_frame_counts_as_a_failure(name: str) -> None:
    hidden = VISIBLE.copy()
    hidden[10:] = False
    assert metrics(ANNOTATED, hidden)[name] == pytest.approx(metrics(ANNOTATED)[name] / 2)


@pytest.mark.parametrize("name", METRICS)
def test_sequences_have_equal_weights(name: str) -> None:
    lost = np.full_like(ANNOTATED, 900.0)
    long, short = score(ANNOTATED, ANNOTATED, VISIBLE), score(lost[:5], ANNOTATED[:5], VISIBLE[:5])
    both: Scores = mean_scores([long, short])
    assert both.metrics()[name] == pytest.approx((long.metrics()[name] + short.metrics()[name]) / 2)

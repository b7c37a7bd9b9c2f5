"""Every metric of the tables: best for the annotation itself, worse with distance."""

import numpy as np
import pytest

from seqtrack.evaluation.metrics import METRICS, Metric, mean_scores, score
from seqtrack.evaluation.tables import COLUMNS, HEADINGS

ANNOTATED = np.array([[10.0 + 3 * i, 20.0 + 2 * i, 30.0, 40.0] for i in range(20)])
VISIBLE = np.ones(20, dtype=bool)


def metrics(predicted: np.ndarray, visible: np.ndarray = VISIBLE) -> dict[str, float]:
    return score(predicted, ANNOTATED, visible).metrics()


def test_a_metric_is_added_by_one_entry_and_every_metric_is_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(metrics(ANNOTATED)) == tuple(METRICS) and set(METRICS) < set(COLUMNS)
    assert len(set(HEADINGS.values())) == len(COLUMNS)
    monkeypatch.setitem(METRICS, "op90", Metric("OP90", lambda one: one.success[18] * 100))
    assert metrics(ANNOTATED)["op90"] == 100
    assert metrics(ANNOTATED + np.array([4.0, 0, 0, 0]))["op90"] < 100


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_falls_with_distance_and_weighs_frames_and_sequences(name: str) -> None:
    values = [metrics(ANNOTATED + np.array([shift, 0, 0, 0]))[name] for shift in (0.0, 4.0, 12.0, 40.0, 400.0)]
    assert values == sorted(values, reverse=True)
    assert 100 >= values[0] > 95 and 10 > values[-1] >= 0
    hidden = np.arange(20) < 10
    if name != "mean_iou":
        assert metrics(ANNOTATED, hidden)[name] == pytest.approx(values[0] / 2), "an absent frame is a failure"
    long, short = score(ANNOTATED, ANNOTATED, VISIBLE), score(ANNOTATED[:5] + 900, ANNOTATED[:5], VISIBLE[:5])
    mean = (long.metrics()[name] + short.metrics()[name]) / 2
    assert mean_scores([long, short]).metrics()[name] == pytest.approx(mean), "sequences have equal weights"

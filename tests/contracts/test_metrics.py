"""Every metric of the tables: best for the annotation itself, worse with distance."""

import numpy as np
import pytest

from seqtrack.evaluation.metrics import METRICS, Metric, score
from seqtrack.evaluation.tables import COLUMNS, HEADINGS

ANNOTATED = np.array([[10.0 + 3 * i, 20.0 + 2 * i, 30.0, 40.0] for i in range(20)])


def metrics(predicted: np.ndarray) -> dict[str, float]:
    return score(predicted, ANNOTATED, np.ones(20, dtype=bool)).metrics()


def test_a_metric_is_added_by_one_entry_and_every_metric_is_a_column(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuple(metrics(ANNOTATED)) == tuple(METRICS) and set(METRICS) < set(COLUMNS)
    assert len(set(HEADINGS.values())) == len(COLUMNS)
    monkeypatch.setitem(METRICS, "op90", Metric("OP90", lambda one: one.success[18] * 100))
    assert metrics(ANNOTATED)["op90"] == 100
    assert metrics(ANNOTATED + np.array([4.0, 0, 0, 0]))["op90"] < 100


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_falls_with_distance(name: str) -> None:
    values = [metrics(ANNOTATED + np.array([shift, 0, 0, 0]))[name] for shift in (0.0, 4.0, 12.0, 40.0, 400.0)]
    assert values == sorted(values, reverse=True)
    assert 100 >= values[0] > 95 and 10 > values[-1] >= 0

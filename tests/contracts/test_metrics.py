"""What every figure of the tables must do, whichever it is: best for the annotation itself, worse elsewhere."""

import numpy as np
import pytest

from seqtrack.evaluation.metrics import FIGURES, Figure, Scores, mean_scores, score
from seqtrack.evaluation.tables import COLUMNS, HEADINGS

ANNOTATED = np.array([[10.0 + 3 * i, 20.0 + 2 * i, 30.0, 40.0] for i in range(20)])
VISIBLE = np.ones(20, dtype=bool)


def figures(predicted: np.ndarray, visible: np.ndarray = VISIBLE) -> dict[str, float]:
    return score(predicted, ANNOTATED, visible).figures()


def test_every_figure_is_a_column_with_a_heading_and_no_other() -> None:
    assert tuple(figures(ANNOTATED)) == tuple(FIGURES)
    assert set(FIGURES) < set(COLUMNS)
    assert [HEADINGS[name] for name in FIGURES] == [figure.heading for figure in FIGURES.values()]
    assert len(set(HEADINGS.values())) == len(COLUMNS)


def test_one_line_of_the_table_is_a_new_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "op90" not in figures(ANNOTATED)
    monkeypatch.setitem(FIGURES, "op90", Figure("OP90", lambda one: one.success[18] * 100))
    assert figures(ANNOTATED)["op90"] == 100
    assert figures(ANNOTATED + np.array([4.0, 0, 0, 0]))["op90"] < 100


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_falls_with_distance_and_stays_a_percentage(name: str) -> None:
    shifts = [0.0, 4.0, 12.0, 40.0, 400.0]
    values = [figures(ANNOTATED + np.array([shift, 0, 0, 0]))[name] for shift in shifts]
    assert values == sorted(values, reverse=True)
    assert values[0] > 95 and values[-1] < 10
    assert all(0 <= value <= 100 for value in values)


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "mean_iou"])
def test_an_absent_frame_counts_as_a_failure(name: str) -> None:
    hidden = VISIBLE.copy()
    hidden[10:] = False
    assert figures(ANNOTATED, hidden)[name] == pytest.approx(figures(ANNOTATED)[name] / 2)


@pytest.mark.parametrize("name", FIGURES)
def test_sequences_weigh_the_same_however_long(name: str) -> None:
    lost = np.full_like(ANNOTATED, 900.0)
    long, short = score(ANNOTATED, ANNOTATED, VISIBLE), score(lost[:5], ANNOTATED[:5], VISIBLE[:5])
    both: Scores = mean_scores([long, short])
    assert both.figures()[name] == pytest.approx((long.figures()[name] + short.figures()[name]) / 2)

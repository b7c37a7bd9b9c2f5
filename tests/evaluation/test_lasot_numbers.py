"""Published trackers' boxes on LaSOT's 280 test sequences give the toolkit's numbers; each known mistake does not."""

from collections.abc import Callable

import numpy as np
import pytest

from seqtrack.evaluation import metrics

from .conftest import EvaluationData

TOOLKIT = {
    "siamrpnpp": {"auc": 49.5591, "op50": 58.5536, "p20": 49.1437, "p_norm": 56.9406},
    "atom": {"auc": 51.4338, "op50": 59.1744, "p20": 50.5433, "p_norm": 57.6806},
}


def scored(data: EvaluationData, tracker: str, convention: metrics.Convention = metrics.TOOLKIT) -> metrics.Scores:
    boxes = data.results(tracker)
    return metrics.mean_scores(
        [metrics.score(boxes[s], data.boxes[s], data.visible[s], convention=convention) for s in data.spans()]
    )


@pytest.mark.parametrize("tracker", sorted(TOOLKIT))
def test_the_toolkits_numbers_to_the_last_published_digit(lasot_eval: EvaluationData, tracker: str) -> None:
    found = scored(lasot_eval, tracker)
    assert {name: round(found.metrics()[name], 4) for name in TOOLKIT[tracker]} == TOOLKIT[tracker]
    assert found.frames == 685_360


def test_the_python_evaluators_convention_gives_its_known_difference(lasot_eval: EvaluationData) -> None:
    found = scored(lasot_eval, "siamrpnpp", metrics.PYTRACKING).metrics()
    assert round(found["p20"], 4) == round(49.1437 - 0.0005, 4)
    assert (round(found["auc"], 4), round(found["p_norm"], 4)) == (49.5591, 56.9406)


def _sequence_aucs(data: EvaluationData, auc: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """Mean over sequences of `auc(IoU of every frame, visible)`, IoU as in `metrics`."""
    boxes = data.results("siamrpnpp")
    visible = data.visible
    aucs = [auc(metrics.frame_errors(boxes[s], data.boxes[s], visible[s]).iou, visible[s]) for s in data.spans()]
    return float(np.mean(aucs) * 100)


def _visible_frames_as_denominator(data: EvaluationData) -> float:
    return _sequence_aucs(
        data, lambda iou, visible: float((iou[visible, None] > metrics.SUCCESS_THRESHOLDS).sum() / visible.sum() / 21)
    )


def _at_least_instead_of_above(data: EvaluationData) -> float:
    return _sequence_aucs(data, lambda iou, _: float((iou[:, None] >= metrics.SUCCESS_THRESHOLDS).mean()))


def _a_hundred_and_one_thresholds(data: EvaluationData) -> float:
    return _sequence_aucs(data, lambda iou, _: float((iou[:, None] > np.arange(101) / 100).mean()))


def _frames_pooled_over_sequences(data: EvaluationData) -> float:
    boxes = data.results("siamrpnpp")
    iou = [metrics.frame_errors(boxes[s], data.boxes[s], data.visible[s]).iou for s in data.spans()]
    return float((np.concatenate(iou)[:, None] > metrics.SUCCESS_THRESHOLDS).mean() * 100)


def _absent_frames_scored(data: EvaluationData) -> float:
    boxes = data.results("siamrpnpp")
    visible = np.ones(len(boxes), dtype=bool)
    return metrics.mean_scores([metrics.score(boxes[s], data.boxes[s], visible[s]) for s in data.spans()]).auc


def _boxes_truncated(data: EvaluationData) -> float:
    boxes = np.trunc(data.results("siamrpnpp"))
    return metrics.mean_scores([metrics.score(boxes[s], data.boxes[s], data.visible[s]) for s in data.spans()]).auc


@pytest.mark.parametrize(
    ("mistake", "known"),
    [
        (_visible_frames_as_denominator, 50.550),
        (_at_least_instead_of_above, 50.719),
        (_a_hundred_and_one_thresholds, 50.059),
        (_frames_pooled_over_sequences, 49.061),
        (_absent_frames_scored, 49.610),
        (_boxes_truncated, 49.135),
    ],
)
def test_a_known_mistake_gives_another_number(
    lasot_eval: EvaluationData, mistake: Callable[[EvaluationData], float], known: float
) -> None:
    ours = scored(lasot_eval, "siamrpnpp").auc
    assert round(mistake(lasot_eval), 3) == known
    assert round(ours, 3) == 49.559 != known

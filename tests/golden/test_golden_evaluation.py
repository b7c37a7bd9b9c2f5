"""The authors' evaluator and ours agree frame by frame on the same boxes."""

import json

import model_sets as sets
import numpy as np
import pytest

from seqtrack.evaluation import metrics


@pytest.fixture(params=sets.find("pure*.npz", companion=".json"))
def golden(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    with np.load(request.param) as stored:
        arrays = {key: stored[key] for key in stored.files if key.startswith("ev_")}
    if not arrays:
        pytest.skip(f"{request.param.name} holds no evaluation")
    return arrays, json.loads(request.param.with_suffix(".json").read_text())


@pytest.mark.parametrize("kind", ["lasot", "otb"])
def test_frame_errors_equal_the_authors(golden: tuple[dict[str, np.ndarray], dict[str, float]], kind: str) -> None:
    """`otb` scores absent frames, `lasot` does not; both count a frame without annotation as an infinite distance."""
    arrays, _ = golden
    visible = arrays["ev_visible"].astype(bool) if kind == "lasot" else np.ones(len(arrays["ev_anno"]), dtype=bool)
    errors = metrics.frame_errors(arrays["ev_pred"], arrays["ev_anno"], visible, convention=metrics.PYTRACKING)
    np.testing.assert_allclose(errors.iou, arrays[f"ev_{kind}_overlap"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(errors.center, arrays[f"ev_{kind}_center"], rtol=1e-12)
    np.testing.assert_allclose(errors.norm_center, arrays[f"ev_{kind}_center_norm"], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["lasot", "otb"])
def test_curves_and_metrics_are_the_authors(golden: tuple[dict[str, np.ndarray], dict[str, float]], kind: str) -> None:
    arrays, numbers = golden
    visible = arrays["ev_visible"].astype(bool) if kind == "lasot" else np.ones(len(arrays["ev_anno"]), dtype=bool)
    scores = metrics.score(arrays["ev_pred"], arrays["ev_anno"], visible, convention=metrics.PYTRACKING)
    np.testing.assert_array_equal(scores.success.astype(np.float32), arrays[f"ev_{kind}_success"])
    np.testing.assert_array_equal(scores.precision.astype(np.float32), arrays[f"ev_{kind}_precision"])
    np.testing.assert_array_equal(scores.norm_precision.astype(np.float32), arrays[f"ev_{kind}_norm_precision"])
    assert scores.auc == pytest.approx(numbers[f"ev_{kind}_auc"], abs=1e-5)
    assert scores.metrics()["p20"] == numbers[f"ev_{kind}_prec20"]
    assert scores.metrics()["p_norm"] == numbers[f"ev_{kind}_nprec20"]


def test_iou_equals_the_authors(golden: tuple[dict[str, np.ndarray], dict[str, float]]) -> None:
    arrays, _ = golden
    # In the evaluation frame 1 is the annotation, so the plain overlap is compared here on all frames.
    np.testing.assert_allclose(
        metrics.iou_xywh(arrays["ev_pred"], arrays["ev_anno"]), arrays["ev_iou"], rtol=0, atol=1e-12
    )

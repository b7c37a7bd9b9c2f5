"""The authors' tracker and ours follow the same 13 frames with the same weights, template updates included."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from seqtrack.config.load import load_config
from seqtrack.evaluation.metrics import iou_xywh
from seqtrack.model.build import build_empty
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.tracking.settings import TrackerSettings
from seqtrack.tracking.tracker import BatchTracker

_FOLDER = os.environ.get("SEQTRACK_GOLDENS")
_SETS = sorted(Path(_FOLDER).glob("tracker_*.json")) if _FOLDER else []


def _recipes(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipes", folder / "recipes.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", params=_SETS or [None], ids=lambda path: path.stem if path else "no-goldens")
def golden(request: pytest.FixtureRequest) -> tuple[dict[str, Any], dict[str, np.ndarray], ModuleType, SeqTrack]:
    """What was recorded, the recipes, and a model with the recipes' weights."""
    if request.param is None:
        pytest.skip("SEQTRACK_GOLDENS names no folder with a set tracker_*.json")
    told = json.loads(request.param.read_text())
    recipes = _recipes(request.param.parent)
    with np.load(request.param.with_suffix(".npz")) as stored:
        arrays = {key: stored[key] for key in stored.files}
    model = build_empty(model_spec(load_config(told["config"]))).to_empty(device="cpu")
    weights = {
        name: torch.from_numpy(recipes.weight(name, tuple(value.shape), told["rule"]))
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(weights)
    return told, arrays, recipes, model.eval()


@pytest.mark.parametrize("mode", ["win", "nowin"])
def test_tracker_gives_the_authors_boxes(
    golden: tuple[dict[str, Any], dict[str, np.ndarray], ModuleType, SeqTrack], mode: str
) -> None:
    """Frame by frame. A near tie between two words may fall the other way; the next frame starts from their box."""
    told, arrays, recipes, model = golden
    frames, box = recipes.video(told["T"])
    tracker = BatchTracker(
        model,
        TrackerSettings(
            window=mode == "win",
            update_interval=told["update_interval"],
            update_threshold=told["update_threshold"],
        ),
    )
    (state,) = tracker.start([frames[0]], [box])
    flips = 0
    for index, frame in enumerate(frames[1:]):
        found = tracker.track([state], [frame])[0]
        expected_box = arrays[f"states_{mode}"][index]
        if list(found.tokens) != arrays[f"tokens_{mode}"][index].tolist():
            flips += 1
            state.box_xywh = expected_box.copy()
            if found.template_updated:
                tracker.renew_template(state, frame)
            continue
        # They divide words by bins - 1 in float32, we in float64: 1e-4 px apart in an image of 640 px.
        np.testing.assert_allclose(found.box_xywh, expected_box, rtol=0, atol=5e-4, err_msg=f"frame {index + 1}")
        np.testing.assert_allclose(found.confidences, arrays[f"conf_{mode}"][index], rtol=2e-3)
        assert found.score == pytest.approx(float(arrays[f"score_{mode}"][index]), rel=2e-3)
        assert found.template_updated == bool(arrays[f"updated_{mode}"][index])
    assert flips <= 1
    assert arrays[f"updated_{mode}"].any(), "the recorded run renews its template; without that this proves less"


def test_bfloat16_gives_boxes_that_agree(
    golden: tuple[dict[str, Any], dict[str, np.ndarray], ModuleType, SeqTrack],
) -> None:
    """Each frame from the authors' last box: at most one of five is another box than theirs."""
    told, arrays, recipes, model = golden
    frames, box = recipes.video(told["T"])
    tracker = BatchTracker(model, TrackerSettings(precision="bf16"))
    (state,) = tracker.start([frames[0]], [box])
    overlaps = []
    for frame, expected_box in zip(frames[1:6], arrays["states_win"][:5], strict=True):
        found = tracker.track([state], [frame])[0]
        overlaps.append(float(iou_xywh(found.box_xywh[None], expected_box[None])[0]))
        state.box_xywh = expected_box.copy()
    assert sum(overlap < 0.99 for overlap in overlaps) <= 1

"""State, template updates and refusals of the tracker. Equality with the authors' tracker is a golden test."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from seqtrack.config.loader import load_config
from seqtrack.errors import RunError, UserError
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.tracking.load import check_precision, tracker_settings
from seqtrack.tracking.tracker import BatchTracker, TrackerSettings, TrackResult

from .conftest import FIRST_BOX

NEVER = TrackerSettings(update_interval=9999)


def follow(model: SeqTrack, settings: TrackerSettings, frames: list[np.ndarray]) -> list[TrackResult]:
    tracker = BatchTracker(model, settings)
    state = tracker.start(frames[0], FIRST_BOX)
    return [tracker.track([state], [frame])[0] for frame in frames[1:]]


@pytest.mark.parametrize(
    ("interval", "threshold", "templates", "updated"),
    [(3, 0.0, 2, [False, False, True] * 3), (1, 40.0, 2, [False] * 9), (1, 0.0, 1, [False] * 9)],
)
def test_templates_are_updated_at_every_interval_if_the_score_is_above_the_threshold(
    model: SeqTrack, frames: list[np.ndarray], interval: int, threshold: float, templates: int, updated: list[bool]
) -> None:
    model = model if templates == 2 else build_model(model_spec(load_config("demo")), seed=1).eval()
    assert model.spec.num_templates == templates
    found = follow(model, TrackerSettings(update_interval=interval, update_threshold=threshold), frames)
    assert [one.template_updated for one in found] == updated


def test_the_first_template_stays_and_the_other_is_replaced(model: SeqTrack, frames: list[np.ndarray]) -> None:
    tracker = BatchTracker(model, TrackerSettings(update_interval=1, update_threshold=0.0))
    state = tracker.start(frames[0], FIRST_BOX)
    first, second = state.templates.clone()
    assert torch.equal(first, second)
    seen = [second]
    for number, frame in enumerate(frames[1:4], start=1):
        found = tracker.track([state], [frame])[0].box_xywh
        assert state.frame == number and state.box_xywh is not found and (state.box_xywh == found).all()
        assert state.templates.shape[0] == 2 and torch.equal(state.templates[0], first)
        assert not any(torch.equal(state.templates[1], older) for older in seen)
        seen.append(state.templates[1].clone())


def test_boxes_stay_in_the_image_and_keep_ten_pixels(model: SeqTrack, frames: list[np.ndarray]) -> None:
    found = np.stack([one.box_xywh for one in follow(model, NEVER, frames * 3)])
    assert (found[:, 2:] >= 10 - 1e-9).all() and (found[:, :2] >= 0).all()
    assert (found[:, 0] + 10 <= 128 + 1e-9).all() and (found[:, 1] + 10 <= 96 + 1e-9).all()
    # The crop around a box of one pixel is four pixels wide, so no box found in it can be wider.
    tracker = BatchTracker(model, NEVER)
    state = tracker.start(frames[0], FIRST_BOX)
    state.box_xywh = np.array([126.0, 94.0, 1.0, 1.0])
    box = tracker.track([state], [frames[1]])[0].box_xywh
    assert box[2:].tolist() == [10, 10] and box[0] <= 118 and box[1] <= 86


def test_rates_take_a_box_a_part_of_the_way_to_the_found_one(model: SeqTrack, frames: list[np.ndarray]) -> None:
    found = follow(model, NEVER, frames[:2])[0].box_xywh
    first = follow(model, TrackerSettings(center_rate=1e-9, size_rate=0), frames[:2])[0].box_xywh
    half = follow(model, TrackerSettings(center_rate=0.5, size_rate=0.5), frames[:2])[0].box_xywh
    assert not np.allclose(found, first, atol=1)
    np.testing.assert_allclose(half[2:], np.sqrt(found[2:] * first[2:]))
    centres = [box[:2] + box[2:] / 2 for box in (found, first, half)]
    np.testing.assert_allclose(centres[2], (centres[0] + centres[1]) / 2, atol=1e-6)


@pytest.mark.parametrize(("precision", "close"), [("bf16", 0.2), ("fp16", 0.02)])
def test_16_bits_use_a_copy_and_leave_the_model_alone(
    model: SeqTrack, frames: list[np.ndarray], precision: str, close: float
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = follow(model, NEVER, frames[:3])
    coarse = follow(model, TrackerSettings(precision=precision), frames[:3])
    after = model.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, after[name]) for name, value in before.items())
    assert plain[0].confidences != coarse[0].confidences, f"{precision} was not used"
    np.testing.assert_allclose(coarse[0].confidences, plain[0].confidences, rtol=close)


@pytest.mark.parametrize(("precision", "inside", "before"), [("fp32", False, True), ("tf32", True, False)])
def test_tf32_is_switched_for_the_encoder_alone_and_put_back(
    model: SeqTrack, frames: list[np.ndarray], monkeypatch: pytest.MonkeyPatch,
    precision: str, inside: bool, before: bool,
) -> None:  # fmt: skip
    for switches in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(switches, "allow_tf32", before)
    seen = []
    hook = model.encoder.register_forward_hook(
        lambda *_: seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
    )
    follow(model, TrackerSettings(precision=precision), frames[:2])
    hook.remove()
    assert seen == [(inside, inside)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (before, before)


def test_a_precision_that_the_device_has_no_units_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {(None, "tf32"), (None, "fp16"), ((7, 5), "tf32"), ((7, 5), "bf16")}
    for capability, precision in itertools.product((None, (7, 5), (8, 0)), ("fp32", "tf32", "bf16", "fp16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        device, code = torch.device("cuda" if capability else "cpu"), None
        try:
            check_precision(precision, device)
        except UserError as error:
            code = error.code
        where = "gpu" if capability else "cpu"
        assert code == (f"tracking.precision_on_{where}" if (capability, precision) in none else None)


def test_probabilities_that_are_not_finite_end_tracking(model: SeqTrack, frames: list[np.ndarray]) -> None:
    broken = copy.deepcopy(model)
    broken.pos_embed.data.fill_(float("nan"))
    with pytest.raises(RunError) as error:
        follow(broken, NEVER, frames[:2])
    assert error.value.code == "tracking.not_finite"


def test_a_first_box_that_cannot_be_tracked_is_refused(model: SeqTrack, frames: list[np.ndarray]) -> None:
    for box in ("300,10,20,20", "-50,10,20,20", "10,10,0,20", "10,10,20,-4", "10,nan,20,20", "10,10,20"):
        with pytest.raises(UserError) as error:
            BatchTracker(model, NEVER).start(frames[0], [float(value) for value in box.split(",")])
        assert error.value.code == "track.box"
    boxes: list[Any] = [None, "box", [[1, 2], [3]], [[1, 2], [3, 4]], [1, 2, 3, "x"], [1, 2, 1e-200, 1e-200]]
    for wrong in (*boxes, [-4e9, -4e9, 8e9, 8e9], [-5e199, -5e199, 1e200, 1e200], [1, 2, 1e308, 1e308]):
        with pytest.raises(UserError) as error:
            BatchTracker(model, NEVER).start(frames[0], wrong)
        assert error.value.code == "track.box"


def test_settings_of_a_data_set_or_the_default(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config("seqtrack_b256")
    intervals = config.TEST.UPDATE_INTERVALS
    assert intervals.LASOT != intervals.DEFAULT
    with caplog.at_level("INFO"):
        assert tracker_settings(config, dataset="LaSOT").update_interval == intervals.LASOT
        assert tracker_settings(config, dataset=None).update_interval == intervals.DEFAULT
        assert not caplog.text
        assert tracker_settings(config, dataset="lasot_lmdb").update_interval == intervals.DEFAULT
    assert "LASOT_LMDB" in caplog.text

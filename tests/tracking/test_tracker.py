"""State, template updates and refusals of the tracker. Equality with the authors' tracker is a golden test."""

import copy

import numpy as np
import pytest
import torch

from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.errors import RunError, UserError
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.tracking.settings import TrackerSettings, check_precision, tracker_settings
from seqtrack.tracking.tracker import BatchTracker, TrackResult

from .conftest import FIRST_BOX

NEVER = TrackerSettings(update_interval=9999)


def follow(model: SeqTrack, settings: TrackerSettings, frames: list[np.ndarray]) -> list[TrackResult]:
    tracker = BatchTracker(model, settings)
    states = tracker.start([frames[0]], [FIRST_BOX])
    return [tracker.track(states, [frame])[0] for frame in frames[1:]]


def test_many_sequences_at_once_are_tracked_as_each_alone(model: SeqTrack, frames: list[np.ndarray]) -> None:
    videos = [frames, frames[::-1], [np.flip(frame, 1).copy() for frame in frames]]
    first = [FIRST_BOX, (58.0, 39.0, 24.0, 20.0), (64.0, 30.0, 24.0, 20.0)]
    alone = []
    for video, box in zip(videos, first, strict=True):
        tracker = BatchTracker(model, NEVER)
        states = tracker.start([video[0]], [box])
        alone.append([tracker.track(states, [frame])[0].tokens for frame in video[1:]])
    batch = BatchTracker(model, NEVER)
    states = batch.start([video[0] for video in videos], first)
    together = []
    for images in list(zip(*videos, strict=True))[1:]:
        together.append([one.tokens for one in batch.track(states, list(images))])
    assert [list(column) for column in zip(*together, strict=True)] == alone
    assert alone[0] != alone[1], "the videos differ, so equal boxes would prove nothing"


def test_a_state_is_updated_independently_of_other_sequences(model: SeqTrack, frames: list[np.ndarray]) -> None:
    batch = BatchTracker(model, NEVER)
    one, other = batch.start([frames[0], frames[5]], [FIRST_BOX, FIRST_BOX])
    before = other.box_xywh.copy()
    found = batch.track([one], [frames[1]])[0]
    assert one.frame == 1 and one.box_xywh.tolist() == found.box_xywh.tolist()
    assert other.frame == 0 and other.box_xywh.tolist() == before.tolist()
    found.box_xywh[:] = 0
    assert one.box_xywh.tolist() != [0, 0, 0, 0], "writing into a result does not change the tracker"


def test_a_model_in_training_mode_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match="eval"):
        BatchTracker(build_model(model_spec(config), seed=1), NEVER)


def test_the_window_favours_boxes_near_the_previous_one(model: SeqTrack, frames: list[np.ndarray]) -> None:
    bins = model.spec.bins
    windowed = follow(model, TrackerSettings(window=True), frames)
    assert all(0 < token < bins - 1 for one in windowed for token in one.tokens[:2])
    plain = follow(model, TrackerSettings(window=False), frames)
    assert windowed[0].tokens != plain[0].tokens
    assert windowed[0].confidences[0] <= plain[0].confidences[0]


class TestTemplates:
    def test_are_updated_at_every_interval_if_the_score_is_above_the_threshold(
        self, model: SeqTrack, frames: list[np.ndarray]
    ) -> None:
        found = follow(model, TrackerSettings(update_interval=3, update_threshold=0.0), frames)
        assert [one.template_updated for one in found] == [False, False, True] * 3
        found = follow(model, TrackerSettings(update_interval=1, update_threshold=40.0), frames)
        assert not any(one.template_updated for one in found)

    def test_the_first_one_stays_and_the_other_is_replaced(self, model: SeqTrack, frames: list[np.ndarray]) -> None:
        batch = BatchTracker(model, TrackerSettings(update_interval=1, update_threshold=0.0))
        (state,) = batch.start([frames[0]], [FIRST_BOX])
        first, second = state.templates.clone()
        assert torch.equal(first, second)
        seen = [second]
        for frame in frames[1:4]:
            batch.track([state], [frame])
            assert state.templates.shape[0] == 2 and torch.equal(state.templates[0], first)
            assert not any(torch.equal(state.templates[1], older) for older in seen)
            seen.append(state.templates[1].clone())

    def test_a_model_with_one_template_never_updates_it(self, frames: list[np.ndarray]) -> None:
        model = build_model(model_spec(load_config("demo")), seed=1).eval()
        assert model.spec.num_templates == 1
        found = follow(model, TrackerSettings(update_interval=1, update_threshold=0.0), frames)
        assert not any(one.template_updated for one in found)


def test_boxes_stay_in_the_image_and_keep_ten_pixels(model: SeqTrack, frames: list[np.ndarray]) -> None:
    found = np.stack([one.box_xywh for one in follow(model, NEVER, frames * 3)])
    assert (found[:, 2:] >= 10 - 1e-9).all()
    assert (found[:, :2] >= 0).all()
    assert (found[:, 0] + 10 <= 128 + 1e-9).all() and (found[:, 1] + 10 <= 96 + 1e-9).all()


def test_a_box_that_shrank_is_enlarged_to_ten_pixels(model: SeqTrack, frames: list[np.ndarray]) -> None:
    """The crop around a box of one pixel is four pixels wide, so no box found in it can be wider."""
    batch = BatchTracker(model, NEVER)
    (state,) = batch.start([frames[0]], [FIRST_BOX])
    state.box_xywh = np.array([126.0, 94.0, 1.0, 1.0])
    found = batch.track([state], [frames[1]])[0].box_xywh
    assert found[2:].tolist() == [10, 10]
    assert found[0] <= 118 and found[1] <= 86


@pytest.mark.parametrize(("precision", "close"), [("bf16", 0.2), ("fp16", 0.02)])
def test_16_bits_use_a_copy_and_leave_the_model_alone(
    model: SeqTrack, frames: list[np.ndarray], precision: str, close: float
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = follow(model, NEVER, frames)
    coarse = follow(model, TrackerSettings(update_interval=9999, precision=precision), frames)
    after = model.state_dict()
    assert all(value.dtype == torch.float32 and torch.equal(value, after[name]) for name, value in before.items())
    assert plain[0].confidences != coarse[0].confidences, f"{precision} was not used"
    np.testing.assert_allclose(coarse[0].confidences, plain[0].confidences, rtol=close)


@pytest.mark.parametrize(("precision", "inside", "before"), [("fp32", False, True), ("tf32", True, False)])
def test_tf32_is_switched_for_the_encoder_alone_and_put_back(
    model: SeqTrack,
    frames: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    inside: bool,
    before: bool,
) -> None:
    for switches in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(switches, "allow_tf32", before)
    seen = []
    hook = model.encoder.register_forward_hook(
        lambda *_: seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
    )
    found = follow(model, TrackerSettings(update_interval=9999, precision=precision), frames[:2])
    hook.remove()
    assert seen == [(inside, inside)]
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (before, before)
    assert found[0].box_xywh.tolist() == follow(model, NEVER, frames[:2])[0].box_xywh.tolist()


@pytest.mark.parametrize(
    ("precision", "capability", "code"),
    [
        ("fp32", None, None),
        ("bf16", None, None),
        ("tf32", None, "tracking.precision_on_cpu"),
        ("fp16", None, "tracking.precision_on_cpu"),
        ("tf32", (7, 5), "tracking.precision_on_gpu"),
        ("bf16", (7, 5), "tracking.precision_on_gpu"),
        ("fp16", (7, 5), None),
        ("tf32", (8, 6), None),
        ("bf16", (8, 0), None),
    ],
)
def test_a_precision_that_the_device_has_no_units_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, precision: str, capability: tuple[int, int] | None, code: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    device = torch.device("cpu" if capability is None else "cuda")
    if code is None:
        check_precision(precision, device)
    else:
        with pytest.raises(UserError) as error:
            check_precision(precision, device)
        assert error.value.code == code and precision in str(error.value)


def test_probabilities_that_are_not_finite_end_tracking(model: SeqTrack, frames: list[np.ndarray]) -> None:
    broken = copy.deepcopy(model)
    broken.pos_embed.data.fill_(float("nan"))
    with pytest.raises(RunError) as error:
        follow(broken, NEVER, frames)
    assert error.value.code == "tracking.not_finite"


@pytest.mark.parametrize(
    "box",
    [
        (300.0, 10.0, 20.0, 20.0), (-50.0, 10.0, 20.0, 20.0), (10.0, 10.0, 0.0, 20.0), (10.0, 10.0, 20.0, -4.0),
        (10.0, float("nan"), 20.0, 20.0), (10.0, 10.0, 20.0),
    ],
)  # fmt: skip
def test_a_first_box_that_cannot_be_tracked_is_refused(
    model: SeqTrack, frames: list[np.ndarray], box: tuple[float, ...]
) -> None:
    with pytest.raises(UserError) as error:
        BatchTracker(model, NEVER).start([frames[0]], [box])
    assert error.value.code == "track.box"


def test_a_first_box_that_reaches_over_the_edge_is_followed(model: SeqTrack, frames: list[np.ndarray]) -> None:
    tracker = BatchTracker(model, NEVER)
    states = tracker.start([frames[0]], [(-8.0, -8.0, 24.0, 24.0)])
    assert np.isfinite(tracker.track(states, [frames[1]])[0].box_xywh).all()


def test_settings_of_a_data_set_or_the_default(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config("seqtrack_b256")
    intervals = config.TEST.UPDATE_INTERVALS
    assert intervals.LASOT != intervals.DEFAULT
    with caplog.at_level("INFO"):
        assert tracker_settings(config, dataset="LaSOT").update_interval == intervals.LASOT
        assert tracker_settings(config, dataset=None).update_interval == intervals.DEFAULT
        assert not caplog.text
        assert tracker_settings(config, dataset="lasot_lmdb").update_interval == intervals.DEFAULT
    assert "LASOT_LMDB" in caplog.text and "DEFAULT" in caplog.text

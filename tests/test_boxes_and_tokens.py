"""Known values of box conversions, IoU, tokens, windows and seeds; their properties are in test_pure_properties."""

import numpy as np
import pytest
import torch

from seqtrack import boxes
from seqtrack.seeding import sample_generator, step_seed
from seqtrack.tokens import (
    boxes_to_tokens,
    centre_positions,
    end_token,
    hann_window,
    start_token,
    target_sequences,
    tokens_to_boxes,
    vocabulary_size,
)  # fmt: skip


def test_iou_of_known_boxes() -> None:
    a, point = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0], [4.0, 4.0, 6.0, 6.0]])
    assert boxes.iou(a, others).tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.0])
    assert boxes.iou(point, point).tolist() == boxes.iou(point, a).tolist() == [0.0], "not NaN"


def test_a_centred_box_is_mapped_around_the_previous_centre() -> None:
    previous = torch.tensor([[100.0, 50.0, 40.0, 20.0]], dtype=torch.float64)
    coordinates = torch.tensor([[0.5, 0.5, 0.25, 0.125]], dtype=torch.float64)
    back = boxes.search_to_image(coordinates, previous, resize_factor=2.0, search_size_px=256)
    assert back.tolist() == [[120 - 16, 60 - 8, 32.0, 16.0]]


def test_clipping_keeps_a_margin_inside_and_does_not_change_inner_boxes() -> None:
    given = torch.tensor([[10.0, 10.0, 20.0, 20.0], [200.0, -50.0, 20.0, 20.0]])
    clipped = boxes.clip_to_image(given, height_px=80, width_px=100, margin_px=10)
    assert clipped.tolist() == [[10.0, 10.0, 20.0, 20.0], [90.0, 0.0, 10.0, 10.0]]


def test_the_vocabulary_ends_with_end_and_start_and_values_are_truncated() -> None:
    assert (end_token(4000), start_token(4000), vocabulary_size(4000)) == (4000, 4001, 4002)
    assert boxes_to_tokens(torch.tensor([0.9999, 0.0, 1.0, 0.5]), 101).tolist() == [99, 0, 100, 50]


def test_a_box_that_leaves_the_region_is_clipped_and_nan_is_refused() -> None:
    _, targets = target_sequences(torch.tensor([[0.0, 0.5, 0.4, 0.2]]), 1001)
    assert tokens_to_boxes(targets[:, :4], 1001)[0].tolist() == pytest.approx([0.1, 0.5, 0.2, 0.2], abs=2e-3)
    for value in (float("nan"), float("inf"), -1e-6, 1.001):
        with pytest.raises(ValueError):
            boxes_to_tokens(torch.tensor([[0.5, 0.5, value, 0.5]]), 1001)
    with pytest.raises(ValueError):
        target_sequences(torch.tensor([[float("nan"), 0.5, 0.4, 0.2]]), 1001)


def test_formats_differ_in_order() -> None:
    box = torch.tensor([[0.5, 0.25, 0.2, 0.1]])
    coordinates = {name: target_sequences(box, 1001, name)[1][0, :4].tolist() for name in ("xywh", "whxy", "corner")}
    assert coordinates["xywh"] == [500, 250, 200, 100]
    assert coordinates["whxy"] == [200, 100, 500, 250]
    assert coordinates["corner"] == (boxes.cxcywh_to_xyxy(box)[0] * 1000).long().tolist()
    assert [centre_positions(name) for name in coordinates] == [(0, 1), (2, 3), ()]


def test_the_window_is_exact_float64() -> None:
    window = hann_window(101)
    assert window.dtype == torch.float64
    assert window[[0, -1]].tolist() == [0.0, 0.0] and window[50].item() == pytest.approx(1.0)
    assert torch.allclose(window, window.flip(0), atol=1e-12) and bool((window[:51].diff() > 0).all())


def test_random_numbers_never_change() -> None:
    """A run of an earlier version can be resumed only with the same numbers."""
    assert float(sample_generator(42, 1, 0).random()) == 0.31060193492070687
    assert step_seed(42, 0, 0) == 1609198741908217774
    with pytest.raises(ValueError):
        sample_generator(-1, 0, 0)


def test_numpys_global_generator_is_not_used() -> None:
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    sample_generator(1, 1, 1).random(1000)
    step_seed(1, 1, 1)
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()  # noqa: NPY002

"""Boxes and tokens: quantization can be decoded, and invalid boxes are refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seqtrack.boxes import cxcywh_to_xyxy
from seqtrack.tokens import (
    boxes_to_tokens,
    centre_positions,
    end_token,
    hann_window,
    start_token,
    target_sequences,
    tokens_to_boxes,
    vocabulary_size,
)

FORMATS = ("xywh", "cxcywh", "whxy", "corner")
side = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(corners=st.tuples(side, side, side, side), seq_format=st.sampled_from(FORMATS), bins=st.sampled_from((64, 4000)))
def test_a_box_inside_the_region_is_decoded_within_one_bin(
    corners: tuple[float, ...], seq_format: str, bins: int
) -> None:
    x0, y0, x1, y1 = corners
    box = torch.tensor([[(x0 + x1) / 2, (y0 + y1) / 2, abs(x1 - x0), abs(y1 - y0)]])
    _, targets = target_sequences(box, bins, seq_format)
    read = tokens_to_boxes(targets[:, :4], bins, seq_format)
    # Each corner is truncated by up to a bin, so a size computed from two may be off by one bin.
    assert (read - box).abs().max().item() <= 1.001 / (bins - 1)


def test_the_vocabulary_ends_with_end_and_start() -> None:
    assert (end_token(4000), start_token(4000), vocabulary_size(4000)) == (4000, 4001, 4002)


def test_inputs_begin_with_start_and_targets_end_with_end() -> None:
    inputs, targets = target_sequences(torch.tensor([[0.4, 0.5, 0.2, 0.1], [0.3, 0.6, 0.5, 0.4]]), 100)
    assert inputs[:, 0].tolist() == [101, 101]
    assert targets[:, -1].tolist() == [100, 100]
    assert inputs[:, 1:].tolist() == targets[:, :-1].tolist()
    assert inputs.dtype == targets.dtype == torch.int64


def test_values_are_truncated_not_rounded() -> None:
    assert boxes_to_tokens(torch.tensor([0.9999, 0.0, 1.0, 0.5]), 101).tolist() == [99, 0, 100, 50]


@pytest.mark.parametrize("value", [-0.001, 1.001, float("nan"), float("inf")])
def test_a_coordinate_outside_the_region_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="outside"):
        boxes_to_tokens(torch.tensor([[0.5, value, 0.5, 0.5]]), 100)


def test_a_box_that_leaves_the_region_is_clipped() -> None:
    _, targets = target_sequences(torch.tensor([[0.0, 0.5, 0.4, 0.2]]), 1001)
    assert tokens_to_boxes(targets[:, :4], 1001)[0].tolist() == pytest.approx([0.1, 0.5, 0.2, 0.2], abs=2e-3)


def test_a_box_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="outside"):
        target_sequences(torch.tensor([[float("nan"), 0.5, 0.4, 0.2]]), 1001)


def test_formats_differ_in_order_and_an_unknown_one_is_refused() -> None:
    box = torch.tensor([[0.5, 0.25, 0.2, 0.1]])
    coordinates = {name: target_sequences(box, 1001, name)[1][0, :4].tolist() for name in FORMATS}
    assert coordinates["cxcywh"] == coordinates["xywh"] == [500, 250, 200, 100]
    assert coordinates["whxy"] == [200, 100, 500, 250]
    assert coordinates["corner"] == (cxcywh_to_xyxy(box)[0] * 1000).long().tolist()
    with pytest.raises(ValueError, match="xyxy"):
        target_sequences(box, 1001, "xyxy")


def test_the_window_applies_to_the_centre_tokens_and_not_in_corner_format() -> None:
    assert [centre_positions(name) for name in FORMATS] == [(0, 1), (0, 1), (2, 3), ()]


def test_the_window_is_one_in_the_middle_zero_at_the_ends_and_symmetric() -> None:
    window = hann_window(101)
    assert window.dtype == torch.float64
    assert window[50].item() == pytest.approx(1.0)
    assert window[[0, -1]].tolist() == [0.0, 0.0]
    torch.testing.assert_close(window, window.flip(0), rtol=0, atol=1e-15)

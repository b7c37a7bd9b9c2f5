"""Box conversions and overlaps."""

import pytest
import torch

from seqtrack import boxes


def _boxes(count: int = 50) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(count, 4, generator=generator, dtype=torch.float64) * 90 + torch.arange(count)[:, None]


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (boxes.xywh_to_xyxy, boxes.xyxy_to_xywh),
        (boxes.xywh_to_cxcywh, boxes.cxcywh_to_xywh),
        (boxes.cxcywh_to_xyxy, boxes.xyxy_to_cxcywh),
    ],
)
def test_conversions_undo_each_other(there, back) -> None:
    given = _boxes()
    torch.testing.assert_close(back(there(given)), given)
    assert not torch.allclose(there(given), given)


def test_overlap_of_known_boxes() -> None:
    a = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    others = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [2.0, 0.0, 4.0, 2.0], [4.0, 4.0, 6.0, 6.0]])
    assert boxes.iou(a, others).tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.0])


def test_boxes_without_area_have_no_overlap_and_no_nan() -> None:
    point = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert boxes.iou(point, point).tolist() == [0.0]
    assert boxes.iou(point, torch.tensor([[0.0, 0.0, 2.0, 2.0]])).tolist() == [0.0]


def test_a_centred_box_is_mapped_around_the_previous_centre() -> None:
    previous = torch.tensor([[100.0, 50.0, 40.0, 20.0]], dtype=torch.float64)
    coordinates = torch.tensor([[0.5, 0.5, 0.25, 0.125]], dtype=torch.float64)
    back = boxes.search_to_image(coordinates, previous, resize_factor=2.0, search_size_px=256)
    assert back.tolist() == [[120 - 16, 60 - 8, 32.0, 16.0]]


def test_clipping_keeps_a_margin_inside_and_does_not_change_inner_boxes() -> None:
    given = torch.tensor([[10.0, 10.0, 20.0, 20.0], [200.0, -50.0, 20.0, 20.0]])
    clipped = boxes.clip_to_image(given, height_px=80, width_px=100, margin_px=10)
    assert clipped.tolist() == [[10.0, 10.0, 20.0, 20.0], [90.0, 0.0, 10.0, 10.0]]

"""Boxes, tokens, windows, positions, normalization and names against the authors' functions (pure.npz, keys_*)."""

import json
from pathlib import Path

import model_sets as sets
import pytest
import torch
from torch import Tensor

from seqtrack import boxes
from seqtrack.model.build import build_empty
from seqtrack.model.images import normalise
from seqtrack.model.positions import sinusoid_1d
from seqtrack.tokens import hann_window, target_sequences, target_sequences_from_corners, tokens_to_boxes


@pytest.fixture(scope="module", params=sets.find("pure*.npz"))
def pure(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    """All numeric arrays as tensors."""
    arrays = sets.read(request.param)
    return {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind in "fiub"}


@pytest.mark.parametrize("seq_format", ["xywh", "whxy", "corner"])
def test_golden_tokens_of_boxes_in_all_formats(pure: dict[str, Tensor], seq_format: str) -> None:
    """Boxes inside the region, partly outside, or without size."""
    anno = pure["tok_boxes_xywh"]
    for inputs, targets in (
        target_sequences_from_corners(boxes.xywh_to_xyxy(anno), 4000, seq_format),
        target_sequences(boxes.xywh_to_cxcywh(anno), 4000, seq_format),
    ):
        assert inputs.tolist() == pure[f"tok_in_{seq_format}"].tolist()
        assert targets.tolist() == pure[f"tok_target_{seq_format}"].tolist()


def test_golden_tokens_to_image_boxes(pure: dict[str, Tensor]) -> None:
    """Decoded, mapped back around the previous state, clipped. The authors compute in float32."""
    rows = pure["detok"]
    read = tokens_to_boxes(rows[:, :4].long(), 4000)
    factor = rows[:, 8]
    torch.testing.assert_close(read * (256 / factor)[:, None], rows[:, 9:13], rtol=0, atol=5e-5)
    mapped = boxes.search_to_image(read, rows[:, 4:8], resize_factor=factor, search_size_px=256)
    torch.testing.assert_close(mapped, rows[:, 13:17], rtol=0, atol=5e-5)
    clipped = boxes.clip_to_image(mapped, height_px=360, width_px=640, margin_px=10)
    torch.testing.assert_close(clipped, rows[:, 17:21], rtol=0, atol=5e-5)


@pytest.mark.parametrize("margin", [0, 10])
def test_golden_clipping_to_the_image(pure: dict[str, Tensor], margin: int) -> None:
    """Boxes inside, across and outside an image of 640 x 360 px."""
    clipped = boxes.clip_to_image(pure["clip_in"], height_px=360, width_px=640, margin_px=margin)
    torch.testing.assert_close(clipped, pure[f"clip_m{margin}"], rtol=0, atol=0)


def test_golden_iou_and_conversions(pure: dict[str, Tensor]) -> None:
    """32 pairs of boxes."""
    a, b = boxes.xywh_to_xyxy(pure["bo_A"]), boxes.xywh_to_xyxy(pure["bo_B"])
    torch.testing.assert_close(boxes.iou(a, b), pure["bo_iou"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(boxes.xyxy_to_cxcywh(a), pure["bo_cxcywh"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(a)), pure["bo_back"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(boxes.xywh_to_cxcywh(pure["bo_A"]), pure["bo_xywh_cxcywh"], rtol=1e-6, atol=1e-5)


def test_golden_iou_of_empty_boxes_is_zero_where_theirs_is_nan(pure: dict[str, Tensor]) -> None:
    """A deliberate difference: NaN would spoil the logged mean."""
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert bool(pure["iou_degenerate"].isnan().all())
    assert boxes.iou(point, point).tolist() == [0.0]


def test_golden_window(pure: dict[str, Tensor]) -> None:
    """Hann in float64: the two ends are exactly zero."""
    torch.testing.assert_close(hann_window(4000), pure["hann"], rtol=0, atol=1e-15)
    assert hann_window(4000)[[0, -1]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("length", [256, 576])
def test_golden_sinusoid_table(pure: dict[str, Tensor], length: int) -> None:
    """The memory's initial positions; of the longer table every eighth channel is stored."""
    theirs = pure[f"sinus_{length}"]
    ours = sinusoid_1d(length, 256)
    ours = ours if theirs.shape[1] == 256 else ours[:, ::8]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize("factor", ["0.8", "1", "1.2"])
def test_golden_brightness_and_normalisation(pure: dict[str, Tensor], factor: str) -> None:
    """Bytes to encoder input: brightened, clamped, normalized."""
    image = pure["small_image"].permute(2, 0, 1)
    ours = normalise(image[None], torch.tensor([float(factor)]))[0]
    torch.testing.assert_close(ours, pure[f"jitnorm_{factor}"], rtol=1e-6, atol=1e-6)
    plain = normalise(image[None], torch.tensor([float(factor)]), mean=(0, 0, 0), std=(1, 1, 1))[0]
    torch.testing.assert_close(plain, pure[f"jit_{factor}"], rtol=1e-6, atol=1e-7)


def test_golden_preprocessing_of_the_tracker(pure: dict[str, Tensor]) -> None:
    """Without brightness."""
    image = pure["small_image"].permute(2, 0, 1)
    torch.testing.assert_close(normalise(image[None]), pure["preproc_test"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", sets.find("keys_*.json"))
def test_golden_names_shapes_and_order_of_the_state_dict(path: Path) -> None:
    """The authors' keys are ours: same names, same shapes, no buffers."""
    facts = json.loads(path.read_text())
    size = path.stem.removeprefix("keys_")
    model = build_empty(sets.spec_of_size(size))
    assert {name: [*value.shape] for name, value in model.state_dict().items()} == facts["keys"]
    assert sum(p.numel() for p in model.parameters()) == facts["total_params"]
    assert not list(model.buffers())

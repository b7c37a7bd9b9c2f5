"""Functions without a model against the authors' (pure.npz, keys_*): tokens, boxes, crops, sampling, evaluation."""

import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import model_sets as sets
import numpy as np
import pytest
import torch
from torch import Tensor

from seqtrack import boxes
from seqtrack.config.schema import IMAGENET_MEAN, IMAGENET_STD
from seqtrack.data.crop import (
    AUTHORS_SEARCH_JITTER,
    NO_JITTER,
    Jitter,
    box_in_crop,
    crop_frame,
    crop_window,
    cut,
    jitter_box,
    mirror,
    mirror_box,
    to_grey,
)
from seqtrack.data.dataset import draw_frames
from seqtrack.evaluation import metrics
from seqtrack.model.build import build_empty, sinusoid_1d
from seqtrack.model.images import normalise
from seqtrack.seeding import sample_generator
from seqtrack.tokens import hann_window, target_sequences, tokens_to_boxes

IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


class Golden:
    """A set's arrays, the same as tensors, and its numbers."""

    def __init__(self, path: Path) -> None:
        self.arrays = sets.read(path)
        self.numbers: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key])


@pytest.fixture(scope="module", params=sets.find("pure*.npz", companion=".json"))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.mark.parametrize("path", sets.find("keys_*.json"))
def test_golden_names_shapes_and_order_of_the_state_dict(path: Path) -> None:
    facts = json.loads(path.read_text())
    model = build_empty(sets.spec_of_size(path.stem.removeprefix("keys_")))
    assert {name: [*value.shape] for name, value in model.state_dict().items()} == facts["keys"]
    assert sum(p.numel() for p in model.parameters()) == facts["total_params"]
    assert not list(model.buffers())


@pytest.mark.parametrize("seq_format", ["xywh", "whxy", "corner"])
def test_golden_tokens_of_boxes_in_all_formats(golden: Golden, seq_format: str) -> None:
    """Boxes inside the region, partly outside, or without size."""
    inputs, targets = target_sequences(boxes.xywh_to_cxcywh(golden["tok_boxes_xywh"]), 4000, seq_format)
    assert inputs.tolist() == golden[f"tok_in_{seq_format}"].tolist()
    assert targets.tolist() == golden[f"tok_target_{seq_format}"].tolist()


def test_golden_tokens_to_image_boxes(golden: Golden) -> None:
    """Decoded, mapped back around the previous state, clipped. The authors compute in float32."""
    rows = golden["detok"]
    read = tokens_to_boxes(rows[:, :4].long(), 4000)
    factor = rows[:, 8]
    torch.testing.assert_close(read * (256 / factor)[:, None], rows[:, 9:13], rtol=0, atol=5e-5)
    mapped = boxes.search_to_image(read, rows[:, 4:8], resize_factor=factor, search_size_px=256)
    torch.testing.assert_close(mapped, rows[:, 13:17], rtol=0, atol=5e-5)
    clipped = boxes.clip_to_image(mapped, height_px=360, width_px=640, margin_px=10)
    torch.testing.assert_close(clipped, rows[:, 17:21], rtol=0, atol=5e-5)
    for margin in (0, 10):
        clipped = boxes.clip_to_image(golden["clip_in"], height_px=360, width_px=640, margin_px=margin)
        torch.testing.assert_close(clipped, golden[f"clip_m{margin}"], rtol=0, atol=0)


def test_golden_iou_and_conversions(golden: Golden) -> None:
    a, b = (torch.cat((one[..., :2], one[..., :2] + one[..., 2:]), -1) for one in (golden["bo_A"], golden["bo_B"]))
    torch.testing.assert_close(boxes.iou(a, b), golden["bo_iou"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(boxes.xyxy_to_cxcywh(a), golden["bo_cxcywh"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(a)), golden["bo_back"], rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(boxes.xywh_to_cxcywh(golden["bo_A"]), golden["bo_xywh_cxcywh"], rtol=1e-6, atol=1e-5)
    # A deliberate difference: the authors' NaN would spoil the logged mean.
    point = torch.tensor([[5.0, 5.0, 5.0, 5.0]])
    assert bool(golden["iou_degenerate"].isnan().all()) and boxes.iou(point, point).tolist() == [0.0]


def test_golden_window_and_sinusoid_tables(golden: Golden) -> None:
    """Hann in float64, exactly zero at both ends; of the longer table every eighth channel is stored."""
    torch.testing.assert_close(hann_window(4000), golden["hann"], rtol=0, atol=1e-15)
    assert hann_window(4000)[[0, -1]].tolist() == [0.0, 0.0]
    for length in (256, 576):
        theirs = golden[f"sinus_{length}"]
        torch.testing.assert_close(sinusoid_1d(length, 256)[:, :: 256 // theirs.shape[1]], theirs, rtol=0, atol=1e-7)


def test_golden_brightness_and_normalisation(golden: Golden) -> None:
    """Bytes to encoder input: brightened, clamped, normalized; without brightness as the tracker does."""
    image = golden["small_image"].permute(2, 0, 1)[None]
    torch.testing.assert_close(normalise(image, **IMAGENET), golden["preproc_test"], rtol=1e-6, atol=1e-6)
    for factor in ("0.8", "1", "1.2"):
        brightness = torch.tensor([float(factor)])
        found = normalise(image, brightness, **IMAGENET)[0]
        torch.testing.assert_close(found, golden[f"jitnorm_{factor}"], rtol=1e-6, atol=1e-6)
        plain = normalise(image, brightness, mean=(0, 0, 0), std=(1, 1, 1))[0]
        torch.testing.assert_close(plain, golden[f"jit_{factor}"], rtol=1e-6, atol=1e-7)


def test_golden_crops(golden: Golden) -> None:
    """Equal pixel by pixel, except where the authors' slice wraps around to unrelated pixels: there ours is black."""
    frame = sets.uint8_image("image/360x640", 360, 640)
    assert hashlib.sha256(frame.tobytes()).hexdigest() == golden.numbers["image_sha256"]
    compared = 0
    for case in golden.numbers["sample_target"]:
        box = np.array(case["box"], dtype=np.float64)
        if not case["ok"]:
            with pytest.raises(ValueError, match="too small"):
                crop_frame(frame, box, factor=case["factor"], size=case["out"])
            continue
        crop, factor = crop_frame(frame, box, factor=case["factor"], size=case["out"])
        side = crop_window(box, case["factor"]).side
        assert (side, factor) == (case["crop_sz"], case["resize_factor"])
        if min(round(at + 0.5 * length - side * 0.5) for at, length in zip(box[:2], box[2:], strict=True)) + side <= 0:
            assert not crop.any()
            continue
        assert hashlib.sha256(np.ascontiguousarray(crop).tobytes()).hexdigest() == case["sha256"], case
        compared += 1
    assert compared >= 10
    for factor in (2, 5):
        crop, resize_factor = crop_frame(frame, np.array([300.0, 150.0, 60.0, 40.0]), factor=float(factor), size=64)
        np.testing.assert_array_equal(crop, golden.arrays[f"crop_f{factor}_64"])
        assert resize_factor == golden.numbers[f"crop_f{factor}_rf"]
    case = golden.numbers["crop_noresize"]
    window = crop_window(np.array(case["box"], dtype=np.float64), case["factor"])
    square = cut(frame, window, place=(0, 0), frame_size=(640, 360))
    np.testing.assert_array_equal(square, golden.arrays["crop_noresize"])


def test_golden_boxes_in_the_crop(golden: Golden) -> None:
    arrays = golden.arrays
    rows = zip(arrays["t2c_gt"], arrays["t2c_ex"], arrays["t2c_rf"], arrays["t2c_norm"], arrays["t2c_px"], strict=True)
    for truth, around, factor, fractions, pixels in rows:
        found = box_in_crop(truth.astype(np.float64), around.astype(np.float64), resize_factor=float(factor), size=256)
        expected = np.concatenate((fractions[:2] + 0.5 * fractions[2:], fractions[2:]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
        np.testing.assert_allclose(found[2:] * 255, pixels[2:], rtol=1e-6)


def test_golden_processing_of_a_sample_without_randomness(golden: Golden) -> None:
    arrays = golden.arrays
    images = np.concatenate((arrays["proc_template"], arrays["proc_search"]))
    annotations = np.concatenate((arrays["proc_template_anno"], arrays["proc_search_anno"]))
    for index, (image, annotation) in enumerate(zip(images, annotations, strict=True)):
        frame, box = sets.uint8_image(f"proc/{index}/120x160", 120, 160), np.array(golden.numbers["proc_boxes"][index])
        crop, factor = crop_frame(frame, box.astype(np.float64), factor=4.0, size=image.shape[-1])
        pixels = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None]
        found = normalise(pixels, **IMAGENET)[0]
        np.testing.assert_allclose(found.numpy(), image, rtol=0, atol=2e-6)
        in_crop = box_in_crop(box, box, resize_factor=factor, size=image.shape[-1])
        expected = np.concatenate((annotation[:2] + 0.5 * annotation[2:], annotation[2:]))
        np.testing.assert_allclose(in_crop, expected, rtol=0, atol=2e-7)


def test_golden_jitter_grayscale_and_mirror(golden: Golden) -> None:
    arrays = golden.arrays
    assert len(arrays["jitter"]) >= 10
    other = Jitter(center=3.5, scale=0.25)
    for row in arrays["jitter"].astype(np.float64):
        draws = {"normal": row[4:6], "uniform": row[6:8]}
        found = jitter_box(row[:4], AUTHORS_SEARCH_JITTER, **draws)
        np.testing.assert_allclose(found, row[8:12], rtol=2e-5, atol=2e-4)
        np.testing.assert_allclose(jitter_box(row[:4], NO_JITTER, **draws), row[12:16])
        assert np.abs(jitter_box(row[:4], other, **draws) - found).max() > 0.01, "another scale is noticed"
    bgr = np.ascontiguousarray(arrays["small_image"][..., ::-1])
    np.testing.assert_array_equal(to_grey(bgr)[..., ::-1], arrays["gray"])
    # The authors' mirrored box is one pixel too far left; ours covers the pixels that the object covers.
    np.testing.assert_array_equal(mirror(arrays["small_image"]), arrays["flip_px_image"])
    ours = mirror_box(np.array([3.0, 4.0, 10.0, 5.0]), 24)
    np.testing.assert_array_equal(ours - arrays["flip_px_box"], [1, 0, 0, 0])
    marked = np.zeros((24, 24, 1), dtype=np.uint8)
    marked[4:9, 3:13] = 255
    assert cv2.boundingRect(mirror(marked)) == tuple(ours.astype(int))


def _draw(visible: np.ndarray, gap: int) -> np.ndarray:
    numbers = np.flatnonzero(visible)
    generators = (sample_generator(1, 0, index) for index in range(20_000))
    return np.array([draw_frames(g, numbers, mode="order", num_templates=2, gap=gap) for g in generators])


def _statistics(ids: np.ndarray) -> dict[str, float]:
    first, second, search = ids.T
    return {
        "P(t0<t1)": float((first < second).mean()),
        "P(two or more ids equal)": float(((first == second) | (second == search) | (first == search)).mean()),
        "P(search==a template)": float(((search == first) | (search == second)).mean()),
        "mean |x - t1|": float(np.abs(search - second).mean()),
        "P(search after both templates)": float(((search > first) & (search > second)).mean()),
    }


def test_golden_statistics_of_frame_sampling(golden: Golden) -> None:
    """Within four standard errors of the difference of two samples of this size; another interval is not."""
    visible, expected = golden.arrays["order_visible"], golden.numbers["order_stats"]
    ids = _draw(visible, 400)
    found = _statistics(ids)
    limits = {
        name: 4 * (115.0 if name.startswith("mean") else np.sqrt(value * (1 - value))) * np.sqrt(2 / len(ids))
        for name, value in found.items()
    }
    for name, value in found.items():
        assert abs(value - expected[name]) < limits[name], name
    assert np.abs(ids[:, :, None] - ids[:, None, :]).max() <= 799
    assert visible[ids].all(), "only visible frames"
    nearer = _statistics(_draw(visible, 360))["mean |x - t1|"]
    assert abs(nearer - expected["mean |x - t1|"]) > limits["mean |x - t1|"]


@pytest.mark.parametrize("kind", ["lasot", "otb"])
def test_golden_evaluation(golden: Golden, kind: str) -> None:
    """`otb` scores absent frames, `lasot` does not; both count a frame without annotation as an infinite distance."""
    arrays, numbers = golden.arrays, golden.numbers
    pred, anno = arrays["ev_pred"], arrays["ev_anno"]
    visible = arrays["ev_visible"].astype(bool) if kind == "lasot" else np.ones(len(anno), dtype=bool)
    errors = metrics.frame_errors(pred, anno, visible, convention=metrics.AUTHORS)
    np.testing.assert_allclose(errors.iou, arrays[f"ev_{kind}_overlap"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(errors.center, arrays[f"ev_{kind}_center"], rtol=1e-12)
    np.testing.assert_allclose(errors.norm_center, arrays[f"ev_{kind}_center_norm"], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(metrics.iou_xywh(pred, anno), arrays["ev_iou"], rtol=0, atol=1e-12)
    scores = metrics.score(pred, anno, visible, convention=metrics.AUTHORS)
    for curve in ("success", "precision", "norm_precision"):
        np.testing.assert_array_equal(getattr(scores, curve).astype(np.float32), arrays[f"ev_{kind}_{curve}"])
    assert scores.auc == pytest.approx(numbers[f"ev_{kind}_auc"], abs=1e-5)
    found = scores.metrics()
    assert (found["p20"], found["p_norm"]) == (numbers[f"ev_{kind}_prec20"], numbers[f"ev_{kind}_nprec20"])

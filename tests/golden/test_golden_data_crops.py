"""The authors' crops and ours are equal pixel by pixel, and boxes in the crop to the last digit of float32."""

import hashlib
import json
from pathlib import Path
from typing import Any

import model_sets as sets
import numpy as np
import pytest

from seqtrack.data.crop import box_in_crop, crop_frame, crop_window, cut


class Golden:
    """One set of reference outputs."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as stored:
            self.arrays = {key: stored[key] for key in stored.files}
        self.numbers: dict[str, Any] = json.loads(path.with_suffix(".json").read_text())


@pytest.fixture(params=sets.find("pure*.npz", companion=".json"))
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def frame(golden: Golden) -> np.ndarray:
    image = sets.uint8_image("image/360x640", 360, 640)
    assert hashlib.sha256(image.tobytes()).hexdigest() == golden.numbers["image_sha256"]
    return image


def _wraps_round(box: list[float], side: int) -> bool:
    """Entirely left of or above the frame, where the authors' slice wraps around to unrelated pixels."""
    x, y, w, h = box
    return round(x + 0.5 * w - side * 0.5) + side <= 0 or round(y + 0.5 * h - side * 0.5) + side <= 0


def test_every_crop_equals_the_authors_except_those_that_wrap_around(golden: Golden, frame: np.ndarray) -> None:
    compared = 0
    for case in golden.numbers["sample_target"]:
        box = np.array(case["box"], dtype=np.float64)
        if not case["ok"]:
            with pytest.raises(ValueError, match="too small"):
                crop_frame(frame, box, factor=case["factor"], size=case["out"])
            continue
        crop, factor = crop_frame(frame, box, factor=case["factor"], size=case["out"])
        assert crop_window(box, case["factor"]).side == case["crop_sz"]
        assert factor == case["resize_factor"]
        if _wraps_round(case["box"], case["crop_sz"]):
            assert not crop.any(), "a crop wholly outside the frame is black"
            continue
        assert hashlib.sha256(np.ascontiguousarray(crop).tobytes()).hexdigest() == case["sha256"], case
        compared += 1
    assert compared >= 10


def test_crops_of_other_factors_equal_the_authors(golden: Golden, frame: np.ndarray) -> None:
    box = np.array([300.0, 150.0, 60.0, 40.0])
    for factor in (2, 5):
        crop, resize_factor = crop_frame(frame, box, factor=float(factor), size=64)
        np.testing.assert_array_equal(crop, golden.arrays[f"crop_f{factor}_64"])
        assert resize_factor == golden.numbers[f"crop_f{factor}_rf"]


def test_a_crop_without_resizing_equals_the_authors(golden: Golden, frame: np.ndarray) -> None:
    case = golden.numbers["crop_noresize"]
    window = crop_window(np.array(case["box"], dtype=np.float64), case["factor"])
    square = cut(frame, window, place=(0, 0), frame_size=(640, 360))
    np.testing.assert_array_equal(square, golden.arrays["crop_noresize"])


def test_boxes_in_the_crop_equal_the_authors(golden: Golden) -> None:
    arrays = golden.arrays
    rows = zip(arrays["t2c_gt"], arrays["t2c_ex"], arrays["t2c_rf"], arrays["t2c_norm"], arrays["t2c_px"], strict=True)
    for truth, around, factor, fractions, pixels in rows:
        found = box_in_crop(truth.astype(np.float64), around.astype(np.float64), resize_factor=float(factor), size=256)
        expected = np.concatenate((fractions[:2] + 0.5 * fractions[2:], fractions[2:]))
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-7)
        np.testing.assert_allclose(found[2:] * 255, pixels[2:], rtol=1e-6)

"""Jitter, grayscale, mirroring and brightness equal the authors'."""

import json

import cv2
import model_sets as sets
import numpy as np
import pytest
import torch

from seqtrack.data import augment
from seqtrack.data.augment import AUTHORS_SEARCH_JITTER, NO_JITTER
from seqtrack.model.images import normalise


@pytest.fixture(params=sets.find("pure*.npz", companion=".json"))
def golden(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    assert "pixel flip" in json.loads(request.param.with_suffix(".json").read_text())["flip_note"]
    with np.load(request.param) as stored:
        return {key: stored[key] for key in stored.files}


def test_jittered_boxes_equal_the_authors(golden: dict[str, np.ndarray]) -> None:
    rows = golden["jitter"].astype(np.float64)
    assert len(rows) >= 10
    for row in rows:
        box, normal, uniform, search, template = row[:4], row[4:6], row[6:8], row[8:12], row[12:16]
        found = augment.jitter_box(box, AUTHORS_SEARCH_JITTER, normal=normal, uniform=uniform)
        np.testing.assert_allclose(found, search, rtol=2e-5, atol=2e-4)
        np.testing.assert_allclose(augment.jitter_box(box, NO_JITTER, normal=normal, uniform=uniform), template)


def test_a_jitter_of_another_scale_is_noticed(golden: dict[str, np.ndarray]) -> None:
    row = golden["jitter"][0].astype(np.float64)
    other = augment.Jitter(center=3.5, scale=0.25)
    found = augment.jitter_box(row[:4], other, normal=row[4:6], uniform=row[6:8])
    assert np.abs(found - row[8:12]).max() > 1


def test_grayscale_equals_the_authors(golden: dict[str, np.ndarray]) -> None:
    bgr = np.ascontiguousarray(golden["small_image"][..., ::-1])
    np.testing.assert_array_equal(augment.to_grey(bgr)[..., ::-1], golden["gray"])


def test_the_mirrored_image_equals_the_authors_and_its_box_is_one_pixel_off(
    golden: dict[str, np.ndarray],
) -> None:
    """The authors' box is one pixel too far left; ours covers the pixels that the object covers."""
    np.testing.assert_array_equal(augment.mirror(golden["small_image"]), golden["flip_px_image"])
    ours = augment.mirror_box(np.array([3.0, 4.0, 10.0, 5.0]), 24)
    np.testing.assert_array_equal(ours - golden["flip_px_box"], [1, 0, 0, 0])
    marked = np.zeros((24, 24, 1), dtype=np.uint8)
    marked[4:9, 3:13] = 255
    assert cv2.boundingRect(augment.mirror(marked)) == tuple(ours.astype(int))


@pytest.mark.parametrize("factor", ["0.8", "1", "1.2"])
def test_brightness_equals_the_authors(golden: dict[str, np.ndarray], factor: str) -> None:
    image = torch.from_numpy(golden["small_image"].transpose(2, 0, 1).copy())[None]
    brightness = torch.tensor([float(factor)])
    plain = normalise(image, brightness, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))[0]
    np.testing.assert_allclose(plain.numpy(), golden[f"jit_{factor}"], rtol=0, atol=2e-7)
    whole = normalise(image, brightness, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))[0]
    np.testing.assert_allclose(whole.numpy(), golden[f"jitnorm_{factor}"], rtol=0, atol=2e-6)

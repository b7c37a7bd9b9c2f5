"""Processing a sample without randomness gives the authors' images and boxes."""

import json
from typing import Any

import model_sets as sets
import numpy as np
import pytest
import torch

from seqtrack.data.crop import box_in_crop, crop_frame
from seqtrack.model.images import normalise

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(params=sets.find("pure*.npz", companion=".json"))
def golden(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Reference arrays, the three frames (RGB), and their boxes."""
    with np.load(request.param) as stored:
        arrays = {key: stored[key] for key in stored.files if key.startswith("proc_")}
    numbers: dict[str, Any] = json.loads(request.param.with_suffix(".json").read_text())
    frames = [sets.uint8_image(f"proc/{i}/120x160", 120, 160) for i in range(3)]
    return arrays, frames, [np.array(box, dtype=np.float64) for box in numbers["proc_boxes"]]


def test_images_and_boxes_equal_the_authors(
    golden: tuple[dict[str, np.ndarray], list[np.ndarray], list[np.ndarray]],
) -> None:
    arrays, frames, boxes = golden
    images = np.concatenate((arrays["proc_template"], arrays["proc_search"]))
    annotations = np.concatenate((arrays["proc_template_anno"], arrays["proc_search_anno"]))
    size = images.shape[-1]
    for frame, box, image, annotation in zip(frames, boxes, images, annotations, strict=True):
        crop, factor = crop_frame(frame, box, factor=4.0, size=size)
        tensor = torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))[None]
        found = normalise(tensor, None, mean=_MEAN, std=_STD)[0]
        np.testing.assert_allclose(found.numpy(), image, rtol=0, atol=2e-6)
        in_crop = box_in_crop(box, box, resize_factor=factor, size=size)
        expected = np.concatenate((annotation[:2] + 0.5 * annotation[2:], annotation[2:]))
        np.testing.assert_allclose(in_crop, expected, rtol=0, atol=2e-7)

"""The checkpoints that come with the program: undamaged, found by name wherever one is named, and good for tracking."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack import Tracker
from seqtrack.checkpoints.store import manifest_of, verify_checkpoint
from seqtrack.config.loader import config_digest, load_config
from seqtrack.data.annotations import read_boxes
from seqtrack.evaluation.metrics import iou_xywh
from seqtrack.places import PUBLISHED, find_checkpoint
from seqtrack.tracking.load import checkpoint_config, select_checkpoints

CLIP = Path(__file__).parent / "assets" / "cc0_clip" / "person" / "person-1"


@pytest.mark.parametrize("name", ["nano", "nano_start"])
def test_it_is_undamaged_and_that_of_its_experiment(name: str, tmp_path: Path) -> None:
    manifest = manifest_of(find_checkpoint(name))
    verify_checkpoint(manifest)
    assert select_checkpoints(tmp_path, [name]) == [manifest]
    assert manifest.config_digest == config_digest(checkpoint_config(manifest)) == config_digest(load_config(name))


def test_other_names_are_paths() -> None:
    assert "nan" not in PUBLISHED and find_checkpoint("../published/nano") not in PUBLISHED.values()
    assert find_checkpoint("nan") == Path("nan").absolute()


def test_it_follows_the_person_of_a_clip_that_it_was_not_trained_on() -> None:
    tracker = Tracker.load("nano", device="cpu")
    truth = read_boxes(CLIP / "groundtruth.txt")[:30] - [1, 1, 0, 0]  # LaSOT counts from 1
    frames = [cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB) for path in sorted((CLIP / "img").iterdir())[:30]]
    tracker.start(frames[0], truth[0].tolist())
    found = np.array([truth[0].tolist(), *(tracker.track(frame) for frame in frames[1:])])
    assert iou_xywh(found, truth).min() > 0.1

"""A small model and a small drawn video."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec


@pytest.fixture(autouse=True)
def _on_one_thread(one_thread: None) -> None:
    """Every test here runs a model."""


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config("demo", overrides=[("TEST.NUM_TEMPLATES", "2"), ("DATA.TEMPLATE.NUMBER", "2")])


@pytest.fixture(scope="session")
def model(config: Config) -> SeqTrack:
    return build_model(model_spec(config), seed=3).eval()


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    """Ten frames, 96x128 RGB, of a bright square moving over noise."""
    noise = np.random.default_rng(5).integers(0, 90, (96, 128, 3), dtype=np.uint8)
    video = []
    for index in range(10):
        frame = noise.copy()
        frame[30 + index : 50 + index, 40 + 2 * index : 64 + 2 * index] = (220, 40, 180)
        video.append(frame)
    return video


FIRST_BOX = (40.0, 30.0, 24.0, 20.0)


@pytest.fixture
def video_folder(tmp_path: Path, frames: list[np.ndarray]) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{index + 1:08d}.jpg"), frame[:, :, ::-1])
    return folder

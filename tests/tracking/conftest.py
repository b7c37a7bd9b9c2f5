"""A small model and a small drawn video."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from seqtrack.config.load import load_config
from seqtrack.config.schema import Config
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A model this small is slower on two threads, and many times slower where another process wants the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config("demo", overrides=[("TEST.NUM_TEMPLATES", "2"), ("DATA.TEMPLATE.NUMBER", "2")])


@pytest.fixture(scope="session")
def model(config: Config) -> SeqTrack:
    return build_model(model_spec(config), seed=3).eval()


@pytest.fixture(scope="session")
def frames() -> list[np.ndarray]:
    """Ten frames, 96x128 RGB, of a bright square that moves over noise."""
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
    import cv2

    folder = tmp_path / "frames"
    folder.mkdir()
    for index, frame in enumerate(frames):
        cv2.imwrite(str(folder / f"{index + 1:08d}.jpg"), frame[:, :, ::-1])
    return folder

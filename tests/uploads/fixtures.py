"""Fixtures that several folders of tests import: a server, and an output folder with two checkpoints and some files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from uploads.harness import InlineRunner, checkpoint, put
from uploads.hub_server import Hub


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A running server of its own for each test."""
    server = Hub().start()
    yield server
    server.clear()
    server.stop()
    server.discard()


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads in this process: the real client without the process around it."""
    monkeypatch.setattr("seqtrack.uploads.client.ChildRunner", InlineRunner)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    disable_progress_bars()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output folder as training leaves it in the middle of a run."""
    folder = tmp_path / "output"
    checkpoint(folder, 1)
    checkpoint(folder, 2)
    put(folder / "phase_1" / "logs" / "metrics.jsonl", b'{"type": "epoch", "epoch": 1}\n')
    put(folder / "phase_1" / "plots" / "phase_1_loss.png", b"\x89PNG" + bytes(range(256)))
    put(folder / "phase_1" / "config.yaml", b"TRAIN:\n  EPOCH: 2\n")
    return folder

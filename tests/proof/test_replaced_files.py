"""What a checkpoint file or its manifest claims is recomputed, and `audit` refutes it."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import completed, environment, start

from proof.test_audit import audit, certificate, verdict
from seqtrack.run_dir import epoch_name, manifest_path


@pytest.fixture(scope="module")
def thin(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of a run that kept the file of its last epoch only."""
    output = tmp_path_factory.mktemp("thin")
    completed(environment(output, demo_data, {"TRAIN.CHECKPOINT_EPOCHS": 3}))
    return output / "phase_1" / "checkpoints"


@pytest.fixture
def checkpoints(thin: Path, tmp_path: Path) -> Path:
    shutil.copytree(thin.parents[1], tmp_path, dirs_exist_ok=True)
    return tmp_path / "phase_1" / "checkpoints"


def claim(checkpoints: Path, epoch: int, **claims: object) -> None:
    path = manifest_path(checkpoints / epoch_name(epoch))
    path.write_text(json.dumps(json.loads(path.read_text()) | claims))


def random_tensors(checkpoints: Path) -> None:
    """Of the last checkpoint; its head stays."""
    path = checkpoints / epoch_name(3)
    data = path.read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:head] + os.urandom(len(data) - head))


def other_digests(checkpoints: Path, epoch: int) -> None:
    """Of an epoch without a file, and in the manifest of the next one."""
    claim(checkpoints, epoch, sha256="0" * 64)
    claim(checkpoints, epoch + 1, parent_sha256="0" * 64)


FORGERIES: dict[str, tuple[Callable[[Path], None], int, str]] = {
    "the tensors of the last file": (random_tensors, 3, "state (file)"),
    "the last file's digests": (
        lambda one: claim(one, 3, sha256="0" * 64, weights_sha256="0" * 64), 3, "state (weights_sha256)",
    ),
    "a thin epoch's digest": (lambda one: other_digests(one, 1), 1, "state (sha256)"),
    "a thin epoch's weights": (lambda one: claim(one, 2, weights_sha256="0" * 64), 2, "state (weights_sha256)"),
    "a thin epoch's size": (lambda one: claim(one, 1, bytes=1), 1, "state (bytes)"),
    "a thin epoch's loss": (lambda one: claim(one, 2, loss=0.5), 2, "state (loss)"),
    "a thin epoch's IoU": (lambda one: claim(one, 1, iou=0.5), 1, "state (iou)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_checkpoint_that_is_not_the_recomputed_one_is_refuted(name: str, checkpoints: Path, demo_data: Path) -> None:
    forge, epoch, quantity = FORGERIES[name]
    forge(checkpoints)
    output = checkpoints.parents[1]
    assert verdict(audit(output, demo_data)) == (1, "refuted")
    found = [one.difference for one in certificate(output).segments if one.difference is not None]
    assert (found[0].epoch, found[0].quantity) == (epoch, quantity)
    with start(environment(output, demo_data), "reproduce", "phase_1") as running:
        assert verdict(running.end()) == (1, "differs")

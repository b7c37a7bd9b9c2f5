"""What a checkpoint file or its manifest claims is recomputed: `audit` refutes it, `restore` writes nothing else."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import Ended, completed, environment, start, tree

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
    """In the manifest of an epoch, and in the log."""
    path = manifest_path(checkpoints / epoch_name(epoch))
    manifest = json.loads(path.read_text()) | claims
    path.write_text(json.dumps(manifest))
    (log,) = (checkpoints.parent / "logs").glob("*.log")
    line = rf"(checkpoint {epoch_name(epoch)} : )[\d.]+( MB , .* , sha256 )\w+"
    facts = rf"\g<1>{manifest['bytes'] / 1e6:.1f}\g<2>{manifest['sha256'][:16]}"
    log.write_text(re.sub(line, facts, log.read_text()))


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


def restore(checkpoints: Path, data: Path, epoch: int) -> Ended:
    with start(environment(checkpoints.parents[1], data), "restore", "--epoch", str(epoch)) as running:
        return running.end()


def truncate(checkpoints: Path) -> None:
    path = checkpoints / epoch_name(3)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("forge", "epoch", "code", "error"),
    [
        (lambda one: other_digests(one, 1), 1, 1, "restore.differs"),
        (lambda one: claim(one, 2, bytes=1), 2, 1, "restore.differs"),
        (lambda one: claim(one, 2, loss=0.5), 2, 1, "restore.differs"),
        (truncate, 3, 2, "checkpoint.damaged"),
        (random_tensors, 3, 2, "checkpoint.damaged"),
    ],
)
def test_restore_writes_the_recorded_checkpoint_or_nothing(
    forge: Callable[[Path], None], epoch: int, code: int, error: str, checkpoints: Path, demo_data: Path
) -> None:
    forge(checkpoints)
    before = tree(checkpoints.parent)
    ended = restore(checkpoints, demo_data, epoch)
    assert (ended.code, ended.codes[:1]) == (code, [error])
    assert tree(checkpoints.parent) == before


def test_restore_replaces_what_a_kill_before_the_manifest_left(checkpoints: Path, demo_data: Path) -> None:
    assert restore(checkpoints, demo_data, 2).code == 0
    path = checkpoints / epoch_name(2)
    whole = path.read_bytes()
    claim(checkpoints, 2, kind="thin")
    path.write_bytes(whole[:-1])
    assert restore(checkpoints, demo_data, 2).code == 0
    assert path.read_bytes() == whole
    assert json.loads(manifest_path(path).read_text())["kind"] == "epoch"
    assert restore(checkpoints, demo_data, 2).code == 0  # which verifies it

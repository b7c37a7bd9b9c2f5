"""One real run for all tests of this folder: two phases, verdict, evaluation and upload, by the commands users call."""

import shutil
from pathlib import Path

import pytest
from runs import Ended, completed, demo_data, environment, start, uninterrupted

__all__ = ["demo_data", "uninterrupted"]
# Phase 2 logs at another interval than phase 1, and validates.
OTHER_INTERVALS = {"TRAIN.PRINT_INTERVAL": "32", "TRAIN.VALIDATION_INTERVAL": "2", "TRAIN.VALIDATION_SEQUENCES": "1"}


def run_command(output: Path, data: Path, *arguments: str, **variables: object) -> Ended:
    with start(environment(output, data, **variables), *arguments) as running:
        return running.end()


@pytest.fixture(scope="session")
def resumed(uninterrupted: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with phase 1 and the phase 2 that resumed it after epoch 1. Change nothing in it."""
    output = tmp_path_factory.mktemp("resumed") / "output"
    shutil.copytree(uninterrupted, output)
    completed(environment(output, demo_data, PHASE=2, RESUME_EPOCH=1))
    return output


@pytest.fixture
def pair(resumed: Path, tmp_path: Path) -> Path:
    """A copy of `resumed`, which a test may change."""
    return Path(shutil.copytree(resumed, tmp_path / "pair"))


@pytest.fixture(scope="session")
def finished(uninterrupted: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with everything that a report can hold. Change nothing in it."""
    place = tmp_path_factory.mktemp("report-run")
    output = place / "output"
    shutil.copytree(uninterrupted, output)
    completed(environment(output, demo_data, OTHER_INTERVALS, PHASE=2, RESUME_EPOCH=1))
    ended = run_command(output, demo_data, "evaluate", "--phase", "1", "--sequences", "disk-21,tile-21")
    assert ended.code == 0, ended.said
    target = {"UPLOAD_TARGET": f"folder:{place / 'target'}", "UPLOAD_SETTLE_S": "0.2"}
    ended = run_command(output, demo_data, "upload", "--once", **target)
    assert ended.code == 0, ended.said
    return output


@pytest.fixture
def finished_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, which a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "output"))

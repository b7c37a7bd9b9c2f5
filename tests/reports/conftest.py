"""A real run, small: two phases, verdict, evaluation and uploads, from the commands that users call."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seqtrack.data.demo import Plan, draw_demo

_OVERRIDES = " ".join(
    [
        "DATA.TRAIN.SAMPLE_PER_EPOCH 48",
        "DATA.MAX_SAMPLE_INTERVAL 20",
        "TRAIN.BATCH_SIZE 8",
        "TRAIN.NUM_WORKER 0",
        "TRAIN.PRINT_INTERVAL 16",
        "TRAIN.SAVE_INTERVAL_S 0",
    ]
)
TEAM = """\
title: Assignment 3 <script>alert(1)</script>
team: The | Trackers
number: 7
course: Image processing
members:
  - name: Ada Lovelace
    id: 123450
  - Alan Turing
"""


def run_command(output: Path, data: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    variables = {
        "OUTPUT_DIR": str(output),
        "DATA_DIR": str(data),
        "DATASET": "lasot",
        "CONFIG": "demo",
        "EPOCHS": "2",
        "OVERRIDES": _OVERRIDES,
        "DEVICE": "cpu",
    }
    return subprocess.run(
        [sys.executable, "-m", "seqtrack", *arguments],
        env={**inherited, **variables, **environment},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report-data") / "lasot"
    draw_demo(folder, plan=Plan(train_sequences=2, train_frames=24, test_sequences=2, test_frames=12))
    return folder


@pytest.fixture(scope="session")
def _measured(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    place = tmp_path_factory.mktemp("report-run")
    output = place / "output"
    for arguments, environment in (
        (["train"], {"PHASE": "1"}),
        (["train"], {"PHASE": "2", "RESUME_EPOCH": "1"}),
        (["evaluate"], {}),
        (["upload", "--once"], {"UPLOAD_TARGET": f"folder:{place / 'target'}", "UPLOAD_SETTLE_S": "0.2"}),
    ):
        done = run_command(output, data_folder, *arguments, **environment)
        assert done.returncode == 0, f"{arguments} {environment}: {done.stderr[-2000:]}"
    return output


@pytest.fixture
def finished_run(_measured: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test may change."""
    return Path(shutil.copytree(_measured, tmp_path / "output"))


@pytest.fixture
def team_file(tmp_path: Path) -> Path:
    path = tmp_path / "team.yaml"
    path.write_text(TEAM)
    return path

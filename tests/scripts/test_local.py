"""`scripts/local.sh` on a fresh clone: the environment that it creates, and both phases of a run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import copy_of_the_repository

ROOT = Path(__file__).resolve().parents[2]


def local(clone: Path, *words: str, cwd: Path | None = None, timeout: float = 300, **variables: str) -> tuple[int, str]:
    """Run the clone's `scripts/local.sh`; its exit code and output."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "SSL_CERT_FILE", "TMPDIR")}
    kept |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_"))}
    answer = subprocess.run(
        [str(clone / "scripts/local.sh"), *words], env={**kept, **variables}, cwd=cwd or clone, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout,
    )  # fmt: skip
    return answer.returncode, answer.stdout


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with its environment."""
    folder = copy_of_the_repository(tmp_path_factory.mktemp("clone"))
    code, said = local(folder, "plan", "--help", timeout=600)
    assert (code, ".venv is ready" in said) == (0, True), said
    return folder


@pytest.mark.run
@pytest.mark.timeout(900)
@pytest.mark.parametrize("complete", [True, pytest.param(False, marks=pytest.mark.long)])
def test_the_environment_has_the_locked_packages_and_is_made_again_only_if_it_is_not_complete(
    clone: Path, complete: bool
) -> None:
    show = "import seqtrack, importlib.metadata as m; print(seqtrack.__file__)"
    show += "; print(*(f'{one.name}=={one.version}' for one in m.distributions()))"
    words = [clone / ".venv/bin/python", "-c", show]
    answer = subprocess.run(words, cwd="/", env={}, capture_output=True, text=True, check=True)
    place, *installed = answer.stdout.split()
    assert Path(place) == clone / "seqtrack/__init__.py"
    locked = set(re.findall(r"^([a-z0-9][\w.-]*==[^ ]+)", (clone / "requirements.lock").read_text(), re.MULTILINE))
    assert {one.lower().replace("_", "-") for one in installed} <= locked
    before, digests = (clone / ".venv").stat().st_ino, clone / ".venv/lock-digests"
    if not complete:
        digests.write_text(digests.read_text().replace("  requirements.lock", "  other.lock"))
    shutil.rmtree(clone / "seqtrack/__pycache__", ignore_errors=True)
    code, said = local(clone, "plan", "--help", PYTHONDONTWRITEBYTECODE="1")
    assert (code, ".venv is ready" in said, (clone / ".venv").stat().st_ino == before) == (0, not complete, complete)
    assert (clone / "seqtrack/__pycache__").is_dir(), "every start compiles everything again"
    assert sorted(path.name for path in clone.glob(".venv*")) == [".venv"]


def epochs_of(phase: Path) -> list[dict[str, float]]:
    """The records of a run's epochs."""
    records = [json.loads(line) for line in (phase / "logs/metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["type"] == "epoch"]


def both_phases(clone: Path, cwd: Path, *, resume: int, **variables: str) -> Path:
    """Train both phases, which must end identical; phase 1's folder."""
    shutil.rmtree(clone / "output", ignore_errors=True)
    code, said = local(clone, "train-phase1", cwd=cwd, timeout=600, **variables)
    assert code == 0 and "SYNTHETIC" in said, said
    assert list(cwd.iterdir()) == [], "output belongs next to the script, wherever it is called from"
    code, said = local(clone, "train-phase2", cwd=cwd, timeout=600, RESUME_EPOCH=str(resume), **variables)
    assert (code, said.strip().splitlines()[-1]) == (0, "identical"), said
    assert not (clone / f"output/phase_2/checkpoints/SEQTRACK_ep{resume:04d}.json").exists(), "phase 2 resumed"
    return clone / "output/phase_1"


@pytest.mark.run
@pytest.mark.timeout(600)
def test_both_phases_on_a_fresh_clone_end_identical(clone: Path, tmp_path: Path) -> None:
    variables = {"EPOCHS": "2", "OVERRIDES": "DATA.TRAIN.SAMPLE_PER_EPOCH 96"}
    phase = both_phases(clone, tmp_path, resume=1, **variables)
    assert len(list((phase / "checkpoints").glob("SEQTRACK_ep*.json"))) == 2
    assert list((phase / "logs/tensorboard").iterdir())
    assert {path.name for path in (phase / "plots").iterdir()} >= {"phase_1_loss.png", "phase_1_iou.png"}
    assert (clone / "output/comparison/certificate.json").is_file()
    code, said = local(clone, "report", **variables)
    assert code == 0, said


@pytest.mark.long
@pytest.mark.run
@pytest.mark.timeout(900)
def test_the_demo_learns_to_track(clone: Path, tmp_path: Path) -> None:
    phase = both_phases(clone, tmp_path, resume=3)
    means = [record["iou"] for record in epochs_of(phase)]
    assert means[-1] >= max(0.4, 5 * means[0]) and len(means) == 10
    for words in (("evaluate",), ("doctor",)):
        code, said = local(clone, *words)
        assert code == 0, said
    trackers = json.loads((phase / "evaluation/evaluation.json").read_text())["trackers"]
    auc = {tracker["name"]: tracker["mean"]["auc"] for tracker in trackers}
    assert auc["epoch 10"] >= 35, auc
    assert max(auc["untrained"], auc["static box"]) < 10, auc


@pytest.mark.long
@pytest.mark.run
@pytest.mark.timeout(900)
def test_the_loss_on_real_frames_falls(clone: Path, test_data: Path, tmp_path: Path) -> None:
    real = {"DATASET": "lasot", "DATA_DIR": str(test_data / "lasot_mini"), "CLASSES": "person,car", "CONFIG": "demo"}
    real |= {"EPOCHS": "2", "OVERRIDES": "DATA.TRAIN.SAMPLE_PER_EPOCH 480 TRAIN.SCHEDULER.WARMUP_STEPS 5"}
    code, said = local(clone, "train-phase1", timeout=800, OUTPUT_DIR=str(tmp_path), **real)
    assert code == 0 and "SYNTHETIC" not in said, said
    first, last = (record["loss"] for record in epochs_of(tmp_path / "phase_1"))
    assert last < first - 0.05


@pytest.mark.run
def test_invalid_arguments_exit_with_2(clone: Path) -> None:
    words = (
        (["train-phase1"], 2, "]: EPOCHS"),
        (["no-such-job"], 2, "no-such-job"),
        ([], 2, ""),
        (["--help"], 0, "train"),
    )
    for arguments, status, named in words:
        code, said = local(clone, *arguments, EPOCHS="many", CONFIG="no_such")
        assert code == status and named in said


PYTHONS = {
    "echo 'pyenv: python3: command not found' >&2; exit 127": "3.10",
    "case $2 in *version_info*) exit 1;; esac": "3.10",
    f'case $2 in *ensurepip*) exit 1;; esac; exec {sys.executable} "$@"': "python3-venv",
}


def test_an_unusable_python_is_reported_before_anything_is_created(tmp_path: Path) -> None:
    clone, tools = copy_of_the_repository(tmp_path / "clone"), tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "sed", "sha256sum", "grep", "flock", "env", "cat", "uname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    for python, named in {"": "3.10", **PYTHONS}.items():  # the first: there is none
        if python:
            (tools / "python3").write_text(f"#!/bin/bash\n{python}\n")
            (tools / "python3").chmod(0o755)
        code, said = local(clone, "train", PATH=str(tools))
        assert code == 2 and named in said and not (clone / ".venv").exists()


@pytest.mark.long
def test_the_locks_are_what_lock_sh_makes_of_the_lists(tmp_path: Path) -> None:
    clone = copy_of_the_repository(tmp_path)
    subprocess.run([clone / "scripts/lock.sh"], check=True, timeout=600)
    for lock in ROOT.glob("*.lock"):
        assert (clone / lock.name).read_text() == lock.read_text()

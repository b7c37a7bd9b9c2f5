"""The package as pip installs it, without the source tree: `doctor`, `plan`, `train` and `report` work from it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from runs import TINY

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, inside an unrelated git repository."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "seqtrack", source / "seqtrack", ignore=shutil.ignore_patterns("__pycache__"))
    script = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(place)], cwd=source, check=True, capture_output=True, timeout=200)
    (wheel,) = place.glob("*.whl")
    target = place / "repository" / "site-packages"
    target.mkdir(parents=True)
    shutil.unpack_archive(str(wheel), target, format="zip")
    shutil.rmtree(source)
    git = ["git", "-C", str(place / "repository"), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "unrelated"]):
        subprocess.run([*git, *words], check=True, timeout=60)
    return target


def test_the_ranges_of_the_package_allow_what_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["docx"])]
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ \\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    lines = [line for line in (ROOT / "requirements.in").read_text().splitlines() if not line.startswith("#")]
    assert {one.name for one in every} == {line.split("==")[0] for line in lines}
    assert [str(one) for one in every if not one.specifier.contains(locked[one.name])] == []


@pytest.fixture
def seqtrack(installed: Path, tmp_path: Path, demo_data: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a command from the installed package."""

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env = {**kept, "PYTHONPATH": str(installed), "DEVICE": "cpu", "DATASET": "demo", "DATA_DIR": str(demo_data)}
        return subprocess.run(
            [sys.executable, "-m", "seqtrack", *words],
            env={**env, "OUTPUT_DIR": str(tmp_path / "output"), **variables},
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=250,
        )  # fmt: skip

    return run


@pytest.mark.long
def test_doctor_plan_train_and_report_work_without_the_source_tree(
    installed: Path, tmp_path: Path, seqtrack: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    looked = seqtrack("doctor")
    assert looked.returncode == 0, looked.stdout + looked.stderr
    keys = {**TINY, "DATA.TRAIN.SAMPLE_PER_EPOCH": "16"}
    trained = seqtrack("train", EPOCHS="1", OVERRIDES=" ".join(f"{key} {value}" for key, value in keys.items()))
    assert trained.returncode == 0, trained.stdout + trained.stderr
    run = tmp_path / "output" / "phase_1"
    assert (run / "checkpoints" / "SEQTRACK_ep0001.safetensors").is_file()
    record = json.loads((run / "environment.json").read_text())
    assert record["commit"] == "unknown", "the repository around it is unrelated"
    assert record["lock_sha256"].startswith("installed:")
    for words in (("plan", "--json"), ("report", "--html")):  # its templates are in the wheel
        assert seqtrack(*words).returncode == 0
    assert (tmp_path / "output" / "report.html").is_file()

"""The package as pip installs it from a wheel, in a new environment without the source tree."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
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
PYTHON = """
import sys, numpy, cv2
from seqtrack import Tracker
tracker = Tracker.load(sys.argv[1])
first, second = (cv2.imread(path)[:, :, ::-1].copy() for path in sys.argv[2:])
tracker.start(first, (265, 52, 32, 46))
print(len(tracker.track(second)))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment inside an unrelated git repository: the wheel, and the packages of this environment."""
    place = tmp_path_factory.mktemp("wheel")
    source, repository = place / "source", place / "repository"
    source.mkdir()
    for name in ("pyproject.toml", "requirements.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "seqtrack", source / "seqtrack", ignore=shutil.ignore_patterns("__pycache__"))
    script = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, str(place)], cwd=source, check=True, capture_output=True, timeout=200)
    shutil.rmtree(source)
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "unrelated"]):
        subprocess.run([*git, *words], check=True, timeout=60)
    subprocess.run([sys.executable, "-m", "venv", repository / "env"], check=True, timeout=200)
    (wheel,) = place.glob("*.whl")
    pip = [repository / "env/bin/pip", "install", "--quiet", "--no-index", "--no-deps", wheel]
    subprocess.run(pip, check=True, timeout=200)
    # Its dependencies, without the line that puts the source tree on the path.
    (site,) = (repository / "env/lib").glob("python3.*/site-packages")
    packages = Path(sysconfig.get_path("purelib"))
    for entry in packages.iterdir():
        if not entry.name.startswith(("seqtrack", "pip", "__pycache__")) and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    return repository / "env" / "bin"


def test_the_ranges_of_the_package_allow_what_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    every = [Requirement(text) for text in project["dependencies"]]
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ \\]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    lines = [line for line in (ROOT / "requirements.in").read_text().splitlines() if not line.startswith("#")]
    assert {one.name for one in every} == {line.split("==")[0] for line in lines}
    assert [str(one) for one in every if not one.specifier.contains(locked[one.name])] == []


@pytest.fixture
def run(installed: Path, tmp_path: Path, demo_data: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program of the new environment."""

    def run(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        env = {**kept, "DEVICE": "cpu", "DATASET": "demo", "DATA_DIR": str(demo_data)}
        return subprocess.run(
            [installed / words[0], *words[1:]], env={**env, "OUTPUT_DIR": str(tmp_path / "output"), **variables},
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=500,
        )  # fmt: skip

    return run


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_every_step_of_a_users_first_hour_works_from_the_wheel(
    tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    keys = {**TINY, "DATA.TRAIN.SAMPLE_PER_EPOCH": "16"}
    settings = {"EPOCHS": "1", "OVERRIDES": " ".join(f"{key} {value}" for key, value in keys.items())}
    phase = tmp_path / "output" / "phase_1"
    checkpoint = phase / "checkpoints" / "SEQTRACK_ep0001.safetensors"
    frames = sorted((ROOT / "tests/assets/cc0_clip/person/person-1/img").iterdir())
    track = ["track", frames[0].parent, "--box", "265,52,32,46", "--frames", "3", "-o", "found.mp4"]
    for words in (["--help"], ["doctor"], ["plan", "--json"], ["train"], track, ["report", "--html"]):
        done = run("seqtrack", *words, **(settings if words[0] in ("plan", "train") else {}))
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    assert checkpoint.is_file() and (tmp_path / "found.mp4").stat().st_size > 1000
    record = json.loads((phase / "environment.json").read_text())
    assert record["commit"] == "unknown", "the repository around it is unrelated"
    assert record["lock_sha256"].startswith("installed:")
    assert (tmp_path / "output" / "report.html").is_file(), "its templates are in the wheel"
    done = run("python", "-c", PYTHON, checkpoint, *frames[:2])
    assert done.stdout == "4\n", done.stderr

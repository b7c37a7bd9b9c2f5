"""Tests that are dealt to several processes: those of one file stay together, and so does all that needs Docker."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_file_and_all_that_needs_docker_stay_in_one_process(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "conftest.py")
    plain = "import pytest\n@pytest.mark.parametrize('number', range(8))\ndef test_it(number): pass\n"
    marked = plain.replace("@pytest", "pytestmark = pytest.mark.docker\n@pytest", 1)
    for name, text in {"a": plain, "b": plain, "c": plain, "d": marked, "e": marked}.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = docker: any\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    words = ["-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder", "-p", "no:cacheprovider"]
    answer = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=kept, capture_output=True, text=True, check=True
    )
    places: dict[str, set[str]] = {}
    for process, name in re.findall(r"\[(gw\d)\].* PASSED test_([a-e])\.py", answer.stdout):
        places.setdefault({"d": "docker", "e": "docker"}.get(name, name), set()).add(process)
    assert sorted(places) == ["a", "b", "c", "docker"]
    assert all(len(processes) == 1 for processes in places.values()), places
    assert len(set.union(*places.values())) == 2

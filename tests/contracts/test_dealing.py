"""Tests dealt to several processes: a file's tests stay together, and so do all that need Docker, and all uploads."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_file_all_that_needs_docker_and_all_uploads_stay_in_one_process(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "conftest.py")
    plain = "import pytest\n@pytest.mark.parametrize('number', range(8))\ndef test_it(number): pass\n"
    marked = plain.replace("@pytest", "pytestmark = pytest.mark.docker\n@pytest", 1)
    (tmp_path / "uploads").mkdir()
    files = {"a": plain, "b": plain, "c": plain, "d": marked, "e": marked, "uploads_f": plain, "uploads/test_g": plain}
    for name, text in files.items():
        (tmp_path / (f"{name}.py" if "/" in name else f"test_{name}.py")).write_text(text)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = docker: any\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    words = ["-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder", "-p", "no:cacheprovider"]
    answer = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=kept, capture_output=True, text=True, check=True
    )
    places: dict[str, set[str]] = {}
    together = {"d": "docker", "e": "docker", "f": "uploads", "g": "uploads"}
    for process, name in re.findall(r"\[(gw\d)\].* PASSED .*test_(?:uploads_)?([a-g])\.py", answer.stdout):
        places.setdefault(together.get(name, name), set()).add(process)
    assert sorted(places) == ["a", "b", "c", "docker", "uploads"]
    assert all(len(processes) == 1 for processes in places.values()), places
    assert len(set.union(*places.values())) == 2

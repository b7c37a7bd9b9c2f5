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
    expected = {
        "test_a.py": "test_a.py",
        "test_b.py": "test_b.py",
        "test_c.py": "docker",
        "test_d.py": "docker",
        "test_uploads_e.py": "uploads",
        "uploads/test_f.py": "uploads",
        "reports/test_g.py": "reports",
        "reports/test_h.py": "reports",
    }
    for name, group in expected.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(marked if group == "docker" else plain)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = docker: any\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))}
    words = ["-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder", "-p", "no:cacheprovider"]
    answer = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, env=kept, capture_output=True, text=True, check=True
    )
    passed = re.findall(r"\[(gw\d)\].* PASSED (\S+?)::\S+@(\S+)", answer.stdout)
    assert len(passed) == 8 * len(expected)
    assert {name: group for _, name, group in passed} == expected
    places: dict[str, set[str]] = {}
    for process, _, group in passed:
        places.setdefault(group, set()).add(process)
    assert all(len(processes) == 1 for processes in places.values()), places
    assert len(set.union(*places.values())) == 2

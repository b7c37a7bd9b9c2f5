"""The notebooks, cell by cell, on the demo data: a stopped session continues, and ends as one that was never stopped.

Cells run in one namespace, as in Jupyter; what only Jupyter knows (`!`, `%pip`, `%%writefile`, `display`) is done here,
and the modules that only Colab and Kaggle have are small substitutes.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from runs import ROOT, TINY, assert_same_run

from seqtrack.commands.course import Course

NOTEBOOKS = ("colab", "kaggle")
SUBSTITUTES = {
    "google/__init__.py": "",
    "google/colab/__init__.py": "",
    "google/colab/drive.py": "def mount(place): pass\n",
    "google/colab/userdata.py": "def get(name): raise LookupError(name)\n",
    "google/colab/files.py": "def download(path): print('download', open(path, 'rb').read(2))\n",
    "IPython/__init__.py": "",
    "IPython/display.py": """
def Image(**options): return options
def Markdown(text): return text
def display(one): print("shown", one)
""",
    "seqtrack_command/seqtrack": f'#!/bin/sh\nexec {sys.executable} -m seqtrack "$@"\n',
}


def cells(name: str) -> list[tuple[str, str]]:
    document = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())
    assert (document["nbformat"], len(document["cells"]) <= 10) == (4, True)
    return [(one["cell_type"], "".join(one["source"])) for one in document["cells"]]


def as_python(cell: str, codes: str) -> str:
    """A cell without Jupyter's own syntax."""
    if cell.startswith("%%writefile "):
        head, _, text = cell.partition("\n")
        return f"open({head.split()[1]!r}, 'w').write({text!r})"
    cell = re.sub(r"^%pip .*$", "pass", cell, flags=re.MULTILINE)
    call = "__import__('subprocess').run({!r}, shell=True, env=dict(__import__('os').environ)).returncode"
    return re.sub(r"^!(.*)$", lambda found: f"{codes}.append({call.format(found[1])})", cell, flags=re.MULTILINE)


def session(
    name: str, folder: Path, settings: Mapping[str, object], **variables: str
) -> subprocess.CompletedProcess[str]:
    """All cells of a notebook in a process of its own, whose `/content` and `/kaggle` are folders in `folder`."""
    lines = ["codes = []"]
    for kind, text in cells(name):
        if kind == "code":
            text = text.replace("settings: {}", f"settings: {json.dumps(dict(settings))}")
            text = re.sub(r"/(content|kaggle)\b", lambda found: f"{folder}/{found[1]}", text)
            if stop := variables.get("STOP_AFTER_S"):
                text = text.replace('"41000"', repr(stop))
            lines.append(as_python(text, "codes"))
    lines.append("print('codes', codes)")
    for path, text in SUBSTITUTES.items():
        place = folder / "site" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755)
    kept = {key: os.environ[key] for key in ("HOME", "OMP_NUM_THREADS") if key in os.environ}
    env = {**kept, "PATH": f"{folder / 'site/seqtrack_command'}:{os.environ['PATH']}", "DEVICE": "cpu",
           "PYTHONPATH": f"{ROOT}:{folder / 'site'}"}  # fmt: skip
    (folder / "work").mkdir(exist_ok=True)
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], env=env, cwd=folder / "work", capture_output=True,
                          text=True, check=False, timeout=290)  # fmt: skip


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_short_and_its_file_is_a_course(name: str) -> None:
    codes = [text for kind, text in cells(name) if kind == "code"]
    for text in codes:
        compile(as_python(text, "codes"), name, "exec")
    (written,) = [text for text in codes if text.startswith("%%writefile")]
    assert Course.model_validate(yaml.safe_load(written.partition("\n")[2])).dataset == "demo"
    assert any("seqtrack course a4 course.yaml" in text for text in codes)


@pytest.mark.long
def test_colab_ends_with_the_zip(tmp_path: Path) -> None:
    ended = session("colab", tmp_path, {**TINY, "TRAIN.EPOCH": 4})
    assert "codes [0, 0]" in ended.stdout, ended.stdout + ended.stderr
    assert "download b'PK'" in ended.stdout and ended.stdout.count("shown") == 6


@pytest.mark.long
def test_kaggles_sessions_end_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    settings = {**TINY, "TRAIN.EPOCH": 6, "DATA.TRAIN.SAMPLE_PER_EPOCH": "2000"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        (folder / "kaggle" / "input").mkdir(parents=True)
    assert "codes [0, 0]" in session("kaggle", whole, settings).stdout
    stopped = 0
    for _ in range(20):
        ended = session("kaggle", parts, settings, STOP_AFTER_S="12")
        assert re.search(r"codes \[0, (0|75)\]", ended.stdout), ended.stdout + ended.stderr
        if "codes [0, 0]" in ended.stdout:
            break
        stopped += 1
        # The next session begins with an empty disk, and with this one's output as its input.
        earlier = parts / "kaggle" / "input" / "earlier"
        shutil.rmtree(earlier, ignore_errors=True)
        shutil.move(parts / "kaggle" / "working", earlier)
    assert stopped >= 2
    for phase in ("phase_1", "phase_2"):
        assert_same_run(*(folder / "kaggle" / "working" / "output" / phase for folder in (parts, whole)))
    data = (parts / "kaggle" / "working" / "output" / "hand-in.zip").read_bytes()
    assert zipfile.ZipFile(io.BytesIO(data)).testzip() is None

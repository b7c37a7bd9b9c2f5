"""The notebooks, cell by cell, on the demo data: a stopped session continues, and ends as one that was never stopped.

Cells run in one namespace, as in Jupyter; what only Jupyter knows (`!`, `%pip`, `%%writefile`, `display`) is done here,
and the modules that only Colab and Kaggle have are small substitutes.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from docker.containers import wait_until
from runs import ROOT, TINY, assert_same_run, children

from seqtrack.commands.course import Course

NOTEBOOKS = ("colab", "kaggle")
SUBSTITUTES = {
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
}
# Six epochs of two seconds; sessions are killed once these exist.
KAGGLE_SETTINGS = {**TINY, "TRAIN.EPOCH": 6, "DATA.TRAIN.SAMPLE_PER_EPOCH": "2000"}
KILLED_AT = tuple(f"phase_{phase}/checkpoints/SEQTRACK_ep{epoch:04}.json" for phase, epoch in ((1, 2), (2, 4)))


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


def program(name: str, settings: Mapping[str, object], *, root: str = "") -> str:
    """All code cells as one Python program that prints the exit codes of the commands at its end.

    Args:
        settings: the course file's.
        root: the folder that `/content` and `/kaggle` are in.
    """
    lines = ["codes = []"]
    for kind, text in cells(name):
        if kind == "code":
            text = text.replace("settings: {}", f"settings: {json.dumps(dict(settings))}")
            lines.append(as_python(re.sub(r"/(content|kaggle)\b", rf"{root}/\1", text), "codes"))
    return "\n".join([*lines, "print('codes', codes)"])


def write_substitutes(folder: Path, python: str = sys.executable) -> None:
    """The modules that only a notebook has, and in `bin` the command `seqtrack`."""
    for path, text in {**SUBSTITUTES, "bin/seqtrack": f'#!/bin/sh\nexec {python} -m seqtrack "$@"\n'}.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755)


def start_session(name: str, folder: Path, settings: Mapping[str, object]) -> subprocess.Popen[bytes]:
    """A notebook in a process of its own, with `/content`, `/kaggle` and its output `log` in `folder`."""
    write_substitutes(folder / "site")
    kept = {key: os.environ[key] for key in ("HOME", "OMP_NUM_THREADS") if key in os.environ}
    env = {**kept, "PATH": f"{folder / 'site/bin'}:{os.environ['PATH']}", "DEVICE": "cpu",
           "PYTHONPATH": f"{ROOT}:{folder / 'site'}"}  # fmt: skip
    (folder / "work").mkdir(exist_ok=True)
    words = [sys.executable, "-c", program(name, settings, root=str(folder))]
    with (folder / "log").open("w") as log:  # a pipe that nobody reads would fill up and stop the session
        return subprocess.Popen(words, env=env, cwd=folder / "work", stdout=log, stderr=subprocess.STDOUT)


def said_by_session(name: str, folder: Path, settings: Mapping[str, object]) -> str:
    """The output of a session that ends by itself."""
    start_session(name, folder, settings).wait(290)
    return (folder / "log").read_text()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and all that it started, none of which sees another end: the machine is gone."""
    every = [process.pid]
    for pid in every:  # grows while it is read
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        every += children(pid)
    for pid in every:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(60)


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
    said = said_by_session("colab", tmp_path, {**TINY, "TRAIN.EPOCH": 5})  # two of phase 2, for curves
    assert "codes [0, 0]" in said, said
    assert "download b'PK'" in said and said.count("shown") == 6


@pytest.mark.long
def test_kaggles_killed_sessions_end_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        (folder / "kaggle" / "input").mkdir(parents=True)
    assert "codes [0, 0]" in said_by_session("kaggle", whole, KAGGLE_SETTINGS)
    output = parts / "kaggle" / "working" / "output"
    for seen in KILLED_AT:
        with start_session("kaggle", parts, KAGGLE_SETTINGS) as process:
            wait_until(seen, lambda seen=seen: (output / seen).exists() or process.poll() is not None, seconds=200)
            assert process.poll() is None, (parts / "log").read_text()
            kill_all(process)
        # The next session begins with an empty disk, and with this one's output as its input.
        earlier = parts / "kaggle" / "input" / "earlier"
        shutil.rmtree(earlier, ignore_errors=True)
        shutil.move(parts / "kaggle" / "working", earlier)
    assert "codes [0, 0]" in said_by_session("kaggle", parts, KAGGLE_SETTINGS)
    assert_sessions_equal(output, whole / "kaggle" / "working" / "output")


def assert_sessions_equal(parts: Path, whole: Path) -> None:
    """The outputs of killed sessions and of one that was never stopped: both phases, and what was evaluated."""
    for phase in ("phase_1", "phase_2"):
        assert_same_run(parts / phase, whole / phase)
        boxes = sorted(path.relative_to(whole) for path in (whole / phase / "evaluation/boxes").glob("*/*-*.txt"))
        boxes = [path for path in boxes if not path.name.endswith("_time.txt")]
        assert len(boxes) >= 8 and all((parts / path).read_bytes() == (whole / path).read_bytes() for path in boxes)
        starts = json.loads((parts / phase / "run.json").read_text())["starts"]
        assert len(starts) == 2, "each phase was killed once"
    assert zipfile.ZipFile(parts / "hand-in.zip").testzip() is None

"""`--help` imports no heavy package, neither for the list of commands nor for a single command."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from seqtrack.commands.parsers import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "cv2", "matplotlib", "timm", "torchvision", "huggingface_hub")

# One interpreter for all commands, because starting one per command is slow.
_ASK_ALL = f"""
import contextlib, io, json, sys
from seqtrack.cli import main
from seqtrack.commands.parsers import COMMANDS
answers = {{}}
for name in sys.argv[1:]:
    before, output = set(sys.modules), io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            code = main([name, "--help"])
        except SystemExit as ended:
            code = ended.code
    loaded = {{module.split(".")[0] for module in set(sys.modules) - before}} & set({HEAVY!r})
    answers[name] = {{"code": code, "text": output.getvalue(), "loaded": sorted(loaded)}}
print(json.dumps(answers))
"""


def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def loaded_packages(*arguments: str) -> tuple[str, set[str]]:
    """The output of a command, and the packages that it imported."""
    done = run("-X", "importtime", *arguments)
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", done.stderr, re.MULTILINE)
    return done.stdout, {name.split(".")[0] for name in names}


@pytest.fixture(scope="module")
def answers() -> dict[str, dict[str, object]]:
    """The help of every command, with the heavy packages that it imported."""
    return json.loads(run("-c", _ASK_ALL, *COMMANDS).stdout)  # type: ignore[no-any-return]


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    text, loaded = loaded_packages("-m", "seqtrack", "--help")
    assert [name for name in COMMANDS if not re.search(rf"^\s+{name}\s", text, re.MULTILINE)] == []
    assert "argparse" in loaded
    assert sorted(loaded & set(HEAVY)) == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command_imports_nothing_heavy(command: str, answers: dict[str, dict[str, object]]) -> None:
    answer = answers[command]
    assert answer["code"] == 0
    assert f"seqtrack {command}" in str(answer["text"])
    assert answer["loaded"] == []


def test_a_heavy_import_is_found() -> None:
    assert "numpy" in loaded_packages("-c", "import seqtrack.seeding")[1]
    script = _ASK_ALL.replace("code = main(", "import numpy; code = main(")
    assert json.loads(run("-c", script, "verify").stdout)["verify"]["loaded"] == ["numpy"]

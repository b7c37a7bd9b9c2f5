"""`--help` answers at once: neither the list of commands nor any command's own help loads a heavy package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from seqtrack.cli import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "cv2", "matplotlib", "timm", "torchvision", "huggingface_hub")


def loaded_packages(*arguments: str) -> tuple[str, set[str]]:
    """What a command prints, and the packages that the interpreter imported for it."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = re.findall(r"^import time:\s+\d+ \|\s+\d+ \|\s+(\S+)$", done.stderr, re.MULTILINE)
    return done.stdout, {name.split(".")[0] for name in names}


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    text, loaded = loaded_packages("-m", "seqtrack", "--help")
    assert [name for name in COMMANDS if not re.search(rf"^\s+{name}\s", text, re.MULTILINE)] == []
    assert "argparse" in loaded
    assert sorted(loaded & set(HEAVY)) == []


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    text, loaded = loaded_packages("-m", "seqtrack", command, "--help")
    assert f"seqtrack {command}" in text
    assert sorted(loaded & set(HEAVY)) == []


def test_a_heavy_import_would_be_noticed() -> None:
    assert "numpy" in loaded_packages("-c", "import seqtrack.seeding")[1]

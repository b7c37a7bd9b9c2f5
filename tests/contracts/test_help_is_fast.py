"""`--help` imports no heavy package, neither for the list of commands nor for a single command."""

import json
import subprocess
import sys
from pathlib import Path

from seqtrack.commands.parsers import COMMANDS

# One interpreter for all commands, because starting one per command is slow. At the end, a package that is loaded.
ASK = """
import contextlib, io, json, sys
from seqtrack.cli import main
from seqtrack.commands.parsers import COMMANDS
heavy, answers = {"torch", "numpy", "cv2", "matplotlib", "timm", "torchvision", "huggingface_hub"}, []
for words in [["--help"], *([name, "--help"] for name in COMMANDS)]:
    with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.suppress(SystemExit):
        main(words)
    answers.append((output.getvalue(), sorted(heavy & set(sys.modules))))
import numpy
print(json.dumps([answers, sorted(heavy & set(sys.modules))]))
"""


def test_help_is_complete_and_imports_nothing_heavy() -> None:
    words = [sys.executable, "-c", ASK]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=120)
    answers, control = json.loads(done.stdout)
    assert all(name in answers[0][0] for name in COMMANDS)
    for name, (text, loaded) in zip(["", *COMMANDS], answers, strict=True):
        assert loaded == [] and f"seqtrack {name}".strip() in text
    assert control == ["numpy"]

"""`--help` imports no heavy package, neither for the list of commands nor for a single command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from seqtrack.commands.parsers import COMMANDS

HEAVY = ("torch", "numpy", "cv2", "matplotlib", "timm", "torchvision", "huggingface_hub")
# One interpreter for all commands, because starting one per command is slow. `seqtrack --help` comes first.
ASK_ALL = f"""
import contextlib, io, json, sys
from seqtrack.cli import main
from seqtrack.commands.parsers import COMMANDS
answers = {{}}
for name in ["", *COMMANDS]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            code = main([name, "--help"][not name:])
        except SystemExit as ended:
            code = ended.code
    answers[name] = [code, output.getvalue(), sorted({{*{HEAVY!r}}} & set(sys.modules))]
print(json.dumps(answers))
"""


def ask(script: str) -> dict[str, tuple[int, str, list[str]]]:
    words = [sys.executable, "-c", script]
    done = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=120)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("planted", [[], ["numpy"]])
def test_help_is_complete_and_imports_nothing_heavy(planted: list[str]) -> None:
    answers = ask(ASK_ALL.replace("code = main(", f"import {planted[0]}; code = main(") if planted else ASK_ALL)
    assert all(name in answers[""][1] for name in COMMANDS)
    for name, (code, text, loaded) in answers.items():
        assert (code, loaded) == (0, planted) and f"seqtrack {name}".strip() in text

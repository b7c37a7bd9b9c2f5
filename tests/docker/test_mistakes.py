"""Mistakes through containers: the answer is on the screen of the command that was typed, with its exit code and error
code, and nothing keeps running."""

import json
import re
from collections.abc import Callable

import pytest
from commands.test_mistakes import MISTAKES

from docker.containers import Project, command

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
UPLOADING = {"HF_REPO": "me/x", "HF_TOKEN_PATH": "./my-token", "HF_ENDPOINT": "http://127.0.0.1:9"}
BOOK = {"DATASET": "lasot", "CLASSES": "Book"}
# Runs every row of a table by the entrypoint and prints exit codes with what came on stderr.
DRIVER = """
import json, os, subprocess, sys
found = []
for words, variables in json.load(sys.stdin):
    entrypoint = ["/opt/venv/bin/python", "/app/docker/entrypoint", "--in-image", *words.split()]
    done = subprocess.run(entrypoint, env={**os.environ, **variables}, cwd="/tmp", capture_output=True, text=True)
    found.append((done.returncode, done.stderr))
print(json.dumps(found))
"""


def codes(text: str) -> list[str]:
    return re.findall(r"error \[(.+?)\]", text)


def test_compose_shows_what_is_wrong_and_leaves_nothing_running(make_project: Callable[..., Project]) -> None:
    project = make_project()
    (project.folder / "my-token").write_text("hf_x\n")
    answer = project.compose("up", "--no-color", "train-phase1", **UPLOADING, **BOOK)
    said = answer.stdout + answer.stderr
    assert (project.exit_code("train-phase1"), codes(said)) == (2, ["data.unknown_class"]), said
    assert "did you mean book?" in said
    assert project.compose("ps", "--quiet").stdout.strip() == ""
    (project.folder / ".env").write_text("EPOCH=2\n")
    for words, code, named in (
        (["train-phase1"], "variable.unknown", "did you mean EPOCHS?"),
        (["evaluate", "--checkpoint", "lats"], "checkpoint.option", "last"),
    ):
        answer = project.compose("run", "--rm", *words)
        said = answer.stdout + answer.stderr
        assert (answer.returncode, codes(said)[-1:]) == (2, [code]) and named in said, said
    assert project.compose("ps", "--all", "--quiet", "evaluate").stdout.strip() == ""


@pytest.mark.long
def test_the_whole_table_through_the_entrypoint(image: str) -> None:
    known = [row for row in MISTAKES if row[2] != "cli.command"]  # a misspelt job is the entrypoint's own error
    rows = json.dumps([(words, variables) for words, variables, _, _ in known])
    words = ["docker", "run", "--rm", "--interactive", "--entrypoint", "/opt/venv/bin/python", image, "-c", DRIVER]
    answer = command(words, input=rows, timeout=580)
    assert answer.returncode == 0, answer.stderr
    for (line, variables, code, named), (ended, said) in zip(known, json.loads(answer.stdout), strict=True):
        assert (ended, codes(said)[-1:]) == (2, [code]) and named in said, (line, variables, said)

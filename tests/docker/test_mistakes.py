"""Mistakes through containers: the answer is on the screen of the command that was typed, with its exit code and error
code, and nothing keeps running."""

import json
import re
from collections.abc import Callable

import pytest
from commands.test_mistakes import MISTAKES

from docker.containers import Project

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
UPLOADING = {"HF_REPO": "me/x", "HF_TOKEN_PATH": "./my-token", "HF_ENDPOINT": "http://127.0.0.1:9"}
BOOK = {"DATASET": "lasot", "CLASSES": "Book"}
COMPOSE = "docker compose -f compose.yaml -f compose.cpu.yaml"  # what a user without a GPU has to type
# Runs every row of a table by the entrypoint and prints exit codes with what came on stderr.
DRIVER = """
import json, os, subprocess, sys
found = []
for words, variables in json.loads(sys.argv[1]):
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


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.long)])
def test_the_table_in_a_container_of_compose(every: int, make_project: Callable[..., Project]) -> None:
    """One container: starting one takes longer than most of these mistakes."""
    known = [row for row in MISTAKES if row[2] != "cli.command"][::every]  # that is the entrypoint's own error
    rows = json.dumps([(words, variables) for words, variables, _, _ in known])
    words = ["run", "--rm", "--no-TTY", "--entrypoint", "/opt/venv/bin/python", "seqtrack", "-c", DRIVER, rows]
    answer = make_project().compose(*words, timeout=580)
    assert answer.returncode == 0, answer.stderr
    for (line, variables, code, named), (ended, said) in zip(known, json.loads(answer.stdout), strict=True):
        named = named.replace("`seqtrack", f"`{COMPOSE} run --rm seqtrack")
        assert (ended, codes(said)[-1:]) == (2, [code]) and named in said, (line, variables, said)

"""The documentation agrees with the code: every name, link, command, variable and exit code it mentions exists."""

import argparse
import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from seqtrack.commands.docs import parsers, render
from seqtrack.commands.parsers import COMMANDS
from seqtrack.config.environment import VARIABLES, read_variable
from seqtrack.config.fields import reader
from seqtrack.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, UserError
from seqtrack.uploads.uploader import EXIT_INCOMPLETE

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path.parent.suffix != ".d")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
JOBS = ("train-phase1", "train-phase2", "prepare-data")
# Values that the entrypoint resolves before anything else reads them.
ENTRYPOINT_VALUES = {("RESUME_EPOCH", "latest")}
# Variables of Docker, compose or the shell.
FOREIGN_VARIABLES = {
    "PYTHON", "CI", "CUDA", "IMAGE", "GPUS", "MEMLOCK", "SHM_SIZE", "TENSORBOARD_PORT", "COMMIT", "LOCK_DIGEST",
    "BASE_CU121", "BASE_CU128", "HF_HOME", "PWD", "UID", "GID", "PUID", "PGID", "DOCKER_ENGINE_TOOL",
    "PYTORCH_CUDA_ALLOC_CONF",
}  # fmt: skip


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: str) -> list[str]:
    """Code spans and lines of code blocks, without comments."""
    fenced = re.findall(r"^```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in fenced for line in block.splitlines()]
    lines += [line for line in rest.splitlines() if line.startswith("    ")]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    return [re.sub(r"(^|\s)#\s.*", "", text).strip() for text in [*spans, *lines]]


def has_name(path: Path, qualified: str) -> bool:
    """Whether a module defines a function, class or method of this name."""
    scope: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in qualified.split("."):
        found = [node for node in scope if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == part]
        if not found:
            return False
        scope = found[0].body
    return True


def missing_names(page: str) -> list[str]:
    """Names written as `folder/file.py:name` that do not exist, and files of this project that do not."""
    found = [
        f"{file}:{name}"
        for file, name in re.findall(r"`([\w/]+\.py):([\w.]+)`", page)
        if not (ROOT / file).is_file() or not has_name(ROOT / file, name)
    ]
    files = re.findall(r"`((?:seqtrack|tests|docker|scripts|docs)/[\w./-]+)`", page)
    return found + [file for file in files if not (ROOT / file).exists()]


def anchors(page: str) -> set[str]:
    """The anchors that GitHub derives from the headings."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """Relative links whose file or anchor does not exist."""
    broken = []
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        goal = (page.parent / name).resolve() if name else page
        if not goal.exists() or (anchor and anchor not in anchors(read(goal))):
            broken.append(target)
    return broken


def wrong_commands(code: list[str]) -> list[str]:
    """Commands and options that do not exist."""
    wrong = []
    for text in code:
        start = re.search(r"(?:python3? -m seqtrack|^(?:\w+=\S+ )*seqtrack|scripts/local\.sh)(?: (.*))?$", text)
        words = (start[1] or "").split() if start else []
        if not words or not re.fullmatch(r"[a-z][a-z0-9-]*", words[0]):
            continue
        if words[0] not in COMMANDS:
            if words[0] not in JOBS:
                wrong.append(text)
            continue
        wrong += [f"{text} ({word})" for word in words[1:] if word.startswith("--") and not _is_option(words, word)]
        wrong += _wrong_action(text, words)
    return wrong


def _is_option(words: list[str], option: str) -> bool:
    known = {name for name, _, parser in parsers() if name.split()[0] == words[0] for name in _options(parser)}
    return option.split("=")[0] in known | {"--help"}


def _options(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def _wrong_action(text: str, words: list[str]) -> list[str]:
    actions = {name.split()[1] for name, _, _ in parsers() if name.startswith(f"{words[0]} ")}
    named = words[1:2] and re.fullmatch(r"[a-z]+", words[1])
    return [f"{text} ({words[1]})"] if actions and named and words[1] not in actions else []


def unknown_variables(code: list[str]) -> list[str]:
    """Variables that are set and that nothing reads."""
    found = {name for text in code for name in re.findall(r"(?:^|\s)(?:-e )?([A-Z][A-Z0-9_]{2,})=(?!=)", text)}
    return sorted(found - set(VARIABLES) - FOREIGN_VARIABLES)


def refused_values(code: list[str]) -> list[str]:
    """`NAME=value` of a known variable with a value that the code refuses."""
    refused = []
    for name, value in re.findall(r"(?:^|\s)([A-Z][A-Z0-9_]{2,})=([\w.,:/@+-]+)", "\n".join(code)):
        if name in VARIABLES and not value.startswith(("...", "/")) and (name, value) not in ENTRYPOINT_VALUES:
            try:
                read_variable({name: value}, name)
            except UserError as error:
                refused.append(f"{name}={value}: {error}")
    return refused


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_everything_a_page_mentions_exists(page: Path) -> None:
    text = read(page)
    assert missing_names(text) == []
    assert broken_links(page, text) == []
    assert wrong_commands(code_of(text)) == []
    assert unknown_variables(code_of(text)) == []
    assert refused_values(code_of(text)) == []


def test_every_page_is_linked() -> None:
    linked = {
        link.split("#")[0].rsplit("/", 1)[-1] for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", read(page))
    }
    assert [page.name for page in PAGES if ROOT / "docs" in page.parents and page.name not in linked] == []


def test_the_tables_of_commands_are_up_to_date() -> None:
    assert render(COMMANDS_PAGE) == COMMANDS_PAGE, "run: python -m seqtrack.commands.docs docs/commands.md"
    with pytest.raises(ValueError):
        render(COMMANDS_PAGE.replace("<!-- end of commands -->", ""))


def test_a_new_option_makes_the_page_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "verify", ("something else", COMMANDS["export"][1]))
    assert render(COMMANDS_PAGE) != COMMANDS_PAGE


def test_every_exit_code_is_on_the_page_and_no_other() -> None:
    table = COMMANDS_PAGE.split("## Exit codes")[1].split("\n## ")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == sorted({0, 1, USER_ERROR_EXIT_CODE, STOPPED_EXIT_CODE, EXIT_INCOMPLETE})


def test_every_reader_of_a_variable_exists() -> None:
    others = {"every command", "entrypoint", "healthcheck", "tests"}
    readers = {word.strip() for one in VARIABLES.values() for word in reader(one).split(",")}
    assert sorted(readers - set(COMMANDS) - others) == []


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (missing_names, "`seqtrack/boxes.py:iou` in `docs/commands.md`", "`seqtrack/boxes.py:area`"),
        (missing_names, "`seqtrack/data/loader.py:BatchLoader.batches`", "`seqtrack/data/none.py`"),
        (lambda text: broken_links(ROOT / "docs" / "x.md", text), "[a](commands.md#exit-codes)", "[a](commands.md#no)"),
        (lambda text: broken_links(ROOT / "docs" / "x.md", text), "[a](https://x.y/NO.md)", "[a](../NO.md)"),
        (lambda text: wrong_commands([text]), "HF_REPO=a/b seqtrack hub download --epoch 3", "seqtrack hub fetch"),
        (lambda text: wrong_commands([text]), "scripts/local.sh train-phase1", "python -m seqtrack trian"),
        (lambda text: wrong_commands([text]), "seqtrack verify --chain a b", "seqtrack verify --chains a b"),
        (lambda text: unknown_variables([text]), "docker run -e PHASE=1 image", "PHASES=1 docker run"),
        (lambda text: refused_values([text]), "PHASE=2 NPROC=auto seqtrack train", "PHASE=3 seqtrack train"),
    ],
)  # fmt: skip
def test_a_check_names_what_is_wrong_and_nothing_else(check: Callable[[str], list[str]], good: str, bad: str) -> None:
    assert check(good) == []
    assert len(check(bad)) == 1

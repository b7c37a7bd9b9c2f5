"""The documentation agrees with the code: every name, link, command, variable and exit code it mentions exists."""

import re
from pathlib import Path

import pytest
from reference import PAGES as GENERATED
from reference import parsers, render_commands

from seqtrack.commands.parsers import COMMANDS
from seqtrack.config.environment import VARIABLES, read_environment
from seqtrack.config.fields import fact
from seqtrack.config.loader import experiment_names
from seqtrack.errors import STOPPED_EXIT_CODE, USER_ERROR_EXIT_CODE, UserError
from seqtrack.uploads.uploader import EXIT_INCOMPLETE

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if path.parent.suffix != ".d")
COMMANDS_PAGE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
JOBS = ("train-phase1", "train-phase2", "prepare-data", "tensorboard")
# Variables of Docker, compose or the shell.
FOREIGN_VARIABLES = {
    "PYTHON", "CI", "CUDA", "IMAGE", "GPUS", "MEMLOCK", "SHM_SIZE", "TENSORBOARD_PORT", "COMMIT", "LOCK_DIGEST",
    "BASE_CU121", "BASE_CU128", "HF_HOME", "PWD", "UID", "GID", "PUID", "PGID", "DOCKER_ENGINE_TOOL",
    "PYTORCH_CUDA_ALLOC_CONF", "SSL_CERT_FILE", "CUDA_VISIBLE_DEVICES", "SEQTRACK_TEST_HUB", "COMPOSE_FILE",
}  # fmt: skip
OPTIONS = {name: {text for a in parser._actions for text in a.option_strings} for name, _, parser in parsers()}


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
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return all(re.search(rf"^ *(def|class) {part}\b", text, re.MULTILINE) for part in qualified.split("."))


def is_link(page: Path, target: str) -> bool:
    """Whether the file and the heading of a relative link exist."""
    name, _, anchor = target.partition("#")
    goal = (page.parent / name).resolve() if name else page
    if not goal.exists() or not anchor:
        return goal.exists()
    headings = re.findall(r"^#+ (.*)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_command(text: str) -> bool:
    """Whether the command that a text may hold exists, with its action and options."""
    program = r"(?:python3? -m seqtrack|^(?:\w+=\S+ )*seqtrack|scripts/local\.sh)"
    start = re.search(program + r" ([a-z][a-z0-9-]*)( .*)?$", text)
    if not start or start[1] in JOBS:
        return True
    words = (start[2] or "").split()
    known = {option for name, options in OPTIONS.items() if name.split()[0] == start[1] for option in options}
    actions = [name.split()[1] for name in OPTIONS if name.startswith(f"{start[1]} ")]
    named = actions and words[:1] and re.fullmatch(r"[a-z]+", words[0])
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    return start[1] in COMMANDS and set(options) <= known | {"--help"} and (not named or words[0] in actions)


def is_setting(name: str, value: str) -> bool:
    """Whether something reads a variable that is set, and accepts its value."""
    if name not in VARIABLES or value.startswith(("...", "/")) or not re.fullmatch(r"[\w.,:/@+-]+", value):
        return name in VARIABLES or name in FOREIGN_VARIABLES
    try:
        read_environment({name: value})
    except UserError:
        return False
    return True


def wrong(page: Path, text: str) -> list[str]:
    """Whatever a page mentions and does not exist."""
    code = code_of(text)
    names = re.findall(r"`([\w/]+\.py):([\w.]+)`", text)
    files = re.findall(r"`((?:seqtrack|tests|docker|scripts|docs)/[\w./-]+)`", text)
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text))
    settings = [pair for one in code for pair in re.findall(r"(?:^|\s)(?:-e )?([A-Z][A-Z0-9_]{2,})=(?!=)(\S*)", one)]
    return [
        *(f"{file}:{name}" for file, name in names if not has_name(ROOT / file, name)),
        *(file for file in files if not (ROOT / file).exists()),
        *(target for target in links if not re.match(r"[a-z]+:", target) and not is_link(page, target)),
        *(one for one in code if not is_command(one)),
        *(f"{name}={value}" for name, value in settings if not is_setting(name, value)),
    ]


@pytest.mark.parametrize("page", PAGES, ids=[page.relative_to(ROOT).as_posix() for page in PAGES])
def test_everything_a_page_mentions_exists(page: Path) -> None:
    assert wrong(page, page.read_text(encoding="utf-8")) == []


def test_what_is_wrong_is_found_and_nothing_else() -> None:
    for good, bad in (
        ("`seqtrack/boxes.py:iou` in `docs/commands.md`", "`seqtrack/boxes.py:area`"),
        ("`seqtrack/data/loader.py:BatchLoader.batches`", "`seqtrack/data/none.py`"),
        ("[a](commands.md#exit-codes) [b](https://x.y/NO.md)", "[a](commands.md#no)"),
        ("`HF_REPO=a/b seqtrack hub download --epoch 3`", "`seqtrack hub fetch`"),
        ("`scripts/local.sh train-phase1`", "`python -m seqtrack trian`"),
        ("`seqtrack verify --output a b c`", "`seqtrack verify --outputs a b`"),
        ("`docker run -e PHASE=1 image`", "`PHASES=1 docker run`"),
        ("`PHASE=2 NPROC=auto seqtrack train`", "`PHASE=3 seqtrack train`"),
    ):
        assert (wrong(ROOT / "docs" / "x.md", good), len(wrong(ROOT / "docs" / "x.md", bad))) == ([], 1)


def test_every_page_is_linked_and_every_reader_of_a_variable_exists() -> None:
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    linked = {link.split("#")[0].rsplit("/", 1)[-1] for text in texts for link in re.findall(r"\]\(([^)]+)\)", text)}
    assert [page.name for page in PAGES if ROOT / "docs" in page.parents and page.name not in linked] == []
    readers = {word.strip() for one in VARIABLES.values() for word in fact(one, "reader").split(",")}
    assert sorted(readers - set(COMMANDS) - {"every command", "entrypoint", "healthcheck", "tests"}) == []


def test_the_tables_of_commands_and_exit_codes_are_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    for page, render in GENERATED.items():
        text = page.read_text(encoding="utf-8")
        assert render(text) == text, "run: python scripts/reference.py"
        with pytest.raises(ValueError):
            render(text.replace("<!-- end of", ""))
    configuration = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert [name for name in experiment_names() if f"`{name}`" not in configuration] == []
    table = COMMANDS_PAGE.split("## Exit codes")[1].split("\n## ")[0]
    listed = [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)]
    assert listed == sorted({0, 1, USER_ERROR_EXIT_CODE, STOPPED_EXIT_CODE, EXIT_INCOMPLETE})
    monkeypatch.setitem(COMMANDS, "verify", COMMANDS["export"])
    assert render_commands(COMMANDS_PAGE) != COMMANDS_PAGE

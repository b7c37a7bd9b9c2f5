"""How the code is kept: docstrings, what is caught, and no word about the machine it was written on.

Each rule is a function from a source to complaints, so that it can be shown to complain.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "seqtrack"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PROGRAMS = [ROOT / "docker" / "entrypoint", ROOT / "docker" / "healthcheck"]

# Who catches everything, and why nothing is swallowed there.
CATCHES_ALL = {
    "commands/doctor_project.py": "whatever a client raises is told in one classified line, without the token",
    "commands/train.py": "one of several processes tells its launcher how it ended, after its traceback was printed",
    "data/loader.py": "a worker's error travels to the trainer, which raises it",
    "training/checkpointer.py": "the writing thread keeps the exception, and the training thread raises it",
    "uploads/child.py": "whatever a client raises must reach the parent as one classified event",
}

# Methods whose meaning is where their protocol is written down, in torch's documentation for the last two.
KNOWN_METHODS = {"state_dict", "load_state_dict"}

# Strings that belong to one machine or to how this code came about, put together so that this file does not hold them.
FOREIGN = {
    "/".join(("", "work", "")): "a folder of one machine",
    "/".join(("", "tmp", "w", "")): "a folder of one machine",
    "/".join(("", "opt", "py" + "pi")): "a folder of one machine",
    "DESIGN" + ".md": "a file that is not here",
    "STYLE" + ".md": "a file that is not here",
    "SPEC" + ".md": "a file that is not here",
    "HUB" + ".md": "a file that is not here",
    "CONTRACT" + ".md": "a file that is not here",
    "TO" + "DO": "work to do belongs into the tracker",
    "FIX" + "ME": "work to do belongs into the tracker",
}


def here(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix() if PACKAGE in path.parents else path.relative_to(ROOT).as_posix()


def functions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method that is not inside another function, with its qualified name."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{owner}{node.name}", node
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, f"{owner}{node.name}.")
        else:
            yield from functions(node, owner)


def protocol_methods(sources: list[str]) -> set[str]:
    """Names of methods that some Protocol documents."""
    return {
        node.name
        for source in sources
        for kind in ast.walk(ast.parse(source))
        if isinstance(kind, ast.ClassDef) and any("Protocol" in ast.dump(base) for base in kind.bases)
        for node in kind.body
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node)
    }


def undocumented(name: str, source: str, known: set[str]) -> list[str]:
    """Modules, public classes, and public functions of more than one statement that say nothing of themselves."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else [f"{name}: the module says nothing of itself"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node):
            found.append(f"{name}:{node.lineno}: class {node.name} says nothing of itself")
    for function, node in functions(tree):
        hidden = any(part.startswith("_") for part in function.split("."))
        explained = node.name in known and "." in function
        if not (hidden or explained or ast.get_docstring(node) or len(node.body) == 1):
            found.append(f"{name}:{node.lineno}: {function} says nothing of itself")
    return found


def catches_all(name: str, source: str) -> list[str]:
    """`except:`, and `except Exception` that does not raise again."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = (
            {part.id for part in ast.walk(node.type) if isinstance(part, ast.Name)} if node.type else {"everything"}
        )
        again = any(isinstance(part, ast.Raise) and part.exc is None for part in ast.walk(node))
        if caught & {"everything", "Exception", "BaseException"} and not again and name not in CATCHES_ALL:
            found.append(f"{name}:{node.lineno}: catches {', '.join(sorted(caught))} and lets nothing fly")
    return found


def calls_print(name: str, source: str) -> list[str]:
    """Commands answer; everything else logs."""
    if name.startswith("commands/") or name == "cli.py":
        return []
    return [
        f"{name}:{node.lineno}: prints; use the module's logger"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def foreign_words(name: str, text: str) -> list[str]:
    """Where a text speaks of one machine, or of files that are not here."""
    return [
        f"{name}:{number}: {word!r} is {why}"
        for number, line in enumerate(text.splitlines(), start=1)
        for word, why in FOREIGN.items()
        if re.search(rf"(?<![\w.]){re.escape(word)}", line)
    ]


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_every_part_says_what_it_is() -> None:
    known = protocol_methods([read(path) for path in SOURCES]) | KNOWN_METHODS
    assert [text for path in SOURCES for text in undocumented(here(path), read(path), known)] == []


def test_nothing_is_swallowed() -> None:
    assert [text for path in [*SOURCES, *PROGRAMS] for text in catches_all(here(path), read(path))] == []
    # An exception to the rule that is no longer needed would hide the next one.
    needed = [name for name in CATCHES_ALL if "noqa: BLE001" in read(PACKAGE / name)]
    assert needed == list(CATCHES_ALL)


def test_only_commands_print() -> None:
    assert [text for path in SOURCES for text in calls_print(here(path), read(path))] == []


def test_nothing_speaks_of_the_machine_it_was_written_on() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    if listed.returncode != 0:
        pytest.skip("this is no clone: git does not list its files")
    places = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    texts = {place: place.read_bytes() for place in places if place.is_file() and place != Path(__file__)}
    plain = {place: data.decode("utf-8") for place, data in texts.items() if b"\0" not in data and _is_text(data)}
    assert len(plain) > 150
    assert [text for place, data in plain.items() for text in foreign_words(str(place.relative_to(ROOT)), data)] == []


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        (catches_all, "try:\n  f()\nexcept ValueError:\n  pass", "try:\n  f()\nexcept:\n  pass"),
        (catches_all, "try:\n  f()\nexcept Exception:\n  g()\n  raise", "try:\n  f()\nexcept Exception:\n  g()"),
        (catches_all, "try:\n  f()\nexcept (A, B):\n  g()", "try:\n  f()\nexcept (A, BaseException):\n  g()"),
        (calls_print, "log.info('x')", "def f():\n  print('x')"),
        (foreign_words, "see network/ and /home/me/workshop/x", "cd " + "/".join(("", "work", "main"))),
        (foreign_words, "what is to do", "# " + "TO" + "DO: later"),
    ],
)
def test_a_rule_complains_of_what_breaks_it_and_of_nothing_else(
    rule: Callable[[str, str], list[str]], good: str, bad: str
) -> None:
    assert rule("folder/some.py", good) == []
    assert len(rule("folder/some.py", bad)) == 1


@pytest.mark.parametrize(
    ("source", "complaints"),
    [
        ('"""Says."""', 0),
        ("", 1),
        ('"""Says."""\ndef f(x):\n  return x', 0),
        ('"""Says."""\ndef f(x):\n  x += 1\n  return x', 1),
        ('"""Says."""\ndef _f(x):\n  x += 1\n  return x', 0),
        ('"""Says."""\nclass A:\n  pass', 1),
        ('"""Says."""\nclass _A:\n  def f(self):\n    x = 1\n    return x', 0),
        ('"""Says."""\nclass A:\n  """Says."""\n  def look(self):\n    x = 1\n    return x', 0),
        ('"""Says."""\ndef look(x):\n  x += 1\n  return x', 1),
    ],
)
def test_what_says_nothing_of_itself_is_named(source: str, complaints: int) -> None:
    assert len(undocumented("folder/some.py", source, {"look"})) == complaints

"""Imports run downwards only: every import statement of the package is parsed, and the one that does not is named."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "seqtrack"

# Modules and folders by floor; a module may import from its own folder and from floors below it.
FLOORS: list[tuple[str, ...]] = [
    ("__init__", "errors", "boxes", "device", "tokens", "seeding", "process", "parsing", "markdown", "run_dir"),
    ("config", "checkpoints"),
    ("model", "data", "plotting"),
    ("runtime",),
    ("tracking", "evaluation", "uploads"),
    ("reports",),
    ("training",),
    ("train", "commands", "cli", "__main__"),
]
# Siblings on one floor do not know each other, save where one is made of the other, said here.
SIBLINGS = {("evaluation", "tracking")}
# The top floor is one story told in several files.
TOP = len(FLOORS) - 1

# (where, what it may never import while running, why)
FORBIDDEN: list[tuple[str, tuple[str, ...], str]] = [
    (
        "uploads",
        ("torch", "seqtrack.training", "seqtrack.model", "seqtrack.data", "seqtrack.tracking", "seqtrack.evaluation"),
        "the sidecar meets training only in the output folder",
    ),
    ("model", ("seqtrack.config",), "a model is built from its own dataclass"),
    ("config", ("torch", "numpy"), "the sidecar and --help read the configuration too"),
    ("seeding", ("torch",), "a seed is a number"),
    ("errors", ("torch", "numpy"), "everything imports it"),
    ("cli", ("torch", "numpy", "cv2", "matplotlib"), "--help answers at once"),
]
# Modules that may import torch.distributed.
DISTRIBUTED = {"seqtrack.runtime.distributed"}


@dataclass(frozen=True)
class Import:
    """One import statement: the module that holds it, its line, what it imports."""

    module: str
    line: int
    target: str
    # Under `if TYPE_CHECKING:`; it says a type and runs never.
    typing_only: bool
    # Inside a function; it runs when the function does, not when the module is imported.
    deferred: bool

    def __str__(self) -> str:
        return f"{self.module} line {self.line} imports {self.target}"


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Every import of a module's source, relative ones made absolute."""
    found: list[Import] = []

    def visit(node: ast.AST, typing_only: bool, deferred: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, node.lineno, alias.name, typing_only, deferred) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            # `from seqtrack import data` names a module, `from seqtrack.data import x` may; both are kept whole.
            targets = [f"{base}.{alias.name}" for alias in node.names]
            found.extend(Import(module, node.lineno, target, typing_only, deferred) for target in targets)
        for child in ast.iter_child_nodes(node):
            inside_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
            inside_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            visit(child, typing_only or inside_typing, deferred or inside_function)

    visit(ast.parse(source), False, False)
    return found


def package_imports() -> list[Import]:
    found: list[Import] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        is_package = path.name == "__init__.py"
        found += imports_of(path.read_text(encoding="utf-8"), module_name(path, PACKAGE), is_package=is_package)
    return found


def part_of(module: str) -> str:
    """The folder or file below the package that a module belongs to: `seqtrack.data.crop` is in `data`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def floor_of(part: str) -> int | None:
    return next((number for number, parts in enumerate(FLOORS) if part in parts), None)


def complaint(one: Import) -> str | None:
    """Why an import is refused, or None."""
    if one.target == "seqtrack" or one.target.startswith("seqtrack."):
        here, there = part_of(one.module), part_of(one.target)
        if floor_of(there) is None:
            there = "__init__"  # `from seqtrack import __version__`
        own, other = floor_of(here), floor_of(there)
        if own is None or other is None:
            return f"{one}: {here} is on no floor; add it to FLOORS"
        if here == there or own == other == TOP or (own == other == 0):
            return None
        if other > own:
            return f"{one}: goes up, from floor {own} to floor {other}"
        if other == own and (here, there) not in SIBLINGS:
            return f"{one}: goes sideways, {here} and {there} are siblings"
    elif is_below(one.target, "torch.distributed") and one.module not in DISTRIBUTED:
        return f"{one}: only {', '.join(sorted(DISTRIBUTED))} may"
    return None


def is_below(target: str, name: str) -> bool:
    return target == name or target.startswith(name + ".")


def breaches(one: Import) -> list[str]:
    """The special rules that an import breaks. A type is no knowledge at run time, so typing imports are free."""
    if one.typing_only:
        return []
    return [
        f"{one}: {reason}"
        for part, names, reason in FORBIDDEN
        if part_of(one.module) == part and any(is_below(one.target, name) for name in names)
    ]


def test_every_import_goes_down() -> None:
    found = package_imports()
    assert len(found) > 100
    assert [text for text in map(complaint, found) if text] == []


def test_nobody_imports_what_it_must_not_know() -> None:
    assert [text for one in package_imports() for text in breaches(one)] == []


def test_every_module_is_on_a_floor_and_every_floor_has_its_modules() -> None:
    parts = {part_of(module_name(path, PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert sorted(part for part in parts if floor_of(part) is None) == []
    known = {part for floor in FLOORS for part in floor}
    assert sorted(known - parts) == []


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("seqtrack.data.crop", "from seqtrack.model.images import x", "data and model are siblings"),
        ("seqtrack.model.build", "import seqtrack.data.crop", "model and data are siblings"),
        ("seqtrack.config.loader", "from seqtrack.training import state", "goes up, from floor 1 to floor 6"),
        ("seqtrack.boxes", "def f():\n    from seqtrack.config import load", "goes up, from floor 0 to floor 1"),
        ("seqtrack.training.trainer", "from torch import distributed", "only seqtrack.runtime.distributed may"),
        ("seqtrack.training.trainer", "import torch.distributed as dist", "only seqtrack.runtime.distributed may"),
        ("seqtrack.data.crop", "from ..model import build", "data and model are siblings"),
        ("seqtrack.uploads.watch", "from seqtrack.tracking.tracker import x", "uploads and tracking are siblings"),
        ("seqtrack.somewhere.new", "import seqtrack.errors", "somewhere is on no floor"),
    ],
)
def test_an_import_that_goes_up_or_sideways_is_named(module: str, source: str, message: str) -> None:
    complaints = [text for text in map(complaint, imports_of(source, module)) if text]
    assert len(complaints) == 1
    assert message in complaints[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("seqtrack.uploads.watch", "import torch"),
        ("seqtrack.uploads.watch", "def f():\n    from torch.nn import Module"),
        ("seqtrack.model.build", "from seqtrack.config.schema import Config"),
        ("seqtrack.config.loader", "import numpy as np"),
    ],
)
def test_forbidden_knowledge_is_named(module: str, source: str) -> None:
    assert len([text for one in imports_of(source, module) for text in breaches(one)]) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("seqtrack.evaluation.run", "from seqtrack.tracking import tracker"),
        ("seqtrack.runtime.distributed", "import torch.distributed"),
        ("seqtrack.commands.train", "from seqtrack import train"),
        ("seqtrack.data.crop", "from . import sequence\nfrom seqtrack.errors import UserError\nimport seqtrackx"),
        ("seqtrack.model.spec", "if TYPE_CHECKING:\n    from seqtrack.config.schema import Config"),
    ],
)
def test_a_good_import_is_not_complained_of(module: str, source: str) -> None:
    found = imports_of(source, module)
    assert [complaint(one) for one in found if complaint(one)] == []
    assert [text for one in found for text in breaches(one)] == []


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("seqtrack.checkpoints.store", ["torch"]),
        ("seqtrack.checkpoints.safetensors_io", ["torch"]),
        ("seqtrack.config.environment", ["torch", "numpy"]),
        ("seqtrack.seeding", ["torch"]),
        ("seqtrack.reports.report", ["torch", "cv2", "timm"]),
        ("seqtrack.reports.verdict", ["torch", "cv2", "timm"]),
        ("seqtrack.data.annotations", ["torch", "cv2", "timm"]),
    ],
)
def test_what_is_read_without_torch_loads_none_through_others_either(module: str, unwanted: list[str]) -> None:
    assert loaded_by(f"import {module}", unwanted) == []


def test_the_whole_of_the_uploader_loads_no_torch() -> None:
    modules = [module_name(path, PACKAGE) for path in sorted((PACKAGE / "uploads").glob("*.py"))]
    assert loaded_by(f"import {', '.join(modules)}", ["torch", "timm", "seqtrack.training", "seqtrack.model"]) == []


def test_loading_is_noticed() -> None:
    assert loaded_by("import seqtrack.boxes", ["torch"]) == ["torch"]


def loaded_by(code: str, unwanted: list[str]) -> list[str]:
    """Which of some modules a fresh interpreter has loaded after running the code."""
    script = f"import sys\n{code}\nprint(*[name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

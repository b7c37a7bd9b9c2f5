"""Imports go one way: every import statement of the package is parsed and checked against the list of layers."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "seqtrack"

# Modules and folders by layer; a module may import from its own folder and from layers below it.
LAYERS: list[tuple[str, ...]] = [
    ("__init__", "errors", "boxes", "device", "tokens", "seeding", "process", "parsing", "markdown", "run_dir"),
    ("config", "checkpoints"),
    ("model", "data", "plotting"),
    ("runtime",),
    ("tracking", "evaluation", "uploads"),
    ("reports",),
    ("training",),
    ("train", "commands", "cli", "__main__"),
]
# The modules of one layer do not import each other, except for these.
SIBLINGS = {("evaluation", "tracking")}
TOP = len(LAYERS) - 1

# (where, what it may never import while running, why)
FORBIDDEN: list[tuple[str, tuple[str, ...], str]] = [
    (
        "uploads",
        ("torch", "seqtrack.training", "seqtrack.model", "seqtrack.data", "seqtrack.tracking", "seqtrack.evaluation"),
        "the sidecar and training share only the output folder",
    ),
    ("model", ("seqtrack.config",), "a model is built from its own dataclass"),
    ("config", ("torch", "numpy"), "the sidecar and --help read the configuration too"),
    ("seeding", ("torch",), "a seed is a number"),
    ("errors", ("torch", "numpy"), "everything imports it"),
    ("cli", ("torch", "numpy", "cv2", "matplotlib"), "--help must be fast"),
]
# Modules that may import torch.distributed.
DISTRIBUTED = {"seqtrack.runtime.distributed"}


@dataclass(frozen=True)
class Import:
    """One import statement: the module that holds it, its line, what it imports."""

    module: str
    line: int
    target: str
    typing_only: bool  # under `if TYPE_CHECKING:`

    def __str__(self) -> str:
        return f"{self.module} line {self.line} imports {self.target}"


def module_name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Every import of a module's source, relative ones made absolute."""
    found: list[Import] = []

    def visit(node: ast.AST, typing_only: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(module, node.lineno, alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            found.extend(Import(module, node.lineno, f"{base}.{alias.name}", typing_only) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            inside_typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
            visit(child, typing_only or inside_typing)

    visit(ast.parse(source), False)
    return found


def package_imports() -> list[Import]:
    found: list[Import] = []
    for path in sorted(PACKAGE.rglob("*.py")):
        is_package = path.name == "__init__.py"
        found += imports_of(path.read_text(encoding="utf-8"), module_name(path, PACKAGE), is_package=is_package)
    return found


def part_of(module: str) -> str:
    """The folder or file below the package: `data` for `seqtrack.data.crop`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def layer_of(part: str) -> int | None:
    return next((number for number, parts in enumerate(LAYERS) if part in parts), None)


def complaint(one: Import) -> str | None:
    """Why an import is refused, or None."""
    if one.target == "seqtrack" or one.target.startswith("seqtrack."):
        here, there = part_of(one.module), part_of(one.target)
        if layer_of(there) is None:
            there = "__init__"  # `from seqtrack import __version__`
        own, other = layer_of(here), layer_of(there)
        if own is None or other is None:
            return f"{one}: {here} is in no layer; add it to LAYERS"
        if here == there or own == other == TOP or (own == other == 0):
            return None
        if other > own:
            return f"{one}: goes up, from layer {own} to layer {other}"
        if other == own and (here, there) not in SIBLINGS:
            return f"{one}: goes sideways, from {here} to {there}"
    elif is_below(one.target, "torch.distributed") and one.module not in DISTRIBUTED:
        return f"{one}: only {', '.join(sorted(DISTRIBUTED))} may"
    return None


def is_below(target: str, name: str) -> bool:
    return target == name or target.startswith(name + ".")


def breaches(one: Import) -> list[str]:
    """The special rules that an import breaks; imports for type checking do not count."""
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


def test_forbidden_packages_are_not_imported() -> None:
    assert [text for one in package_imports() for text in breaches(one)] == []


def test_every_module_is_in_a_layer_and_every_entry_of_a_layer_exists() -> None:
    parts = {part_of(module_name(path, PACKAGE)) for path in PACKAGE.rglob("*.py")}
    assert sorted(part for part in parts if layer_of(part) is None) == []
    known = {part for floor in LAYERS for part in floor}
    assert sorted(known - parts) == []


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("seqtrack.data.crop", "from seqtrack.model.images import x", True),
        ("seqtrack.config.loader", "from seqtrack.training import state", True),
        ("seqtrack.boxes", "def f():\n    from seqtrack.config import load", True),
        ("seqtrack.training.trainer", "from torch import distributed", True),
        ("seqtrack.training.trainer", "import torch.distributed as dist", True),
        ("seqtrack.data.crop", "from ..model import build", True),
        ("seqtrack.somewhere.new", "import seqtrack.errors", True),
        ("seqtrack.uploads.watch", "def f():\n    from torch.nn import Module", True),
        ("seqtrack.model.build", "from seqtrack.config.schema import Config", True),
        ("seqtrack.config.loader", "import numpy as np", True),
        ("seqtrack.evaluation.run", "from seqtrack.tracking import tracker", False),
        ("seqtrack.runtime.distributed", "import torch.distributed", False),
        ("seqtrack.commands.train", "from seqtrack import train", False),
        (
            "seqtrack.data.crop",
            "from . import sequence\nfrom seqtrack.errors import UserError\nimport seqtrackx",
            False,
        ),
        ("seqtrack.model.spec", "if TYPE_CHECKING:\n    from seqtrack.config.schema import Config", False),
    ],
)
def test_a_wrong_import_is_found_and_nothing_else(module: str, source: str, refused: bool) -> None:
    found = imports_of(source, module)
    problems = [text for text in map(complaint, found) if text] + [text for one in found for text in breaches(one)]
    assert len(problems) == int(refused)


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
def test_modules_without_torch_do_not_load_it_indirectly(module: str, unwanted: list[str]) -> None:
    assert loaded_by(f"import {module}", unwanted) == []


def test_the_uploader_loads_no_torch() -> None:
    modules = [module_name(path, PACKAGE) for path in sorted((PACKAGE / "uploads").glob("*.py"))]
    assert loaded_by(f"import {', '.join(modules)}", ["torch", "timm", "seqtrack.training", "seqtrack.model"]) == []


def test_a_loaded_package_is_found() -> None:
    assert loaded_by("import seqtrack.boxes", ["torch"]) == ["torch"]


def loaded_by(code: str, unwanted: list[str]) -> list[str]:
    """The unwanted modules that a fresh interpreter has loaded after running the code."""
    script = f"import sys\n{code}\nprint(*[name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()

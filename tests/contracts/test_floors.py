"""Imports go one way: every import statement of the package is parsed and checked against the list of layers."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
    ("proof",),
    ("train", "commands", "cli", "__main__"),
]
LAYER_OF = {part: number for number, parts in enumerate(LAYERS) for part in parts}
# The modules of one layer do not import each other, except for these.
SIBLINGS = {("evaluation", "tracking")}
FREE = (0, len(LAYERS) - 1)

# What may never be imported while running, by part of the package.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    # The sidecar and training share only the output folder.
    "uploads": ("torch", *(f"seqtrack.{name}" for name in ("training", "model", "data", "tracking", "evaluation"))),
    "model": ("seqtrack.config",),  # a model is built from its own dataclass
    "config": ("torch", "numpy"),  # the sidecar and --help read the configuration too
    "seeding": ("torch",),
    "errors": ("torch", "numpy"),
    "cli": ("torch", "numpy", "cv2", "matplotlib"),
}
DISTRIBUTED = "seqtrack.runtime.distributed"  # the only module that may import torch.distributed


class Import(NamedTuple):
    """One import statement: the module that holds it, its line, what it imports."""

    module: str
    line: int
    target: str
    typing_only: bool = False  # under `if TYPE_CHECKING:`


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports_of(source: str, module: str) -> Iterator[Import]:
    def visit(node: ast.AST, typing_only: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(module, node.lineno, alias.name, typing_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} line {node.lineno}: relative import"
            yield from (Import(module, node.lineno, f"{node.module}.{alias.name}", typing_only) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            inside = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) and child in node.body
            yield from visit(child, typing_only or inside)

    yield from visit(ast.parse(source), False)


def part_of(module: str) -> str:
    """The folder or file below the package: `data` for `seqtrack.data.crop`."""
    return [*module.split("."), "__init__"][1]


def is_below(target: str, name: str) -> bool:
    return target == name or target.startswith(name + ".")


def is_wrong(one: Import) -> bool:
    here = part_of(one.module)
    if not one.typing_only and any(is_below(one.target, name) for name in FORBIDDEN.get(here, ())):
        return True
    if not is_below(one.target, "seqtrack"):
        return is_below(one.target, "torch.distributed") and one.module != DISTRIBUTED
    there = part_of(one.target) if part_of(one.target) in LAYER_OF else "__init__"  # `from seqtrack import __version__`
    own, other = LAYER_OF[here], LAYER_OF[there]
    return other > own or (other == own and here != there and own not in FREE and (here, there) not in SIBLINGS)


def test_every_import_goes_down() -> None:
    modules = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
    assert {part_of(module) for module in modules} == set(LAYER_OF), "every module is in a layer, and no layer is empty"
    found = [one for name, path in modules.items() for one in imports_of(path.read_text(encoding="utf-8"), name)]
    assert len(found) > 100
    assert [one for one in found if is_wrong(one)] == []


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("seqtrack.data.crop", "from seqtrack.model.images import x", True),
        ("seqtrack.boxes", "def f():\n    from seqtrack.config import load", True),
        ("seqtrack.training.trainer", "from torch import distributed", True),
        ("seqtrack.uploads.watch", "def f():\n    from torch.nn import Module", True),
        ("seqtrack.model.build", "from seqtrack.config.schema import Config", True),
        ("seqtrack.evaluation.run", "from seqtrack.tracking import tracker", False),
        ("seqtrack.runtime.distributed", "import torch.distributed", False),
        ("seqtrack.model.spec", "if TYPE_CHECKING:\n    from seqtrack.config.schema import Config", False),
    ],
)
def test_a_wrong_import_is_found_and_nothing_else(module: str, source: str, refused: bool) -> None:
    assert [is_wrong(one) for one in imports_of(source, module)] == [refused]


UPLOADS = [module_name(path) for path in sorted((PACKAGE / "uploads").glob("*.py"))]


@pytest.mark.parametrize(
    ("modules", "loaded"),
    [
        (["seqtrack.checkpoints.store", "seqtrack.config.environment", *UPLOADS], []),
        (["seqtrack.reports.report", "seqtrack.reports.verdict", "seqtrack.data.annotations"], []),
        (["seqtrack.boxes"], ["torch"]),
    ],
    ids=["uploads", "reports", "a loaded package is found"],
)
def test_modules_without_torch_do_not_load_it_indirectly(modules: list[str], loaded: list[str]) -> None:
    unwanted = ["torch", "cv2", "timm", "seqtrack.training", "seqtrack.model"]
    script = f"import sys, {', '.join(modules)}\nprint(*[name for name in {unwanted!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == loaded

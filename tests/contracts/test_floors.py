"""Imports go one way: every import statement of the package is parsed and checked against the list of layers."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "seqtrack"

# Modules and folders by layer; a module may import from its own folder and from layers below it.
LAYERS: list[tuple[str, ...]] = [
    ("__init__", "errors", "boxes", "device", "tokens", "seeding", "shards", "process", "parsing", "markdown",
     "packages", "run_dir"),
    ("config", "checkpoints"),
    ("model", "data", "plotting", "gpu_peaks"),
    ("runtime",),
    ("uploads",),
    ("places",),
    ("tracking", "evaluation"),
    ("reports",),
    ("training",),
    ("proof",),
    ("train", "api", "commands", "cli", "__main__"),
]  # fmt: skip
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


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(source: str) -> Iterator[tuple[str, bool]]:
    """What a module imports, and whether only under `if TYPE_CHECKING:`."""
    tree = ast.parse(source)
    checks = [one for one in ast.walk(tree) if isinstance(one, ast.If) and "TYPE_CHECKING" in ast.dump(one.test)]
    typing_only = {node for check in checks for one in check.body for node in ast.walk(one)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from ((prefix + alias.name, node in typing_only) for alias in node.names)


def part_of(module: str) -> str:
    """The folder or file below the package: `data` for `seqtrack.data.crop`."""
    return [*module.split("."), "__init__"][1]


def wrong_imports(module: str, source: str) -> list[str]:
    def is_below(target: str, name: str) -> bool:
        return target == name or target.startswith(name + ".")

    here, wrong = part_of(module), []
    for target, typing_only in imports_of(source):
        there = part_of(target) if part_of(target) in LAYER_OF else "__init__"  # `from seqtrack import __version__`
        own, other = LAYER_OF[here], LAYER_OF[there]
        if not typing_only and any(is_below(target, name) for name in FORBIDDEN.get(here, ())):
            wrong.append(f"{module}: {target}")
        elif not is_below(target, "seqtrack"):
            wrong += [f"{module}: {target}"] * (is_below(target, "torch.distributed") and module != DISTRIBUTED)
        elif (module, typing_only) == ("seqtrack", True):
            continue  # the public names, each imported when it is first used
        elif other > own or (other == own and here != there and own not in FREE and (here, there) not in SIBLINGS):
            wrong.append(f"{module}: {target}")
    return wrong


def test_every_import_goes_down() -> None:
    modules = {module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    assert {part_of(module) for module in modules} == set(LAYER_OF), "every module is in a layer, and no layer is empty"
    assert [one for module, source in modules.items() for one in wrong_imports(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("seqtrack.data.crop", "from seqtrack.model.images import x", 1),
        ("seqtrack.boxes", "def f():\n    from seqtrack.config import load", 1),
        ("seqtrack.training.trainer", "from torch import distributed", 1),
        ("seqtrack.uploads.watch", "def f():\n    from torch.nn import Module", 1),
        ("seqtrack.model.build", "from seqtrack.config.schema import Config", 1),
        ("seqtrack.evaluation.run", "from seqtrack.tracking import tracker", 0),
        ("seqtrack.model.spec", "if TYPE_CHECKING:\n    from seqtrack.config.schema import Config", 0),
    ],
)
def test_a_wrong_import_is_found_and_nothing_else(module: str, source: str, refused: int) -> None:
    assert len(wrong_imports(module, source)) == refused


UPLOADS = [module_name(path) for path in sorted((PACKAGE / "uploads").glob("*.py"))]
UNWANTED = ["torch", "numpy", "cv2", "timm", "matplotlib", "huggingface_hub", "seqtrack.training", "seqtrack.model"]
# `--help` of every command in one interpreter, because starting one per command is slow.
HELP = """
import contextlib, io
from seqtrack.cli import main
from seqtrack.commands.parsers import COMMANDS
with contextlib.redirect_stdout(io.StringIO()) as output:
    for name in ("", *COMMANDS):
        with contextlib.suppress(SystemExit):
            main([*name.split(), "--help"])
assert all(output.getvalue().count(f"usage: seqtrack {name}") == 1 for name in COMMANDS)
"""


@pytest.mark.parametrize(
    ("script", "loaded"),
    [
        (HELP, set()),
        (f"import seqtrack.checkpoints.store, seqtrack.config.environment, {', '.join(UPLOADS)}", {"huggingface_hub"}),
        ("import seqtrack.reports.verdict, seqtrack.data.annotations", {"numpy"}),
        ("import seqtrack.reports.report", {"numpy", "matplotlib"}),
        ("import seqtrack.boxes", {"torch", "numpy"}),
    ],
    ids=["help", "uploads", "verdict", "report", "a loaded package is found"],
)
def test_what_needs_no_torch_does_not_load_it_indirectly(script: str, loaded: set[str]) -> None:
    script += f"\nimport sys\nprint(*[name for name in {UNWANTED!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == loaded

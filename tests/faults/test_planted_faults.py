"""`scripts/mutate.py` runs at night; by day, that each of its faults can still be planted, and changes something."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load() -> Any:
    """The script as a module; scripts are no package."""
    spec = importlib.util.spec_from_file_location("planted_faults", ROOT / "scripts" / "mutate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a NamedTuple's annotations are looked up there
    spec.loader.exec_module(module)
    return module


mutate = _load()


@pytest.mark.parametrize("fault", mutate.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_can_still_be_planted(fault: Any) -> None:
    source = (ROOT / "seqtrack" / fault.file).read_text()
    assert source.count(fault.old) == 1, "its text must are exactly once in the file"
    assert fault.new != fault.old
    words = fault.tests.partition(" -k ")[0].split()
    assert words and all((ROOT / word).is_file() for word in words)

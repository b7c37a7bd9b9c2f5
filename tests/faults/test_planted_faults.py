"""`scripts/mutate.py` takes hours; this checks in seconds that each of its faults still has its place in the source."""

import ast
import re
from pathlib import Path

import mutate
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("fault", mutate.FAULTS, ids=lambda fault: fault.name)
def test_a_fault_has_exactly_one_place_and_tests_that_exist(fault: mutate.Fault) -> None:
    path, faulty = mutate.inject(fault, ROOT)
    assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(path.read_text()))
    files, _, chosen = fault.tests.partition(" -k ")
    source = "".join((ROOT / file).read_text() for file in files.split() if file.endswith(".py"))
    if "-m long" not in files:
        source = re.sub(r"^@pytest.mark.long\n(@.*\n)*def ", "", source, flags=re.MULTILINE)
    names = re.findall(r"^def (test_\w+)|^    \"(.+?)\": ", source, re.MULTILINE)  # of functions and of their cases
    assert any(chosen in one for name in names for one in name)

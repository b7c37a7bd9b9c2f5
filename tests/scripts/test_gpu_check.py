"""The GPU check runs here on the CPU with tiny models, so that no time on a GPU is lost to a typing error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check.py"


def check(out: Path, *options: str) -> tuple[int, dict[str, dict[str, object]], str]:
    """Exit code, items by name, and what was printed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(out), "--device", "cpu", "--small", *options],
        capture_output=True, text=True, check=False, timeout=1500,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    report = json.loads((out / "gpu_check.json").read_text()) if (out / "gpu_check.json").exists() else {"items": []}
    return done.returncode, {item["name"]: item for item in report["items"]}, done.stdout + done.stderr


# Whole runs, doctor and the compiler have quicker tests of their own.
RUNS = {"resume", "ranks", "out_of_memory", "start", "compile"}


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("runs", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_item_ends_well_on_a_cpu(runs: bool, tmp_path: Path) -> None:
    from gpu_checks.items import ITEMS

    names = {item.name for item in ITEMS if runs or item.name not in RUNS}
    code, items, said = check(tmp_path, "--only", ",".join(names), "--budget-s", "1400")
    assert code == 0, said
    without = {"golden"} if not os.environ.get("SEQTRACK_GOLDENS") else set()
    assert {name for name, item in items.items() if item["state"] != "ok"} == without, said
    assert set(items) == names
    assert items["twice"]["values"]["digests"]
    assert items["golden"]["values"] or without


@pytest.mark.long
def test_an_item_that_fails_fails_the_check_and_not_the_others(tmp_path: Path) -> None:
    script = (
        "import runpy, sys\n"
        f"sys.path[:0] = [{str(SCRIPT.parent)!r}, {str(SCRIPT.parents[1])!r}]\n"
        "from gpu_checks import items, exactness\n"
        "def broken(context, check):\n"
        "    check.values['seen'] = 1\n"
        "    raise ValueError('as asked')\n"
        "others = tuple(one for one in items.ITEMS if one.name != 'checkpointing')\n"
        "items.ITEMS = (items.Item('checkpointing', broken, '', 9, 0), *others)\n"
        f"sys.argv[1:] = ['--out', {str(tmp_path)!r}, '--device', 'cpu', '--small', '--only', 'checkpointing,memory']\n"
        f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1, done.stderr
    items = {item["name"]: item for item in json.loads((tmp_path / "gpu_check.json").read_text())["items"]}
    assert (items["checkpointing"]["state"], items["memory"]["state"]) == ("FAILED", "ok")
    assert items["checkpointing"]["values"]["seen"] == 1
    assert "as asked" in items["checkpointing"]["values"]["traceback"]


def test_an_item_without_time_is_not_begun_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    code, items, _ = check(tmp_path, "--only", "compile", "--budget-s", "0.001")
    assert (code, items["compile"]["state"]) == (0, "over budget")
    assert check(tmp_path, "--only", "compyle")[0] == 2

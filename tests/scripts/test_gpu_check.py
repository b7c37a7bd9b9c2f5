"""The GPU check runs here on the CPU with tiny models, so that no time on a GPU is lost to a typing error."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_check
import pytest


def check(out: Path, *options: str) -> tuple[int, dict[str, dict[str, Any]], str]:
    """Exit code, items by name, and what was printed."""
    command = [sys.executable, gpu_check.__file__, "--out", str(out), "--device", "cpu", "--small", *options]
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=env)
    report = json.loads((out / "gpu_check.json").read_text()) if (out / "gpu_check.json").exists() else {"items": []}
    return done.returncode, {item["name"]: item for item in report["items"]}, done.stdout + done.stderr


# Whole runs, doctor, the compiler, the loader and groups of processes have quicker tests of their own.
RUNS = {"resume", "ranks", "out_of_memory", "start", "compile", "data", "twice", "nccl", "memory"}


@pytest.mark.timeout(1600)
@pytest.mark.parametrize("runs", [False, pytest.param(True, marks=pytest.mark.long)])
def test_every_item_ends_well_on_a_cpu(runs: bool, tmp_path: Path) -> None:
    from gpu_checks.items import ITEMS

    names = {item.name for item in ITEMS if runs or item.name not in RUNS}
    code, items, said = check(tmp_path, "--only", ",".join(names), "--budget-s", "1400")
    assert (code, set(items)) == (0, names), said
    without = set() if os.environ.get("SEQTRACK_GOLDENS") else {"golden"}
    assert {name for name, item in items.items() if item["state"] != "ok"} == without, said
    assert (not runs or items["twice"]["values"]["digests"]) and (without or items["golden"]["values"])


def test_an_item_without_time_is_not_begun_and_an_unknown_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # `main` sets it
    words = ["gpu_check.py", "--out", str(tmp_path), "--device", "cpu", "--small", "--budget-s", "0.001", "--only"]
    monkeypatch.setattr(sys, "argv", [*words, "compile"])
    assert gpu_check.main() == 0
    (item,) = json.loads((tmp_path / "gpu_check.json").read_text())["items"]
    assert (item["name"], item["state"]) == ("compile", "over budget")
    monkeypatch.setattr(sys, "argv", [*words, "compyle"])
    with pytest.raises(SystemExit) as refused:
        gpu_check.main()
    assert refused.value.code == 2


@pytest.mark.long
@pytest.mark.timeout(1600)
def test_the_reference_outputs_at_their_real_size(tmp_path: Path) -> None:
    if not os.environ.get("SEQTRACK_GOLDENS"):
        pytest.skip("SEQTRACK_GOLDENS is not set")
    command = [sys.executable, gpu_check.__file__, "--out", str(tmp_path), "--device", "cpu", "--only", "golden"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    (item,) = json.loads((tmp_path / "gpu_check.json").read_text())["items"]
    assert (done.returncode, item["state"]) == (0, "ok"), done.stdout + done.stderr
    values = item["values"]
    assert values["frames with other tokens"] == 0
    assert 1e-4 < values["A bf16"]["logits"] < 0.02  # rounding to bf16

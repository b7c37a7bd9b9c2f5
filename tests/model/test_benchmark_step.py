"""`scripts/bench.py step` prints the documented keys."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import TINY, demo_data

__all__ = ["demo_data"]  # the fixture

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"


@pytest.mark.parametrize(
    "options",
    [
        ["--dtype", "fp32"],
        pytest.param(["--dtype", "bf16", "--checkpointing", "--plain-malloc"], marks=pytest.mark.long),
    ],
)
def test_the_last_line_is_one_object_with_the_documented_keys(options: list[str]) -> None:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_", "LD_PRELOAD"))
    }
    done = subprocess.run(
        [sys.executable, str(BENCH), "step", "--json", "--size", "demo", "--steps", "1", "--batch", "3", *options],
        capture_output=True, text=True, check=True, timeout=200, env=clean,
    )  # fmt: skip
    printed = json.loads(done.stdout.splitlines()[-1])
    assert {"seconds", "gflops", "matmul_gflops", "ratio", "dtype", "batch", "peak_gib", "threads"} <= set(printed)
    assert (printed["batch"], printed["dtype"]) == (3, options[1])
    assert printed["checkpointing"] == ("--checkpointing" in options)
    assert printed["gflops"] == pytest.approx(printed["gflop_a_sample"] * 3 / printed["seconds"], rel=0.01)
    settings = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "THP_MEM_ALLOC_ENABLE"}
    assert set(printed["malloc"]) == (set() if "--plain-malloc" in options else settings)
    assert 0.1 < printed["peak_gib"] < 4


@pytest.mark.long
def test_a_whole_run_is_measured(demo_data: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "train", "--json", "--steps", "6", "--batch", "4", "--workers", "0",
         "--device", "cpu", "--data", str(demo_data), "--overrides", " ".join(f"{k} {v}" for k, v in TINY.items()
         if k.startswith("MODEL"))],
        capture_output=True, text=True, check=True, timeout=250,
    )  # fmt: skip
    printed = json.loads(done.stdout.splitlines()[-1])
    assert printed["samples_per_s"] == pytest.approx(4 / (printed["step_s"] + printed["step_gap_s"]), rel=0.9)
    assert 0 < printed["step_gap_share"] < 1
    assert printed["executed_gflops"] < printed["nominal_gflops"]
    assert "mfu" not in printed

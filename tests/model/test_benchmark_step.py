"""The step's benchmark prints what it promises; its numbers are looked at where a machine is still."""

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
def test_one_object_with_the_promised_keys_in_the_last_line(options: list[str]) -> None:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "THP_", "LD_PRELOAD"))
    }
    done = subprocess.run(
        [sys.executable, str(BENCH), "step", "--json", "--size", "demo", "--steps", "1", "--batch", "3", *options],
        capture_output=True, text=True, check=True, timeout=200, env=clean,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert {"seconds", "gflops", "matmul_gflops", "ratio", "dtype", "batch", "peak_gib", "threads"} <= set(told)
    assert (told["batch"], told["dtype"]) == (3, options[1])
    assert told["checkpointing"] == ("--checkpointing" in options)
    assert told["gflops"] == pytest.approx(told["gflop_a_sample"] * 3 / told["seconds"], rel=0.01)
    settings = {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "THP_MEM_ALLOC_ENABLE"}
    assert set(told["malloc"]) == (set() if "--plain-malloc" in options else settings)
    assert 0.1 < told["peak_gib"] < 4


@pytest.mark.long
def test_a_whole_run_is_measured_with_its_gaps(demo_data: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH), "train", "--json", "--steps", "6", "--batch", "4", "--workers", "0",
         "--device", "cpu", "--data", str(demo_data), "--overrides", " ".join(f"{k} {v}" for k, v in TINY.items()
         if k.startswith("MODEL"))],
        capture_output=True, text=True, check=True, timeout=250,
    )  # fmt: skip
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["samples_per_s"] == pytest.approx(4 / (told["step_s"] + told["step_gap_s"]), rel=0.9)
    assert 0 < told["step_gap_share"] < 1
    assert told["executed_gflops"] < told["nominal_gflops"]
    assert "mfu" not in told, "no peak is known of a processor"

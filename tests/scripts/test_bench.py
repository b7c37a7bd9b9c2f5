"""`scripts/bench.py` prints the documented keys."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from seqtrack.gpu_peaks import peak_tflops

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench.py"


def bench(*words: str) -> dict[str, Any]:
    """The object that a benchmark prints last, started without the allocator's settings."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "THP_", "LD_PRELOAD"))}
    command = [sys.executable, str(BENCH), *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200, env=clean)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


@pytest.mark.long
@pytest.mark.parametrize("options", ["--dtype fp32", "--dtype bf16 --checkpointing --plain-malloc"])
def test_a_step_is_measured_with_the_entrypoints_allocator(options: str) -> None:
    printed = bench(*f"step --size demo --steps 1 --batch 3 {options}".split())
    assert {"seconds", "gflops", "matmul_gflops", "ratio", "peak_gib", "threads"} <= set(printed)
    assert (printed["batch"], printed["dtype"]) == (3, options.split()[1])
    assert printed["gflops"] == pytest.approx(printed["gflop_a_sample"] * 3 / printed["seconds"], rel=0.01)
    assert len(printed["malloc"]) == (0 if "--plain-malloc" in options else 3)
    assert 0.1 < printed["peak_gib"] < 4


@pytest.mark.long
@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ("data --samples 3 --repeats 1", {"samples_per_s_per_core", "stages_ms", "225_kb", "65_kb"}),
        ("shards --pairs 2 --batch 4", {"ratio", "quartiles", "shards_s", "parts_s", "peak_gib", "gradient_gib"}),
        ("track --config demo --frames 2", {"fps", "ms_a_frame", "encoder_share", "threads"}),
        (
            "onnx --config demo --rounds 1 --frames 2",
            {"torch_fp32", "torch_bf16", "onnxruntime", "openvino"},
        ),
        ("checkpoint --config demo --saves 1", {"stall_s", "durable_s", "reserve_s", "torch_save_s", "resume_s"}),
        ("upload --pairs 0 --megabytes 2", {"pairs", "cores", "send"}),
    ],
)
def test_the_other_parts_are_measured(words: str, keys: set[str]) -> None:
    assert keys <= set(bench(*words.split()))


def test_peaks_are_those_documented_by_the_vendor() -> None:
    assert peak_tflops("NVIDIA GeForce RTX 3050 Laptop GPU", "fp32") == pytest.approx(7.1, rel=0.01)
    cards = (("NVIDIA H100 80GB HBM3", 989), ("Tesla T4", None), ("NVIDIA H100 NVL", None))
    assert [peak_tflops(name, "bf16") for name, _ in cards] == [tflops for _, tflops in cards]

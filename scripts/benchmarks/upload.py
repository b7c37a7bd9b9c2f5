"""The sidecar's effect on training: wall time of the demo with and without it, for several states of the server.

Training runs alternate: one without a sidecar, one for each state of the server (`well`, down, slow at 10 KB/s,
refusing every call), one without again, and so on. Each run is compared with the mean of the two plain runs around it,
so that a slow drift of the machine cancels. Wall time is that of the training process. Then one large file is uploaded,
for rate and memory.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SEQTRACK = [sys.executable, "-m", "seqtrack"]
# The faults that the server is given; None: there is no server.
STATES: dict[str, dict[str, Any] | None] = {
    "well": {},
    "down": None,
    "slow": {"stage": "put", "rate": 10_240, "times": None},
    "refusing": {"stage": "any", "status": 503, "times": None},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=3, help="runs of each kind")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--samples", type=int, default=1600, help="samples per epoch")
    parser.add_argument("--states", default=",".join(STATES), help="states of the server, separated by commas")
    parser.add_argument("--megabytes", type=int, default=1100, help="size of the single large file; 0 for none")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and return the numbers."""
    states = args.states.split(",") if args.states else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result: dict[str, Any] = {"pairs": args.pairs, "cores": len(os.sched_getaffinity(0))}
        if args.pairs:
            _train(folder, args, None)  # draws the demo's data and fills caches; not measured
            plain, timed = [_train(folder, args, None)], {state: [] for state in states}
            for _ in range(args.pairs):
                for state in states:
                    timed[state].append(_train(folder, args, state))
                plain.append(_train(folder, args, None))
            result["plain_s"] = [round(seconds, 2) for seconds in plain]
            result["states"] = {state: _compare(seconds, plain) for state, seconds in timed.items()}
            result["worst_ratio"] = max(entry["ratio"] for entry in result["states"].values())
        if args.megabytes:
            result["send"] = _send(folder, args.megabytes * 1_000_000)
    return result


def _compare(times: list[float], plain: list[float]) -> dict[str, Any]:
    ratios = [seconds / statistics.mean(plain[turn : turn + 2]) for turn, seconds in enumerate(times)]
    return {
        "seconds": [round(seconds, 2) for seconds in times],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 4),
    }


@contextlib.contextmanager
def _target(folder: Path, output: Path, fault: dict[str, Any] | None) -> Iterator[dict[str, str]]:
    """The variables of a run whose Hub is a local server with this fault; without one, connections are refused."""
    (folder / "token").write_text("hf_writewritewritewrite")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "UPLOAD_"))}
    hub = {"HF_REPO": "me/run", "HF_TOKEN_PATH": str(folder / "token"), "HF_HUB_DISABLE_XET": "1"}
    hub |= {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hf"), "OUTPUT_DIR": str(output)}
    server, port = None, 9  # the discard port
    try:
        if fault is not None:
            command = [sys.executable, ROOT / "tests/uploads/hub_server.py", "--port", "0"]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
            assert server.stdout is not None
            port = int(server.stdout.readline().rsplit(":", 1)[1])
        if fault:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/_control", json.dumps(fault).encode())
            urllib.request.urlopen(request, timeout=10).close()
        yield {**kept, **hub, "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
    finally:
        if server is not None:
            server.kill()
            server.wait()


def _train(folder: Path, args: argparse.Namespace, state: str | None) -> float:
    """Seconds of one training run, with a sidecar if `state` names a state of the server."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    with _target(folder, output, STATES[state] if state else None) as env, (folder / "log").open("w") as log:
        env |= {"DATASET": "demo", "DATA_DIR": str(folder / "data"), "EPOCHS": str(args.epochs), "DEVICE": "cpu"}
        env |= {"OVERRIDES": f"DATA.TRAIN.SAMPLE_PER_EPOCH {args.samples}"} | ({} if state else {"HF_REPO": ""})
        where = {"env": env, "stdout": log, "stderr": log, "cwd": folder}
        sidecar = subprocess.Popen([*SEQTRACK, "upload"], **where) if state else None
        try:
            began = time.perf_counter()
            subprocess.run([*SEQTRACK, "train"], **where, check=True)
            return time.perf_counter() - began
        finally:
            if sidecar is not None:
                sidecar.kill()
                sidecar.wait()


def _send(folder: Path, size: int) -> dict[str, Any]:
    """Upload one large file from the page cache. `peak_mb` is the larger of sidecar and upload process."""
    output = folder / "large"
    output.mkdir()
    with (output / "weights.bin").open("wb") as file:
        for block in range(0, size, 1 << 24):
            file.write(os.urandom(1 << 16) * min(256, -(-(size - block) >> 16)))
        file.truncate(size)
    # This process's other children are not larger than the sidecar only if it asks in a process of its own.
    ask = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL).returncode\n"
    )
    ask += "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    with _target(folder, output, {}) as env:
        began = time.perf_counter()
        command = [sys.executable, "-c", ask, *SEQTRACK, "upload", "--once"]
        env["UPLOAD_TUNING"] = '{"settle_s": 0.2}'
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, cwd=folder, check=True)
        seconds = time.perf_counter() - began
    code, peak_kb = map(int, done.stdout.split())
    if code != 0:
        raise RuntimeError(f"the sidecar ended with {code}")
    return {"bytes": size, "seconds": round(seconds, 2), "peak_mb": round(peak_kb / 1000.0, 1)}

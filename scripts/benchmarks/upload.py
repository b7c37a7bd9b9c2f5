"""The sidecar's effect on training: wall time of the demo with and without it, for several states of the server.

Training runs alternate: one without a sidecar, one for each state of the server (`well`, down, slow at 10 KB/s,
refusing every call), one without again, and so on. Each run is compared with the mean of the two plain runs around it,
so that a slow drift of the machine cancels. Wall time is that of the training process. Then one large file is uploaded,
for rate and memory.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STATES: dict[str, list[dict[str, Any]]] = {
    "well": [],
    "down": [],
    "slow": [{"stage": "put", "rate": 10_240, "times": None}],
    "refusing": [{"stage": "any", "status": 503, "times": None}],
}
TOKEN = "hf_writewritewritewrite"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
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
            plain = [_train(folder, args, None)]
            timed: dict[str, list[tuple[int, float]]] = {state: [] for state in states}
            for turn in range(args.pairs):
                for state in states:
                    timed[state].append((turn, _train(folder, args, state)))
                plain.append(_train(folder, args, None))
            result["plain_s"] = [round(seconds, 2) for seconds in plain]
            result["states"] = {state: _compare(times, plain) for state, times in timed.items()}
            result["worst_ratio"] = max(entry["ratio"] for entry in result["states"].values())
        if args.megabytes:
            result["send"] = _send(folder, args.megabytes * 1_000_000)
    return result


def _compare(times: list[tuple[int, float]], plain: list[float]) -> dict[str, Any]:
    ratios = [seconds / ((plain[turn] + plain[turn + 1]) / 2.0) for turn, seconds in times]
    return {
        "seconds": [round(seconds, 2) for _, seconds in times],
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio": round(statistics.median(ratios), 4),
    }


def _environ(folder: Path, output: Path, port: int, args: argparse.Namespace) -> dict[str, str]:
    token = folder / "token"
    token.write_text(TOKEN)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "UPLOAD_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "DATASET": "demo",
        "DATA_DIR": str(folder / "data"),
        "OUTPUT_DIR": str(output),
        "EPOCHS": str(getattr(args, "epochs", 1)),
        "OVERRIDES": f"DATA.TRAIN.SAMPLE_PER_EPOCH {getattr(args, 'samples', 1)}",
        "DEVICE": "cpu",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_REPO": "me/run",
        "HF_TOKEN_PATH": str(token),
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
    }


def _server(folder: Path, faults: list[dict[str, Any]]) -> tuple["subprocess.Popen[str]", int]:
    command = [sys.executable, str(ROOT / "tests" / "uploads" / "hub_server.py"), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder)
    assert server.stdout is not None
    port = int(server.stdout.readline().rsplit(":", 1)[1])
    for fault in faults:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/_control", data=json.dumps(fault).encode(), method="POST"
        )
        urllib.request.urlopen(request, timeout=10).close()
    return server, port


def _train(folder: Path, args: argparse.Namespace, state: str | None) -> float:
    """Seconds of one training run, with a sidecar if `state` names a state of the server."""
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    server = sidecar = None
    port = 9  # the discard port: connections are refused
    try:
        if state is not None and state != "down":
            server, port = _server(folder, STATES[state])
        env = _environ(folder, output, port, args)
        log = (folder / "train.log").open("w")
        if state is not None:
            command = [sys.executable, "-m", "seqtrack", "upload"]
            sidecar = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=folder)
        plain = env if state is not None else {**env, "HF_REPO": ""}
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "seqtrack", "train"], env=plain, stdout=log, stderr=log, cwd=folder, check=True
        )
        return time.perf_counter() - began
    finally:
        for process in (sidecar, server):
            if process is not None:
                process.kill()
                process.wait()


def _send(folder: Path, size: int) -> dict[str, Any]:
    """Upload one large file from the page cache."""
    output = folder / "large"
    output.mkdir()
    place = output / "weights.bin"
    with place.open("wb") as file:
        for block in range(0, size, 1 << 24):
            file.write(os.urandom(1 << 16) * min(256, -(-(size - block) >> 16)))
        file.truncate(size)
    server, port = _server(folder, [])
    try:
        env = _environ(folder, output, port, argparse.Namespace()) | {"UPLOAD_TUNING": '{"settle_s": 0.2}'}
        began, peak = time.perf_counter(), 0
        sidecar = subprocess.Popen(
            [sys.executable, "-m", "seqtrack", "upload", "--once"], env=env, stderr=subprocess.DEVNULL, cwd=folder
        )
        while sidecar.poll() is None:
            peak = max(peak, _resident(sidecar.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - began
        if sidecar.returncode != 0:
            raise RuntimeError(f"the sidecar ended with {sidecar.returncode}")
    finally:
        server.kill()
        server.wait()
    return {"bytes": size, "seconds": round(seconds, 2), "peak_mb": round(peak / 1000.0, 1)}


def _resident(pid: int) -> int:
    """Resident kB of a process and its children."""
    total = 0
    for place in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in place.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if pid in (int(lines["Pid"]), int(lines["PPid"])):
            total += int(lines.get("VmRSS", "0 kB").split()[0])
    return total

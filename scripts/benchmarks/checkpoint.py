"""How long a checkpoint of B256 blocks training, when it is durable, and how soon a restarted run takes a step.

Compared with `torch.save` of the same state to the same disk, for which a trainer without background writes waits.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from seqtrack.config.loader import load_config
from seqtrack.run_dir import step_name
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.training import build
from seqtrack.training.checkpointer import Checkpointer

ROOT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="seqtrack_b256", help="experiment whose state is saved")
    parser.add_argument("--saves", type=int, default=4, help="how many saves are timed")
    parser.add_argument("--folder", type=Path, help="where files go (default: a temporary folder)")
    parser.add_argument("--no-resume", action="store_true", help="leave out the restart, which computes real steps")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Time saves, torch.save and a restart; returns the numbers."""
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="seqtrack-bench-") as name:
        folder = Path(name)
        result = _time_saves(folder, args.config, args.saves)
        if not args.no_resume:
            _step_and_stop(folder, args.config)
            result["resume_s"] = _step_and_stop(folder, args.config)
    return result


def _time_saves(folder: Path, config_name: str, saves: int) -> dict[str, Any]:
    config = load_config(config_name, overrides=[("MODEL.ENCODER.PRETRAIN_TYPE", "scratch")])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = build.build_state(config, DistributedContext(0, 1, device), 100, fresh=True)
    state.meters.add(4.0, 0.1, 1, 1.0)
    state.epoch = 1
    checkpointer = Checkpointer(folder, parent_sha256=None)
    coming = {f"optimizer/{path}": tensor for path, tensor in state.optimizer.expected_state_shapes().items()}
    began = time.perf_counter()
    checkpointer.preallocate({**coming, **state.capture()[0]})
    reserve_s = time.perf_counter() - began
    for parameter in state.optimizer.parameters():  # one step; its values do not matter here
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.inner.step()
    describe = {"kind": "step", "epoch": 1, "sample": 1, "loss": 4.0, "iou": 0.1, "created": "", "config_digest": None}
    stalls, durables, plain, synced, size = [], [], [], [], 0
    for save in range(1, saves + 1):
        state.step, state.sample = save, 1
        began = time.perf_counter()
        tensors, values = state.capture()
        checkpointer.save(step_name(save), tensors, values, describe={**describe, "step": save, "data_digest": None})
        stalls.append(time.perf_counter() - began)
        checkpointer.wait()
        durables.append(time.perf_counter() - began)
        size = (folder / step_name(save)).stat().st_size
        (folder / step_name(save)).unlink()
    for _ in range(saves):  # torch.save as in the authors' trainer, and the same made durable
        path = folder / "state.pth.tar"
        began = time.perf_counter()
        torch.save({"net": state.model.state_dict(), "optimizer": state.optimizer.inner.state_dict()}, path)
        plain.append(time.perf_counter() - began)
        with path.open("rb") as file:
            os.fsync(file.fileno())
        synced.append(time.perf_counter() - began)
        path.unlink()
    return {
        "stall_s": statistics.median(stalls),
        "first_stall_s": stalls[0],
        "durable_s": statistics.median(durables),
        "bytes": size,
        "reserve_s": reserve_s,
        "torch_save_s": statistics.median(plain),
        "torch_save_durable_s": statistics.median(synced),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _step_and_stop(folder: Path, config_name: str) -> float:
    """Start a run and stop it once it has done a step. Returns seconds from its start until then."""
    variables = {"PYTHONPATH": ROOT, "PHASE": 1, "CONFIG": config_name, "DATASET": "demo", "BATCH_SIZE": 1}
    variables |= {"DATA_DIR": folder / "data", "OUTPUT_DIR": folder / "output"}
    variables["OVERRIDES"] = (
        "MODEL.ENCODER.PRETRAIN_TYPE scratch TRAIN.PRINT_INTERVAL 1 TRAIN.NUM_WORKER 1 DATA.TRAIN.SAMPLE_PER_EPOCH 100"
    )
    environ = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    command = [sys.executable, "-m", "seqtrack", "train"]
    lines, seconds, began = [], None, time.perf_counter()
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            lines.append(line)
            if "time for last 1 samples" in line and seconds is None:
                seconds = time.perf_counter() - began
                process.send_signal(signal.SIGTERM)
    if process.returncode != 75 or seconds is None:
        raise RuntimeError("the run did not stop as asked:\n" + "".join(lines[-20:]))
    return seconds

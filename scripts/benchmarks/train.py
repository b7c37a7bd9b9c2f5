"""A complete run on drawn frames with loader, log and saves: what a bare training step leaves out.

`step_gap_s` is the time between two calls of the training step: waiting for data, logging, saving. On a GPU
`device_gap_s` is the time between the end of one step and the start of the next on the device, by CUDA events.
Utilization is reported if the card's peak is known, for the model's nominal and for the executed work.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.peaks import peak_tflops


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark."""
    parser.add_argument("--config", default="demo", help="experiment, such as demo or seqtrack_b256")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=40, help="steps of the one epoch; the first fifth warms up")
    parser.add_argument("--workers", type=int, default=1, help="loader workers")
    parser.add_argument("--amp", choices=("auto", "off", "bf16", "fp16"), default="auto")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--data", type=Path, help="folder with the demo's frames; drawn into a temporary one otherwise")
    parser.add_argument("--overrides", default="", help="more KEY VALUE pairs")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train one epoch and return the numbers."""
    import torch

    from seqtrack import train as training
    from seqtrack.checkpoints.side_files import IntervalRecord, read_metrics
    from seqtrack.config.environment import configure
    from seqtrack.device import capability_of, choose_device, choose_precision
    from seqtrack.model.cost import cost_of
    from seqtrack.model.spec import model_spec
    from seqtrack.runtime.environment import describe_device
    from seqtrack.training.train_step import TrainStep

    calls: list[tuple[float, float]] = []
    events: list[tuple[Any, Any]] = []

    class TimedStepper(TrainStep):
        """The run's own step, recording when it is called and when it returns."""

        def __call__(self, *batch: Any, **votes: Any) -> Any:
            marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if torch.cuda.is_available() else []
            begun = time.perf_counter()
            if marks:
                marks[0].record()
            result = super().__call__(*batch, **votes)
            if marks:
                marks[1].record()
                events.append((marks[0], marks[1]))
            calls.append((begun, time.perf_counter()))
            return result

    folder = Path(tempfile.mkdtemp(prefix="seqtrack-bench-"))
    environ = {
        "CONFIG": args.config,
        "DATASET": "demo",
        "DATA_DIR": str(args.data or folder / "data"),
        "OUTPUT_DIR": str(folder / "output"),
        "DEVICE": args.device,
        "EPOCHS": "1",
        "BATCH_SIZE": str(args.batch),
        "OVERRIDES": f"MODEL.ENCODER.PRETRAIN_TYPE scratch TRAIN.NUM_WORKER {args.workers} TRAIN.AMP {args.amp} "
        f"DATA.TRAIN.SAMPLE_PER_EPOCH {args.batch * args.steps} TRAIN.PRINT_INTERVAL {args.batch * 4} {args.overrides}",
    }
    config = configure(environ)[1]
    ours, training.TrainStep = training.TrainStep, TimedStepper  # type: ignore[misc]
    began = time.perf_counter()
    try:
        code = training.train({**os.environ, **environ})
        whole = time.perf_counter() - began
        records = read_metrics(folder / "output" / "phase_1" / "logs" / "metrics.jsonl").of(IntervalRecord)
    finally:
        training.TrainStep = ours  # type: ignore[misc]
        shutil.rmtree(folder)
    if code != 0:
        raise RuntimeError(f"the run ended with {code}")
    warm = max(1, args.steps // 5)
    counted = calls[warm:]
    rate = (len(counted) - 1) * args.batch / (counted[-1][0] - counted[0][0])
    gaps = [following[0] - call[1] for call, following in pairwise(counted)]
    device = choose_device(args.device)
    precision = choose_precision(config.TRAIN.AMP, capability_of(device))
    cost = cost_of(model_spec(config))
    peak = peak_tflops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
    result = {
        "benchmark": "train",
        "config": args.config,
        "batch": args.batch,
        "steps": args.steps,
        "workers": args.workers,
        "precision": precision,
        "device": describe_device(device),
        "samples_per_s": rate,
        "step_s": statistics.median(call[1] - call[0] for call in counted),
        "step_gap_s": statistics.median(gaps),
        "step_gap_share": sum(gaps) / (counted[-1][0] - counted[0][0]),
        "data_wait_share": records[-1].data_wait_share,
        "whole_run_s": whole,
        "nominal_gflops": cost.training_flops * rate / 1e9,
        "executed_gflops": cost.executed_flops * rate / 1e9,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if events:
        idle = [one[1].elapsed_time(after[0]) / 1e3 for one, after in pairwise(events[warm:])]
        result["device_gap_s"] = statistics.median(idle)
    if peak is not None:
        result["mfu"] = cost.training_flops * rate / peak / 1e12
        result["executed_mfu"] = cost.executed_flops * rate / peak / 1e12
    return result

"""Frames per second of the tracker on one sequence, one frame at a time, as in `seqtrack track`.

Weights are random and the frames are noise: the time does not depend on either. The first frames warm up and are not
counted.
"""

import argparse
import time
from typing import Any

import numpy as np
import torch

from seqtrack.config.loader import load_config
from seqtrack.device import choose_device
from seqtrack.model.build import build_model
from seqtrack.model.spec import model_spec
from seqtrack.runtime.environment import describe_device
from seqtrack.tracking.load import tracker_settings
from seqtrack.tracking.tracker import BatchTracker


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="seqtrack_b256", help="experiment (default: seqtrack_b256)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the encoder (default: fp32)")
    parser.add_argument("--frames", type=int, default=20, help="timed frames (default: 20)")
    parser.add_argument("--warmup", type=int, default=3, help="frames before them (default: 3)")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default: 2)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure fps, ms_a_frame and encoder_share; on a CPU also the ratio to the authors' 1.06 fps."""
    torch.set_num_threads(args.threads)
    device = choose_device(args.device)
    config = load_config(args.config)
    model = build_model(model_spec(config), seed=1).to(device).eval()
    tracker = BatchTracker(model, tracker_settings(config, dataset=None, precision=args.precision))
    kind, stamps = type(model.encoder), []

    def stamp(module: object, *_: object) -> None:
        if type(module) is kind:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            stamps.append(time.perf_counter())

    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    states = [tracker.start(noise, (290.0, 150.0, 60.0, 60.0))]
    for _ in range(args.warmup):
        tracker.track(states, [noise])
    # The tracker may run a copy of the model, so the hooks are global.
    torch.nn.modules.module.register_module_forward_pre_hook(stamp)
    torch.nn.modules.module.register_module_forward_hook(stamp)
    begun = time.perf_counter()
    for _ in range(args.frames):
        tracker.track(states, [noise])
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begun
    result = {
        "fps": round(args.frames / seconds, 3),
        "ms_a_frame": round(1000 * seconds / args.frames, 2),
        "encoder_share": round((sum(stamps[1::2]) - sum(stamps[::2])) / seconds, 4),
        "precision": args.precision,
        "config": args.config,
        "frames": args.frames,
        "threads": torch.get_num_threads(),
        "device": describe_device(device),
        "torch": torch.__version__,
    }
    if device.type == "cpu" and args.config == "seqtrack_b256":
        result |= {"authors_fps": 1.06, "fps_ratio": round(args.frames / seconds / 1.06, 3)}
    return result

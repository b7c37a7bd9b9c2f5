"""Tokens and boxes of a model in torch and of its exported graphs, in fp32, each following its own boxes.

Both track the same pieces of videos, from an annotated first box: the demo's, and real ones with `--lasot`. On a GPU
the graphs run there too, which needs onnxruntime-gpu.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.onnx import random_checkpoint
from seqtrack.checkpoints.store import manifest_of
from seqtrack.config.loader import load_config
from seqtrack.data.lasot import open_lasot
from seqtrack.data.sequence import Sequence as VideoSequence
from seqtrack.data.sources import open_source
from seqtrack.device import choose_device
from seqtrack.evaluation.run import read_frame
from seqtrack.model.spec import ModelSpec
from seqtrack.runtime.environment import describe_device
from seqtrack.tracking.load import load_model, tracker_settings
from seqtrack.tracking.onnx_export import export_onnx
from seqtrack.tracking.onnx_model import DECODER, DEFAULT_RUNTIME, ENCODER, OnnxModel, load_onnx
from seqtrack.tracking.tracker import BatchTracker

LENGTH = 26  # frames of a piece; the first one is not tracked
EVERY = 6  # frames between the starts of two pieces of a video


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="seqtrack_b256", help="experiment (default: seqtrack_b256)")
    parser.add_argument("--checkpoint", type=Path, help="its model instead of one with random weights")
    parser.add_argument("--demo", type=Path, help="data folder of the demo (default: a temporary one)")
    parser.add_argument("--lasot", type=Path, help="folder of real videos, such as lasot_mini")
    parser.add_argument("--frames", type=int, default=10_000, help="frames to track (default: 10000), or all")
    parser.add_argument("--batch", type=int, default=16, help="pieces tracked at once (default: 16)")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default: 2)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default=DEFAULT_RUNTIME, help="on the CPU")


def _pieces(sequences: Sequence[VideoSequence]) -> list[tuple[VideoSequence, int]]:
    """Videos and first frames of pieces that begin with a visible box."""
    return [
        (one, first)
        for one in sequences
        for first in range(0, one.num_frames - LENGTH + 1, EVERY)
        if one.visible[first] and (one.boxes_xywh[first, 2:] > 10).all()
    ]


def _chosen(args: argparse.Namespace, demo: Path) -> list[tuple[VideoSequence, int]]:
    """As many pieces as asked for, spread evenly over all videos."""
    splits = [open_source("demo", demo, classes=(), split=split).sequences for split in ("train", "test")]
    real = open_lasot(args.lasot, classes=(), split="train") if args.lasot else []
    every = _pieces([*splits[0], *splits[1], *real])
    count = min(-(-args.frames // (LENGTH - 1)), len(every))
    return [every[(index + 1) * len(every) // count - 1] for index in range(count)]


def _on_gpu(folder: Path, spec: ModelSpec) -> OnnxModel:
    """The exported model with its graphs on the GPU, without TF32."""
    import onnxruntime

    sessions = []
    for name in (ENCODER, DECODER):
        providers = [("CUDAExecutionProvider", {"use_tf32": 0})]
        sessions.append(onnxruntime.InferenceSession(str(folder / name), providers=providers))
        if (found := sessions[-1].get_providers()[0]) != providers[0][0]:
            raise SystemExit(f"error: {name} would run with {found}: pip install onnxruntime-gpu")
    return OnnxModel(*sessions, spec)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Count the frames with the same tokens, and measure how far the boxes are from each other."""
    device = choose_device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if args.checkpoint:
            manifest = manifest_of(args.checkpoint)
        else:
            manifest = random_checkpoint(place / "model.safetensors", load_config(args.config))
        record = export_onnx(manifest, place / "onnx")
        model, config = load_model(manifest, device)
        exported, _, _ = load_onnx(place / "onnx", args.runtime)
        torch.set_num_threads(args.threads)
        if device.type == "cuda":
            exported = _on_gpu(place / "onnx", model.spec)
        settings = tracker_settings(config, dataset=None)
        trackers, pieces = [BatchTracker(one, settings) for one in (model, exported)], _chosen(args, args.demo or place)
        tokens, boxes, begun = [], [], time.monotonic()
        for start in range(0, len(pieces), args.batch):
            batch = pieces[start : start + args.batch]
            first = [(read_frame(one.frame_path(index)), one.boxes_xywh[index].tolist()) for one, index in batch]
            states = [[tracker.start(image, box) for image, box in first] for tracker in trackers]
            for later in range(1, LENGTH):
                images = [read_frame(one.frame_path(index + later)) for one, index in batch]
                found = [tracker.track(state, images) for tracker, state in zip(trackers, states, strict=True)]
                tokens.append([[one.tokens for one in side] for side in found])
                boxes.append([[one.box_xywh for one in side] for side in found])
            done = min(start + args.batch, len(pieces))
            left = (time.monotonic() - begun) / done * (len(pieces) - done) / 60
            print(f"{done} of {len(pieces)} pieces, about {left:.0f} min left", file=sys.stderr)
    ours, theirs = (np.concatenate([np.array(step[side]) for step in tokens]) for side in (0, 1))
    moved = np.abs(np.concatenate([np.array(step[0]) - np.array(step[1]) for step in boxes]))
    same = int((ours == theirs).all(axis=1).sum())
    return {
        "model": str(args.checkpoint or args.config), "frames": len(ours), "same_tokens": same,
        "share": round(same / len(ours), 6), "boxes_mean_px": float(moved.mean()),
        "distinct_tokens": len(np.unique(ours, axis=0)), "checked": record.checked, "versions": record.versions,
        "runtime": args.runtime, "device": describe_device(device), "seconds": round(time.monotonic() - begun),
    }  # fmt: skip

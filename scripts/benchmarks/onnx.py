"""Frames per second and memory of the tracker in torch and with an exported model, paired in one run.

Each engine is a process of its own and tracks one object through the same noise, one frame at a time as in `seqtrack
track`; only one of them works at any moment, and they take turns, so that a change of the machine's speed meets all.
Weights are random: the time does not depend on them. OpenVINO is included where it can be imported.
"""

import argparse
import importlib.util
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from seqtrack.checkpoints.store import Manifest, manifest_of, write_weights
from seqtrack.config.loader import config_digest, dump_config, load_config
from seqtrack.config.schema import Config
from seqtrack.model.build import build_model
from seqtrack.model.spec import model_spec
from seqtrack.runtime.environment import describe_device
from seqtrack.tracking.load import load_model, tracker_settings
from seqtrack.tracking.onnx_export import export_onnx
from seqtrack.tracking.onnx_model import load_onnx
from seqtrack.tracking.tracker import BatchTracker, TrackedModel

ENGINES = ("torch fp32", "torch bf16", "onnxruntime", "openvino")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="seqtrack_b256", help="experiment (default: seqtrack_b256)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine (default: 5)")
    parser.add_argument("--frames", type=int, default=4, help="frames of a turn (default: 4)")
    parser.add_argument("--threads", type=int, default=2, help="compute threads (default: 2)")
    text = "leave an engine out, may be repeated; bf16 is emulated where the processor lacks it"
    parser.add_argument("--skip", action="append", default=[], choices=ENGINES[1:], help=text)


@torch.no_grad()
def random_checkpoint(path: Path, config: Config) -> Manifest:
    """A checkpoint with random weights so large that the tokens depend on the image."""
    model, draw = build_model(model_spec(config), seed=1), torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 2 / parameter[0].numel() ** 0.5)
    described = {
        "epoch": 1, "step": 0, "sample": 0, "loss": None, "iou": None, "parent_sha256": None, "data_digest": None,
        "created": "2026-01-01T00:00:00Z", "config_digest": config_digest(config),
        "config": yaml.safe_load(dump_config(config)),
    }  # fmt: skip
    return write_weights(path, model.state_dict(), describe=described)


def _serve(engine: str, place: Path, threads: int, pipe: Connection) -> None:
    """Track as many frames as a message asks for; answer with seconds and tokens, and last with the peak memory."""
    torch.set_num_threads(threads)
    checkpoint, exported = place / "model.safetensors", place / "onnx"
    precision, config = "fp32", load_config(str(place / "config.yaml"))
    model: TrackedModel
    if engine.startswith("torch"):
        model, _ = load_model(manifest_of(checkpoint), torch.device("cpu"))
        precision = engine.split()[1]
    else:
        model = load_onnx(exported, engine)[0]
    tracker = BatchTracker(model, tracker_settings(config, dataset=None, precision=precision))
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    state = tracker.start(noise, (290.0, 150.0, 60.0, 60.0))
    pipe.send(None)
    while count := pipe.recv():
        begun = time.perf_counter()
        tokens = [tracker.track([state], [noise])[0].tokens for _ in range(count)]
        pipe.send((time.perf_counter() - begun, tokens))
    # Not getrusage's, which a process inherits from the one that started it.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    pipe.send(int(status["VmHWM"].split()[0]) / 2**10)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure fps, ms_a_frame and peak_mib of each engine, and in how many frames its tokens are torch's."""
    config = load_config(args.config, overrides=[("TRAIN.NUM_THREADS", str(args.threads))])
    engines = [one for one in ENGINES if one not in args.skip]
    engines = [one for one in engines if one != "openvino" or importlib.util.find_spec("openvino")]
    processes = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "config.yaml").write_text(dump_config(config))
        record = export_onnx(random_checkpoint(place / "model.safetensors", config), place / "onnx")
        pipes = {}
        for engine in engines:
            pipes[engine], other = processes.Pipe()
            processes.Process(target=_serve, args=(engine, place, args.threads, other), daemon=True).start()
            pipes[engine].recv()
        seconds: dict[str, list[float]] = {engine: [] for engine in engines}
        tokens: dict[str, list[tuple[int, ...]]] = {engine: [] for engine in engines}
        for turn in range(args.rounds + 1):  # the first one warms up
            for engine, pipe in pipes.items():
                pipe.send(args.frames)
                taken, found = pipe.recv()
                tokens[engine] += found
                seconds[engine] += [taken / args.frames] if turn else []
        peaks = {}
        for engine, pipe in pipes.items():
            pipe.send(0)
            peaks[engine] = pipe.recv()
    result: dict[str, Any] = {"config": args.config, "threads": args.threads, "frames": args.rounds * args.frames}
    result |= {"checked": record.checked, "versions": record.versions, "device": describe_device(torch.device("cpu"))}
    for engine in engines:
        middle = statistics.median(seconds[engine])
        ratios = [own / base for own, base in zip(seconds["torch fp32"], seconds[engine], strict=True)]
        result[engine.replace(" ", "_")] = {
            "fps": round(1 / middle, 3),
            "ms_a_frame": round(1000 * middle, 2),
            "speedup": round(statistics.median(ratios), 3),
            "peak_mib": round(peaks[engine]),
            "same_tokens": sum(a == b for a, b in zip(tokens[engine], tokens["torch fp32"], strict=True)),
            "of": len(tokens[engine]),
        }
    return result

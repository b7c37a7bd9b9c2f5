"""`seqtrack track`: track one object through a video, a folder of frames or a camera."""

import argparse
import contextlib
import logging
import os
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from seqtrack.checkpoints.safetensors_io import write_json
from seqtrack.config.environment import Environment, read_environment
from seqtrack.data.annotations import write_boxes
from seqtrack.device import choose_device
from seqtrack.errors import STOPPED_EXIT_CODE, UserError
from seqtrack.parsing import ParseError, parse_float
from seqtrack.runtime.environment import describe_device
from seqtrack.runtime.stop import StopRequest
from seqtrack.tracking import load
from seqtrack.tracking.onnx_model import DEFAULT_RUNTIME, RECORD, check_onnx_options, load_onnx, runtime_version
from seqtrack.tracking.tracker import BatchTracker, TrackedModel, TrackerSettings
from seqtrack.tracking.video import CODECS, FPS_RANGE, FrameSource, draw_box, open_frames, video_writer

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Track, write OUT.mp4, OUT.txt and OUT.json, and print the paths of the first two. A stop on request keeps the
    frames tracked so far."""
    environment = read_environment(os.environ)
    fps = _numbers("--fps", args.fps, 1)[0] if args.fps else None
    if fps is not None and not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:
        raise UserError(f"--fps is {fps:g}; expected {FPS_RANGE[0]:g} to {FPS_RANGE[1]:g}", code="track.option")
    source = open_frames(args.source, fps=fps)
    target = args.output or environment.output_dir / "tracks" / f"{source.name}.mp4"
    if target.suffix.lower() not in CODECS:
        raise UserError(f"-o {target}: expected a name that ends in {' or '.join(CODECS)}", code="video.output")
    if source.kind == "video":
        _refuse_to_replace(Path(source.place), args, target)
    with StopRequest() as stop:
        boxes, seconds, conditions = _track(args, environment, source, target, stop)
        speed = (len(boxes) - 1) / seconds if seconds else None
        record = {"format": "seqtrack-track/1", "source": args.source, "box_xywh": boxes[0].tolist(), "fps": source.fps}
        record |= {"frames": len(boxes), "tracker_fps": speed, **conditions}
        try:
            write_boxes(target.with_suffix(".txt"), boxes)
            write_json(target.with_suffix(".json"), record)
        except OSError as error:
            raise UserError(f"{error.filename}: cannot be written ({error.strerror})", code="video.output") from error
    if not args.no_video:
        print(target)
    print(target.with_suffix(".txt"))
    logger.info("%d frames, %.1f frames per second for the tracker alone", len(boxes), speed or 0)
    if stop.is_set and source.kind != "camera":  # which only ends by being stopped
        logger.warning("stopped on request after %d frames; the files hold these", len(boxes))
        return STOPPED_EXIT_CODE
    return 0


def tracking_conditions(device: torch.device, settings: TrackerSettings) -> dict[str, object]:
    """What a tracker's boxes depend on besides its weights, for the records of a video or an evaluation."""
    return {
        "device": describe_device(device),
        "precision": settings.precision,
        "window": settings.window,
        "update_interval": settings.update_interval,
        "update_threshold": settings.update_threshold,
        "center_rate": settings.center_rate,
        "size_rate": settings.size_rate,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _refuse_to_replace(used: Path, args: argparse.Namespace, target: Path) -> None:
    """A UserError if this file, which the command reads, is one of those that it would write, also through links."""
    for path in (*[target] * (not args.no_video), target.with_suffix(".txt"), target.with_suffix(".json")):
        with contextlib.suppress(OSError):  # there is no such file yet
            if path.samefile(used):
                raise UserError(f"{path} would replace {used}, which is read; choose another -o", code="video.output")


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    try:
        values = tuple(map(parse_float, text.replace(",", " ").split()))
        if len(values) != count:
            raise ParseError(f"found {len(values)} numbers, expected {count}")
    except ParseError as error:
        raise UserError(f"{option} {text}: {error}", code="track.option") from error
    return values


def _track(
    args: argparse.Namespace, environment: Environment, source: FrameSource, target: Path, stop: StopRequest
) -> tuple[NDArray[np.float64], float, dict[str, object]]:
    """Boxes (N, 4) of every frame, the given one first, seconds of the tracker, and what the boxes depend on."""
    frames = source.frames()
    first = next(frames)
    size = (first.shape[1], first.shape[0])
    if not args.box:
        text = f"--box x,y,w,h of the object in the first frame of {source.place} ({size[0]}x{size[1]} pixels)"
        raise UserError(f"{text} is missing; for example --box 261,48,39,65", code="track.option")
    box = _numbers("--box", args.box, 4)
    tracker, origin = _tracker(args, environment, target)
    state = tracker.start(first, box)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be created ({error.strerror})", code="video.output") from error
    boxes, seconds = [np.asarray(box, dtype=np.float64)], 0.0
    total = min(source.count or args.frames or 0, args.frames or source.count or 0) or None
    with (
        contextlib.nullcontext() if args.no_video else video_writer(target, fps=source.fps, size=size) as write,
        tqdm(total=total, initial=1, unit="frame", disable=None) as bar,
    ):
        if write is not None:
            write(draw_box(first, box, "given"))
        while not stop.is_set and len(boxes) != args.frames and (image := next(frames, None)) is not None:
            begun = time.perf_counter()
            (found,) = tracker.track([state], [image])
            taken = time.perf_counter() - begun
            seconds += taken
            boxes.append(found.box_xywh)
            if write is not None:
                write(draw_box(image, found.box_xywh.tolist(), f"score {found.score:.1f}/40  {1 / taken:.1f} FPS"))
            bar.update()
    return np.stack(boxes), seconds, {**origin, **tracking_conditions(tracker.device, tracker.settings)}


def _tracker(
    args: argparse.Namespace, environment: Environment, target: Path
) -> tuple[BatchTracker, dict[str, object]]:
    """The tracker of the chosen checkpoint or exported model, and where its weights come from."""
    model: TrackedModel
    if args.onnx is not None:
        if args.checkpoint is not None or args.phase is not None:
            raise UserError("--onnx names the model: use it without --checkpoint and --phase", code="track.option")
        _refuse_to_replace(args.onnx / RECORD if args.onnx.is_dir() else args.onnx, args, target)
        device, runtime = check_onnx_options(args.precision, args.device), args.runtime or DEFAULT_RUNTIME
        model, config, record = load_onnx(args.onnx, runtime)
        origin: dict[str, object] = {"checkpoint": record.checkpoint, "runtime": runtime_version(runtime)}
        where, sha256 = args.onnx, record.encoder.sha256
    else:
        if args.runtime is not None:
            raise UserError("--runtime is for a model of --onnx", code="track.option")
        wanted = args.checkpoint or "last"
        manifests = load.select_checkpoints(environment.phase_folder(args.phase), [wanted])
        if len(manifests) != 1:
            raise UserError(f"--checkpoint {wanted} names {len(manifests)}, expected one", code="track.option")
        _refuse_to_replace(manifests[0].manifest_path, args, target)
        manifest, device = manifests[0], choose_device(args.device or environment.device)
        load.check_precision(args.precision, device)
        model, config = load.load_model(manifest, device)
        origin = {"checkpoint": {**load.checkpoint_source(manifest), "epoch": manifest.epoch}}
        where, sha256 = manifest.path, manifest.sha256
    logger.info("%s , sha256 %s , on %s", where, sha256[:16], describe_device(device))
    return BatchTracker(model, load.tracker_settings(config, dataset=None, precision=args.precision)), origin

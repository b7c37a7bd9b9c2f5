"""`seqtrack track`: follow one object through a video, a folder of frames or a camera."""

import argparse
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seqtrack.checkpoints.store import Manifest
    from seqtrack.config.environment import Environment
    from seqtrack.tracking.tracker import Tracker
    from seqtrack.tracking.video import FrameSource, Image

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to follow, with which weights, and where the video goes."""
    parser.add_argument(
        "source",
        metavar="VIDEO|FOLDER|CAMERA",
        help="a video file, a folder of images, or the number of a camera, unless a file has that name",
    )
    parser.add_argument("--box", metavar="X,Y,W,H", help="the object in the first frame, in pixels from the top left")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT.mp4",
        help="OUT.mp4 (VP9, which browsers play) or OUT.avi (Motion JPEG: large, much faster to write); boxes go to "
        "OUT.txt, settings to OUT.json (default: OUTPUT_DIR/tracks/NAME.mp4)",
    )
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="a .safetensors file, or an epoch of the phase's run, or last (default: last)",
    )
    parser.add_argument("--phase", type=int, choices=(1, 2), help="whose checkpoints (default: PHASE, else 1)")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    parser.add_argument(
        "--fps",
        metavar="RATE",
        help="frames per second of the output (default: the source's own, its mean where it varies; 30 for a folder)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16", "fp16"),
        default="fp32",
        help="of the encoder; tf32 and fp16 need a GPU (default: fp32)",
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), help="default: DEVICE, else auto")
    parser.add_argument("--no-video", action="store_true", help="write OUT.txt and OUT.json only")


def run(args: argparse.Namespace) -> int:
    """Track, write OUT.mp4, OUT.txt and OUT.json, and print where the first two are. A stop on request keeps what was
    tracked."""
    from seqtrack.checkpoints.safetensors_io import write_json
    from seqtrack.config.environment import read_environment
    from seqtrack.errors import STOPPED_EXIT_CODE, UserError
    from seqtrack.evaluation.boxfiles import write_boxes
    from seqtrack.runtime.stop import StopRequest
    from seqtrack.tracking.video import CODECS, FPS_RANGE, open_frames

    environment = read_environment(os.environ)
    box = _numbers("--box", args.box, 4) if args.box else None
    (fps,) = _numbers("--fps", args.fps, 1) if args.fps else (None,)
    if args.frames is not None and args.frames < 1:
        raise UserError(f"--frames is {args.frames}; at least 1 frame is tracked", code="track.option")
    if fps is not None and not FPS_RANGE[0] <= fps <= FPS_RANGE[1]:
        raise UserError(f"--fps is {fps:g}; expected {FPS_RANGE[0]:g} to {FPS_RANGE[1]:g}", code="track.option")
    source = open_frames(args.source, fps=fps)
    manifest = _checkpoint(args, environment)
    target = args.output or environment.output_dir / "tracks" / f"{source.name}.mp4"
    if target.suffix.lower() not in CODECS:
        raise UserError(f"-o {target}: expected a name that ends in {' or '.join(CODECS)}", code="track.output")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be made ({error.strerror})", code="track.output") from error

    with StopRequest() as stop:
        import numpy as np

        boxes, conditions = _follow(args, environment, source, manifest, target, box=box, stop=stop)
        write_boxes(target.with_suffix(".txt"), np.stack(boxes))
        write_json(target.with_suffix(".json"), conditions)
        stopped = stop.is_set and source.kind != "camera"  # a camera has no other end than being stopped
    if not args.no_video:
        print(target)
    print(target.with_suffix(".txt"))
    logger.info("%d frames, %.1f frames per second for the tracker alone", len(boxes), conditions["tracker_fps"] or 0)
    if stopped:
        logger.warning("stopped on request after %d frames; the files hold these", len(boxes))
    return STOPPED_EXIT_CODE if stopped else 0


def _numbers(option: str, text: str, count: int) -> tuple[float, ...]:
    from seqtrack.errors import UserError
    from seqtrack.parsing import ParseError, parse_float

    words = text.replace(",", " ").split()
    try:
        values = tuple(map(parse_float, words))
        if len(values) != count:
            raise ParseError(f"found {len(values)} numbers, expected {count}")
    except ParseError as error:
        example = ", x,y,w,h in pixels such as 261,48,39,65" if option == "--box" else ""
        raise UserError(f"{option} {text}: {error}{example}", code="track.option") from error
    return values


def _checkpoint(args: argparse.Namespace, environment: "Environment") -> "Manifest":
    from seqtrack.errors import UserError
    from seqtrack.evaluation.gather import select_checkpoints

    found = select_checkpoints(environment.phase_folder(args.phase), [args.checkpoint])
    if len(found) != 1:
        raise UserError(
            f"--checkpoint {args.checkpoint}: one checkpoint tracks, {len(found)} were named", code="track.option"
        )
    return found[0]


def _tracker(
    args: argparse.Namespace, environment: "Environment", manifest: "Manifest"
) -> tuple["Tracker", dict[str, Any]]:
    """The tracker, and what its boxes depend on, for the records."""
    import torch

    from seqtrack.device import choose_device
    from seqtrack.evaluation.gather import checkpoint_source
    from seqtrack.runtime.environment import describe_device
    from seqtrack.tracking.load import load_model, set_threads
    from seqtrack.tracking.settings import check_precision, tracker_settings
    from seqtrack.tracking.tracker import Tracker

    device = choose_device(args.device or environment.device)
    check_precision(args.precision, device)
    model, config = load_model(manifest, device)
    set_threads(config)
    logger.info(
        "%s , sha256 %s , trained on %s , runs on %s in %s",
        manifest.path, manifest.sha256[:16], ", ".join(config.DATA.TRAIN.DATASETS_NAME),
        describe_device(device), args.precision,
    )  # fmt: skip
    settings = tracker_settings(config, dataset=None, precision=args.precision)
    return Tracker(model, settings), {
        "checkpoint": {**checkpoint_source(manifest), "epoch": manifest.epoch},
        "device": describe_device(device),
        "precision": args.precision,
        "window": settings.window,
        "update_interval": settings.update_interval,
        "update_threshold": settings.update_threshold,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _follow(
    args: argparse.Namespace,
    environment: "Environment",
    source: "FrameSource",
    manifest: "Manifest",
    target: Path,
    *,
    box: tuple[float, ...] | None,
    stop: Any,
) -> tuple[list[Any], dict[str, Any]]:
    """Boxes of every frame, the given one first, and the record that is next to them."""
    import contextlib

    import numpy as np
    from tqdm import tqdm

    from seqtrack.tracking.draw import draw_box
    from seqtrack.tracking.video import VideoWriter

    frames = source.frames()
    first = next(frames)
    box = box or _ask(first, source)
    tracker, conditions = _tracker(args, environment, manifest)
    tracker.start(first, box)
    boxes, seconds = [np.asarray(box, dtype=np.float64)], 0.0
    size = (first.shape[1], first.shape[0])
    with contextlib.ExitStack() as stack:
        video: VideoWriter | None = None
        if not args.no_video:
            video = stack.enter_context(VideoWriter(target, fps=source.fps, size=size))
            video.write(draw_box(first, box, "given"))
        total = min(source.count or args.frames or 0, args.frames or source.count or 0) or None
        bar = stack.enter_context(tqdm(total=total, initial=1, unit="frame", disable=None))
        for image in _until(frames, args.frames, stop):
            begun = time.perf_counter()
            found = tracker.track(image)
            taken = time.perf_counter() - begun
            seconds += taken
            boxes.append(found.box_xywh)
            if video is not None:
                video.write(
                    draw_box(image, found.box_xywh.tolist(), f"score {found.score:.1f}/40  {1 / taken:.1f} FPS")
                )
                video.fps = source.fps if args.fps else source.mean_fps
            bar.update()
    return boxes, {
        "format": "seqtrack-track/1",
        "source": args.source,
        "box_xywh": list(box),
        "frames": len(boxes),
        "fps": source.fps if args.fps else source.mean_fps,
        "tracker_fps": (len(boxes) - 1) / seconds if seconds else None,
        **conditions,
    }


def _ask(first: "Image", source: "FrameSource") -> tuple[float, ...]:
    from seqtrack.errors import UserError
    from seqtrack.tracking.video import ask_for_box

    box = ask_for_box(first)
    if box is None:
        raise UserError(
            f"--box is missing and there is no window to draw it in: give --box x,y,w,h of the object in the first "
            f"frame of {source.place}, in pixels of {first.shape[1]}x{first.shape[0]}, such as --box 261,48,39,65",
            code="track.option",
        )
    return box


def _until(frames: "Iterator[Image]", limit: int | None, stop: Any) -> "Iterator[Image]":
    """Frames after the first, up to the limit or a request to stop."""
    for number, image in enumerate(frames, start=2):
        if stop.is_set or (limit is not None and number > limit):
            return
        yield image

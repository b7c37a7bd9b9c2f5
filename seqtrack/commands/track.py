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
    parser.add_argument("source", metavar="VIDEO|FOLDER|CAMERA", help="a video file, a folder of images, or 0, 1, ...")
    parser.add_argument("--box", metavar="X,Y,W,H", help="the object in the first frame, in pixels from the top left")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.mp4", help="default: OUTPUT_DIR/tracks/NAME.mp4")
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="a .safetensors file, or an epoch of the phase's run, or last (default: last)",
    )
    parser.add_argument("--phase", type=int, choices=(1, 2), help="whose checkpoints (default: PHASE, else 1)")
    parser.add_argument("--frames", type=int, metavar="N", help="stop after N frames")
    parser.add_argument("--fps", type=float, help="of the output (default: the source's own, 30 for a folder)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the encoder (default: fp32)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), help="default: DEVICE, else auto")
    parser.add_argument("--no-video", action="store_true", help="write the box file only")


def run(args: argparse.Namespace) -> int:
    """Track, write OUT.mp4 and OUT.txt, and print where they are. A stop on request keeps what was tracked."""
    from seqtrack.config.environment import read_environment
    from seqtrack.engine.stop import StopRequest
    from seqtrack.errors import STOPPED_EXIT_CODE, UserError
    from seqtrack.evaluation.boxfiles import write_boxes
    from seqtrack.tracking.video import open_frames

    environment = read_environment(os.environ)
    box = _read_box(args.box) if args.box else None
    if (args.frames is not None and args.frames < 1) or (args.fps is not None and not 0 < args.fps < 1000):
        raise UserError("--frames must be at least 1 and --fps above 0")
    source = open_frames(args.source, fps=args.fps)
    manifest = _checkpoint(args, environment)
    target = args.output or environment.output_dir / "tracks" / f"{source.name}.mp4"
    if target.suffix.lower() != ".mp4":
        raise UserError(f"-o {target}: the video is written as mp4, so the name must end in .mp4")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be made ({error.strerror})") from error

    with StopRequest() as stop:
        import numpy as np

        boxes, fps = _follow(args, environment, source, manifest, target, box=box, stop=stop)
        write_boxes(target.with_suffix(".txt"), np.stack(boxes))
        stopped = stop.is_set and source.kind != "camera"  # a camera has no other end than being stopped
    if not args.no_video:
        print(target)
    print(target.with_suffix(".txt"))
    logger.info("%d frames, %.1f frames a second for the tracker alone", len(boxes), fps)
    if stopped:
        logger.warning("stopped on request after %d frames; the files hold these", len(boxes))
    return STOPPED_EXIT_CODE if stopped else 0


def _read_box(text: str) -> tuple[float, ...]:
    from seqtrack.errors import UserError

    try:
        values = tuple(float(word) for word in text.replace(",", " ").split())
    except ValueError:
        values = ()
    if len(values) != 4:
        raise UserError(f"--box {text}: expected four numbers x,y,w,h in pixels, such as --box 261,48,39,65")
    return values


def _checkpoint(args: argparse.Namespace, environment: "Environment") -> "Manifest":
    from seqtrack.errors import UserError
    from seqtrack.evaluation.gather import select_checkpoints

    found = select_checkpoints(environment.phase_folder(args.phase), [args.checkpoint])
    if len(found) != 1:
        raise UserError(f"--checkpoint {args.checkpoint}: one checkpoint tracks, {len(found)} were named")
    return found[0]


def _tracker(args: argparse.Namespace, environment: "Environment", manifest: "Manifest") -> "Tracker":
    from seqtrack.engine.devices import choose_device
    from seqtrack.engine.fingerprint import describe_device
    from seqtrack.tracking.load import load_model, set_threads
    from seqtrack.tracking.settings import tracker_settings
    from seqtrack.tracking.tracker import Tracker

    device = choose_device(args.device or environment.device)
    model, config = load_model(manifest, device)
    set_threads(config)
    logger.info(
        "%s , sha256 %s , trained on %s , runs on %s in %s",
        manifest.path, manifest.sha256[:16], ", ".join(config.DATA.TRAIN.DATASETS_NAME),
        describe_device(device), args.precision,
    )  # fmt: skip
    return Tracker(model, tracker_settings(config, dataset=None, precision=args.precision))


def _follow(
    args: argparse.Namespace,
    environment: "Environment",
    source: "FrameSource",
    manifest: "Manifest",
    target: Path,
    *,
    box: tuple[float, ...] | None,
    stop: Any,
) -> tuple[list[Any], float]:
    """Boxes of every frame, the given one first, and the tracker's frames a second."""
    import contextlib

    import numpy as np
    from tqdm import tqdm

    from seqtrack.tracking.draw import draw_box
    from seqtrack.tracking.video import Mp4Writer

    frames = source.frames()
    first = next(frames)
    box = box or _ask(first, source)
    tracker = _tracker(args, environment, manifest)
    tracker.start(first, box)
    boxes, seconds = [np.asarray(box, dtype=np.float64)], 0.0
    size = (first.shape[1], first.shape[0])
    with contextlib.ExitStack() as stack:
        video: Mp4Writer | None = None
        if not args.no_video:
            video = stack.enter_context(Mp4Writer(target, fps=source.fps, size=size))
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
            bar.update()
    return boxes, (len(boxes) - 1) / seconds if seconds else 0.0


def _ask(first: "Image", source: "FrameSource") -> tuple[float, ...]:
    from seqtrack.errors import UserError
    from seqtrack.tracking.video import ask_for_box

    box = ask_for_box(first)
    if box is None:
        raise UserError(
            f"--box is missing and there is no window to draw it in: give --box x,y,w,h of the object in the first "
            f"frame of {source.place}, in pixels of {first.shape[1]}x{first.shape[0]}, such as --box 261,48,39,65"
        )
    return box


def _until(frames: "Iterator[Image]", limit: int | None, stop: Any) -> "Iterator[Image]":
    """Frames after the first, up to the limit or a request to stop."""
    for number, image in enumerate(frames, start=2):
        if stop.is_set or (limit is not None and number > limit):
            return
        yield image

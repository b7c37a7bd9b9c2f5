"""What `seqtrack evaluate` tracks: checkpoints of a folder or of the target, each once, and the untrained model.

Boxes and times are written after each, so that a call that was stopped is continued by the next one.
"""

import argparse
import logging
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from seqtrack.checkpoints.safetensors_io import utc_now
from seqtrack.checkpoints.side_files import Scalar
from seqtrack.checkpoints.store import Manifest, list_checkpoints
from seqtrack.commands.track import tracking_conditions
from seqtrack.config.environment import Environment
from seqtrack.config.loader import config_digest
from seqtrack.data.decode import check_frames
from seqtrack.data.sources import Source, describe
from seqtrack.device import choose_device
from seqtrack.errors import UserError
from seqtrack.evaluation.results import Protocol, TrackerResult, score_tracker
from seqtrack.evaluation.run import track_sequences
from seqtrack.evaluation.tables import read_tracks, write_tracks
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.run_dir import CHECKPOINTS, EVALUATION, FETCHED, INFERENCE_LOG
from seqtrack.runtime.metrics_log import clock
from seqtrack.tracking import load
from seqtrack.uploads.fetch import fetch_checkpoint, fetch_run

logger = logging.getLogger(__name__)


def track_checkpoints(
    args: argparse.Namespace,
    environment: Environment,
    manifests: list[Manifest],
    source: Source,
    protocol: Protocol,
    boxes: Path,
) -> tuple[list[TrackerResult], dict[str, object]]:
    """Track with each checkpoint in turn, and with the untrained model; returns the conditions as well.

    What an earlier call wrote into `boxes`, from the same checkpoint, data and settings, is read instead.
    """
    sequences = source.sequences
    # Missing and unusable frame files are found before hours of tracking.
    if problems := check_frames(one.frame_path(index) for one in sequences for index in range(one.num_frames)):
        raise UserError(problems)
    device = choose_device(args.device or environment.device)
    load.check_precision(args.precision, device)
    results, digest = list[TrackerResult](), describe([source]).digest
    spent, conditions = list[float](), dict[str, object]()
    every = [*manifests, *[None] * args.untrained]  # None: the untrained model, that of the last checkpoint
    for number, manifest in enumerate(every, start=1):
        begun, config = time.monotonic(), load.checkpoint_config(manifest or manifests[-1])
        if manifest is not None:
            name, kind, epoch = load.checkpoint_name(manifest, manifests), "checkpoint", manifest.epoch
            origin: dict[str, Scalar] = {**load.checkpoint_source(manifest), "step": manifest.step}
        else:
            name, kind, epoch, origin = "untrained", "untrained", None, {"seed": config.TRAIN.SEED}
        load.set_threads(config)
        settings = load.tracker_settings(config, dataset=source.name, precision=args.precision)
        more = {"concurrent": args.concurrent, "python": platform.python_version()}
        conditions = {**tracking_conditions(device, settings), **more, "search_factor": settings.search_factor}
        made_from = {"data_digest": digest, "config_digest": config_digest(config), **origin, **conditions}
        tracks = known = read_tracks(name, boxes, [one.name for one in sequences], made_from)
        if tracks is None:
            model = _load(args, environment, manifest, device) if manifest else None
            model = model or build_model(model_spec(config), seed=config.TRAIN.SEED).to(device).eval()
            frames = sum(one.num_frames - 1 for one in sequences)
            with tqdm(total=frames, desc=name, unit="frame", leave=False, disable=None) as bar:
                tracks = track_sequences(model, sequences, settings, concurrent=args.concurrent, on_frames=bar.update)
            spent.append(time.monotonic() - begun)
        result = score_tracker(name, kind, tracks, sequences, protocol=protocol, epoch=epoch, source=origin)
        results.append(result)
        if known is None:
            _write(result, boxes, made_from)
        mean, left = result.record.mean, (len(every) - number) * (sum(spent) / len(spent) if spent else 0.0)
        text = "evaluated before" if known else f"{number} of {len(every)}, about {clock(left)} to go"
        logger.info(
            "%s: AUC %.3f, P20 %.3f, %.1f frames/s (%s)", name, mean["auc"], mean["p20"], mean["fps"] or 0, text
        )
    return results, conditions


def records_from_target(environment: Environment, phase: int | None) -> Path:
    """The run's records and manifests as the target has them now, below OUTPUT_DIR/.fetched, without checkpoints."""
    root = environment.output_dir / FETCHED / EVALUATION
    shutil.rmtree(root, ignore_errors=True)
    return fetch_run(environment, phase or environment.phase, root)


def _load(args: argparse.Namespace, environment: Environment, manifest: Manifest, device: torch.device) -> SeqTrack:
    """A checkpoint's model; with --hub the file is on the disk only while it is read, unless the run has it."""
    if not args.hub or FETCHED not in manifest.path.parts:
        return load.load_model(manifest, device)[0]
    phase = args.phase or environment.phase
    local = list_checkpoints(environment.phase_folder(phase) / CHECKPOINTS, kinds=("epoch",))
    if same := [one for one in local if one.sha256 == manifest.sha256 and one.path.exists()]:
        return load.load_model(same[0], device)[0]
    try:
        fetch_checkpoint(environment, manifest.epoch, manifest.path.parent, phases=[phase])
        return load.load_model(manifest, device)[0]
    finally:
        manifest.path.unlink(missing_ok=True)


def _write(result: TrackerResult, boxes: Path, made_from: Mapping[str, object]) -> None:
    """The boxes and times of a tracker, and its lines of the inference log."""
    lines = [
        f"{utc_now()} {result.record.name} {name}: {len(one.boxes_xywh)} frames in {one.seconds:.3f} s, "
        f"AUC {result.record.sequences[name]['auc']:.3f}\n"
        for name, one in result.tracks.items()
    ]
    try:
        write_tracks(result, boxes, made_from)
        with (boxes.parent / INFERENCE_LOG).open("a", encoding="utf-8") as log:
            log.writelines(lines)
    except OSError as error:
        raise UserError(f"{boxes}: the evaluation cannot be written there ({error})", "evaluation.output") from error

"""What `seqtrack evaluate` tracks: checkpoints of a folder or of the target, each once, and the untrained model.

Boxes and times are written after each, so that a call that was stopped is continued by the next one.
"""

import argparse
import functools
import logging
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from seqtrack.checkpoints.safetensors_io import utc_now
from seqtrack.checkpoints.side_files import Scalar
from seqtrack.checkpoints.store import Manifest, list_checkpoints
from seqtrack.commands.track import tracking_conditions
from seqtrack.config.environment import Environment
from seqtrack.config.loader import config_digest
from seqtrack.config.schema import Config
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
from seqtrack.run_dir import CHECKPOINTS, FETCHED, INFERENCE_LOG
from seqtrack.runtime.metrics_log import clock
from seqtrack.tracking import load
from seqtrack.tracking.onnx_model import OnnxModel, OnnxRecord, check_onnx_options, onnxruntime_version
from seqtrack.tracking.tracker import TrackedModel
from seqtrack.uploads.fetch import fetch_checkpoint

logger = logging.getLogger(__name__)


class _Subject(NamedTuple):
    """What is tracked with, as tables name it, and how its model is loaded."""

    name: str
    kind: str
    epoch: int | None
    origin: dict[str, Scalar]
    config: Config
    load: Callable[[], TrackedModel]


def track_checkpoints(
    args: argparse.Namespace,
    environment: Environment,
    manifests: list[Manifest],
    exported: tuple[OnnxModel, Config, OnnxRecord] | None,
    source: Source,
    protocol: Protocol,
    boxes: Path,
) -> tuple[list[TrackerResult], dict[str, object]]:
    """Track with each checkpoint in turn, the untrained model and the exported one; returns the conditions as well.

    What an earlier call wrote into `boxes`, from the same model, data and settings, is read instead.
    """
    sequences = source.sequences
    # Missing and unusable frame files are found before hours of tracking.
    if problems := check_frames(one.frame_path(index) for one in sequences for index in range(one.num_frames)):
        raise UserError(problems)
    if exported:
        device = check_onnx_options(args.precision, args.device)
    else:
        device = choose_device(args.device or environment.device)
    load.check_precision(args.precision, device)
    results, digest, spent = list[TrackerResult](), describe([source]).digest, list[float]()
    more: dict[str, object] = {"concurrent": args.concurrent, "python": platform.python_version()}
    more |= {"onnxruntime": onnxruntime_version()} if exported else {}
    conditions = dict[str, object]()
    subjects = _subjects(args, environment, manifests, exported, device)
    for number, one in enumerate(subjects, start=1):
        begun = time.monotonic()
        load.set_threads(one.config)
        settings = load.tracker_settings(one.config, dataset=source.name, precision=args.precision)
        conditions = {**tracking_conditions(device, settings), **more, "search_factor": settings.search_factor}
        made_from = {"data_digest": digest, "config_digest": config_digest(one.config), **one.origin, **conditions}
        tracks = known = read_tracks(one.name, boxes, [each.name for each in sequences], made_from)
        if tracks is None:
            frames = sum(each.num_frames - 1 for each in sequences)
            with tqdm(total=frames, desc=one.name, unit="frame", leave=False, disable=None) as bar:
                options = {"concurrent": args.concurrent, "on_frames": bar.update}
                tracks = track_sequences(one.load(), sequences, settings, **options)
            spent.append(time.monotonic() - begun)
        results.append(
            score_tracker(one.name, one.kind, tracks, sequences, protocol=protocol, epoch=one.epoch, source=one.origin)
        )
        if known is None:
            _write(results[-1], boxes, made_from)
        mean, left = results[-1].record.mean, (len(subjects) - number) * (sum(spent) / len(spent) if spent else 0.0)
        text = "evaluated before" if known else f"{number} of {len(subjects)}, about {clock(left)} to go"
        speed = mean["fps"] or 0.0
        logger.info("%s: AUC %.3f, P20 %.3f, %.1f frames/s (%s)", one.name, mean["auc"], mean["p20"], speed, text)
    return results, conditions


def _subjects(
    args: argparse.Namespace,
    environment: Environment,
    manifests: list[Manifest],
    exported: tuple[OnnxModel, Config, OnnxRecord] | None,
    device: torch.device,
) -> list[_Subject]:
    """The checkpoints, the untrained model of the last one, and the exported model."""
    found = [
        _Subject(
            load.checkpoint_name(one, manifests), "checkpoint", one.epoch,
            {**load.checkpoint_source(one), "step": one.step}, load.checkpoint_config(one),
            functools.partial(_load, args, environment, one, device),
        )
        for one in manifests
    ]  # fmt: skip
    if args.untrained and manifests:
        config = found[-1].config
        seed = config.TRAIN.SEED
        untrained = _Subject("untrained", "untrained", None, {"seed": seed}, config,
                             lambda: build_model(model_spec(config), seed=seed).to(device).eval())  # fmt: skip
        found.append(untrained)
    if exported:
        model, config, record = exported
        origin: dict[str, Scalar] = {**record.checkpoint, "encoder_sha256": record.encoder.sha256}
        found.append(
            _Subject(f"ONNX, epoch {record.checkpoint.get('epoch')}", "onnx", None, origin, config, lambda: model)
        )
    return found


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

"""What `seqtrack evaluate` tracks: checkpoints of a folder or of the target, each once, and the untrained model.

Boxes and times are written after each, so that a call that was stopped is continued by the next one. A checkpoint is
tracked by one process: its sequences share batches, and a batch of another size may change a token.
"""

import argparse
import functools
import logging
import os
import platform
import time
from collections.abc import Callable, Generator, Mapping
from collections.abc import Sequence as ListOf
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
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
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import Source, describe
from seqtrack.device import choose_device, device_plan, explain_out_of_memory
from seqtrack.errors import UserError
from seqtrack.evaluation.results import Protocol, TrackerResult, Tracks, score_tracker
from seqtrack.evaluation.run import track_sequences
from seqtrack.evaluation.tables import read_tracks, write_tracks
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.run_dir import CHECKPOINTS, FETCHED, INFERENCE_LOG
from seqtrack.runtime.environment import describe_device
from seqtrack.runtime.metrics_log import clock
from seqtrack.runtime.workers import run_tasks
from seqtrack.tracking import load
from seqtrack.tracking.onnx_model import DEFAULT_RUNTIME, OnnxModel, OnnxRecord, check_onnx_options, runtime_version
from seqtrack.tracking.tracker import TrackedModel, TrackerSettings
from seqtrack.uploads.fetch import fetch_checkpoint

logger = logging.getLogger(__name__)


class _Subject(NamedTuple):
    """What is tracked with, as tables name it, and how its model is loaded."""

    name: str
    kind: str
    epoch: int | None
    origin: dict[str, Scalar]
    config: Config
    load: Callable[[torch.device], TrackedModel]


class _Job(NamedTuple):
    """A subject to track, and what its boxes depend on."""

    subject: _Subject
    settings: TrackerSettings
    threads: int
    made_from: dict[str, object]


@dataclass(frozen=True)
class _Work:
    """What every process is given: call it with the number of a job."""

    jobs: ListOf[_Job]
    devices: ListOf[torch.device]
    sequences: ListOf[Sequence]
    concurrent: int

    def __call__(self, number: int, process: int, on_frames: Callable[[int], object]) -> dict[str, Tracks]:
        (subject, settings, threads, _), device = self.jobs[number], self.devices[process]
        torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with explain_out_of_memory("while tracking", "lower --concurrent, or on a CPU NPROC"):
            model = subject.load(device)
            return track_sequences(model, self.sequences, settings, concurrent=self.concurrent, on_frames=on_frames)


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
    subjects = _subjects(args, environment, manifests, exported)
    onnx = exported is not None
    devices = [check_onnx_options(args.precision, args.device)] if onnx else _devices(args, environment, len(subjects))
    load.check_precision(args.precision, devices[0])
    if len(devices) > 1 and devices[0].type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(devices)))  # as in training
    more: dict[str, object] = {"concurrent": args.concurrent, "python": platform.python_version()}
    more |= {"runtime": runtime_version(args.runtime or DEFAULT_RUNTIME)} if exported else {}
    digest, jobs, results = describe([source]).digest, list[_Job](), dict[str, TrackerResult]()
    known = list[tuple[_Job, dict[str, Tracks], str | None]]()
    for one in subjects:
        load.set_threads(one.config)
        settings = load.tracker_settings(one.config, dataset=source.name, precision=args.precision)
        conditions = {**tracking_conditions(devices[0], settings), **more, "search_factor": settings.search_factor}
        made_from = {"data_digest": digest, "config_digest": config_digest(one.config), **one.origin, **conditions}
        job = _Job(one, settings, torch.get_num_threads(), made_from)
        if before := read_tracks(one.name, boxes, [each.name for each in sequences], made_from):
            known.append((job, before, None))
        else:
            jobs.append(job)
    with closing(_tracked(_Work(jobs, devices, sequences, args.concurrent))) as tracked:
        for job, tracks, left in chain(known, tracked):
            one = job.subject
            results[one.name] = score_tracker(
                one.name, one.kind, tracks, sequences, protocol=protocol, epoch=one.epoch, source=one.origin
            )
            if left is not None:
                _write(results[one.name], boxes, job.made_from)
            mean, text = results[one.name].record.mean, f"{len(results)} of {len(subjects)}, {left or 'done before'}"
            speed = mean["fps"] or 0.0
            logger.info("%s: AUC %.3f, P20 %.3f, %.1f frames/s (%s)", one.name, mean["auc"], mean["p20"], speed, text)
    return [results[one.name] for one in subjects], conditions


def _tracked(work: _Work) -> Generator[tuple[_Job, dict[str, Tracks], str | None]]:
    """Each job's tracks as they end, and how long the others take; one progress bar for all."""
    total, done, begun = len(work.jobs) * sum(one.num_frames - 1 for one in work.sequences), 0, time.monotonic()
    with tqdm(total=total, unit="frame", leave=False, disable=None) as bar:

        def count(frames: int) -> None:
            nonlocal done
            done += frames
            bar.update(frames)

        with closing(run_tasks(work, len(work.jobs), len(work.devices), count)) as ended:
            for number, tracks in ended:
                bar.clear()
                left = (time.monotonic() - begun) * (total / max(done, 1) - 1)
                yield work.jobs[number], tracks, f"about {clock(left)} to go"


def _devices(args: argparse.Namespace, environment: Environment, most: int) -> list[torch.device]:
    """The devices of NPROC processes, at most `most`. GPUs of one kind only: a table must not mix them."""
    plan = device_plan(args.device or environment.device, environment.nproc)
    every = [choose_device(plan.device, local_rank=number) for number in range(min(plan.processes, most))]
    alike = [one for one in every if describe_device(one) == describe_device(every[0])]
    if len(alike) < len(every):
        logger.warning("of %d GPUs the %d that are %s are used", len(every), len(alike), describe_device(every[0]))
    return alike


def _subjects(
    args: argparse.Namespace,
    environment: Environment,
    manifests: list[Manifest],
    exported: tuple[OnnxModel, Config, OnnxRecord] | None,
) -> list[_Subject]:
    """The checkpoints, the untrained model of the last one, and the exported model."""
    found = [
        _Subject(
            load.checkpoint_name(one, manifests), "checkpoint", one.epoch,
            {**load.checkpoint_source(one), "step": one.step}, load.checkpoint_config(one),
            functools.partial(_load, args, environment, one),
        )
        for one in manifests
    ]  # fmt: skip
    if args.untrained and manifests:
        config = found[-1].config
        build = functools.partial(_build, config)
        found.append(_Subject("untrained", "untrained", None, {"seed": config.TRAIN.SEED}, config, build))
    if exported:
        model, config, record = exported
        origin: dict[str, Scalar] = {**record.checkpoint, "encoder_sha256": record.encoder.sha256}
        name = f"ONNX, epoch {record.checkpoint.get('epoch')}"
        found.append(_Subject(name, "onnx", None, origin, config, lambda _device: model))
    return found


def _build(config: Config, device: torch.device) -> SeqTrack:
    return build_model(model_spec(config), seed=config.TRAIN.SEED).to(device).eval()


def _load(args: argparse.Namespace, environment: Environment, manifest: Manifest, device: torch.device) -> SeqTrack:
    """A checkpoint's model; with --hub the file is on the disk only while it is read, unless the run has it, so that
    there are at most as many as processes."""
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

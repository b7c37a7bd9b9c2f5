"""`seqtrack evaluate`: score checkpoints, baselines and other trackers' result files by LaSOT's protocol."""

import argparse
import dataclasses
import logging
import os
import platform
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from seqtrack.checkpoints.safetensors_io import utc_now
from seqtrack.checkpoints.side_files import DatasetRecord, Scalar, read_side_file
from seqtrack.checkpoints.store import Manifest, list_checkpoints
from seqtrack.commands.track import tracking_conditions
from seqtrack.config.environment import Environment, read_environment
from seqtrack.config.loader import config_digest, load_config
from seqtrack.data.annotations import Annotation, read_annotations
from seqtrack.data.decode import check_frames
from seqtrack.data.lasot import draw_classes
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import SOURCES, Source, describe, open_source
from seqtrack.device import choose_device
from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import CONVENTIONS
from seqtrack.evaluation.plots import best_epoch, draw_plots, draw_tracking
from seqtrack.evaluation.results import TrackerResult, choose, read_results, score_tracker, static_box_result
from seqtrack.evaluation.run import track_sequences
from seqtrack.evaluation.tables import (
    evaluation_record,
    read_tracks,
    static_epochs,
    static_sentence,
    summary_table,
    write_tables,
    write_tracks,
)
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import model_spec
from seqtrack.parsing import split_commas
from seqtrack.run_dir import (
    BOXES,
    CHECKPOINTS,
    CONFIG_FILE,
    DATASET_FILE,
    EVALUATION,
    FETCHED,
    INFERENCE_LOG,
    PLOTS,
    TRACKING_FILE,
)
from seqtrack.runtime.metrics_log import clock
from seqtrack.tracking import load
from seqtrack.uploads.fetch import fetch_checkpoint, fetch_run

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write tables, plots and boxes, and print the table of means."""
    environment, begun = read_environment(os.environ), time.monotonic()
    folder, convention = environment.phase_folder(args.phase), CONVENTIONS[args.convention]
    wanted = args.checkpoint or ([] if args.results else ["all"])
    if args.annotations is not None and (wanted or not args.results):
        raise UserError("--annotations has no frames: use it with --results, without --checkpoint", "evaluation.option")
    if args.concurrent < 1:
        raise UserError(f"--concurrent is {args.concurrent}; expected at least 1", "evaluation.option")
    results, names = list[TrackerResult](), split_commas(args.sequences)
    if args.annotations is not None:
        every = read_annotations(args.annotations)
        annotations: list[Annotation] = choose(every, classes=split_commas(args.classes), names=names)
        conditions: dict[str, object] = {"dataset": None, "split": None, "annotations": args.annotations.name}
    else:
        checkpoints = _records_from_hub(environment, args.phase) if args.hub else folder
        manifests = load.select_checkpoints(checkpoints, wanted) if wanted else []
        source = _open(args, environment, manifests)
        annotations = [*(sequences := choose(source.sequences, names=names))]
        conditions = {"dataset": source.name, "split": source.split, "synthetic": source.synthetic}
        conditions["data_digest"] = describe([source]).digest
        if manifests:
            recorded = read_side_file(checkpoints / DATASET_FILE, DatasetRecord)
            known = recorded.sources if recorded is not None and source.split == "test" else []
            trained = {name for one in known if (one.name, one.split) == (source.name, "train") for name in one.names}
            if leaked := sorted(trained.intersection(one.name for one in sequences)):
                text = f"{len(leaked)} test sequences were trained on according to {checkpoints / DATASET_FILE}"
                advice = "--split train shows training sequences as such"
                raise UserError(f"{text}: {', '.join(leaked[:10])}; {advice}", "evaluation.leak")
            args.untrained = "all" in wanted if args.untrained is None else args.untrained
            boxes = (args.output or folder / EVALUATION) / BOXES
            results, more = _track(args, environment, manifests, sequences, source, boxes)
            conditions |= {"run": folder.name, **more}
    conditions |= ({"repair": args.repair} if args.results else {}) | {"convention": args.convention}
    results += read_results(args.results or (), annotations, repair=args.repair, convention=convention)
    results.append(static_box_result(annotations, convention=convention))
    record = evaluation_record(annotations, results, conditions | {"seconds": round(time.monotonic() - begun, 3)})
    target = args.output or (folder if wanted else environment.output_dir) / EVALUATION
    try:
        (target / PLOTS).mkdir(parents=True, exist_ok=True)
        plots = draw_plots(record, target / PLOTS)
        if args.annotations is None and (best := best_epoch(record)) is not None:
            plots.append(TRACKING_FILE)
            drawn = next(one for one in results if one.record.name == best.name)
            draw_tracking(drawn, sequences, target / PLOTS / TRACKING_FILE)
        write_tables(record, target, plots=[f"plots/{name}" for name in plots])
    except OSError as error:
        raise UserError(f"{target}: the evaluation cannot be written there ({error})", "evaluation.output") from error
    print(summary_table(record), end="")
    if static_epochs(record):
        logger.warning("%s", static_sentence(record))
    logger.info("tables, plots and boxes are in %s", target)
    return 0


def _open(args: argparse.Namespace, environment: Environment, manifests: list[Manifest]) -> Source:
    """The data set: the option's, the environment's if set there, else that of the last checkpoint or of the run."""
    name, classes, stored = args.dataset, split_commas(args.classes), environment.phase_folder(args.phase) / CONFIG_FILE
    if name is None and not environment.given("DATASET") and (manifests or stored.is_file()):
        config = load.checkpoint_config(manifests[-1]) if manifests else load_config(str(stored))
        # Of several training sets the first that is known here.
        name = next((one for one in config.DATA.TRAIN.DATASETS_NAME if one.upper() in SOURCES), None)
        if not classes and not environment.given("CLASSES"):
            classes = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
    name = name or next(iter(environment.dataset), "")
    return open_source(name, environment.data_dir, classes=classes or environment.classes, split=args.split)


def _track(
    args: argparse.Namespace,
    environment: Environment,
    manifests: list[Manifest],
    sequences: list[Sequence],
    source: Source,
    boxes: Path,
) -> tuple[list[TrackerResult], dict[str, object]]:
    """Track with each checkpoint in turn, and with the untrained model; returns the conditions as well.

    What an earlier call wrote into `boxes`, from the same checkpoint, data and settings, is read instead.
    """
    # Missing and unusable frame files are found before hours of tracking.
    if problems := check_frames(one.frame_path(index) for one in sequences for index in range(one.num_frames)):
        raise UserError(problems)
    device = choose_device(args.device or environment.device)
    load.check_precision(args.precision, device)
    convention, results = CONVENTIONS[args.convention], list[TrackerResult]()
    digest = describe([dataclasses.replace(source, sequences=sequences)]).digest
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
        conditions = {**tracking_conditions(device, settings), **more}
        made_from = {"data_digest": digest, "config_digest": config_digest(config), **origin, **conditions}
        tracks = known = read_tracks(name, boxes, [one.name for one in sequences], made_from)
        if tracks is None:
            model = _load(args, environment, manifest, device) if manifest else None
            model = model or build_model(model_spec(config), seed=config.TRAIN.SEED).to(device).eval()
            frames = sum(one.num_frames - 1 for one in sequences)
            with tqdm(total=frames, desc=name, unit="frame", leave=False, disable=None) as bar:
                tracks = track_sequences(model, sequences, settings, concurrent=args.concurrent, on_frames=bar.update)
            spent.append(time.monotonic() - begun)
        result = score_tracker(name, kind, tracks, sequences, convention=convention, epoch=epoch, source=origin)
        results.append(result)
        if known is None:
            _write(result, boxes, made_from)
        mean, left = result.record.mean, (len(every) - number) * (sum(spent) / len(spent) if spent else 0.0)
        text = "evaluated before" if known else f"{number} of {len(every)}, about {clock(left)} to go"
        logger.info(
            "%s: AUC %.3f, P20 %.3f, %.1f frames/s (%s)", name, mean["auc"], mean["p20"], mean["fps"] or 0, text
        )
    return results, conditions


def _records_from_hub(environment: Environment, phase: int | None) -> Path:
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

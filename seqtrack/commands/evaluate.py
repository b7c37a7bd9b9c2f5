"""`seqtrack evaluate`: score checkpoints, baselines and other trackers' result files by LaSOT's protocol."""

import argparse
import logging
import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from seqtrack.checkpoints.side_files import DatasetRecord, read_side_file
from seqtrack.checkpoints.store import Manifest
from seqtrack.config.environment import Environment, read_environment
from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.data.annotations import Annotation, read_annotations
from seqtrack.data.decode import check_frames
from seqtrack.data.lasot import draw_classes
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import SOURCES, Source, describe, open_source
from seqtrack.device import choose_device
from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import CONVENTIONS
from seqtrack.evaluation.plots import draw_plots
from seqtrack.evaluation.results import Evaluation, TrackerResult, choose, read_results, static_box_result
from seqtrack.evaluation.run import model_result
from seqtrack.evaluation.tables import summary_table, write_tables, write_tracks
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.parsing import split_commas
from seqtrack.run_dir import CONFIG_FILE, DATASET_FILE, EVALUATION, PLOTS
from seqtrack.runtime.environment import describe_device
from seqtrack.tracking.load import (
    checkpoint_config,
    checkpoint_name,
    checkpoint_source,
    load_model,
    select_checkpoints,
)
from seqtrack.tracking.settings import check_precision, tracker_settings

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write tables, plots and boxes, and print the table of means."""

    environment = read_environment(os.environ)
    begun = time.monotonic()
    folder = environment.phase_folder(args.phase)
    wanted = args.checkpoint or ([] if args.results else ["all"])
    if args.annotations is not None and (wanted or not args.results):
        text = "--annotations has no frames: use it with --results and without --checkpoint"
        raise UserError(text, "evaluation.option")
    if args.concurrent < 1:
        raise UserError(f"--concurrent is {args.concurrent}; expected at least 1", "evaluation.option")

    if args.annotations is not None:
        classes, names = split_commas(args.classes), split_commas(args.sequences)
        annotations = choose(read_annotations(args.annotations), classes=classes, names=names)
        results: list[TrackerResult] = []
        conditions = {"dataset": None, "split": None, "annotations": args.annotations.name}
    else:
        results, annotations, conditions = _track_run(args, environment, folder, wanted)
    if args.results:
        conditions["repair"] = args.repair
    conditions["convention"], convention = args.convention, CONVENTIONS[args.convention]
    results += read_results(args.results or (), annotations, repair=args.repair, convention=convention)
    results.append(static_box_result(annotations, convention=convention))

    evaluation = Evaluation(annotations, results, {**conditions, "seconds": round(time.monotonic() - begun, 3)})
    target = args.output or (folder if wanted else environment.output_dir) / EVALUATION
    try:
        (target / PLOTS).mkdir(parents=True, exist_ok=True)
        plots = draw_plots(evaluation, target / PLOTS)
        for result in results:
            if result.kind in ("checkpoint", "untrained"):
                write_tracks(result, target / "boxes")
        write_tables(evaluation, target, plots=[f"plots/{name}" for name in plots])
    except OSError as error:
        raise UserError(f"{target}: the evaluation cannot be written there ({error})", "evaluation.output") from error
    print(summary_table(evaluation), end="")
    logger.info("tables, plots and boxes are in %s", target)
    return 0


def _track_run(
    args: argparse.Namespace, environment: Environment, folder: Path, wanted: list[str]
) -> tuple[list[TrackerResult], list[Annotation], dict[str, Any]]:
    """Track with every wanted checkpoint; returns results, annotations, and the conditions for the records."""

    manifests: list[Manifest] = []
    config = None
    if wanted:
        manifests = select_checkpoints(folder, wanted)
        config = checkpoint_config(manifests[-1])
    elif (folder / CONFIG_FILE).is_file():
        config = load_config(str(folder / CONFIG_FILE))
    source = _open(args, environment, config)
    annotations = choose(source.sequences, names=split_commas(args.sequences))
    conditions: dict[str, Any] = {
        "dataset": source.name,
        "split": source.split,
        "synthetic": source.synthetic,
        "data_digest": describe([source]).digest,
    }
    if not manifests:
        return [], annotations, conditions
    names = {one.name for one in annotations}
    sequences = [sequence for sequence in source.sequences if sequence.name in names]
    if args.split == "test":
        _refuse_trained_sequences(folder, source.name, names)
    results, more = _track_checkpoints(args, environment, manifests, sequences, source.name, untrained="all" in wanted)
    return results, annotations, {**conditions, "run": folder.name, **more}


def _open(args: argparse.Namespace, environment: Environment, config: Config | None) -> Source:
    """The data set: the option's, the environment's if set there, else the run's own."""

    name, classes = args.dataset, split_commas(args.classes)
    if name is None and config is not None and not environment.given("DATASET"):
        # Of several training sets the first that is known here.
        name = next((one for one in config.DATA.TRAIN.DATASETS_NAME if one.upper() in SOURCES), None)
        if not classes and not environment.given("CLASSES"):
            classes = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
    name = name or next(iter(environment.dataset), "")
    return open_source(name, environment.data_dir, classes=classes or environment.classes, split=args.split)


def _refuse_trained_sequences(folder: Path, dataset: str, names: Iterable[str]) -> None:
    """Refuse test sequences that the run's own records list as training sequences."""
    place = folder / DATASET_FILE
    recorded = read_side_file(place, DatasetRecord)
    sources = recorded.sources if recorded is not None else []
    trained = {name for one in sources if (one.name, one.split) == (dataset, "train") for name in one.names}
    leaked = sorted(trained.intersection(names))
    if leaked:
        raise UserError(
            f"{len(leaked)} test sequences were trained on according to {place}: {', '.join(leaked[:10])}; "
            "a model must not be evaluated on its training data (--split train shows training sequences as such)",
            "evaluation.leak",
        )


def _track_checkpoints(
    args: argparse.Namespace,
    environment: Environment,
    manifests: list[Manifest],
    sequences: list[Sequence],
    dataset: str,
    *,
    untrained: bool,
) -> tuple[list[TrackerResult], dict[str, Any]]:
    """Track with each checkpoint in turn, and with the untrained model if `--untrained` or by default `untrained`."""

    # Missing and unusable frame files are found before hours of tracking.
    problems = check_frames(one.frame_path(index) for one in sequences for index in range(one.num_frames))
    if problems:
        raise UserError(problems)
    device = choose_device(args.device or environment.device)
    check_precision(args.precision, device)
    frames = sum(sequence.num_frames - 1 for sequence in sequences)
    results: list[TrackerResult] = []

    def track(name: str, kind: str, model: SeqTrack, epoch: int | None, source: dict[str, Any]) -> None:
        with tqdm(total=frames, desc=name, unit="frame", leave=False, disable=None) as bar:
            result = model_result(
                name, kind, model, sequences, settings,
                epoch=epoch, source=source, convention=CONVENTIONS[args.convention],
                concurrent=args.concurrent, on_frames=bar.update,
            )  # fmt: skip
        results.append(result)
        metrics = result.mean(list(result.scores)).metrics()
        fps = result.timing(list(result.scores))["fps"] or 0.0
        logger.info("%s: AUC %.3f, P20 %.3f, %.1f frames/s", name, metrics["auc"], metrics["p20"], fps)

    last_config = None
    for manifest in manifests:
        model, config = load_model(manifest, device)
        if config != last_config:
            settings, last_config = tracker_settings(config, dataset=dataset, precision=args.precision), config
        source = {**checkpoint_source(manifest), "step": manifest.step}
        track(checkpoint_name(manifest, manifests), "checkpoint", model, manifest.epoch, source)
    if args.untrained if args.untrained is not None else untrained:
        fresh = build_model(model.spec, seed=config.TRAIN.SEED).to(device).eval()
        track("untrained", "untrained", fresh, None, {"seed": config.TRAIN.SEED})
    return results, {
        "device": describe_device(device),
        "precision": args.precision,
        "concurrent": args.concurrent,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "window": settings.window,
        "update_interval": settings.update_interval,
        "update_threshold": settings.update_threshold,
    }

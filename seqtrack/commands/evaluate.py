"""`seqtrack evaluate`: score checkpoints, baselines and other trackers' result files by LaSOT's protocol."""

import argparse
import logging
import os
import platform
import time
from pathlib import Path

import torch
from tqdm import tqdm

from seqtrack.checkpoints.side_files import DatasetRecord, Scalar, read_side_file
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
from seqtrack.evaluation.results import TrackerResult, choose, read_results, score_tracker, static_box_result
from seqtrack.evaluation.run import track_sequences
from seqtrack.evaluation.tables import evaluation_record, summary_table, write_tables, write_tracks
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.parsing import split_commas
from seqtrack.run_dir import CONFIG_FILE, DATASET_FILE, EVALUATION, PLOTS
from seqtrack.runtime.environment import describe_device
from seqtrack.tracking.load import (
    check_precision,
    checkpoint_config,
    checkpoint_name,
    checkpoint_source,
    load_model,
    select_checkpoints,
    tracker_settings,
)

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write tables, plots and boxes, and print the table of means."""
    environment, begun = read_environment(os.environ), time.monotonic()
    folder = environment.phase_folder(args.phase)
    wanted = args.checkpoint or ([] if args.results else ["all"])
    if args.annotations is not None and (wanted or not args.results):
        text = "--annotations has no frames: use it with --results and without --checkpoint"
        raise UserError(text, "evaluation.option")
    if args.concurrent < 1:
        raise UserError(f"--concurrent is {args.concurrent}; expected at least 1", "evaluation.option")

    conditions: dict[str, object]
    results: list[TrackerResult] = []
    if args.annotations is not None:
        classes, names = split_commas(args.classes), split_commas(args.sequences)
        annotations: list[Annotation] = choose(read_annotations(args.annotations), classes=classes, names=names)
        conditions = {"dataset": None, "split": None, "annotations": args.annotations.name}
    else:
        manifests = select_checkpoints(folder, wanted) if wanted else []
        source = _open(args, environment, _config(folder, manifests))
        sequences = choose(source.sequences, names=split_commas(args.sequences))
        annotations = [*sequences]
        conditions = {"dataset": source.name, "split": source.split, "synthetic": source.synthetic}
        conditions["data_digest"] = describe([source]).digest
        if manifests:
            if args.split == "test":
                _refuse_trained_sequences(folder, source.name, sequences)
            results, more = _track(args, environment, manifests, sequences, source.name, untrained="all" in wanted)
            conditions |= {"run": folder.name, **more}
    if args.results:
        conditions["repair"] = args.repair
    conditions["convention"], convention = args.convention, CONVENTIONS[args.convention]
    results += read_results(args.results or (), annotations, repair=args.repair, convention=convention)
    results.append(static_box_result(annotations, convention=convention))
    conditions["seconds"] = round(time.monotonic() - begun, 3)

    record = evaluation_record(annotations, results, conditions)
    target = args.output or (folder if wanted else environment.output_dir) / EVALUATION
    try:
        (target / PLOTS).mkdir(parents=True, exist_ok=True)
        plots = draw_plots(record, target / PLOTS)
        for result in results:
            if result.record.kind in ("checkpoint", "untrained"):
                write_tracks(result, target / "boxes")
        write_tables(record, target, plots=[f"plots/{name}" for name in plots])
    except OSError as error:
        raise UserError(f"{target}: the evaluation cannot be written there ({error})", "evaluation.output") from error
    print(summary_table(record), end="")
    logger.info("tables, plots and boxes are in %s", target)
    return 0


def _config(folder: Path, manifests: list[Manifest]) -> Config | None:
    """The configuration of the last checkpoint, else the run's, else none."""
    if manifests:
        return checkpoint_config(manifests[-1])
    return load_config(str(folder / CONFIG_FILE)) if (folder / CONFIG_FILE).is_file() else None


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


def _refuse_trained_sequences(folder: Path, dataset: str, sequences: list[Sequence]) -> None:
    """Refuse test sequences that the run's own records list as training sequences."""
    recorded = read_side_file(folder / DATASET_FILE, DatasetRecord)
    sources = recorded.sources if recorded is not None else []
    trained = {name for one in sources if (one.name, one.split) == (dataset, "train") for name in one.names}
    leaked = sorted(trained.intersection(one.name for one in sequences))
    if leaked:
        raise UserError(
            f"{len(leaked)} test sequences were trained on according to {folder / DATASET_FILE}: "
            f"{', '.join(leaked[:10])}; a model must not be evaluated on its training data (--split train shows "
            "training sequences as such)",
            "evaluation.leak",
        )


def _track(
    args: argparse.Namespace,
    environment: Environment,
    manifests: list[Manifest],
    sequences: list[Sequence],
    dataset: str,
    *,
    untrained: bool,
) -> tuple[list[TrackerResult], dict[str, object]]:
    """Track with each checkpoint in turn, and with the untrained model if `--untrained` or by default `untrained`;
    returns the conditions for the records as well."""
    # Missing and unusable frame files are found before hours of tracking.
    problems = check_frames(one.frame_path(index) for one in sequences for index in range(one.num_frames))
    if problems:
        raise UserError(problems)
    device = choose_device(args.device or environment.device)
    check_precision(args.precision, device)
    frames = sum(sequence.num_frames - 1 for sequence in sequences)
    results: list[TrackerResult] = []

    def track(name: str, kind: str, model: SeqTrack, source: dict[str, Scalar], epoch: int | None = None) -> None:
        with tqdm(total=frames, desc=name, unit="frame", leave=False, disable=None) as bar:
            options = {"concurrent": args.concurrent, "on_frames": bar.update}
            tracks = track_sequences(model, sequences, settings, **options)
        convention = CONVENTIONS[args.convention]
        result = score_tracker(name, kind, tracks, sequences, convention=convention, epoch=epoch, source=source)
        results.append(result)
        mean = result.record.mean
        logger.info("%s: AUC %.3f, P20 %.3f, %.1f frames/s", name, mean["auc"], mean["p20"], mean["fps"] or 0.0)

    last_config = None
    for manifest in manifests:
        model, config = load_model(manifest, device)
        if config != last_config:
            settings, last_config = tracker_settings(config, dataset=dataset, precision=args.precision), config
        source: dict[str, Scalar] = {**checkpoint_source(manifest), "step": manifest.step}
        track(checkpoint_name(manifest, manifests), "checkpoint", model, source, manifest.epoch)
    if args.untrained if args.untrained is not None else untrained:
        fresh = build_model(model.spec, seed=config.TRAIN.SEED).to(device).eval()
        track("untrained", "untrained", fresh, {"seed": config.TRAIN.SEED})
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

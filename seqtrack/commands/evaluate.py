"""`seqtrack evaluate`: score checkpoints, baselines and other trackers' result files by LaSOT's protocol."""

import argparse
import dataclasses
import logging
import os
import time
from collections.abc import Sequence as ListOf
from pathlib import Path

import numpy as np

from seqtrack.checkpoints.side_files import DatasetRecord, EvaluationRecord, read_side_file
from seqtrack.commands.checkpoint_tracks import track_checkpoints
from seqtrack.config.environment import Environment, read_environment
from seqtrack.config.loader import load_config
from seqtrack.config.schema import Config
from seqtrack.data.annotations import Annotation, read_annotations
from seqtrack.data.lasot import draw_classes
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import SOURCES, Source, data_set_key, describe, open_source
from seqtrack.data.test_sets import TEST_SETS, read_test_set
from seqtrack.errors import UserError
from seqtrack.evaluation.benchmarks import default_convention, naming_of, protocol_of
from seqtrack.evaluation.plots import draw_plots, draw_tracking
from seqtrack.evaluation.results import (
    TrackerResult,
    choose,
    oracle_crop_result,
    read_results,
    static_box_result,
)
from seqtrack.evaluation.tables import (
    best_epoch,
    evaluation_record,
    official_table,
    static_epochs,
    static_sentence,
    summary_table,
    write_tables,
)
from seqtrack.parsing import split_commas
from seqtrack.run_dir import BOXES, CONFIG_FILE, DATASET_FILE, EVALUATION, FETCHED, PLOTS, TRACKING_FILE
from seqtrack.tracking import load
from seqtrack.tracking.onnx_model import DEFAULT_RUNTIME, load_onnx
from seqtrack.uploads.fetch import fetch_run

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Evaluate, write tables, plots and boxes, and print the table of means."""
    environment, begun = read_environment(os.environ), time.monotonic()
    folder = environment.phase_folder(args.phase)
    wanted = args.checkpoint or ([] if args.results or args.onnx else ["all"])
    tracks = bool(wanted or args.onnx)
    if args.annotations is not None and (tracks or not args.results):
        text = "--annotations has no frames: use it with --results, without --checkpoint and --onnx"
        raise UserError(text, "evaluation.option")
    if args.runtime is not None and not args.onnx:
        raise UserError("--runtime is for a model of --onnx", "evaluation.option")
    results, names = list[TrackerResult](), split_commas(args.sequences)
    key = data_set_key(args.dataset) if args.dataset else None
    if args.annotations is not None:
        every = _renamed(read_annotations(args.annotations), key)
        annotations: list[Annotation] = choose(every, classes=split_commas(args.classes), names=names)
        conditions: dict[str, object] = {"dataset": key, "split": None, "annotations": args.annotations.name}
    elif key in TEST_SETS and not tracks:
        annotations = [*choose(read_test_set(key, environment.data_dir, frames=False), names=names)]
        conditions = {"dataset": key, "split": "test"}
    else:
        fetched = environment.output_dir / FETCHED / EVALUATION  # the target's records and manifests
        records = fetch_run(environment, args.phase or environment.phase, fetched) if args.hub else folder
        manifests = load.select_checkpoints(records, wanted) if wanted else []
        exported = load_onnx(args.onnx, args.runtime or DEFAULT_RUNTIME) if args.onnx else None
        configs = [*map(load.checkpoint_config, manifests), *([exported[1]] if exported else [])]
        source = _open(args, environment, configs)
        annotations = [*(sequences := choose(source.sequences, names=names))]
        conditions = {"dataset": source.name, "split": source.split, "synthetic": source.synthetic}
        conditions["data_digest"], key = describe([source]).digest, source.name
    is_known = any(np.isfinite(one.boxes_xywh[1:]).any() for one in annotations)
    if key in TEST_SETS and TEST_SETS[key].first_box_only and not is_known:
        text = f"{key}: only its server can score it; `seqtrack submit --dataset {key.lower()}` writes the file for it"
        raise UserError(text, "evaluation.server")
    texts = environment.data_dir if args.annotations is None else None
    protocol = protocol_of(key, annotations, chosen=args.convention, data_dir=texts, attributes=args.attributes)
    if tracks:
        _refuse_trained(records, source, sequences)
        args.untrained = "all" in wanted if args.untrained is None else args.untrained
        some = dataclasses.replace(source, sequences=sequences)
        boxes = (args.output or (folder if wanted else environment.output_dir) / EVALUATION) / BOXES
        results, more = track_checkpoints(args, environment, manifests, exported, some, protocol, boxes)
        conditions |= {"run": folder.name, **more}
    conditions |= {"repair": args.repair} if args.results else {}
    conditions |= {"convention": args.convention or default_convention(key)}
    results += read_results(
        args.results or (), annotations, repair=args.repair, protocol=protocol, naming=naming_of(key),
        merge_runs=args.merge_runs,
    )  # fmt: skip
    results.append(static_box_result(annotations, protocol))
    factor = conditions.get("search_factor")
    results.append(oracle_crop_result(annotations, protocol, factor=factor if isinstance(factor, float) else 4.0))
    conditions["seconds"] = round(time.monotonic() - begun, 3)
    record = evaluation_record(annotations, results, conditions, protocol)
    target = args.output or (folder if wanted else environment.output_dir) / EVALUATION
    _write(target, record, results, sequences if tracks else (), args.plot_format or ())
    print(summary_table(record), end="")
    print(official_table(record), end="")
    if static_epochs(record):
        logger.warning("%s", static_sentence(record))
    logger.info("tables, plots and boxes are in %s", target)
    return 0


def _write(
    target: Path,
    record: EvaluationRecord,
    results: ListOf[TrackerResult],
    sequences: ListOf[Sequence],
    formats: ListOf[str],
) -> None:
    """Tables and plots, also in these formats; of the best epoch a picture of the sequences too."""
    try:
        (target / PLOTS).mkdir(parents=True, exist_ok=True)
        plots = draw_plots(record, target / PLOTS, formats=["png", *dict.fromkeys(formats)])
        if sequences and (best := best_epoch(record)) is not None:
            plots.append(TRACKING_FILE)
            drawn = next(one for one in results if one.record.name == best.name)
            draw_tracking(drawn, sequences, target / PLOTS / TRACKING_FILE)
        write_tables(record, target, plots=[f"plots/{name}" for name in plots])
    except OSError as error:
        raise UserError(f"{target}: the evaluation cannot be written there ({error})", "evaluation.output") from error


def _renamed(annotations: list[Annotation], key: str | None) -> list[Annotation]:
    """Annotations of a set without classes as one class of its name."""
    if key not in TEST_SETS or key.startswith("LASOT"):
        return annotations
    return [dataclasses.replace(one, class_name=key.lower()) for one in annotations]


def _refuse_trained(folder: Path, source: Source, sequences: list[Sequence]) -> None:
    recorded = read_side_file(folder / DATASET_FILE, DatasetRecord)
    known = recorded.sources if recorded is not None and source.split == "test" else []
    trained = {name for one in known if (one.name, one.split) == (source.name, "train") for name in one.names}
    if leaked := sorted(trained.intersection(one.name for one in sequences)):
        text = f"{len(leaked)} test sequences were trained on according to {folder / DATASET_FILE}"
        advice = "--split train shows training sequences as such"
        raise UserError(f"{text}: {', '.join(leaked[:10])}; {advice}", "evaluation.leak")


def _open(args: argparse.Namespace, environment: Environment, configs: list[Config]) -> Source:
    """The data set: the option's, the environment's if set there, else that of the last model or of the run."""
    name, classes, stored = args.dataset, split_commas(args.classes), environment.phase_folder(args.phase) / CONFIG_FILE
    if name is None and not environment.given("DATASET") and (configs or stored.is_file()):
        config = configs[-1] if configs else load_config(str(stored))
        # Of several training sets the first that is known here.
        name = next((one for one in config.DATA.TRAIN.DATASETS_NAME if one.upper() in SOURCES), None)
        if not classes and not environment.given("CLASSES"):
            classes = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
    name = name or next(iter(environment.dataset), "")
    # The classes that are trained on exist in no test set.
    classes = classes or (() if data_set_key(name) in TEST_SETS else environment.classes)
    return open_source(name, environment.data_dir, classes=classes, split=args.split)

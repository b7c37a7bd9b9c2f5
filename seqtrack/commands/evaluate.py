"""`seqtrack evaluate`: score checkpoints, baselines and other trackers' files side by side by LaSOT's protocol."""

import argparse
import functools
import logging
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqtrack.parsing import split_commas

if TYPE_CHECKING:
    import torch

    from seqtrack.config.environment import Environment
    from seqtrack.config.schema import Config
    from seqtrack.data.sources import Source
    from seqtrack.evaluation.tracker_results import TrackerResult

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything has a default: with none given, every epoch of phase 1 on the test split of its own data set."""
    parser.add_argument("--phase", type=int, choices=(1, 2), help="whose checkpoints (default: PHASE, else 1)")
    parser.add_argument(
        "--checkpoint",
        action="append",
        metavar="WHICH",
        help="all, last, an epoch (3), a range (2-5) or a file; may be repeated (default: all, or none with --results)",
    )
    parser.add_argument("--split", choices=("test", "train"), default="test", help="default: test")
    parser.add_argument("--dataset", help="data set (default: DATASET if set, else the run's own)")
    parser.add_argument("--classes", help="classes, separated by commas (default: CLASSES if set, else the run's own)")
    parser.add_argument("--sequences", help="only these sequences, separated by commas")
    parser.add_argument(
        "--results",
        action="append",
        type=Path,
        metavar="DIR",
        help="another tracker's <sequence>.txt files or .npz, or a folder of such; may be repeated",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="PLACE",
        help="with --results: annotations kept without frames (.npz, a folder annos, or LaSOT's layout)",
    )
    parser.add_argument(
        "--repair",
        choices=("strict", "official"),
        default="strict",
        help="rows of NaN or negative size in result files: refuse the file, or repeat the last good box as LaSOT's "
        "toolkit does (default: strict; rows of size 0 are always repeated)",
    )
    parser.add_argument(
        "--convention",
        choices=("toolkit", "pytracking"),
        default="toolkit",
        help="how a visible frame whose annotation is no box counts: as in LaSOT's toolkit, or as in pytracking and "
        "the authors' evaluator (default: toolkit)",
    )
    parser.add_argument(
        "--untrained",
        action=argparse.BooleanOptionalAction,
        help="track with the untrained model as well (default: with all checkpoints)",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "tf32", "bf16", "fp16"),
        default="fp32",
        help="of the encoder; tf32 and fp16 need a GPU (default: fp32)",
    )
    parser.add_argument("--concurrent", type=int, default=16, help="sequences tracked in one batch (default: 16)")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), help="default: DEVICE, else auto")
    parser.add_argument(
        "-o", "--output", type=Path, help="folder for tables and plots (default: the run's evaluation/)"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate, write tables, plots and boxes, and print the table of means."""
    from seqtrack.config.environment import read_environment
    from seqtrack.errors import UserError
    from seqtrack.evaluation.annotations import choose, read_annotations
    from seqtrack.evaluation.gather import results_from_files, static_box_result
    from seqtrack.evaluation.metrics import CONVENTIONS
    from seqtrack.evaluation.plots import draw_plots
    from seqtrack.evaluation.results import read_results
    from seqtrack.evaluation.tables import summary_table, write_tables, write_tracks
    from seqtrack.evaluation.tracker_results import Evaluation

    environment = read_environment(os.environ)
    begun = time.monotonic()
    folder = environment.phase_folder(args.phase)
    wanted = args.checkpoint or ([] if args.results else ["all"])
    if args.annotations is not None and (wanted or not args.results):
        raise UserError("--annotations has no frames: it goes with --results and without --checkpoint")
    if args.concurrent < 1:
        raise UserError(f"--concurrent is {args.concurrent}; at least one sequence is tracked at a time")

    names = split_commas(args.sequences)
    conditions: dict[str, Any] = {}
    results: list[TrackerResult] = []
    if args.annotations is not None:
        annotations = choose(read_annotations(args.annotations), classes=split_commas(args.classes), names=names)
        conditions = {"dataset": None, "split": None, "annotations": args.annotations.name}
    else:
        results, annotations, conditions = _tracked(args, environment, folder, wanted, names)
    others = [one for place in args.results or () for one in read_results(place, annotations, repair=args.repair)]
    if others:
        conditions["repair"] = args.repair
    conditions["convention"], convention = args.convention, CONVENTIONS[args.convention]
    results += results_from_files(others, annotations, convention=convention)
    results.append(static_box_result(annotations, convention=convention))

    evaluation = Evaluation(annotations, results, {**conditions, "seconds": round(time.monotonic() - begun, 3)})
    target = args.output or (folder if wanted else environment.output_dir) / "evaluation"
    try:
        (target / "plots").mkdir(parents=True, exist_ok=True)
        plots = draw_plots(evaluation, target / "plots")
        for result in results:
            if result.kind in ("checkpoint", "untrained"):
                write_tracks(result, target / "boxes")
        write_tables(evaluation, target, plots=[f"plots/{name}" for name in plots])
    except OSError as error:
        raise UserError(f"{target}: the evaluation cannot be written there ({error})") from error
    print(summary_table(evaluation), end="")
    logger.info("tables, plots and boxes are in %s", target)
    return 0


def _tracked(
    args: argparse.Namespace, environment: "Environment", folder: Path, wanted: list[str], names: tuple[str, ...]
) -> tuple[list["TrackerResult"], list[Any], dict[str, Any]]:
    """Track with every wanted checkpoint; returns subjects, annotations, and the conditions for the records."""
    from seqtrack.config.loader import load_config
    from seqtrack.data.sources import describe
    from seqtrack.evaluation.annotations import choose, from_sequences
    from seqtrack.evaluation.gather import select_checkpoints

    manifests = select_checkpoints(folder, wanted) if wanted else []
    config = None
    if manifests:
        from seqtrack.tracking.load import checkpoint_config  # imports torch, which result files do not need

        config = checkpoint_config(manifests[-1])
    elif (folder / "config.yaml").is_file():
        config = load_config(str(folder / "config.yaml"))
    source = _open(args, environment, config)
    annotations = choose(from_sequences(source.sequences), names=names)
    kept = {one.name for one in annotations}
    sequences = [sequence for sequence in source.sequences if sequence.name in kept]
    conditions: dict[str, Any] = {
        "dataset": source.name,
        "split": source.split,
        "synthetic": source.synthetic,
        "data_digest": describe([source])["digest"],
    }
    if not manifests:
        return [], annotations, conditions
    if args.split == "test":
        _refuse_trained_sequences(folder, source.name, [sequence.name for sequence in sequences])
    _refuse_unusable_frames(sequences)
    results, more = _track_checkpoints(args, environment, manifests, sequences, source.name, untrained="all" in wanted)
    return results, annotations, {**conditions, "run": folder.name, **more}


def _open(args: argparse.Namespace, environment: "Environment", config: "Config | None") -> "Source":
    """The data set: the flag's, the environment's if it was set there, else what the run was trained on."""
    from seqtrack.data.classes import draw_classes
    from seqtrack.data.sources import SOURCES, open_source

    name, classes = args.dataset, split_commas(args.classes)
    if name is None and config is not None and not environment.given("DATASET"):
        # Of several training sets the first whose test split is known here.
        name = next((one for one in config.DATA.TRAIN.DATASETS_NAME if one.upper() in SOURCES), None)
        if not classes and not environment.given("CLASSES"):
            classes = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
    name = name or next(iter(environment.dataset), "")
    return open_source(name, environment.data_dir, classes=classes or environment.classes, split=args.split)


def _refuse_trained_sequences(folder: Path, dataset: str, names: Sequence[str]) -> None:
    """Refuse a test split that holds sequences which the run's own records name as training sequences."""
    from seqtrack.checkpoints.side_files import DatasetRecord, read_side_file
    from seqtrack.errors import UserError

    place = folder / "dataset.json"
    recorded = read_side_file(place, DatasetRecord)
    sources = recorded.sources if recorded is not None else []
    trained = {name for one in sources if (one.name, one.split) == (dataset, "train") for name in one.names}
    leaked = [name for name in names if name in trained]
    if leaked:
        raise UserError(
            f"{len(leaked)} sequences of the test split were trained on, says {place}: {', '.join(leaked[:10])}; "
            "a model must not be judged by what it was trained on (--split train shows training sequences as such)"
        )


def _refuse_unusable_frames(sequences: list[Any]) -> None:
    """Refuse frame files that are missing or cannot be used before hours of tracking, not when they are reached."""
    from seqtrack.data.decode import check_frames
    from seqtrack.errors import UserError

    problems = check_frames(one.frame_path(index) for one in sequences for index in range(one.num_frames))
    if problems:
        raise UserError(problems)


def _track_checkpoints(
    args: argparse.Namespace,
    environment: "Environment",
    manifests: list[Any],
    sequences: list[Any],
    dataset: str,
    *,
    untrained: bool,
) -> tuple[list["TrackerResult"], dict[str, Any]]:
    """Track with each checkpoint in turn, and with the untrained model if the flag or else `untrained` says so."""
    from tqdm import tqdm

    from seqtrack.device import choose_device
    from seqtrack.evaluation.gather import checkpoint_name, checkpoint_source
    from seqtrack.evaluation.metrics import CONVENTIONS
    from seqtrack.evaluation.run import model_result, untrained_model
    from seqtrack.tracking.load import load_model, set_threads
    from seqtrack.tracking.settings import check_precision, tracker_settings

    device = choose_device(args.device or environment.device)
    check_precision(args.precision, device)
    frames = sum(sequence.num_frames - 1 for sequence in sequences)
    results: list[TrackerResult] = []
    conditions: dict[str, Any] = {}

    settings_of = functools.cache(lambda config: tracker_settings(config, dataset=dataset, precision=args.precision))

    def track(name: str, kind: str, model: Any, config: Any, epoch: int | None, source: dict[str, Any]) -> None:
        settings = settings_of(config)
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
        conditions.update(
            window=settings.window, update_interval=settings.update_interval, update_threshold=settings.update_threshold
        )

    for manifest in manifests:
        model, config = load_model(manifest, device)
        set_threads(config)
        source = {**checkpoint_source(manifest), "step": manifest.step}
        track(checkpoint_name(manifest, manifests), "checkpoint", model, config, manifest.epoch, source)
    if args.untrained if args.untrained is not None else untrained:
        spec = model.spec
        model = untrained_model(spec, seed=config.TRAIN.SEED, device=device)
        track("untrained", "untrained", model, config, None, {"seed": config.TRAIN.SEED})
    return results, {**_measured_with(args, device), **conditions}


def _measured_with(args: argparse.Namespace, device: "torch.device") -> dict[str, Any]:
    """What times and last digits depend on, for the records."""
    import torch

    from seqtrack.runtime.environment import describe_device

    return {
        "device": describe_device(device),
        "precision": args.precision,
        "concurrent": args.concurrent,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }

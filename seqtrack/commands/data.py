"""`seqtrack data`: download classes of LaSOT, examine a data folder, look at samples, prepare what a run needs."""

import argparse
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.parsing import split_commas

if TYPE_CHECKING:
    from seqtrack.config.environment import Environment
    from seqtrack.data.check import Report
    from seqtrack.data.download import Hub
    from seqtrack.data.lasot import Layout

_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Four sub-commands; what they have in common defaults to the environment variables of a run."""
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    download = commands.add_parser("download", help="fetch classes of LaSOT from the Hub, resumable and checked")
    _add_place(download)
    download.add_argument("--split", choices=("train", "test", "all"), default="all", help="default: all")
    download.add_argument("--sequences", default="", help="only these sequences, separated by commas")
    download.add_argument("--keep-zip", action="store_true", help="leave the zips next to the unpacked classes")
    download.add_argument("--repo", default=None, help="data set on the Hub (default: l-lt/LaSOT)")
    download.set_defaults(action_run=_download)

    check = commands.add_parser("check", help="count and examine what is there, changing nothing; exit code 1 if wrong")
    _add_place(check)
    check.add_argument("--dataset", help="lasot or demo (default: DATASET)")
    check.add_argument("--decode", action="store_true", help="read every pixel of every frame")
    check.add_argument(
        "--list", type=Path, metavar="FILE", help="training sequences, one a line, instead of the split's"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    check.set_defaults(action_run=_check)

    show = commands.add_parser("show", help="a picture of training samples as the model gets them")
    show.add_argument("-o", "--output", type=Path, default=Path("samples.png"), help="default: samples.png")
    show.add_argument("--count", type=int, default=12, help="samples (default: 12)")
    show.add_argument("--epoch", type=int, default=1, help="epoch whose samples are shown (default: 1)")
    show.add_argument("--first", type=int, default=0, help="number of the first sample in the epoch (default: 0)")
    show.set_defaults(action_run=_show)

    prepare = commands.add_parser("prepare", help="make the data that this environment's run needs are in DATA_DIR")
    prepare.set_defaults(action_run=_prepare)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, help="default: DATA_DIR, else ./data")
    parser.add_argument("--classes", help="separated by commas (default: CLASSES)")


def run(args: argparse.Namespace) -> int:
    """Run the chosen sub-command."""
    return int(args.action_run(args))


def _environment() -> "Environment":
    from seqtrack.config.environment import read_environment

    return read_environment(os.environ)


def _place(args: argparse.Namespace) -> tuple[Path, tuple[str, ...]]:
    """Data folder and classes, from the options or the environment."""
    environment = _environment()
    classes = environment.classes if args.classes is None else split_commas(args.classes)
    return args.data_dir or environment.data_dir, classes


def _hub(repo: str | None = None) -> "Hub":
    from seqtrack.config.environment import read_token
    from seqtrack.data.download import REPO, Hub

    return Hub(endpoint=_environment().hf_endpoint, repo=repo or REPO, token=read_token(os.environ))


def _download(args: argparse.Namespace) -> int:
    from seqtrack.data.download import download_classes
    from seqtrack.errors import UserError

    data_dir, classes = _place(args)
    if not classes:
        raise UserError("--classes: name the classes to download, such as book,coin; all 70 together are 248 GB")
    added = download_classes(
        data_dir,
        classes,
        hub=_hub(args.repo),
        split=args.split,
        sequences=split_commas(args.sequences),
        keep_zip=args.keep_zip,
    )
    for name, sequences in added.items():
        print(f"{name}: {len(sequences)} sequences added")
    return 0


def _check(args: argparse.Namespace) -> int:
    import json

    from seqtrack.data.check import check_layout

    data_dir, classes = _place(args)
    layout = _layout(args, data_dir)
    report = check_layout(layout, classes=classes, decode=args.decode, progress=lambda name: _log.debug("%s", name))
    report.problems += _demo_problems(layout)
    if args.json:
        print(json.dumps(report.to_json()))
    else:
        _print_report(report)
    return 1 if report.problems else 0


def _layout(args: argparse.Namespace, data_dir: Path) -> "Layout":
    from seqtrack.data.lasot import find_layout
    from seqtrack.errors import UserError

    name = (args.dataset or ",".join(_environment().dataset)).lower()
    if name not in ("lasot", "demo"):
        raise UserError(f"--dataset: {name!r} cannot be examined; known are demo, lasot")
    if args.list is not None and not args.list.is_file():
        raise UserError(f"--list: {args.list} is not a file")
    # Without DATASET, a folder that holds sequences itself is what the user means, whatever the default is.
    asked = args.dataset is not None or "DATASET" in os.environ
    demo = data_dir / "demo" if name == "demo" and (asked or (data_dir / "demo").is_dir()) else data_dir
    return find_layout(demo, lists={"train": args.list} if args.list is not None else None)


def _demo_problems(layout: "Layout") -> list[str]:
    from seqtrack.data.demo import MARKER, check_demo

    return check_demo(layout.root) if (layout.root / MARKER).is_file() else []


def _print_report(report: "Report") -> None:
    head = ("class", "split", "sequences", "of", "frames expected", "found", "boxes", "absent", "MB")
    rows = [
        (
            row.class_name,
            row.split,
            *(f"{n:,}" for n in (row.sequences, row.sequences_expected, row.frames_expected, row.frames_found)),
            f"{row.boxes:,}",
            f"{row.absent:,}",
            f"{row.bytes_ / 1e6:,.1f}",
        )
        for row in report.rows
    ]
    widths = [max(len(line[i]) for line in (head, *rows)) for i in range(len(head))]
    print(f"{report.root}")
    for line in (head, *rows):
        cells = [line[i].ljust(widths[i]) if i < 2 else line[i].rjust(widths[i]) for i in range(len(head))]
        print("  ".join(cells).rstrip())
    if report.decoded:
        print(f"{report.decoded:,} frames were decoded")
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"problem: {problem}")
    print(f"{len(report.problems)} problems" if report.problems else "no problem found")


def _show(args: argparse.Namespace) -> int:
    import cv2

    from seqtrack.config.environment import configure
    from seqtrack.data.preview import sample_preview
    from seqtrack.errors import UserError
    from seqtrack.training.build import make_dataset, open_sources

    if args.count < 1 or args.first < 0 or args.epoch < 0:
        raise UserError("--count must be at least 1, --first and --epoch at least 0")
    environment, config = configure(os.environ)
    dataset = make_dataset(config, open_sources(config, environment.data_dir))
    samples = [dataset.sample(args.epoch, args.first + number) for number in range(args.count)]
    written, data = cv2.imencode(".png", sample_preview(samples))
    if not written:
        raise UserError(f"{args.output}: the picture of {args.count} samples is too large; ask for fewer")
    try:
        args.output.write_bytes(data.tobytes())
    except OSError as error:
        raise UserError(f"{args.output}: cannot be written ({error.strerror})") from error
    print(args.output)
    return 0


def _prepare(args: argparse.Namespace) -> int:
    """Draw the demo data set, download the classes of LaSOT of which nothing is there, and open any other data set."""
    from seqtrack.config.environment import configure
    from seqtrack.data.classes import draw_classes
    from seqtrack.data.demo import ensure_demo
    from seqtrack.data.download import download_classes
    from seqtrack.data.sources import open_source
    from seqtrack.errors import UserError

    environment, config = configure(os.environ)
    for name in (one.upper() for one in config.DATA.TRAIN.DATASETS_NAME):
        if name == "DEMO":
            print(f"{ensure_demo(environment.data_dir)}: the demo data set (synthetic) is there")
        elif name == "LASOT":
            chosen = draw_classes(config.DATA.CLASSES, count=config.DATA.RANDOM_CLASSES, seed=config.TRAIN.SEED)
            there = _classes_there(environment.data_dir)
            if not chosen and not there:
                raise UserError("CLASSES: name the classes to download, such as book,coin; all 70 together are 248 GB")
            missing = tuple(one for one in chosen if one not in there)
            if missing:
                download_classes(environment.data_dir, missing, hub=_hub())
            print(f"LaSOT: {', '.join(chosen or there)} in {environment.data_dir}")
        else:
            found = open_source(name, environment.data_dir, classes=config.DATA.CLASSES, split="train").sequences
            print(f"{name}: {len(found)} training sequences in {environment.data_dir}")
    return 0


def _classes_there(data_dir: Path) -> list[str]:
    from seqtrack.data.lasot import find_layout
    from seqtrack.errors import UserError

    try:
        return find_layout(data_dir).classes
    except UserError:
        return []

"""`seqtrack data`: download classes of LaSOT, check a data folder, show samples, prepare the data of a run."""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from seqtrack.config.environment import configure, read_environment
from seqtrack.data.check import Report, check_layout
from seqtrack.data.demo import MARKER, check_demo
from seqtrack.data.download import data_hub, download_classes
from seqtrack.data.lasot import find_layout
from seqtrack.data.preview import write_preview
from seqtrack.data.sources import prepare_data
from seqtrack.errors import UserError
from seqtrack.parsing import split_commas

_ROW = "{:<20}{:<7}{:>9}{:>5}{:>17}{:>10}{:>10}{:>8}{:>12}".format


def run(args: argparse.Namespace) -> int:
    """Run the chosen sub-command."""
    return {"download": _download, "check": _check, "show": _show, "prepare": _prepare}[args.action](args)


def _place(args: argparse.Namespace) -> tuple[Path, tuple[str, ...]]:
    """Data folder and classes, from the options or the environment."""
    environment = read_environment(os.environ)
    classes = environment.classes if args.classes is None else split_commas(args.classes)
    return args.data_dir or environment.data_dir, classes


def _download(args: argparse.Namespace) -> int:
    data_dir, classes = _place(args)
    if not classes:
        raise UserError("--classes: name some, such as book,coin; all 70 together are 248 GB", "data.no_classes")
    hub, sequences = data_hub(os.environ), split_commas(args.sequences)
    added = download_classes(data_dir, classes, hub=hub, repo=args.repo, split=args.split, sequences=sequences)
    for name, names in added.items():
        print(f"{name}: {len(names)} sequences added")
    return 0


def _check(args: argparse.Namespace) -> int:
    data_dir, classes = _place(args)
    name = (args.dataset or ",".join(read_environment(os.environ).dataset)).lower()
    if name not in ("lasot", "demo"):
        raise UserError(f"--dataset: {name!r} cannot be checked; known are demo, lasot", "data.unknown_data_set")
    # Without DATASET, a folder that holds sequences itself is what the user means, whatever the default is.
    if name == "demo" and (args.dataset or "DATASET" in os.environ or (data_dir / "demo").is_dir()):
        data_dir = data_dir / "demo"
    layout = find_layout(data_dir)
    report = check_layout(layout, classes=classes, decode=args.decode)
    if (layout.root / MARKER).is_file():
        report.problems += check_demo(layout.root)
    if args.json:
        print(json.dumps({**asdict(report), "ok": not report.problems}))
    else:
        _print_report(report)
    return 1 if report.problems else 0


def _print_report(report: Report) -> None:
    print(report.root)
    print(_ROW("class", "split", "sequences", "of", "frames expected", "found", "boxes", "absent", "MB"))
    for row in report.rows:
        counts = row.sequences, row.sequences_expected, row.frames_expected, row.frames_found, row.boxes, row.absent
        print(_ROW(row.class_name, row.split, *(f"{n:,}" for n in counts), f"{row.bytes_ / 1e6:,.1f}"))
    if report.decoded:
        print(f"{report.decoded:,} frames were decoded")
    for note in report.notes:
        print(f"note: {note}")
    for problem in report.problems:
        print(f"problem: {problem}")
    print(f"{len(report.problems)} problems" if report.problems else "no problem found")


def _show(args: argparse.Namespace) -> int:
    from seqtrack.training.build import make_dataset, open_sources  # torch, which the other actions do not need

    if args.count < 1 or args.first < 0 or args.epoch < 0:
        raise UserError("--count must be at least 1, --first and --epoch at least 0", "data.option")
    environment, config = configure(os.environ)
    dataset = make_dataset(config, open_sources(config, environment.data_dir))
    write_preview(args.output, [dataset.sample(args.epoch, args.first + number) for number in range(args.count)])
    print(args.output)
    return 0


def _prepare(args: argparse.Namespace) -> int:
    print(*prepare_data(*configure(os.environ), os.environ), sep="\n")
    return 0

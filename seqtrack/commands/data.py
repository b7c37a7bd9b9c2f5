"""`seqtrack data`: download classes of LaSOT, check a data folder, show samples, prepare a run's data, import own."""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

from seqtrack.config.environment import Environment, configure, read_environment
from seqtrack.data.check import check_layout
from seqtrack.data.download import data_hub, download_classes
from seqtrack.data.foreign_boxes import FIRST_FRAME, READERS, Frames, choose_tracks
from seqtrack.data.importing import frames_of, import_tracks
from seqtrack.data.lasot import find_layout
from seqtrack.data.preview import write_box_preview, write_preview
from seqtrack.data.sources import DRAWN, prepare_data
from seqtrack.errors import UserError
from seqtrack.parsing import split_commas
from seqtrack.tracking.video import open_frames

_ROW = "{:<20}{:<7}{:>9}{:>5}{:>17}{:>10}{:>10}{:>8}{:>12}".format


def run(args: argparse.Namespace) -> int:
    """Run the chosen sub-command."""
    if args.action == "prepare":
        print(*prepare_data(*configure(os.environ), os.environ), sep="\n")
        return 0
    if args.action == "show":
        return _show(args)
    environment = read_environment(os.environ)
    data_dir: Path = args.data_dir or environment.data_dir
    if args.action == "import":
        return _import(args, data_dir)
    classes = environment.classes if args.classes is None else split_commas(args.classes)
    if args.action == "check":
        return _check(args, data_dir, classes, environment)
    if not classes:
        raise UserError("--classes: name some, such as book,coin; all 70 together are 248 GB", "data.no_classes")
    hub, sequences = data_hub(os.environ), split_commas(args.sequences)
    added = download_classes(data_dir, classes, hub=hub, repo=args.repo, split=args.split, sequences=sequences)
    for name, names in added.items():
        print(f"{name}: {len(names)} sequences added")
    return 0


def _check(args: argparse.Namespace, data_dir: Path, classes: tuple[str, ...], environment: Environment) -> int:
    name = (args.dataset or ",".join(environment.dataset)).lower()
    drawn = {one.name: one for one in DRAWN.values()}
    if name not in ("lasot", *drawn):
        known = ", ".join(sorted(("lasot", *drawn)))
        raise UserError(f"--dataset: {name!r} cannot be checked; known are {known}", "data.unknown_data_set")
    # Without DATASET, a folder that holds sequences itself is what the user means, whatever the default is.
    if name in drawn and (args.dataset or "DATASET" in os.environ or (data_dir / name).is_dir()):
        data_dir = data_dir / name
    layout = find_layout(data_dir)
    report = check_layout(layout, classes=classes, decode=args.decode)
    for one in drawn.values():
        if (layout.root / one.marker).is_file():
            report.problems += one.check(layout.root)
    if args.json:
        print(json.dumps({**asdict(report), "ok": not report.problems}))
        return 1 if report.problems else 0
    print(report.root)
    print(_ROW("class", "split", "sequences", "of", "frames expected", "found", "boxes", "absent", "MB"))
    for row in report.rows:
        counts = row.sequences, row.sequences_expected, row.frames_expected, row.frames_found, row.boxes, row.absent
        print(_ROW(row.class_name, row.split, *(f"{n:,}" for n in counts), f"{row.bytes_ / 1e6:,.1f}"))
    lines = [*(f"note: {one}" for one in report.notes), *(f"problem: {one}" for one in report.problems)]
    decoded = f", {report.decoded:,} frames were decoded" if report.decoded else ""
    print(*lines, f"{len(report.problems) or 'no'} problems found{decoded}", sep="\n")
    return 1 if report.problems else 0


def _show(args: argparse.Namespace) -> int:
    from seqtrack.training.build import make_dataset, open_sources  # torch, which the other actions do not need

    environment, config = configure(os.environ)
    dataset = make_dataset(config, open_sources(config, environment.data_dir))
    write_preview(args.output, [dataset.sample(args.epoch, args.first + number) for number in range(args.count)])
    print(args.output)
    return 0


def _import(args: argparse.Namespace, data_dir: Path) -> int:
    if args.frames.isdecimal() and not Path(args.frames).exists():
        raise UserError(f"{args.frames}: no such video or folder; a camera has no annotation", "import.frames")
    source = open_frames(args.frames)
    first = FIRST_FRAME[args.format] if args.first is None else args.first
    names = tuple(path.name for path in source.paths)
    folder = source.paths[0].parent.resolve() if names else Path(args.frames).resolve().with_suffix("")
    # The header of a video may state a wrong count: only the frames themselves can be counted.
    frames = Frames(folder, names, len(names) or None, first, is_first_given=args.first is not None)
    tracks = READERS[args.format](args.boxes, frames)
    tracks = choose_tracks(tracks, object_ids=split_commas(args.object_ids), class_name=args.class_name)
    images = frames_of(source.paths, () if names else source.frames())
    found = import_tracks(data_dir, tracks, images, split=args.split, fill_gaps=args.fill_gaps)
    for one, track in zip(found, tracks, strict=True):
        preview = one.folder.parent.parent / f"{one.name}.png"
        write_box_preview(preview, one)
        index = min(index for index, box in track.boxes.items() if not box.is_absent)
        start = names[index] if names else f"frame {first + index}"
        counts = f"{one.num_frames} frames from {start} on, {int(one.absent.sum())} out of view"
        print(f"{one.name}: {counts}; {args.split}; look at {preview}")
    return 0

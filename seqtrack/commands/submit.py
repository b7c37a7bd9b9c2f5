"""`seqtrack submit`: write or check the file that the server of GOT-10k or TrackingNet scores."""

import argparse
import os
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_zip
from seqtrack.config.environment import read_environment
from seqtrack.data.sources import data_set_key
from seqtrack.errors import UserError
from seqtrack.evaluation import submission
from seqtrack.evaluation.benchmarks import naming_of
from seqtrack.evaluation.results import find_trackers


def run(args: argparse.Namespace) -> int:
    """Check a zip, or write one of results or of a checkpoint; nothing is written that breaks a rule."""
    environment, key = read_environment(os.environ), data_set_key(args.dataset)
    if key not in submission.COUNTS:
        text = f"--dataset {args.dataset}: has no server; expected {' or '.join(submission.COUNTS)}"
        raise UserError(text, "submission.option")
    if sum(one is not None for one in (args.check, args.results, args.checkpoint)) != 1:
        raise UserError("expected one of --results, --checkpoint and --check", "submission.option")
    expected = submission.expected_sequences(key, args.expected, environment.data_dir)
    if args.check is not None:
        members = submission.read_zip(args.check)
    elif args.results is not None:
        naming = naming_of(key)
        found = find_trackers(args.results, expected.names, naming)
        if len(found) > 1 or found[0].is_file():
            text = f"{args.results}: expected a folder with the results of one tracker, found {len(found)}: {found[0]}"
            raise UserError(text, "submission.option")
        members = submission.members_of(key, found[0], expected, naming)
    else:
        members = _tracked(args, key, environment.phase_folder(args.phase), environment.data_dir, environment.device)
    if problems := submission.check_members(key, members, expected):
        raise UserError(problems)
    known = "frames and first boxes" if expected.lengths else "no number of frames, which nothing here knows"
    place = args.check or args.output or environment.output_dir / f"{key.lower()}.zip"
    if args.check is None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_zip(place, members)
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({error.strerror or error})", "submission.output") from error
    print(f"{place}: {len(members)} files of {len(expected.names)} sequences, every rule checked ({known})")
    return 0


def _tracked(args: argparse.Namespace, key: str, folder: Path, data_dir: Path, default: str) -> dict[str, bytes]:
    """The zip's files as a checkpoint tracks."""
    # torch, which nothing else here needs
    from seqtrack.data.test_sets import read_test_set
    from seqtrack.device import choose_device
    from seqtrack.evaluation.run import track_sequences
    from seqtrack.tracking import load

    (manifest,) = load.select_checkpoints(folder, [args.checkpoint])[-1:]
    model, config = load.load_model(manifest, choose_device(args.device or default))
    settings = load.tracker_settings(config, dataset=key)
    members: dict[str, bytes] = {}
    for name, tracks in track_sequences(model, read_test_set(key, data_dir), settings).items():
        boxes, times = submission.box_lines(tracks.boxes_xywh), submission.time_lines([tracks.times_s])
        if key == "GOT10K_TEST":
            members |= {f"{name}/{name}_001.txt": boxes, f"{name}/{name}_time.txt": times}
        else:
            members[f"{name}.txt"] = boxes
    return members

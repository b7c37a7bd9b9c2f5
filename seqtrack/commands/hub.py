"""`seqtrack hub`: helper commands for the target: create, check, upload a file, download, write the model card."""

import argparse
import os
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.commands.upload import require_output
from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import UserError
from seqtrack.reports.card import model_card
from seqtrack.run_dir import CHECKPOINTS
from seqtrack.uploads.client import TargetClient
from seqtrack.uploads.fetch import fetch_checkpoint, fetch_files
from seqtrack.uploads.identity import markers_of
from seqtrack.uploads.scan import scan
from seqtrack.uploads.target import (
    ChangedError,
    Order,
    Reply,
    Staged,
    choose_target,
    missing,
    read_settings,
    safe_path,
    stage,
)


def run(args: argparse.Namespace) -> int:
    """Run the chosen sub-command."""
    environment = read_environment(os.environ)
    if args.action == "create":
        print(_request(environment, Order(prepare="make")).account)
    elif args.action == "check":
        return _check(environment)
    elif args.action == "upload":
        if args.to is not None and len(args.files) > 1:
            raise UserError("--to names one file, but several were given", code="hub.several_files")
        root = environment.output_dir.resolve()
        places = {file: file.resolve() for file in args.files}
        inside = {file: one.relative_to(root).as_posix() for file, one in places.items() if root in one.parents}
        _send(environment, {inside.get(file, file.name) if args.to is None else args.to: file for file in args.files})
    elif args.action == "download":
        _download(args, environment)
    else:
        place = environment.output_dir / "README.md"
        card = model_card(environment.output_dir, repo=environment.hf_repo)
        try:
            write_atomic(place, card.encode())
        except OSError as error:
            raise UserError(f"{place}: cannot be written ({error.strerror})", "file.unwritable") from error
        print(place)
        if environment.target is not None and not args.no_upload:
            _send(environment, {"README.md": place})
    return 0


def _request(environment: Environment, order: Order) -> Reply:
    """Send one order to the target, in a child process; UserError if none is set, or it refused."""
    client = TargetClient(choose_target(environment), read_settings(os.environ))
    return client.request(order, sum(item.size for item in order.files))


def _check(environment: Environment) -> int:
    """Exit code 0 if everything in OUTPUT_DIR is listed with the same bytes, 1 if not."""
    require_output(environment)
    units, problems = scan(environment.output_dir)
    paths = [path for unit in units for path in unit.files]
    reply = _request(environment, Order(prepare="check", look=tuple(paths)))
    print(reply.account)
    remotes = reply.remotes or {}
    wrong = 0
    for path in paths:
        try:
            is_wrong = path not in remotes or bool(missing([_stage(path, environment.output_dir / path)], remotes))
        except UserError as error:
            is_wrong, problems[path] = True, str(error)
        wrong += is_wrong
        print(f"{'missing' if path not in remotes else 'differs' if is_wrong else 'same':8} {path}")
    for path, line in problems.items():
        print(f"{'problem':8} {path}: {line}")
    print(f"{len(paths) - wrong} of {len(paths)} files are on the target with the same bytes")
    return 1 if wrong or problems else 0


def _stage(path: str, file: Path) -> Staged:
    """`stage`, with a UserError for a file that cannot be read, or that grows meanwhile."""
    try:
        return stage(path, file)
    except ChangedError as error:
        raise UserError(f"{error}; try again when nothing writes to it", code=error.code) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})", code="file.unreadable") from error


def _send(environment: Environment, files: dict[str, Path]) -> None:
    absent = [one for one in files.values() if not (os.access(one, os.R_OK) and one.is_file())]
    if absent:
        raise UserError([f"{one} is not a readable file" for one in absent], code="hub.no_file")
    staged = tuple(_stage(safe_path(name), file) for name, file in files.items())
    markers = markers_of(environment.output_dir)
    _request(environment, Order(prepare="make", files=staged, markers=markers, message=f"Add {next(iter(files))}"))
    for name in files:
        print(f"{name} is on the target and verified")


def _download(args: argparse.Namespace, environment: Environment) -> None:
    if (args.path is None) == (args.epoch is None):
        raise UserError("name a file of the repo, or a checkpoint by --epoch", code="hub.what")
    if args.epoch is None:
        print(*fetch_files(environment, [args.path], args.into or environment.output_dir))
        return
    problems: list[str] = []
    for phase in [args.phase] if args.phase is not None else dict.fromkeys([environment.phase, 1]):
        into = args.into or environment.phase_folder(phase) / CHECKPOINTS
        try:
            print(fetch_checkpoint(environment, args.epoch, into, phases=[phase]))
            return
        except UserError as error:
            problems += error.problems
    raise UserError(problems)

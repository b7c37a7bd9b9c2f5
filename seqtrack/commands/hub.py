"""`seqtrack hub`: helper commands for the target: create, check, upload a file, download, write the model card."""

import argparse
import logging
import os
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import UserError
from seqtrack.reports.card import model_card
from seqtrack.run_dir import CHECKPOINTS
from seqtrack.uploads.client import TargetClient
from seqtrack.uploads.fetch import fetch_checkpoint, fetch_file
from seqtrack.uploads.scan import scan
from seqtrack.uploads.target import (
    Order,
    Reply,
    choose_target,
    missing,
    read_settings,
    safe_path,
    stage,
)

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Dispatch to one tool."""
    return {"create": _create, "check": _check, "upload": _upload, "download": _download, "card": _card}[args.action](
        args, read_environment(os.environ)
    )


def _request(environment: Environment, order: Order) -> Reply:
    """Send one order to the target, in a child process.

    Raises:
        UserError: no target is set, or the target refused.
    """
    client = TargetClient(choose_target(environment), read_settings(os.environ))
    return client.request(order, sum(item.size for item in order.files))


def _create(args: argparse.Namespace, environment: Environment) -> int:
    print(_request(environment, Order(prepare="make")).account)
    return 0


def _check(args: argparse.Namespace, environment: Environment) -> int:
    """Exit code 0 if everything in OUTPUT_DIR is listed with the same bytes, 1 if not."""
    paths = [path for unit in scan(environment.output_dir)[0] for path in unit.files]
    reply = _request(environment, Order(prepare="check", look=tuple(paths)))
    print(reply.account)
    remotes = reply.remotes or {}
    wrong = 0
    for path in paths:
        is_wrong = path not in remotes or bool(missing([stage(path, environment.output_dir / path)], remotes))
        wrong += is_wrong
        print(f"{'missing' if path not in remotes else 'differs' if is_wrong else 'same':8} {path}")
    print(f"{len(paths) - wrong} of {len(paths)} files are on the target with the same bytes")
    return 1 if wrong else 0


def _upload(args: argparse.Namespace, environment: Environment) -> int:
    if args.to is not None and len(args.files) > 1:
        raise UserError("--to names one file, but several were given", code="hub.several_files")
    names = [args.to if args.to is not None else _name_of(file, environment.output_dir) for file in args.files]
    _send(environment, dict(zip(names, args.files, strict=True)), f"Add {names[0]}")
    return 0


def _name_of(file: Path, output_dir: Path) -> str:
    place, root = file.resolve(), output_dir.resolve()
    return place.relative_to(root).as_posix() if root in place.parents else file.name


def _send(environment: Environment, files: dict[str, Path], message: str) -> None:
    absent = [f"{file} is not a file" for file in files.values() if not file.is_file()]
    if absent:
        raise UserError(absent, code="hub.no_file")
    staged = tuple(stage(safe_path(name), file) for name, file in files.items())
    _request(environment, Order(prepare="make", files=staged, message=message))
    for name in files:
        print(f"{name} is on the target and verified")


def _download(args: argparse.Namespace, environment: Environment) -> int:
    if (args.path is None) == (args.epoch is None):
        raise UserError("name a file of the repo, or a checkpoint by --epoch", code="hub.what")
    if args.epoch is None:
        print(fetch_file(environment, args.path, args.into or environment.output_dir))
        return 0
    phases = [args.phase] if args.phase is not None else list(dict.fromkeys([environment.phase, 1]))
    problems: list[str] = []
    for phase in phases:
        into = args.into or environment.phase_folder(phase) / CHECKPOINTS
        try:
            print(fetch_checkpoint(environment, args.epoch, into, phases=[phase]))
            return 0
        except UserError as error:
            problems += error.problems
    raise UserError(problems)


def _card(args: argparse.Namespace, environment: Environment) -> int:
    place = environment.output_dir / "README.md"
    write_atomic(place, model_card(environment.output_dir, repo=environment.hf_repo).encode())
    print(place)
    if environment.target is not None and not args.no_upload:
        _send(environment, {"README.md": place}, "Describe the model")
    return 0

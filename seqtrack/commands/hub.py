"""`seqtrack hub`: helper commands for the target: create, check, upload a file, download, write the model card."""

import argparse
import logging
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.config.environment import Environment, read_environment
from seqtrack.errors import UserError
from seqtrack.reports.card import model_card
from seqtrack.run_dir import CHECKPOINTS
from seqtrack.uploads.client import TargetClient
from seqtrack.uploads.fetch import fetch_checkpoint, fetch_file
from seqtrack.uploads.scan import scan
from seqtrack.uploads.settings import choose_target, read_settings, require_target
from seqtrack.uploads.target import Remote, Staged, digest_of, git_digest, safe_path, stamp_of

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Dispatch to one tool."""

    return {"create": _create, "check": _check, "upload": _upload, "download": _download, "card": _card}[args.action](
        args, read_environment(os.environ)
    )


def _order(environment: Environment, order: dict[str, Any]) -> dict[str, Any]:
    """Send one order to the target, in a child process; returns its answer.

    Raises:
        UserError: no target is set, or the target refused.
    """

    target = require_target(environment)
    with tempfile.TemporaryDirectory() as folder:
        client = TargetClient(target, read_settings(os.environ), Path(folder))
        return client.request(order, sum(item["size"] for item in order.get("files", [])))


def _create(args: argparse.Namespace, environment: Environment) -> int:
    done = _order(environment, {"operation": "push", "prepare": "make"})
    print(f"{done['place']} exists; {done['name']} may use it")
    return 0


def _check(args: argparse.Namespace, environment: Environment) -> int:
    """Exit code 0 if everything in OUTPUT_DIR is listed with the same bytes, 1 if not."""

    found = [item for unit in scan(environment.output_dir).units for item in unit.files]
    done = _order(environment, {"operation": "look", "prepare": "check", "paths": [item.path for item in found]})
    print(f"account: {done['name']}\nplace: {done['place']}")
    remotes = {item["path"]: Remote(**item) for item in done["remotes"]}
    wrong = 0
    for item in found:
        remote, local = remotes.get(item.path), environment.output_dir / item.path
        if remote is None:
            state = "missing"
        else:
            same = remote.size == item.size and remote.holds(item.size, digest_of(local), git_digest(local, item.size))
            state = "same" if same else "differs"
        wrong += state != "same"
        print(f"{state:8} {item.path}")
    print(f"{len(found) - wrong} of {len(found)} files are on the target with the same bytes")
    return 1 if wrong else 0


def _upload(args: argparse.Namespace, environment: Environment) -> int:
    if args.to is not None and len(args.files) > 1:
        raise UserError("--to names one file, but several were given", code="hub.several_files")
    names = [args.to if args.to is not None else _name_of(file, environment.output_dir) for file in args.files]
    _send(environment, list(zip(args.files, names, strict=True)), f"Add {names[0]}")
    return 0


def _name_of(file: Path, output_dir: Path) -> str:
    place, root = file.resolve(), output_dir.resolve()
    return place.relative_to(root).as_posix() if root in place.parents else file.name


def _send(environment: Environment, files: list[tuple[Path, str]], message: str) -> None:

    missing = [f"{file} is not a file" for file, _ in files if not file.is_file()]
    if missing:
        raise UserError(missing, code="hub.no_file")
    staged: list[dict[str, Any]] = []
    for file, name in files:
        stamp, place = stamp_of(file), str(file.resolve())
        item = Staged(safe_path(name), place, stamp[0], digest_of(file), git_digest(file, stamp[0]), stamp)
        staged.append(asdict(item))
    _order(environment, {"operation": "push", "prepare": "make", "files": staged, "message": message})
    for _, name in files:
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
    if choose_target(environment) is not None and not args.no_upload:
        _send(environment, [(place, "README.md")], "Describe the model")
    return 0

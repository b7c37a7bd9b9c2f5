"""Downloads: a checkpoint from the target, for a machine that has none, used only after every check.

One revision for everything; sizes and digests against what the target lists, the checkpoint file against its manifest,
its header read as safetensors, so that a pickle under that name is refused unopened. Files appear complete, the
manifest last, and never in place of another file.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_checkpoint_file, sync_folder
from seqtrack.checkpoints.side_files import read_manifest
from seqtrack.config.environment import Environment
from seqtrack.config.loader import SCHEDULE, config_from_text, training_differences
from seqtrack.config.schema import Config
from seqtrack.errors import UserError
from seqtrack.run_dir import CHECKPOINTS, LOGS, RUN_FILE, epoch_name, phase_name
from seqtrack.uploads.client import TargetClient
from seqtrack.uploads.identity import MARKER, fetched_name
from seqtrack.uploads.target import Digests, Order, Staged, read_settings, require_target, safe_path, stage

logger = logging.getLogger(__name__)

_MANIFEST_NAME = re.compile(r"phase_(\d+)/checkpoints/SEQTRACK_ep(\d+)\.json")


def checkpoint_paths(phase: int, epoch: int) -> tuple[str, str]:
    """(checkpoint, manifest) of an epoch, as they are named in the repo."""
    checkpoint = PurePosixPath(phase_name(phase), CHECKPOINTS, epoch_name(epoch))
    return str(checkpoint), str(checkpoint.with_suffix(".json"))


def fetch_checkpoint(
    environment: Environment, epoch: int, destination: Path, *, phases: Sequence[int] | None = None
) -> Path:
    """Download the checkpoint after `epoch` and its manifest into `destination`, where no file is replaced.

    Args:
        phases: whose checkpoint, in order of preference; this phase's and then phase 1's by default.

    Raises:
        UserError: no target, no such checkpoint (the epochs that exist are named), or one that is refused.
    """
    wanted = list(dict.fromkeys(phases if phases is not None else (environment.phase, 1)))
    with _client(environment, destination) as (client, folder):
        paths = [(*checkpoint_paths(phase, epoch), f"{phase_name(phase)}/{MARKER}") for phase in wanted]
        revision, remotes = _look(client, [path for one in paths for path in one])
        pair = next((one for one in paths if remotes.keys() >= set(one[:2])), None)
        if pair is None:
            found = [f"phase_{phase}: {', '.join(map(str, _epochs(client, phase))) or 'none'}" for phase in wanted]
            text = f"{client.target.label} has no checkpoint of epoch {epoch}; it has {'; '.join(found)}"
            raise UserError(text, code="fetch.no_such_epoch")
        path, manifest_path, marker = pair
        logger.info("fetching %s (%.1f MB), revision %s", path, remotes[path].size / 1e6, revision)
        try:
            manifest = read_manifest(Path(_fetch(client, manifest_path, remotes, revision, folder).source))
            got = _fetch(client, path, remotes, revision, folder)
            described, expected = (manifest.bytes, manifest.sha256, manifest.epoch), (got.size, got.sha256, epoch)
            if described != expected:
                raise DamagedFileError(f"its manifest has {described}, expected {expected}", "fetch.manifest")
            read_checkpoint_file(Path(got.source))
        except DamagedFileError as error:
            raise UserError(f"{path} is refused: {error}", code=error.code) from error
        if marker in remotes:  # before the run that continues has a record
            fetched = Path(_fetch(client, marker, remotes, revision, folder).source)
            fetched.replace(destination / fetched_name(marker))
        _place(Path(got.source), destination / manifest.file)
        _place(manifest.manifest_path, destination / manifest.manifest_path.name)
        return destination / manifest.file


def fetch_file(environment: Environment, path: str, root: Path, *, revision: str | None = None) -> Path:
    """Download one file, checked against the listing, to the same path below `root`; an existing one is not replaced.

    Raises:
        UserError: no target, no such file, a name that leaves the folder, other bytes than listed.
    """
    goal = root / safe_path(path)
    with _client(environment, goal.parent) as (client, folder):
        revision, remotes = _look(client, [path], revision)
        if path not in remotes:
            raise UserError(f"{client.target.label} has no file {path}", code="upload.no_such_file")
        _place(Path(_fetch(client, path, remotes, revision, folder).source), goal)
    return goal


def fetch_run(environment: Environment, phase: int, root: Path, *, revision: str | None = None) -> Path:
    """Download a phase's records, manifests and logs, of one revision and checked against its listing.

    Returns:
        the folder below `root`; checkpoints are not in it, see `fetch_file`.

    Raises:
        UserError: no target, no such run or revision, other bytes than listed.
    """
    name = phase_name(phase)
    kinds = (r"[a-z]+\.(json|yaml)", rf"{CHECKPOINTS}/SEQTRACK_ep[0-9]+\.json", rf"{LOGS}/[^/]+\.(jsonl|log)")
    wanted = re.compile(f"{name}/({'|'.join(kinds)})")
    with _client(environment, root) as (client, folder):
        reply = client.request(Order(look="all", revision=revision))
        remotes = {path: one for path, one in (reply.remotes or {}).items() if wanted.fullmatch(path)}
        if f"{name}/{RUN_FILE}" not in remotes:
            raise UserError(f"{client.target.label} has no {name}/{RUN_FILE}", code="upload.no_such_file")
        for path in sorted(remotes):
            goal = root / safe_path(path)
            goal.parent.mkdir(parents=True, exist_ok=True)
            _place(Path(_fetch(client, path, remotes, reply.revision, folder).source), goal)
    return root / name


def latest_epoch(environment: Environment, config: Config) -> int | None:
    """The last epoch of this phase whose checkpoint and manifest the target lists; None if there is none yet.

    Raises:
        UserError: no target, it cannot be asked (not the same as having nothing), or it has another experiment's.
    """
    with tempfile.TemporaryDirectory() as name, _client(environment, Path(name)) as (client, folder):
        client.request(Order(prepare="make"))  # a repo that does not exist yet holds nothing
        epochs = _epochs(client, environment.phase)
        if not epochs:
            return None
        path = checkpoint_paths(environment.phase, epochs[-1])[1]
        revision, remotes = _look(client, [path])
        try:
            manifest = read_manifest(Path(_fetch(client, path, remotes, revision, folder).source))
        except DamagedFileError as error:
            raise UserError(f"{path} is refused: {error}", code=error.code) from error
        theirs = config_from_text(json.dumps(manifest.config), path)
        differences = [one for one in training_differences(theirs, config) if not one.key.startswith(SCHEDULE)]
        if keys := "; ".join(f"{one.key}: {one.b!r} here, {one.a!r} there" for one in differences):
            text = f"{client.target.label} has the checkpoints of another experiment ({keys}): nothing was downloaded"
            raise UserError(f"{text}. Choose another HF_REPO or HF_PREFIX", code="run.other_experiment")
        return epochs[-1]


@contextmanager
def _client(environment: Environment, destination: Path) -> Iterator[tuple[TargetClient, Path]]:
    """A client and the folder that it downloads to: next to where files end, so that the last step is a rename; hidden,
    so that nothing takes them for a checkpoint."""
    target = require_target(environment)
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetch-") as name:
        yield TargetClient(target, read_settings(os.environ)), Path(name)


def _look(
    client: TargetClient, paths: Sequence[str], revision: str | None = None
) -> tuple[str | None, dict[str, Digests]]:
    reply = client.request(Order(look=tuple(paths), revision=revision))
    return reply.revision, reply.remotes or {}


def _epochs(client: TargetClient, phase: int) -> list[int]:
    """The epochs of a phase whose checkpoint and manifest are both listed."""
    names = (client.request(Order(look="all")).remotes or {}).keys()
    epochs = [int(found[2]) for found in map(_MANIFEST_NAME.fullmatch, names) if found and int(found[1]) == phase]
    return sorted(epoch for epoch in epochs if set(checkpoint_paths(phase, epoch)) <= names)


def _fetch(
    client: TargetClient, path: str, remotes: Mapping[str, Digests], revision: str | None, folder: Path
) -> Staged:
    """Download one file and check its bytes against the listing; damaged ones that came over Xet are fetched again."""
    order, listed = Order(fetch=safe_path(path), revision=revision, folder=str(folder)), remotes[path]
    while True:
        was_xet, place = client.use_xet(), Path(client.request(order, listed.size).place)
        if (got := stage(path, place)).equals(listed):
            return got
        if not was_xet:
            text = f"{got.size} bytes of sha256 {got.sha256} came; {client.target.label} lists {listed}. Try again; if"
            raise UserError(f"{path}: {text} they come again, the copy there is corrupt", code="fetch.corrupt")
        place.unlink()
        client.leave_xet()


def _place(source: Path, goal: Path) -> None:
    """Rename a download to its place; a file that exists there is kept.

    Raises:
        UserError: it is another one.
    """
    if goal.exists():
        if stage(goal.name, goal).sha256 != stage(goal.name, source).sha256:
            raise UserError(f"{goal} exists and differs from the download; move it away first", code="fetch.exists")
        return
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(goal)
    sync_folder(goal.parent)

"""Downloads: a checkpoint from the target, for a machine that has none, used only after every check.

One revision for everything; sizes and digests against what the target lists, the checkpoint against its manifest, its
header read as safetensors. Files appear complete, the manifest last, and never in place of another file.
"""

import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_checkpoint_file, sync_folder
from seqtrack.checkpoints.side_files import read_manifest
from seqtrack.config.environment import Environment
from seqtrack.config.loader import SCHEDULE, config_from_text, training_differences
from seqtrack.config.schema import Config
from seqtrack.errors import UserError
from seqtrack.run_dir import CHECKPOINTS, LOGS, RUN_FILE, epoch_name, phase_name
from seqtrack.uploads.client import TargetClient
from seqtrack.uploads.identity import FETCHED_MARKER, MARKER
from seqtrack.uploads.target import Digests, Order, Staged, choose_target, read_settings, safe_path, stage

logger = logging.getLogger(__name__)

_MANIFEST_NAME = re.compile(r"phase_(\d+)/checkpoints/SEQTRACK_ep(\d+)\.json")


def checkpoint_paths(phase: int, epoch: int) -> tuple[str, str]:
    """(checkpoint, manifest) of an epoch, as they are named in the repo."""
    checkpoint = PurePosixPath(phase_name(phase), CHECKPOINTS, epoch_name(epoch))
    return str(checkpoint), str(checkpoint.with_suffix(".json"))


@dataclass
class _Reader:
    """What the target holds at one revision, and a hidden folder for downloads on the disk where they are to be."""

    client: TargetClient
    label: str
    folder: str
    revision: str | None = None
    listed: dict[str, Digests] = field(default_factory=dict)

    def look(self, *paths: str, prepare: Literal["make"] | None = None) -> None:
        """List these paths, or all."""
        reply = self.client.request(Order(prepare=prepare, look=paths or "all", revision=self.revision))
        self.revision, self.listed = reply.revision, reply.remotes or {}

    def epochs(self, phase: int) -> list[int]:
        """The epochs of a phase whose checkpoint and manifest are both listed."""
        found = filter(None, map(_MANIFEST_NAME.fullmatch, self.listed))
        epochs = [int(one[2]) for one in found if int(one[1]) == phase]
        return sorted(epoch for epoch in epochs if set(checkpoint_paths(phase, epoch)) <= self.listed.keys())

    def fetch(self, *paths: str) -> list[Staged]:
        """Download listed files and check their bytes; damaged ones that came over Xet are fetched again."""
        good: dict[str, Staged] = {}
        while left := [path for path in paths if path not in good]:
            order = Order(fetch=tuple(map(safe_path, left)), revision=self.revision, folder=self.folder)
            was_xet, num_bytes = self.client.use_xet(), sum(self.listed[path].size for path in left)
            for path, place in self.client.request(order, num_bytes).places.items():
                got, listed = stage(path, Path(place)), self.listed[path]
                if got.equals(listed):
                    good[path] = got
                elif not was_xet:
                    text = f"{got.size} bytes of sha256 {got.sha256} came; {self.label} lists {listed}. Try again; if"
                    raise UserError(f"{path}: {text} they come again, the copy there is corrupt", code="fetch.corrupt")
                else:
                    Path(place).unlink()
            if len(good) < len(paths):
                self.client.leave_xet()
        return [good[path] for path in paths]

    def bring(self, goals: Mapping[str, Path]) -> None:
        """Download listed files to their places, except those that are here already."""
        new = [one for one in goals if not (goals[one].is_file() and stage(one, goals[one]).equals(self.listed[one]))]
        for path, got in zip(new, self.fetch(*new), strict=True):
            goals[path].parent.mkdir(parents=True, exist_ok=True)
            _place(Path(got.source), goals[path])


@contextmanager
def _reader(environment: Environment, destination: Path, revision: str | None = None) -> Iterator[_Reader]:
    client = TargetClient(choose_target(environment), read_settings(os.environ))
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetch-") as folder:
        yield _Reader(client, client.target.label, folder, revision)


def fetch_checkpoint(
    environment: Environment, epoch: int, destination: Path, *, phases: Sequence[int] | None = None
) -> Path:
    """Download the checkpoint after `epoch` and its manifest into `destination`, which replaces no file. `phases`, in
    order of preference, are this one and 1 by default. A UserError if there is none (naming those that exist)."""
    wanted = list(dict.fromkeys(phases if phases is not None else (environment.phase, 1)))
    with _reader(environment, destination) as reader:
        triples = [(*checkpoint_paths(phase, epoch), f"{phase_name(phase)}/{MARKER}") for phase in wanted]
        reader.look(*(path for triple in triples for path in triple))
        triple = next((one for one in triples if reader.listed.keys() >= set(one[:2])), None)
        if triple is None:
            reader.look()
            found = [f"phase_{phase}: {', '.join(map(str, reader.epochs(phase))) or 'none'}" for phase in wanted]
            raise UserError(f"{reader.label} has no epoch {epoch}; it has {'; '.join(found)}", "fetch.no_such_epoch")
        path = triple[0]
        logger.info("fetching %s (%.1f MB), revision %s", path, reader.listed[path].size / 1e6, reader.revision)
        try:
            *markers, note, got = reader.fetch(*(one for one in triple[::-1] if one in reader.listed))
            manifest = read_manifest(Path(note.source))
            described, expected = (manifest.bytes, manifest.sha256, manifest.epoch), (got.size, got.sha256, epoch)
            if described != expected:
                raise DamagedFileError(f"its manifest has {described}, expected {expected}", "fetch.manifest")
            read_checkpoint_file(Path(got.source))
        except DamagedFileError as error:
            raise UserError(f"{path} is refused: {error}", code=error.code) from error
        for marker in markers:  # before the run that continues has a record
            Path(marker.source).replace(destination / FETCHED_MARKER.format(path.split("/")[0]))
        _place(Path(got.source), destination / manifest.file)
        _place(manifest.manifest_path, destination / manifest.manifest_path.name)
        return destination / manifest.file


def fetch_files(environment: Environment, paths: Sequence[str], root: Path, revision: str | None = None) -> list[Path]:
    """Download files, checked, to the same paths below `root`; a UserError if one is absent, unsafe or here already."""
    goals = {path: root / safe_path(path) for path in paths}
    with _reader(environment, goals[paths[0]].parent, revision) as reader:
        reader.look(*paths)
        if absent := [f"{reader.label} has no file {path}" for path in paths if path not in reader.listed]:
            raise UserError(absent, code="upload.no_such_file")
        reader.bring(goals)
    return list(goals.values())


def fetch_run(environment: Environment, phase: int, root: Path, *, revision: str | None = None) -> Path:
    """Download a phase's records, manifests and logs, but no checkpoints, of one revision, and return its folder below
    `root`, where those of another revision are removed. A UserError if there is no such run or revision."""
    name = phase_name(phase)
    own = rf"(run|environment|dataset)\.json|config\.yaml|{CHECKPOINTS}/SEQTRACK_ep\d+\.json|{LOGS}/[^/]+\.(jsonl|log)"
    wanted = re.compile(f"{name}/({own})")
    fetched = re.compile(rf"phase_\d/({own}|{CHECKPOINTS}/[^/]+\.safetensors)")
    with _reader(environment, root, revision) as reader:
        reader.look()
        if f"{name}/{RUN_FILE}" not in reader.listed:
            raise UserError(f"{reader.label} has no {name}/{RUN_FILE}", code="upload.no_such_file")
        here = {path.relative_to(root).as_posix(): path for path in root.rglob("*.*") if path.is_file()}
        if not all(one.sha256 or one.git_sha1 for one in reader.listed.values()):  # a folder's, of files not named
            reader.look(*(path for path in reader.listed if wanted.fullmatch(path) or path in here))
        for one, path in here.items():
            if fetched.fullmatch(one) and not stage(one, path).equals(reader.listed.get(one)):
                path.unlink()
        reader.bring({path: root / safe_path(path) for path in sorted(filter(wanted.fullmatch, reader.listed))})
    return root / name


def latest_epoch(environment: Environment, config: Config) -> int | None:
    """The last epoch of this phase on the target, None without one; a UserError if that is unknown or another run's."""
    with tempfile.TemporaryDirectory() as name, _reader(environment, Path(name)) as reader:
        reader.look(prepare="make")  # a repo that does not exist yet holds nothing
        if not (epochs := reader.epochs(environment.phase)):
            return None
        path = checkpoint_paths(environment.phase, epochs[-1])[1]
        reader.look(path)
        try:
            manifest = read_manifest(Path(reader.fetch(path)[0].source))
        except DamagedFileError as error:
            raise UserError(f"{path} is refused: {error}", code=error.code) from error
        theirs = config_from_text(json.dumps(manifest.config), path)
        differences = [one for one in training_differences(theirs, config) if not one.key.startswith(SCHEDULE)]
        if keys := "; ".join(f"{one.key}: {one.b!r} here, {one.a!r} there" for one in differences):
            text = f"{reader.label} has the checkpoints of another experiment ({keys}): nothing was downloaded. Choose"
            raise UserError(f"{text} another HF_REPO or HF_PREFIX", code="run.other_experiment")
        return epochs[-1]


def _place(source: Path, goal: Path) -> None:
    """Rename a download to its place; a file that exists there is kept, and a UserError if it is another one."""
    if goal.exists():
        if stage(goal.name, goal).sha256 != stage(goal.name, source).sha256:
            raise UserError(f"{goal} exists and differs from the download; move it away first", code="fetch.exists")
        return
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(goal)
    sync_folder(goal.parent)

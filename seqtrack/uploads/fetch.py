"""Downloads: a checkpoint from the target, for a machine that has none, used only after every check.

One revision for everything; sizes and digests against what the target lists, the checkpoint file against its manifest,
its header read as safetensors, so that a pickle under that name is refused unopened. Files appear complete, the
manifest last, and never in place of another file.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from seqtrack.checkpoints.manifest import manifest_from
from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_checkpoint_file, read_json_object, sync_folder
from seqtrack.config.environment import Environment
from seqtrack.errors import UserError
from seqtrack.run_dir import CHECKPOINTS, epoch_name, phase_name
from seqtrack.uploads.client import TargetClient
from seqtrack.uploads.settings import read_settings, require_target
from seqtrack.uploads.target import Remote, digest_of, git_digest, safe_path

logger = logging.getLogger(__name__)

_MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_MANIFEST_NAME = re.compile(r"phase_(\d+)/checkpoints/SEQTRACK_ep(\d+)\.json")


class RemoteReader:
    """Reads from the environment's target, within deadlines.

    Args:
        folder: for downloads in progress; exists.

    Raises:
        UserError: there is no target.
    """

    def __init__(self, environment: Environment, folder: Path) -> None:
        target = require_target(environment)
        self.label, self._folder = target.label, folder
        self._client = TargetClient(target, read_settings(os.environ), folder)

    def look(self, paths: Sequence[str]) -> tuple[str | None, dict[str, Remote]]:
        """(revision, what is listed under these paths at it)."""
        done = self._client.request({"operation": "look", "paths": list(paths)})
        return done["revision"], {item["path"]: Remote(**item) for item in done["remotes"]}

    def epochs(self, phases: Sequence[int], *, make: bool = False) -> dict[int, list[int]]:
        """The epochs of each phase whose checkpoint and manifest are both listed.

        Args:
            make: create the repo if it does not exist: "nothing yet" is then no error.
        """
        done = self._client.request({"operation": "list", **({"prepare": "make"} if make else {})})
        names = {item["path"] for item in done["remotes"]}
        found = [(int(hit[1]), int(hit[2])) for hit in map(_MANIFEST_NAME.fullmatch, names) if hit]
        return {
            phase: sorted(epoch for of, epoch in found if of == phase and set(checkpoint_paths(of, epoch)) <= names)
            for phase in phases
        }

    def fetch(self, remote: Remote, revision: str | None) -> Path:
        """Download one file and check its bytes against the listing.

        Raises:
            UserError: it could not be had, or other bytes came than were listed.
        """
        safe_path(remote.path)
        order = {"operation": "fetch", "path": remote.path, "revision": revision, "folder": str(self._folder)}
        place = Path(self._client.request(order, remote.size)["place"])
        size, sha256 = place.stat().st_size, digest_of(place)
        if not remote.holds(size, sha256, git_digest(place, size)):
            raise UserError(
                f"{remote.path} came with {size} bytes of sha256 {sha256}; {self.label} lists {remote.size} bytes of "
                f"{remote.sha256 or remote.git_sha1}. Refused; try again, and if it comes again, the copy there is "
                "corrupt",
                code="fetch.corrupt",
            )
        return place


def checkpoint_paths(phase: int, epoch: int) -> tuple[str, str]:
    """(checkpoint, manifest) of an epoch, as they are named in the repo."""
    checkpoint = PurePosixPath(phase_name(phase), CHECKPOINTS, epoch_name(epoch))
    return str(checkpoint), str(checkpoint.with_suffix(".json"))


@contextmanager
def _reader(environment: Environment, destination: Path) -> Iterator[RemoteReader]:
    """Downloads go next to where they end, so that the last step is a rename; hidden, so that nothing takes them for a
    checkpoint."""
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetch-") as name:
        yield RemoteReader(environment, Path(name))


def fetch_checkpoint(
    environment: Environment, epoch: int, destination: Path, *, phases: Sequence[int] | None = None
) -> Path:
    """Download the checkpoint after `epoch` and its manifest into `destination`.

    Args:
        destination: folder for both files; made if need be. Files of the same name there are kept if they are the
            same, and never replaced.
        phases: whose checkpoint, in order of preference; this phase's and then phase 1's by default.

    Returns:
        the checkpoint file's path.

    Raises:
        UserError: no target, no such checkpoint (the epochs that exist are named), or one that is refused.
    """
    wanted = list(dict.fromkeys(phases if phases is not None else (environment.phase, 1)))
    require_target(environment)
    with _reader(environment, destination) as reader:
        revision, remotes = reader.look([path for phase in wanted for path in checkpoint_paths(phase, epoch)])
        pair = next((p for p in (checkpoint_paths(n, epoch) for n in wanted) if set(p) <= set(remotes)), None)
        if pair is None:
            found = [f"phase_{phase}: {', '.join(map(str, e))}" for phase, e in reader.epochs(wanted).items() if e]
            raise UserError(
                f"{reader.label} has no checkpoint of epoch {epoch}; it has {'; '.join(found) or 'none at all'}",
                code="fetch.no_such_epoch",
            )
        checkpoint, manifest = (remotes[path] for path in pair)
        logger.info(
            "fetching %s (%.1f MB) from %s at %s", checkpoint.path, checkpoint.size / 1e6, reader.label, revision
        )
        got_manifest, values = _fetch_manifest(reader, manifest, revision, epoch)
        # Before a gigabyte is moved: the listing and the manifest must describe the same file.
        listed, expected = (checkpoint.size, checkpoint.sha256), (values.get("bytes"), values.get("sha256"))
        if listed[0] != expected[0] or listed[1] not in (None, expected[1]):
            raise UserError(
                f"{checkpoint.path} is listed with {listed[0]} bytes of sha256 {listed[1]}, but its manifest has "
                f"{expected[0]} bytes of {expected[1]!r:.80}; refused",
                code="fetch.manifest",
            )
        got = reader.fetch(checkpoint, revision)
        try:
            if digest_of(got) != expected[1]:
                raise DamagedFileError("its sha256 is not that of its manifest", "fetch.corrupt")
            read_checkpoint_file(got)
        except DamagedFileError as error:
            raise UserError(f"{checkpoint.path} is refused: {error}", code=error.code) from error
        goal = destination / got.name
        _place(got, goal)
        _place(got_manifest, goal.with_suffix(".json"))
        return goal


def latest_epoch(environment: Environment) -> int | None:
    """The last epoch of this phase whose checkpoint and manifest the target lists; None if there is none yet.

    Raises:
        UserError: no target, or it cannot be asked. That is not the same as having nothing.
    """
    with tempfile.TemporaryDirectory() as name:
        epochs = RemoteReader(environment, Path(name)).epochs([environment.phase], make=True)
    return max(epochs[environment.phase], default=None)


def fetch_file(environment: Environment, path: str, root: Path) -> Path:
    """Download one file, checked against the listing, to the same path below `root`; an existing one is not replaced.

    Raises:
        UserError: no target, no such file, a name that leaves the folder, other bytes than listed.
    """
    require_target(environment)
    goal = root / safe_path(path)
    with _reader(environment, goal.parent) as reader:
        revision, remotes = reader.look([path])
        if path not in remotes:
            raise UserError(f"{reader.label} has no file {path}", code="upload.no_such_file")
        _place(reader.fetch(remotes[path], revision), goal)
    return goal


def _fetch_manifest(
    reader: RemoteReader, manifest: Remote, revision: str | None, epoch: int
) -> tuple[Path, dict[str, Any]]:
    """The manifest's place and its values, checked."""
    if manifest.size > _MAX_MANIFEST_BYTES:
        raise UserError(f"{manifest.path} has {manifest.size} bytes; too large for a manifest", code="fetch.manifest")
    place = reader.fetch(manifest, revision)
    name = PurePosixPath(manifest.path).with_suffix(".safetensors").name
    try:
        values = read_json_object(place)
        for key, expected in (("file", name), ("epoch", epoch)):
            if values.get(key, name if key == "file" else None) != expected:
                raise DamagedFileError(f"its {key} is {values.get(key)!r:.100}, expected {expected}", "fetch.manifest")
        manifest_from(values, Path(name).with_suffix(".json"))
    except DamagedFileError as error:
        raise UserError(f"{manifest.path} is refused: {error}", code=error.code) from error
    return place, values


def _place(source: Path, goal: Path) -> None:
    """Rename a download to its place; a file that exists there is kept.

    Raises:
        UserError: it is another one.
    """
    if goal.exists():
        if digest_of(goal) != digest_of(source):
            raise UserError(f"{goal} exists and differs from the download; move it away first", code="fetch.exists")
        return
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(goal)
    sync_folder(goal.parent)

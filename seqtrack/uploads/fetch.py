"""The way back: a checkpoint from the target, for a machine that has none, believed only after every check.

One revision for everything; sizes and digests against what the target lists, the container against its manifest, the
container's head read as safetensors, so that a pickle under that name is refused unopened. Files appear whole, the
manifest last, and never in place of another file.
"""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from seqtrack.checkpoints.resume_point import CHECKPOINTS
from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_header, read_json_object, sync_folder
from seqtrack.checkpoints.store import epoch_name, manifest_from, read_values
from seqtrack.config.environment import Environment
from seqtrack.errors import UserError
from seqtrack.uploads.orders import TargetClient
from seqtrack.uploads.settings import TargetSettings, UploadSettings, choose_target, read_settings
from seqtrack.uploads.target import Remote, digest_of, git_digest, safe_path

logger = logging.getLogger(__name__)

_LARGEST_MANIFEST = 16 * 1024 * 1024


class RemoteReader:
    """Reads from a target through a child process, within deadlines.

    Args:
        folder: for the child's own files; exists.
    """

    def __init__(self, target: TargetSettings, settings: UploadSettings, folder: Path) -> None:
        self._orders = TargetClient(target, settings, folder)

    def prepare(self) -> None:
        """Make the place if it is new, so that listing it can tell "nothing yet" from "no such place"."""
        self._orders.request({"operation": "prepare"})

    def look(self, paths: Sequence[str]) -> tuple[str | None, dict[str, Remote]]:
        """(revision, what is listed under these paths at it)."""
        done = self._orders.request({"operation": "look", "paths": list(paths)})
        return done["revision"], {item["path"]: Remote(**item) for item in done["remotes"]}

    def list(self) -> tuple[str | None, list[Remote]]:
        """(revision, everything listed at it)."""
        done = self._orders.request({"operation": "list"})
        return done["revision"], [Remote(**item) for item in done["remotes"]]

    def fetch(self, remote: Remote, revision: str | None, folder: Path) -> Path:
        """Bring one file into `folder` and check its bytes against the listing.

        Raises:
            UserError: it could not be had, or other bytes came than were listed.
        """
        safe_path(remote.path)
        order = {"operation": "fetch", "path": remote.path, "revision": revision, "folder": str(folder)}
        place = Path(self._orders.request(order, remote.size)["place"])
        size = place.stat().st_size
        sha256 = digest_of(place)
        same = sha256 == remote.sha256 if remote.sha256 else git_digest(place, size) == remote.git_sha1
        if size != remote.size or not same:
            raise UserError(
                f"{remote.path} came with {size} bytes of sha256 {sha256}; {self._orders.target.shown} lists "
                f"{remote.size} bytes of {remote.sha256 or remote.git_sha1}. It is refused; try again, and if it comes "
                "again, the copy there is damaged"
            )
        return place


def checkpoint_paths(phase: int, epoch: int) -> tuple[str, str]:
    """(container, manifest) of an epoch, as they are named in the repo."""
    container = PurePosixPath(f"phase_{phase}", CHECKPOINTS, epoch_name(epoch))
    return str(container), str(container.with_suffix(".json"))


def fetch_checkpoint(
    environment: Environment, epoch: int, destination: Path, *, phases: Sequence[int] | None = None
) -> Path:
    """Bring the checkpoint after `epoch` and its manifest from the target into `destination`.

    Args:
        destination: folder for both files; made if need be. Files of the same name there are kept if they are the
            same, and never replaced.
        phases: whose checkpoint, in order of preference; this phase's and then phase 1's by default.

    Returns:
        the container's path.

    Raises:
        UserError: no target, no such checkpoint (the epochs that exist are named), or one that is refused.
    """
    target = choose_target(environment)
    if target is None:
        raise UserError(f"epoch {epoch} is not here, and HF_REPO is not set to fetch it from")
    wanted = list(dict.fromkeys(phases if phases is not None else (environment.phase, 1)))
    settings = read_settings(os.environ)
    destination.mkdir(parents=True, exist_ok=True)
    # Next to the goal, so that the last step is a rename; hidden, so that nothing takes it for a checkpoint.
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetch-") as name:
        folder = Path(name)
        puller = RemoteReader(target, settings, folder)
        revision, remotes = puller.look([path for phase in wanted for path in checkpoint_paths(phase, epoch)])
        pair = next((p for p in (checkpoint_paths(n, epoch) for n in wanted) if set(p) <= set(remotes)), None)
        if pair is None:
            raise UserError(_which_exist(puller, target, epoch, wanted))
        container, manifest = (remotes[path] for path in pair)
        logger.info("fetching %s (%.1f MB) from %s at %s", container.path, container.size / 1e6, target.shown, revision)
        promised = _read_manifest(puller, manifest, revision, folder, epoch)
        _require_listed(container, promised)
        got = puller.fetch(container, revision, folder)
        _require_container(got, container, promised)
        return _place(got, folder / "manifest.json", destination, container)


def latest_epoch(environment: Environment) -> int | None:
    """The last epoch of this phase whose checkpoint and manifest the target lists; None if there is none yet.

    Raises:
        UserError: no target, or it cannot be asked. That is not the same as having nothing.
    """
    target = choose_target(environment)
    if target is None:
        raise UserError("RESUME_EPOCH=latest asks the Hub, and HF_REPO is not set")
    with tempfile.TemporaryDirectory() as name:
        puller = RemoteReader(target, read_settings(os.environ), Path(name))
        puller.prepare()
        names = {remote.path for remote in puller.list()[1]}
    start = f"phase_{environment.phase}/checkpoints/SEQTRACK_ep"
    found = {path[len(start) :].removesuffix(".json") for path in names if path.startswith(start)}
    epochs = {int(text) for text in found if text.isdigit()}
    whole = [epoch for epoch in epochs if set(checkpoint_paths(environment.phase, epoch)) <= names]
    return max(whole, default=None)


def fetch_file(environment: Environment, path: str, root: Path) -> Path:
    """Bring one file, checked against the listing, to the same path below `root`; an existing one is not replaced.

    Raises:
        UserError: no target, no such file, a name that leaves the folder, other bytes than listed.
    """
    target = choose_target(environment)
    if target is None:
        raise UserError("HF_REPO is not set; set it to owner/name (or UPLOAD_TARGET to folder:/place)")
    goal = root / safe_path(path)
    goal.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=goal.parent, prefix=".fetch-") as name:
        puller = RemoteReader(target, read_settings(os.environ), Path(name))
        revision, remotes = puller.look([path])
        if path not in remotes:
            raise UserError(f"{target.shown} has no file {path}")
        got = puller.fetch(remotes[path], revision, Path(name))
        _put(got, goal)
    return goal


def _read_manifest(
    puller: RemoteReader, manifest: Remote, revision: str | None, folder: Path, epoch: int
) -> dict[str, Any]:
    """The manifest, fetched, checked and kept as `folder/manifest.json`."""
    if manifest.size > _LARGEST_MANIFEST:
        raise UserError(f"{manifest.path} has {manifest.size} bytes; no manifest is that large")
    place = puller.fetch(manifest, revision, folder)
    try:
        values = read_json_object(place)
    except DamagedFileError as error:
        raise UserError(f"{manifest.path} is no manifest: {error}") from error
    name = manifest.path.rsplit("/", 1)[-1].removesuffix(".json") + ".safetensors"
    if values.get("file", name) != name:
        raise UserError(f"{manifest.path} speaks of {values['file']!r:.100}, expected {name}; refused")
    if values.get("epoch") != epoch:
        raise UserError(f"{manifest.path} says epoch {values.get('epoch')!r:.20}, expected {epoch}; refused")
    try:
        manifest_from(values, Path(name).with_suffix(".json"))
    except DamagedFileError as error:
        raise UserError(f"{manifest.path} is refused: {error}", code=error.code) from error
    place.replace(folder / "manifest.json")
    return values


def _require_listed(container: Remote, promised: dict[str, Any]) -> None:
    """Before a gigabyte is moved: the listing and the manifest must speak of the same file."""
    listed = (container.size, container.sha256 or promised.get("sha256"))
    if listed != (promised.get("bytes"), promised.get("sha256")):
        raise UserError(
            f"{container.path} is listed with {container.size} bytes of sha256 {container.sha256}, but its manifest "
            f"says {promised.get('bytes')} bytes of {promised.get('sha256')!r:.80}; refused"
        )


def _require_container(place: Path, container: Remote, promised: dict[str, Any]) -> None:
    """The bytes that came are the manifest's, and they are a safetensors container."""
    sha256 = digest_of(place)
    if sha256 != promised.get("sha256"):
        raise UserError(f"{container.path} came with sha256 {sha256}, not its manifest's; refused")
    try:
        read_values(place, read_header(place))
    except DamagedFileError as error:
        raise UserError(f"{container.path} is refused: {error}", code=error.code) from error


def _place(got: Path, manifest: Path, destination: Path, container: Remote) -> Path:
    """Rename both into place, the manifest last; a file that is already there is kept."""
    goal = destination / container.path.rsplit("/", 1)[-1]
    for source, place in ((got, goal), (manifest, goal.with_suffix(".json"))):
        _put(source, place)
    return goal


def _put(source: Path, place: Path) -> None:
    if place.exists():
        if digest_of(place) != digest_of(source):
            raise UserError(f"{place} exists and differs from the one fetched; move it away first")
        return
    with source.open("rb") as file:
        os.fsync(file.fileno())
    source.replace(place)
    sync_folder(place.parent)


def _which_exist(puller: RemoteReader, target: TargetSettings, epoch: int, phases: Sequence[int]) -> str:
    _, remotes = puller.list()
    names = {remote.path for remote in remotes}
    found = [
        f"phase_{phase}: {', '.join(epochs)}"
        for phase in phases
        if (
            epochs := sorted(
                name.rsplit("_ep", 1)[1].removesuffix(".json").lstrip("0") or "0"
                for name in names
                if name.startswith(f"phase_{phase}/checkpoints/SEQTRACK_ep") and name.endswith(".json")
            )
        )
    ]
    there = "; ".join(found) if found else "none at all"
    return f"{target.shown} has no checkpoint of epoch {epoch}; there are {there}"

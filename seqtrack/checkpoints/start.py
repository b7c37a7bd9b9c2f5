"""Where a run starts: from scratch, from the newest checkpoint of its own folder, or from an epoch of another.

Decides by what the folders hold, changes nothing in them, and needs no torch. What a restart from an earlier epoch
supersedes is named here and moved aside by `prepare_folder`; nothing is overwritten or deleted.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.files import DamagedFileError, read_json_object, sync_folder, write_json
from seqtrack.checkpoints.store import Manifest, list_checkpoints, newest_sound, verify_checkpoint
from seqtrack.errors import UserError

logger = logging.getLogger(__name__)

RUN_FORMAT = "seqtrack-run/1"
RUN_FILE = "run.json"
CHECKPOINTS = "checkpoints"
SUPERSEDED = "superseded"
RESUMABLE = ("epoch", "step")


@dataclass(frozen=True)
class Start:
    """The decision.

    `manifest` is None for a run from scratch; `finished` says that there is nothing left to train; `superseded` are
    later checkpoints of this folder that a restart from an earlier epoch sets aside.
    """

    manifest: Manifest | None
    finished: bool = False
    superseded: list[Manifest] = field(default_factory=list)

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0


def read_run(folder: Path) -> dict[str, Any] | None:
    """The record of the run in `folder`, or None when there is none.

    Raises:
        UserError: there is one and it cannot be read.
    """
    try:
        record = read_json_object(folder / RUN_FILE)
    except FileNotFoundError:
        return None
    except DamagedFileError as error:
        raise UserError(f"{error}; move {folder} aside, or mend the file from a copy") from error
    if record.get("format") != RUN_FORMAT:
        raise UserError(f"{folder / RUN_FILE} has format {record.get('format')!r}, expected {RUN_FORMAT!r}")
    return record


def write_run(folder: Path, record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Store `record` with `changes`, whole; returns it."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    record = {**record, **changes, "format": RUN_FORMAT, "updated": now}
    record.setdefault("started", now)
    write_json(folder / RUN_FILE, record)
    return record


def find_start(
    folder: Path,
    *,
    resume_epoch: int | None,
    elsewhere: Sequence[Path] = (),
    fetch: Callable[[int], Manifest | None] | None = None,
) -> Start:
    """Decide where the run in `folder` starts.

    Args:
        folder: this phase's folder; need not exist.
        resume_epoch: the epoch after which to go on, or None for a run from scratch.
        elsewhere: other phases' folders to look in for that epoch.
        fetch: brings an epoch's checkpoint from a remote store, or returns None; asked last.

    Raises:
        UserError: the epoch is nowhere to be found (the message lists those that are), or the folder holds
            checkpoints that no run of it explains.
    """
    run = read_run(folder)
    own = list_checkpoints(folder / CHECKPOINTS, kinds=RESUMABLE)
    if run is not None and resume_epoch in (None, run.get("resume_epoch")):
        if run.get("state") == "complete":
            return Start(newest_sound(own), finished=True)
        newest = newest_sound(own)
        if newest is not None:
            return Start(newest)
        resume_epoch = run.get("resume_epoch")  # cut before its first save: begin as it began
    if run is None and own and resume_epoch is None:
        raise UserError(
            f"{folder / CHECKPOINTS} holds {len(own)} checkpoints but {folder / RUN_FILE} is missing: set RESUME_EPOCH "
            f"to one of {_epochs(own)} to go on from it, or move {folder} aside"
        )
    if resume_epoch is None:
        return Start(None)
    manifest = _find_epoch(resume_epoch, folder, elsewhere, fetch)
    return Start(manifest, superseded=[item for item in own if item.step > manifest.step])


def _find_epoch(
    epoch: int, folder: Path, elsewhere: Sequence[Path], fetch: Callable[[int], Manifest | None] | None
) -> Manifest:
    seen: list[str] = []
    problems: list[str] = []
    for place in (folder, *elsewhere):
        manifests = list_checkpoints(place / CHECKPOINTS, kinds=("epoch",))
        seen.append(f"{place / CHECKPOINTS} holds {_epochs(manifests)}")
        for manifest in manifests:
            if manifest.epoch == epoch:
                try:
                    verify_checkpoint(manifest)
                except DamagedFileError as error:
                    logger.warning("passed over a damaged checkpoint: %s", error)
                    problems.append(f"damaged: {error}")
                    continue
                return manifest
    fetched = fetch(epoch) if fetch is not None else None
    if fetched is not None:
        return fetched
    hint = "" if fetch is not None else "; set HF_REPO to look on the Hugging Face Hub as well"
    raise UserError([f"there is no checkpoint after epoch {epoch} to resume from: {'; '.join(seen)}{hint}", *problems])


def _epochs(manifests: Sequence[Manifest]) -> str:
    epochs = sorted({manifest.epoch for manifest in manifests if manifest.kind == "epoch"})
    return f"epochs {', '.join(map(str, epochs))}" if epochs else "no epochs"


def prepare_folder(folder: Path, start: Start) -> None:
    """Make the run's folders, sweep away what a kill left half-written, and move aside what is superseded."""
    checkpoints = folder / CHECKPOINTS
    for place in (checkpoints, folder / "logs", folder / "plots"):
        place.mkdir(parents=True, exist_ok=True)
    for leftover in [*folder.glob(".*.tmp"), *checkpoints.glob(".*.tmp")]:
        leftover.unlink(missing_ok=True)
    if not start.superseded:
        return
    aside = checkpoints / SUPERSEDED / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside.mkdir(parents=True, exist_ok=True)
    for manifest in start.superseded:
        logger.info("moved aside, superseded by the restart: %s -> %s", manifest.path, aside)
        # The manifest leaves first: a container without one is no checkpoint, wherever a kill falls.
        manifest.manifest_path.rename(aside / manifest.manifest_path.name)
        manifest.path.rename(aside / manifest.path.name)
    metrics = folder / "logs" / "metrics.jsonl"
    if metrics.exists():
        (aside / metrics.name).write_bytes(metrics.read_bytes())
    sync_folder(aside)
    sync_folder(checkpoints)

"""Where a run starts: from scratch, from the latest checkpoint of its own folder, or from an epoch of another.

Decides by what the folders hold, changes nothing while deciding, and needs no torch. `prepare_folder` then moves later
epochs and steps aside; no checkpoint is overwritten or deleted.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seqtrack.checkpoints.manifest import Manifest, read_manifest
from seqtrack.checkpoints.safetensors_io import DamagedFileError, sync_folder, utc_now, write_atomic
from seqtrack.checkpoints.side_files import RunRecord, read_side_file, write_side_file
from seqtrack.checkpoints.store import latest_valid, list_checkpoints, verify_checkpoint
from seqtrack.errors import Problem, UserError
from seqtrack.run_dir import (
    CHECKPOINTS,
    LOCK_FILE,
    LOGS,
    PLOTS,
    RUN_FILE,
    SUPERSEDED,
    manifest_path,
    metrics_path,
    parse_checkpoint_name,
)

logger = logging.getLogger(__name__)

RESUMABLE = ("epoch", "step")


@dataclass(frozen=True)
class ResumePoint:
    """The decision.

    `manifest` is None for a run from scratch; with `finished` there is nothing left to train; `config_changes` are the
    keys that differ from the checkpoint's configuration and change no step already taken.
    """

    manifest: Manifest | None
    finished: bool = False
    config_changes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0

    @property
    def parent_sha256(self) -> str | None:
        """The digest of the epoch's checkpoint that the next one continues from."""
        if self.manifest is None:
            return None
        return self.manifest.sha256 if self.manifest.kind == "epoch" else self.manifest.parent_sha256


def read_run(folder: Path) -> RunRecord | None:
    """The record of the run in `folder`, or None when there is none.

    Raises:
        UserError: it is not valid. How the run began is recorded nowhere else, so continuing would be a guess.
    """
    return read_side_file(folder / RUN_FILE, RunRecord)


def write_run(folder: Path, record: RunRecord, state: Literal["running", "stopped", "complete"]) -> None:
    """Store `record` with this state."""
    write_side_file(folder / RUN_FILE, record.model_copy(update={"state": state, "updated": utc_now()}))


def find_resume_point(
    folder: Path,
    *,
    resume_epoch: int | None,
    epochs: int,
    elsewhere: Sequence[Path] = (),
    fetch: Callable[[int], Manifest | None] | None = None,
) -> ResumePoint:
    """Decide where the run in `folder` starts.

    Args:
        folder: this phase's folder; need not exist.
        resume_epoch: the epoch after which to continue, or None for a run from scratch.
        epochs: the last epoch of the run as it is requested now; a complete run of fewer epochs continues.
        elsewhere: other phases' folders to search for that epoch.
        fetch: downloads an epoch's checkpoint from a remote store, or returns None; tried last.

    Raises:
        UserError: the epoch cannot be found (the message lists those that exist), or the folder holds checkpoints but
            no record of their run.
    """
    run = read_run(folder)
    own = list_checkpoints(folder / CHECKPOINTS, kinds=RESUMABLE)
    if run is not None and resume_epoch in (None, run.resume_epoch):
        latest = latest_valid(own)
        # A run whose end was damaged since trains it again.
        is_end = latest is not None and latest.kind == "epoch" and latest.epoch >= epochs
        if run.state == "complete" and (is_end if own else run.epochs >= epochs):
            return ResumePoint(latest, finished=True)
        if latest is not None:
            return ResumePoint(latest)
        if run.state == "complete" and not own:
            raise UserError(
                f"{folder} is complete after epoch {run.epochs} and holds no checkpoint to continue from, to "
                f"epoch {epochs}: put its last checkpoint and its .json back",
                code="start.nothing_to_extend",
            )
        resume_epoch = run.resume_epoch  # killed before its first save: begin as it began
    if run is None and own and resume_epoch is None:
        raise UserError(
            f"{folder / CHECKPOINTS} holds {len(own)} checkpoints but {folder / RUN_FILE} is missing: set RESUME_EPOCH "
            f"to one of {_epochs(own)} to continue from it, or move {folder} aside",
            code="start.no_record",
        )
    if resume_epoch is None:
        return ResumePoint(None)
    return ResumePoint(_find_epoch(resume_epoch, [folder, *elsewhere], fetch))


def _find_epoch(epoch: int, places: Sequence[Path], fetch: Callable[[int], Manifest | None] | None) -> Manifest:
    found = {place: list_checkpoints(place / CHECKPOINTS, kinds=("epoch",)) for place in places}
    problems = [problem for place in places for problem in unusable_checkpoints(place / CHECKPOINTS).values()]
    every = [manifest for manifests in found.values() for manifest in manifests]
    for manifest in every:
        if manifest.epoch == epoch:
            try:
                verify_checkpoint(manifest)
            except DamagedFileError as error:
                logger.warning("skipping corrupt checkpoint: %s", error)
                problems.append(Problem(f"damaged: {error}", error.code))
                continue
            return manifest
    if fetch is not None and (fetched := fetch(epoch)) is not None:
        return fetched
    hint = "" if fetch is not None else "; set HF_REPO to search the Hugging Face Hub as well"
    others = [manifest for manifest in every if manifest.epoch != epoch]
    if problems and (latest := latest_valid(others)):
        hint = f"; the latest valid one is of epoch {latest.epoch}: RESUME_EPOCH={latest.epoch}{hint}"
    seen = "; ".join(f"{place / CHECKPOINTS} holds {_epochs(manifests)}" for place, manifests in found.items())
    first = f"there is no checkpoint after epoch {epoch} to resume from: {seen}{hint}"
    raise UserError([Problem(first, "resume.no_checkpoint"), *problems])


def unusable_checkpoints(folder: Path) -> dict[Path, Problem]:
    """Files in `folder` with the name of an epoch's checkpoint that cannot be resumed from, with the reason."""
    found: dict[Path, Problem] = {}
    for path in sorted(folder.glob("SEQTRACK_ep*.safetensors")):
        try:
            if read_manifest(manifest_path(path)).kind == "imported":
                reason = (
                    "holds imported weights without optimizer state: a run cannot be resumed from it; evaluate and "
                    "track take it by its file name"
                )
                found[path] = Problem(f"{path} {reason}", "resume.imported")
        except FileNotFoundError:
            found[path] = Problem(f"{path} has no manifest next to it", "checkpoint.missing")
        except DamagedFileError as error:
            found[path] = Problem(f"damaged: {error}", error.code)
    return found


def _epochs(manifests: Sequence[Manifest]) -> str:
    epochs = sorted({manifest.epoch for manifest in manifests if manifest.kind == "epoch"})
    return f"epochs {', '.join(map(str, epochs))}" if epochs else "no epochs"


@contextlib.contextmanager
def lock_run_dir(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` until the block ends; the kernel releases the lock when this process dies.

    Raises:
        UserError: another process trains in it, or it cannot be written.
    """
    with _needs_writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process trains in {folder}; wait for it, or set another OUTPUT_DIR",
                code="start.folder_in_use",
            ) from error
        except OSError as error:  # some network file systems have no locks
            logger.warning("%s cannot be locked (%s): make sure that no second run uses it", folder, error.strerror)
        yield
    finally:
        os.close(handle)


def prepare_folder(folder: Path, start: ResumePoint) -> None:
    """Make the run's folders, remove what a kill left half-written, and move aside what comes after the start.

    Raises:
        UserError: the folder cannot be written.
    """
    checkpoints = folder / CHECKPOINTS
    with _needs_writing(folder):
        for place in (checkpoints, folder / LOGS, folder / PLOTS):
            place.mkdir(parents=True, exist_ok=True)
        for place in (folder, checkpoints, folder / LOGS, folder / PLOTS):
            for leftover in place.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)
        _move_aside(checkpoints, start, metrics=metrics_path(folder))


def _move_aside(checkpoints: Path, start: ResumePoint, *, metrics: Path) -> None:
    """Every file with the name of a checkpoint after the start, valid or damaged: the run would overwrite it."""
    later = sorted(path for path in checkpoints.iterdir() if _comes_after(path.name, start))
    if not later:
        return
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    aside = checkpoints / SUPERSEDED / f"{stamp}-{secrets.token_hex(2)}"
    aside.mkdir(parents=True)
    for path in later:
        logger.warning("moved aside, superseded by this start: %s -> %s", path, aside)
        path.rename(aside / path.name)
    if metrics.exists():
        write_atomic(aside / metrics.name, metrics.read_bytes())
    sync_folder(aside)
    sync_folder(checkpoints)


def _comes_after(name: str, start: ResumePoint) -> bool:
    """Whether the run that begins at `start` will write a checkpoint of this name."""
    parsed = parse_checkpoint_name(name)
    if parsed is None or start.manifest is None:
        return parsed is not None
    kind, number = parsed
    finished = start.manifest.epoch if start.manifest.sample == 0 else start.manifest.epoch - 1
    return number > (finished if kind == "ep" else start.manifest.step)


@contextlib.contextmanager
def _needs_writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}: {error.filename}); give it to this user, make room, or set "
            "OUTPUT_DIR to another folder",
            code="start.not_writable",
        ) from error

"""Where a run starts: from scratch, from the latest checkpoint of its own folder, or from an epoch of another.

Decides by what the folders hold, changes nothing while deciding, and needs no torch. `hold_run_dir` then moves later
epochs and steps aside; no checkpoint is overwritten or deleted.
"""

import contextlib
import fcntl
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from seqtrack import run_dir
from seqtrack.checkpoints.safetensors_io import DamagedFileError, sync_folder, utc_now, write_atomic, write_json
from seqtrack.checkpoints.side_files import Manifest, RunRecord, read_manifest, read_side_file
from seqtrack.checkpoints.store import RESUMABLE, latest_valid, list_checkpoints, thin_hint, verify_checkpoint
from seqtrack.errors import Problem, UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePoint:
    """`manifest` is None for a run from scratch; with `finished` there is nothing left to train; `config_changes` are
    the keys that differ from the checkpoint's configuration and change no step already taken."""

    manifest: Manifest | None
    finished: bool = False
    config_changes: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return self.manifest.step if self.manifest else 0

    @property
    def parent_sha256(self) -> str | None:
        """The digest of the epoch's checkpoint that the next one continues from."""
        one = self.manifest
        return None if one is None else one.sha256 if one.kind == "epoch" else one.parent_sha256


def read_run(folder: Path) -> RunRecord | None:
    """The record of the run in `folder`. An invalid one is an error: nothing else holds how the run began."""
    return read_side_file(folder / run_dir.RUN_FILE, RunRecord)


def write_run(folder: Path, record: RunRecord, state: Literal["running", "stopped", "complete"]) -> None:
    """Store `record` with this state."""
    write_json(folder / run_dir.RUN_FILE, {**record.model_dump(), "state": state, "updated": utc_now()})


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
        resume_epoch: the epoch after which to continue, or None for a run from scratch.
        epochs: the last epoch of the run as it is requested now; a complete run of fewer epochs continues.
        elsewhere: other phases' folders to search for that epoch.
        fetch: downloads an epoch's checkpoint from a remote store, or returns None; tried last.
    """
    run = read_run(folder)
    place = folder / run_dir.CHECKPOINTS
    own = list_checkpoints(place, kinds=RESUMABLE)
    if run is not None and resume_epoch in (None, run.resume_epoch):
        latest = latest_valid(own)
        is_end = latest is not None and latest.kind == "epoch" and latest.epoch >= epochs  # else it was damaged
        if run.state == "complete" and (is_end if own else run.epochs >= epochs):
            return ResumePoint(latest, finished=True)
        if latest is not None:
            return ResumePoint(latest)
        if run.state == "complete" and not own:
            text = f"{folder} is complete after epoch {run.epochs} and holds no checkpoint to continue from, to epoch "
            raise UserError(f"{text}{epochs}: put its last checkpoint and its .json back", "start.nothing_to_extend")
        resume_epoch = run.resume_epoch  # killed before its first save: begin as it began
    if run is None and own and resume_epoch is None:
        text = (
            f"{place} holds {len(own)} checkpoints but {folder / run_dir.RUN_FILE} is missing: set RESUME_EPOCH to one"
        )
        raise UserError(f"{text} of {_epochs(own)} to continue from it, or move {folder} aside", "start.no_record")
    if resume_epoch is None:
        return ResumePoint(None)
    places = [place, *(other / run_dir.CHECKPOINTS for other in elsewhere)]
    return ResumePoint(_find_epoch(resume_epoch, places, fetch))


def _find_epoch(epoch: int, places: Sequence[Path], fetch: Callable[[int], Manifest | None] | None) -> Manifest:
    found = {place: list_checkpoints(place, kinds=("epoch",)) for place in places}
    problems = [problem for place in places for problem in unusable_checkpoints(place)]
    every = [manifest for manifests in found.values() for manifest in manifests]
    for manifest in every:
        if manifest.epoch == epoch:
            try:
                verify_checkpoint(manifest)
                return manifest
            except DamagedFileError as error:
                logger.warning("skipping corrupt checkpoint: %s", error)
                problems += error.problems
    if fetch is not None and (fetched := fetch(epoch)) is not None:
        return fetched
    hint = "" if fetch is not None else "; set HF_REPO to search the Hugging Face Hub as well"
    if problems and (latest := latest_valid(manifest for manifest in every if manifest.epoch != epoch)):
        hint = f"; the latest valid one is of epoch {latest.epoch}: RESUME_EPOCH={latest.epoch}{hint}"
    seen = "; ".join(f"{place} holds {_epochs(manifests)}" for place, manifests in found.items())
    thin = (one for place in places for one in list_checkpoints(place, kinds=("thin",)) if one.epoch == epoch)
    first = f"there is no checkpoint after epoch {epoch} to resume from: {seen}{hint}{thin_hint(thin)}"
    raise UserError([Problem(first, "resume.no_checkpoint"), *problems])


def unusable_checkpoints(folder: Path) -> list[Problem]:
    """Why files in `folder` with the name of an epoch's checkpoint cannot be resumed from."""
    found: list[Problem] = []
    for path in sorted(folder.glob("SEQTRACK_ep*.safetensors")):
        try:
            if read_manifest(run_dir.manifest_path(path)).kind == "imported":
                text = (
                    "holds imported weights without optimizer state: no run can be resumed from it; evaluate and track"
                )
                found.append(Problem(f"{path} {text} take it by its file name", "resume.imported"))
        except FileNotFoundError:
            found.append(Problem(f"{path} has no manifest next to it", "checkpoint.missing"))
        except DamagedFileError as error:
            found += error.problems
    return found


def _epochs(manifests: Sequence[Manifest]) -> str:
    epochs = sorted({manifest.epoch for manifest in manifests if manifest.kind == "epoch"})
    return f"epochs {', '.join(map(str, epochs))}" if epochs else "no epochs"


@contextlib.contextmanager
def hold_run_dir(folder: Path, start: ResumePoint) -> Iterator[None]:
    """Lock the run's folder against other runs until the block ends (the kernel releases it when this process dies),
    make its folders, remove what a kill left half-written, and move aside what comes after the start. A UserError if
    another process trains in it, or it cannot be written."""
    places = [folder, *(folder / name for name in (run_dir.CHECKPOINTS, run_dir.LOGS, run_dir.PLOTS))]
    with contextlib.ExitStack() as held:
        try:
            for place in places:
                place.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context((folder / run_dir.LOCK_FILE).open("a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                text = f"another process trains in {folder}; wait for it, or set another OUTPUT_DIR"
                raise UserError(text, code="start.folder_in_use") from error
            except OSError as error:  # some network file systems have no locks
                logger.warning("%s cannot be locked (%s): make sure that no second run uses it", folder, error)
            for place in places:
                for leftover in place.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
            _move_aside(folder, start)
        except OSError as error:
            text = f"{folder} cannot be written ({error.strerror}: {error.filename}); give it to this user, make room, "
            raise UserError(f"{text}or set OUTPUT_DIR to another folder", code="start.not_writable") from error
        yield


def _move_aside(folder: Path, start: ResumePoint) -> None:
    """Every file with the name of a checkpoint after the start, valid or damaged: the run would overwrite it. Of a run
    with another beginning its logs as well, and `starts` is emptied."""
    checkpoints, metrics = folder / run_dir.CHECKPOINTS, run_dir.metrics_path(folder)
    last = {"ep": -1, "step": -1}  # the last epoch and step that stay
    manifest, run = start.manifest, read_run(folder)
    if is_own := manifest is not None and manifest.path.parent == checkpoints:
        last = {"ep": manifest.epoch - (manifest.sample > 0), "step": start.step}
    named = [(path, run_dir.parse_checkpoint_name(path.name)) for path in sorted(checkpoints.iterdir())]
    later = [path for path, parsed in named if parsed is not None and parsed[1] > last[parsed[0]]]
    epoch, begins_elsewhere = manifest.epoch if manifest is not None else 0, False
    if run is not None and run.starts:
        begins_elsewhere = epoch < run.starts[0].epoch or (epoch > run.starts[0].epoch and not is_own)
    if begins_elsewhere:
        later += sorted((folder / run_dir.LOGS).iterdir())
    if later:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = checkpoints / run_dir.SUPERSEDED / f"{stamp}-{secrets.token_hex(2)}"
        aside.mkdir(parents=True)
        if metrics.exists():
            write_atomic(aside / metrics.name, metrics.read_bytes())
        for path in later:
            logger.warning("moved aside, superseded by this start: %s -> %s", path, aside)
            path.rename(aside / path.name)
        sync_folder(aside)
        sync_folder(checkpoints)
    if begins_elsewhere and run is not None:
        write_run(folder, run.model_copy(update={"starts": []}), "running")

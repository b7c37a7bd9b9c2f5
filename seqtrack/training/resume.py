"""Resuming: is the checkpoint of the same experiment, where does the run continue, and which guarantee holds.

Decided on rank 0 before anything is written, and broadcast to the others.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from seqtrack.checkpoints.manifest import Manifest
from seqtrack.checkpoints.resume_point import ResumePoint, find_resume_point, lock_run_dir, prepare_folder, read_run
from seqtrack.checkpoints.side_files import Fingerprint, StartRecord
from seqtrack.checkpoints.store import load_checkpoint, manifest_of
from seqtrack.config.environment import Environment
from seqtrack.config.loader import Difference, compare_configs, config_digest, config_from_text, load_config
from seqtrack.config.schema import Config
from seqtrack.data.sources import FRAMES_COVERED_BY
from seqtrack.device import explain_out_of_memory
from seqtrack.errors import Problem, UserError
from seqtrack.run_dir import CHECKPOINTS, CONFIG_FILE, FETCHED
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.environment import guarantee
from seqtrack.training.optimizer import first_changed_step
from seqtrack.training.state import State, TrainState

logger = logging.getLogger(__name__)

# Keys that decide nothing but the learning rate of each step, and how many steps there are.
_SCHEDULE = ("TRAIN.EPOCH", "TRAIN.LR_DROP_EPOCH", "TRAIN.SCHEDULER.")

# Logged with every guarantee: the data digest covers no more of the frame files.
_CONDITION = f"(of the frame files, the {FRAMES_COVERED_BY} was compared, not the contents)"


def find_run(environment: Environment, config: Config, data_digest: str, steps_per_epoch: int) -> ResumePoint:
    """Where this run starts, after checking that it is the run of this folder and of that checkpoint.

    Raises:
        UserError: another configuration or other data (all differences are listed), or no such checkpoint.
    """
    folder = environment.phase_folder()
    others = [environment.phase_folder(1)] if environment.phase == 2 else []
    fetched = environment.output_dir / FETCHED

    def fetch(epoch: int) -> Manifest:
        # Deferred for start-up time: a run that finds its checkpoint on this disk needs no Hub client.
        from seqtrack.uploads.fetch import fetch_checkpoint  # start-up time: only runs with a target need it

        logger.info("epoch %d is not on this disk: fetching it from %s", epoch, environment.target)
        return manifest_of(fetch_checkpoint(environment, epoch, fetched / CHECKPOINTS))

    run = read_run(folder)
    stored = load_config(str(folder / CONFIG_FILE)) if run is not None else None
    if run is not None and stored is not None:
        _check_experiment(folder, stored, config, run.data_digest == data_digest)
    start = find_resume_point(
        folder,
        resume_epoch=environment.resume_epoch,
        epochs=config.TRAIN.EPOCH,
        elsewhere=[*others, fetched],
        fetch=fetch if environment.target else None,
    )
    manifest = start.manifest
    if run is not None and stored is not None:
        steps = manifest.step if manifest else run.epochs * steps_per_epoch * start.finished
        _check_steps(folder, stored, config, steps, steps_per_epoch)
    if manifest is None:
        return start
    theirs = config_from_text(json.dumps(manifest.config), str(manifest.manifest_path)) if manifest.config else config
    if config_digest(theirs) != manifest.config_digest:
        _refuse(manifest.path, [Problem("its configuration has another digest", "run.other_experiment")])
    _check_experiment(manifest.path, theirs, config, manifest.data_digest == data_digest)
    _check_steps(manifest.path, theirs, config, manifest.step, steps_per_epoch)
    return replace(start, config_changes=tuple(str(one) for one in compare_configs(theirs, config) if one.must_match))


def _check_experiment(what: Path, theirs: Config, ours: Config, same_data: bool) -> None:
    """Refuse differences that make another experiment whatever steps were taken."""
    problems = [
        Problem(_was(one), "run.other_experiment")
        for one in compare_configs(theirs, ours)
        if one.must_match and not one.key.startswith(_SCHEDULE) and not _has_no_effect(one.key, theirs, ours)
    ]
    if not same_data:
        problems.append(
            Problem("the sequences, annotations or frame files differ (digest in dataset.json)", "data.changed")
        )
    if problems:
        _refuse(what, problems)


def _has_no_effect(key: str, theirs: Config, ours: Config) -> bool:
    """Whether a training run does not depend on a key, because of the values of other keys."""
    if key == "TRAIN.ENCODER_OPEN":
        return not (theirs.TRAIN.FREEZE_ENCODER or ours.TRAIN.FREEZE_ENCODER)
    return key == "DATA.TRAIN.DATASETS_RATIO" and len(ours.DATA.TRAIN.DATASETS_NAME) == 1


def _check_steps(what: Path, theirs: Config, ours: Config, steps: int, steps_per_epoch: int) -> None:
    """Refuse another schedule if a step already taken would have been taken at another rate, or not at all."""
    keys = [_was(one) for one in compare_configs(theirs, ours) if one.key.startswith(_SCHEDULE)]
    step = first_changed_step(theirs.TRAIN, ours.TRAIN, steps_per_epoch, steps=steps) if keys else None
    if step is not None:
        epoch = (step - 1) // steps_per_epoch + 1
        reason = f"of {steps} steps taken, step {step} (epoch {epoch}) would have another learning rate or not exist"
        _refuse(what, [Problem(text, "resume.step_would_differ") for text in (reason, *keys)])


def _was(one: Difference) -> str:
    return f"{one.key} is {one.b!r} now, {one.a!r} there"


def _refuse(what: Path, problems: list[Problem]) -> NoReturn:
    advice = "nothing was changed. Set OUTPUT_DIR to another folder, or set these back:"
    raise UserError([Problem(f"{what} is of another run; {advice}", problems[0].code), *problems])


def load_state(state: TrainState, start: ResumePoint, distributed: DistributedContext) -> None:
    """Restore the checkpoint's state on every rank.

    Raises:
        UserError: the checkpoint does not fit.
    """
    manifest = start.manifest
    if manifest is None:
        return
    tensors: dict[str, Tensor] = {}

    def take() -> State:
        found, values = load_checkpoint(manifest)
        tensors.update(found)
        return values

    values = distributed.run_on_rank0_and_broadcast(take)
    with explain_out_of_memory("while the checkpoint was put on the device", "use a smaller model, or DEVICE=cpu"):
        state.restore(distributed.broadcast(tensors), values)


@contextlib.contextmanager
def claim_folder(folder: Path, start: ResumePoint, distributed: DistributedContext) -> Iterator[None]:
    """The run's folder, prepared by rank 0 and locked against other runs until the block ends.

    Raises:
        UserError: it cannot be written, or another run is in it.
    """
    with contextlib.ExitStack() as held:

        def prepare() -> None:
            held.enter_context(lock_run_dir(folder))
            prepare_folder(folder, start)

        distributed.run_on_rank0_and_broadcast(prepare)
        yield


def log_resume_point(start: ResumePoint, ours: Fingerprint) -> StartRecord:
    """Log where the run starts and which reproducibility guarantee holds; returns the record of it for run.json."""
    manifest = start.manifest
    held, differences = guarantee(ours, ours if manifest is None else manifest.fingerprint)
    if manifest is not None:
        logger.info(
            "resumes after step %d (epoch %d, %d samples into it) from %s, sha256 %s",
            manifest.step,
            manifest.epoch,
            manifest.sample,
            manifest.path,
            manifest.sha256[:16],
        )
        for change in start.config_changes:
            logger.info("changed since, without changing a step already taken: %s", change)
    where = "with that checkpoint" if manifest else "for a resumed run on this hardware and lock"
    begins = "" if manifest else "starts from scratch; "
    logger.info("%sreproducibility guarantee %s: %s %s", begins, where, held, _CONDITION)
    for difference in differences:
        logger.info("  because %s", difference)
    return StartRecord(
        source=f"{manifest.folder.parent.name}/{manifest.file}" if manifest else None,
        step=start.step,
        epoch=manifest.epoch if manifest else 0,
        fingerprint=ours,
        guarantee=held,
        differences=differences,
        config_changes=list(start.config_changes),
    )

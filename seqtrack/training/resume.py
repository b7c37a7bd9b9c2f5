"""Resuming: is the checkpoint of the same experiment, where does the run continue, and which guarantee holds.

Decided on rank 0 before anything is written, and broadcast to the others.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from seqtrack.checkpoints import resume_point
from seqtrack.checkpoints.manifest import Manifest
from seqtrack.checkpoints.resume_point import ResumePoint
from seqtrack.checkpoints.side_files import StartRecord
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
from seqtrack.training.state import TrainState

logger = logging.getLogger(__name__)

# Keys that decide nothing but the learning rate of each step, and how many steps there are.
_SCHEDULE = ("TRAIN.EPOCH", "TRAIN.LR_DROP_EPOCH", "TRAIN.SCHEDULER.")

_OTHER_DATA = Problem("the sequences, annotations or frame files differ (digest in dataset.json)", "data.changed")
# Logged with every guarantee: the data digest covers no more of the frame files.
_CONDITION = f"(of the frame files, the {FRAMES_COVERED_BY} was compared, not the contents)"


class CachedCheckpoint:
    """Keeps the checkpoint that was verified last, so that it is read only once."""

    def __init__(self) -> None:
        self._kept: tuple[Manifest, dict[str, Tensor], dict[str, Any]] | None = None

    def verify(self, manifest: Manifest) -> None:
        """Read a checkpoint.

        Raises:
            DamagedFileError: it does not match its manifest.
        """
        self._kept = None  # freed before the next one is read
        self._kept = (manifest, *load_checkpoint(manifest))

    def take(self, manifest: Manifest) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain values of that checkpoint, read now if it was not the last; not kept any longer.

        Raises:
            DamagedFileError: it does not match its manifest.
        """
        kept, self._kept = self._kept, None
        return kept[1:] if kept is not None and kept[0] == manifest else load_checkpoint(manifest)


def find_run(
    environment: Environment, config: Config, data_digest: str, cached: CachedCheckpoint, steps_per_epoch: int
) -> ResumePoint:
    """Where this run starts, after checking that it is the run of this folder and of that checkpoint.

    Raises:
        UserError: another configuration or other data (all differences are listed), or no such checkpoint.
    """
    folder = environment.phase_folder()
    run = resume_point.read_run(folder)
    stored = load_config(str(folder / CONFIG_FILE)) if run is not None else None
    if run is not None and stored is not None:
        problems = _differences(stored, config) + _other_data(run.data_digest, data_digest)
        _refuse(
            f"{folder} holds a run of another configuration; nothing was changed. Set OUTPUT_DIR to another folder, or "
            "set these back:",
            problems,
        )
    others = [environment.phase_folder(phase) for phase in (1, 2) if phase != environment.phase]
    fetched = environment.output_dir / FETCHED

    def fetch(epoch: int) -> Manifest:
        # Deferred for start-up time: a run that finds its checkpoint on this disk needs no Hub client.
        from seqtrack.uploads.fetch import fetch_checkpoint

        logger.info("epoch %d is not on this disk: fetching it from %s", epoch, environment.target)
        return manifest_of(fetch_checkpoint(environment, epoch, fetched / CHECKPOINTS))

    start = resume_point.find_resume_point(
        folder,
        resume_epoch=environment.resume_epoch,
        epochs=config.TRAIN.EPOCH,
        elsewhere=[*(others if environment.phase == 2 else []), fetched],
        fetch=fetch if environment.target else None,
        verify=cached.verify,
    )
    if stored is not None and run is not None:
        steps = start.step if start.manifest else run.epochs * steps_per_epoch * start.finished
        _refuse_changed_steps(str(folder), stored, config, steps, steps_per_epoch)
    if start.manifest is None:
        return start
    return replace(start, config_changes=_changes(start.manifest, config, data_digest, steps_per_epoch))


def _changes(manifest: Manifest, config: Config, data_digest: str, steps_per_epoch: int) -> tuple[str, ...]:
    """The keys of a checkpoint's configuration that have changed since, none of which changes a step it has taken.

    Raises:
        UserError: it is a checkpoint of another experiment.
    """
    problems = _other_data(manifest.data_digest, data_digest)
    theirs = None
    if manifest.config_digest != config_digest(config):
        if manifest.config is not None:
            theirs = config_from_text(json.dumps(manifest.config), str(manifest.manifest_path))
        if theirs is None or config_digest(theirs) != manifest.config_digest:
            theirs = None
            problems.append(Problem("its configuration has another digest", "run.other_experiment"))
        else:
            problems += _differences(theirs, config)
    _refuse(f"{manifest.path} is of another experiment and cannot be resumed by this one:", problems)
    if theirs is None:
        return ()
    _refuse_changed_steps(str(manifest.path), theirs, config, manifest.step, steps_per_epoch)
    return tuple(str(one) for one in compare_configs(theirs, config) if one.must_match)


def _differences(theirs: Config, ours: Config) -> list[Problem]:
    """Differences that make another experiment whatever steps were taken."""
    return [
        _problem(one)
        for one in compare_configs(theirs, ours)
        if one.must_match and not one.key.startswith(_SCHEDULE) and not _has_no_effect(one.key, theirs, ours)
    ]


def _has_no_effect(key: str, theirs: Config, ours: Config) -> bool:
    """Whether a training run does not depend on a key, because of the values of other keys."""
    if key == "TRAIN.ENCODER_OPEN":
        return not (theirs.TRAIN.FREEZE_ENCODER or ours.TRAIN.FREEZE_ENCODER)
    return key == "DATA.TRAIN.DATASETS_RATIO" and len(ours.DATA.TRAIN.DATASETS_NAME) == 1


def _refuse_changed_steps(what: str, theirs: Config, ours: Config, steps: int, steps_per_epoch: int) -> None:
    """Refuse another schedule if one of the steps already taken would have been taken at another rate.

    Raises:
        UserError: with the first such step.
    """
    keys = [_problem(one) for one in compare_configs(theirs, ours) if one.key.startswith(_SCHEDULE)]
    step = first_changed_step(theirs.TRAIN, ours.TRAIN, steps_per_epoch, steps=steps) if keys else None
    if step is not None:
        raise UserError(
            [
                f"{what} has taken {steps} steps; step {step} (epoch {(step - 1) // steps_per_epoch + 1}) would have "
                "another learning rate, or not be taken at all: this would be another run, and nothing was changed. "
                "Set OUTPUT_DIR to another folder, or set these back:",
                *map(str, keys),
            ],
            code="resume.step_would_differ",
        )


def _other_data(theirs: str | None, ours: str) -> list[Problem]:
    return [] if theirs == ours else [_OTHER_DATA]


def _problem(one: Difference) -> Problem:
    return Problem(f"{one.key} is {one.b!r} now, {one.a!r} there", "run.other_experiment")


def _refuse(sentence: str, problems: list[Problem]) -> None:
    if problems:
        code = _OTHER_DATA.code if problems == [_OTHER_DATA] else "run.other_experiment"
        raise UserError([Problem(sentence, code), *problems])


def load_state(
    state: TrainState, start: ResumePoint, distributed: DistributedContext, cached: CachedCheckpoint
) -> None:
    """Restore the checkpoint's state on every rank.

    Raises:
        UserError: the checkpoint does not fit.
    """
    manifest = start.manifest
    if manifest is None:
        return
    tensors: dict[str, Tensor] = {}

    def take() -> dict[str, Any]:
        found, values = cached.take(manifest)
        tensors.update(found)
        return values

    values = distributed.run_on_rank0_and_broadcast(take)
    tensors = distributed.broadcast(tensors)
    with explain_out_of_memory("while the checkpoint was put on the device", "use a smaller model, or DEVICE=cpu"):
        state.restore(tensors, values)


@contextlib.contextmanager
def claim_folder(folder: Path, start: ResumePoint, distributed: DistributedContext) -> Iterator[None]:
    """The run's folder, prepared by rank 0 and locked against other runs until the block ends.

    Raises:
        UserError: it cannot be written, or another run is in it.
    """
    with contextlib.ExitStack() as held:

        def prepare() -> None:
            held.enter_context(resume_point.lock_run_dir(folder))
            resume_point.prepare_folder(folder, start)

        distributed.run_on_rank0_and_broadcast(prepare)
        yield


def log_resume_point(start: ResumePoint, ours: dict[str, Any]) -> StartRecord:
    """Log where the run starts and which reproducibility guarantee holds; returns the record of it for run.json."""
    manifest = start.manifest
    held, differences = guarantee(ours, ours if manifest is None else manifest.fingerprint)
    if manifest is None:
        logger.info(
            "starts from scratch; reproducibility guarantee for a resumed run on this hardware and lock: %s %s",
            held,
            _CONDITION,
        )
    else:
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
        logger.info("reproducibility guarantee with that checkpoint: %s %s", held, _CONDITION)
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

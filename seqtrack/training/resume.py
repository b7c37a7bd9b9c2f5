"""Resuming: is the checkpoint of the same experiment, where does the run continue, and what does it promise.

Runs on rank 0 before anything is written; the other ranks are told the outcome.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from seqtrack.checkpoints import resume_point as resume_point
from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_header
from seqtrack.checkpoints.side_files import StartRecord
from seqtrack.checkpoints.store import Manifest, load_tensors, manifest_of, read_tensors, read_values
from seqtrack.config.environment import Environment
from seqtrack.config.loader import Difference, compare_configs, config_digest, config_from_text, load_config
from seqtrack.config.schema import Config
from seqtrack.data.sources import FRAMES_COVERED_BY
from seqtrack.device import explain_out_of_memory
from seqtrack.errors import Problem, UserError
from seqtrack.runtime import environment as runtime_environment
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.training.build import schedule_settings
from seqtrack.training.optimizer import first_changed_step
from seqtrack.training.state import TrainState

logger = logging.getLogger(__name__)

# Checkpoints brought from the Hub to resume from; a hidden folder, so that the sidecar does not send them back.
FETCHED = ".fetched"
# Keys that decide nothing but the learning rate of each step, and how many steps there are.
_SCHEDULE = ("TRAIN.EPOCH", "TRAIN.LR_DROP_EPOCH", "TRAIN.SCHEDULER.")

_OTHER_DATA = Problem(
    "the data are other sequences, annotations or frame files than there (digest in dataset.json)", "data.changed"
)
# Named with every guarantee: the digest of the data knows no more of the frame files.
_CONDITION = f"(of the frame files, the {FRAMES_COVERED_BY} was compared, not the contents)"


class CachedCheckpoint:
    """Keeps the tensors of the checkpoint that was verified last: it is not read a second time to be loaded."""

    def __init__(self) -> None:
        self._manifest: Manifest | None = None
        self._tensors: dict[str, Tensor] = {}

    def verify(self, manifest: Manifest) -> None:
        """Read a checkpoint.

        Raises:
            DamagedFileError: it is not what its manifest says.
        """
        self._manifest, self._tensors = None, {}  # a damaged one must not are in memory next to the next
        self._tensors = read_tensors(manifest)
        self._manifest = manifest

    def take(self, manifest: Manifest) -> dict[str, Tensor]:
        """The tensors of that checkpoint, read now if it was not the last; they are the caller's from now on.

        Raises:
            UserError: it is damaged.
        """
        known, tensors = self._manifest, self._tensors
        self._manifest, self._tensors = None, {}
        return tensors if known == manifest else load_tensors(manifest)


def find_run(
    environment: Environment, config: Config, data_digest: str, cached: CachedCheckpoint, steps_per_epoch: int
) -> resume_point.ResumePoint:
    """Where this run starts, after checking that it is the run of this folder and of that checkpoint.

    Raises:
        UserError: another configuration or other data (all differences are listed), or no such checkpoint.
    """
    folder = environment.phase_folder()
    run = resume_point.read_run(folder)
    stored = load_config(str(folder / "config.yaml")) if run is not None else None
    if run is not None and stored is not None:
        problems = [_sentence(one) for one in _fixed_differences(stored, config)]
        problems += _other_data(run.data_digest, data_digest)
        if problems:
            raise UserError(
                [
                    f"{folder} holds a run of another configuration; nothing was changed. "
                    "Set OUTPUT_DIR to another folder, or set these back:",
                    *problems,
                ],
                code=_code(problems),
            )
    others = [environment.phase_folder(phase) for phase in (1, 2) if phase != environment.phase]

    fetched = environment.output_dir / FETCHED

    def fetch(epoch: int) -> Manifest:
        # Imported here: a run that finds its checkpoint on this disk need not load the Hub's client.
        from seqtrack.uploads.fetch import fetch_checkpoint

        logger.info("epoch %d is not on this disk: fetching it from %s", epoch, environment.target)
        return manifest_of(fetch_checkpoint(environment, epoch, fetched / resume_point.CHECKPOINTS))

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
    changes: tuple[str, ...] = ()
    if manifest.config_digest != config_digest(config):
        theirs = None
        if manifest.config is not None:
            theirs = config_from_text(json.dumps(manifest.config), str(manifest.manifest_path))
        if theirs is None or config_digest(theirs) != manifest.config_digest:
            problems.append("its configuration has another digest")
        else:
            problems += [_sentence(one) for one in _fixed_differences(theirs, config)]
            if not problems:
                _refuse_changed_steps(str(manifest.path), theirs, config, manifest.step, steps_per_epoch)
            changes = tuple(str(one) for one in compare_configs(theirs, config) if one.must_match)
    if problems:
        raise UserError(
            [f"{manifest.path} is of another experiment and cannot be resumed by this one:", *problems],
            code=_code(problems),
        )
    return changes


def _fixed_differences(theirs: Config, ours: Config) -> list[Difference]:
    """Differences that make another experiment whatever steps were taken."""
    return [
        one
        for one in compare_configs(theirs, ours)
        if one.must_match and not one.key.startswith(_SCHEDULE) and not _has_no_effect(one.key, theirs, ours)
    ]


def _has_no_effect(key: str, theirs: Config, ours: Config) -> bool:
    """Whether nothing of a training run depends on a key, because of what other keys say."""
    if key == "TRAIN.ENCODER_OPEN":
        return not (theirs.TRAIN.FREEZE_ENCODER or ours.TRAIN.FREEZE_ENCODER)
    return key == "DATA.TRAIN.DATASETS_RATIO" and len(ours.DATA.TRAIN.DATASETS_NAME) == 1


def _refuse_changed_steps(what: str, theirs: Config, ours: Config, steps: int, steps_per_epoch: int) -> None:
    """Refuse another schedule if one of the steps already taken would have been taken at another rate.

    Raises:
        UserError: with the first such step.
    """
    before, after = (schedule_settings(config, steps_per_epoch) for config in (theirs, ours))
    step = first_changed_step(before, after, steps=steps) if before != after else None
    if step is not None:
        keys = [_sentence(one) for one in compare_configs(theirs, ours) if one.key.startswith(_SCHEDULE)]
        raise UserError(
            [
                f"{what} has taken {steps} steps; step {step} (epoch {(step - 1) // steps_per_epoch + 1}) would have "
                "another learning rate, or not be taken at all: this would be another run, and nothing was changed. "
                "Set OUTPUT_DIR to another folder, or set these back:",
                *keys,
            ],
            code="resume.step_would_differ",
        )


def _other_data(theirs: str | None, ours: str) -> list[str]:
    if theirs == ours:
        return []
    return [_OTHER_DATA]


def _code(problems: list[str]) -> str:
    return _OTHER_DATA.code if problems == [_OTHER_DATA] else "run.other_experiment"


def _sentence(one: Difference) -> str:
    return f"{one.key} is {one.b!r} now, {one.a!r} there"


def load_state(
    state: TrainState, start: resume_point.ResumePoint, distributed: DistributedContext, cached: CachedCheckpoint
) -> None:
    """Put the checkpoint's state into `state`, on every rank.

    Raises:
        UserError: the checkpoint does not fit.
    """
    manifest = start.manifest
    if manifest is None:
        return
    values = distributed.run_on_rank0_and_broadcast(lambda: _values(manifest))
    tensors = distributed.broadcast(cached.take(manifest) if distributed.is_main else {})
    with explain_out_of_memory("while the checkpoint was put on the device", "take a smaller model, or DEVICE=cpu"):
        state.restore(tensors, values)


def _values(manifest: Manifest) -> dict[str, Any]:
    try:
        return read_values(manifest.path, read_header(manifest.path))  # `Reading` checks every byte
    except (DamagedFileError, OSError) as error:
        raise UserError(f"{error}; take another checkpoint, or fetch this one again") from error


@contextlib.contextmanager
def claim_folder(folder: Path, start: resume_point.ResumePoint, distributed: DistributedContext) -> Iterator[None]:
    """The run's folder, made ready by rank 0 and kept from other runs until the block ends.

    Raises:
        UserError: it cannot be written, or another run is in it.
    """
    with contextlib.ExitStack() as held:

        def prepare() -> None:
            held.enter_context(resume_point.lock_run_dir(folder))
            resume_point.prepare_folder(folder, start)

        distributed.run_on_rank0_and_broadcast(prepare)
        yield


def log_resume_point(start: resume_point.ResumePoint, ours: dict[str, Any]) -> StartRecord:
    """Log where the run starts and which promise holds; returns the record of it for run.json."""
    manifest = start.manifest
    held, differences = runtime_environment.promise(ours, ours if manifest is None else manifest.fingerprint)
    if manifest is None:
        start_line = "starts from scratch; promise for a resumed run on this hardware and lock: %s %s"
        logger.info(start_line, held, _CONDITION)
        return StartRecord(source=None, step=0, epoch=0, fingerprint=ours, promise=held, differences=differences)
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
    logger.info("promise that holds with that checkpoint: %s %s", held, _CONDITION)
    for difference in differences:
        logger.info("  because %s", difference)
    return StartRecord(
        source=f"{manifest.folder.parent.name}/{manifest.file}",
        step=start.step,
        epoch=manifest.epoch,
        fingerprint=ours,
        promise=held,
        differences=differences,
        config_changes=list(start.config_changes),
    )

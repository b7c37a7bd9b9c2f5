"""Resuming: is the checkpoint of the same experiment, where does the run continue, and which guarantee holds.

Decided on rank 0 before anything is written, and broadcast to the others.
"""

import contextlib
import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from seqtrack.checkpoints.resume_point import ResumePoint, find_resume_point, hold_run_dir, read_run
from seqtrack.checkpoints.side_files import Fingerprint, Manifest, RunRecord, StartRecord
from seqtrack.checkpoints.store import load_checkpoint, manifest_of
from seqtrack.config.environment import KEYS, Environment, check_resume_epoch
from seqtrack.config.loader import (
    SCHEDULE,
    Difference,
    compare_configs,
    config_digest,
    config_from_text,
    training_differences,
)
from seqtrack.config.schema import Config
from seqtrack.data.sources import FRAMES_COVERED_BY
from seqtrack.device import explain_out_of_memory
from seqtrack.errors import Problem, UserError
from seqtrack.run_dir import CHECKPOINTS, FETCHED
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.guarantee import guarantee
from seqtrack.training.optimizer import first_changed_step
from seqtrack.training.state import State, TrainState

logger = logging.getLogger(__name__)


def find_run(environment: Environment, config: Config, data_digest: str, steps_per_epoch: int) -> ResumePoint:
    """Where this run starts. A UserError if there is no such checkpoint, or it is of another configuration or other
    data; all differences are listed."""
    folder = environment.phase_folder()
    others = [environment.phase_folder(1)] if environment.phase == 2 else []
    fetched = environment.output_dir / FETCHED

    def fetch(epoch: int) -> Manifest:
        from seqtrack.uploads.fetch import fetch_checkpoint  # start-up time: only runs with a target need it

        logger.info("epoch %d is not on this disk: fetching it from %s", epoch, environment.target)
        return manifest_of(fetch_checkpoint(environment, epoch, fetched / CHECKPOINTS))

    run = read_run(folder)
    resume_epoch = requested_epoch(environment, run)
    check_resume_epoch(resume_epoch, config.TRAIN.EPOCH)
    start = find_resume_point(
        folder,
        resume_epoch=resume_epoch,
        epochs=config.TRAIN.EPOCH,
        elsewhere=[*others, fetched],
        fetch=fetch if environment.target else None,
    )
    if (manifest := start.manifest) is not None:
        changes = _check_experiment(manifest, config, data_digest, steps_per_epoch)
        return replace(start, config_changes=changes)
    digests = (config_digest(config), data_digest)
    # It is finished, and its checkpoints were moved away.
    if start.finished and run is not None and (run.config_digest, run.data_digest) != digests:
        _refuse(folder, [Problem("it is complete, with another configuration or data", "run.other_experiment")])
    return start


def requested_epoch(environment: Environment, run: RunRecord | None) -> int | None:
    """RESUME_EPOCH; if it is not set, the value with which the run in the output folder began, if there is one."""
    return environment.resume_epoch if run is None or environment.given("RESUME_EPOCH") else run.resume_epoch


def _check_experiment(manifest: Manifest, config: Config, data_digest: str, steps_per_epoch: int) -> tuple[str, ...]:
    """Refuse a checkpoint of another experiment, or a schedule that would have taken a step already taken otherwise or
    not at all; returns the keys that differ without such an effect."""
    place = str(manifest.manifest_path)
    theirs = config_from_text(json.dumps(manifest.config), place) if manifest.config else config
    if config_digest(theirs) != manifest.config_digest:
        _refuse(manifest.path, [Problem("its configuration has another digest", "run.other_experiment")])
    was = {one.key: _as_given(one) for one in training_differences(theirs, config)}
    problems = [Problem(text, "run.other_experiment") for key, text in was.items() if not key.startswith(SCHEDULE)]
    if manifest.data_digest != data_digest:
        text = "the sequences, annotations or frame files differ (digest in dataset.json)"
        problems.append(Problem(text, "data.changed"))
    step = first_changed_step(theirs.TRAIN, config.TRAIN, steps_per_epoch, steps=manifest.step) if was else None
    if problems:
        schedule = [text for key, text in was.items() if step and key.startswith(SCHEDULE)]
        problems += [Problem(text, "run.other_experiment") for text in schedule]
        _refuse(manifest.path, problems)
    if step:
        reason = f"of {manifest.step} steps taken, step {step} (epoch {(step - 1) // steps_per_epoch + 1}) would differ"
        _refuse(manifest.path, [Problem(text, "resume.step_would_differ") for text in (reason, *was.values())])
    return tuple(str(one) for one in compare_configs(theirs, config) if one.must_match)


def _as_given(difference: Difference) -> str:
    """Both values as they are given, by the variable that sets the key, if there is one."""
    names = [f"{name} ({key})" for name, key in KEYS.items() if key == difference.key] or [difference.key]
    now, there = (
        (",".join(map(str, value)) or "(empty)") if isinstance(value, tuple) else str(value)
        for value in (difference.b, difference.a)
    )
    return f"{names[0]} is {now} now, {there} there"


def _refuse(what: Path, problems: list[Problem]) -> None:
    advice = "nothing was changed. Set OUTPUT_DIR to another folder, or set these back:"
    raise UserError([Problem(f"{what} is of another run; {advice}", problems[0].code), *problems])


def load_state(state: TrainState, start: ResumePoint, distributed: DistributedContext) -> None:
    """Restore the checkpoint's state on every rank; a UserError if it does not fit."""
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
    """`hold_run_dir` by rank 0, with its UserError on every rank."""
    with contextlib.ExitStack() as held:
        distributed.run_on_rank0_and_broadcast(lambda: held.enter_context(hold_run_dir(folder, start)))
        yield


def log_resume_point(start: ResumePoint, ours: Fingerprint, processes: int) -> StartRecord:
    """Log where the run starts and which reproducibility guarantee holds; returns the record of it for run.json."""
    manifest = start.manifest
    held, differences = guarantee(ours, ours if manifest is None else manifest.fingerprint)
    if manifest is None:
        begins = "starts from scratch; reproducibility guarantee for a resumed run on this hardware and lock"
    else:
        at = f"after step {start.step} (epoch {manifest.epoch}, {manifest.sample} samples into it)"
        logger.info("resumes %s from %s, sha256 %s", at, manifest.path, manifest.sha256[:16])
        begins = "reproducibility guarantee with that checkpoint"
    for change in start.config_changes:
        logger.info("changed since, without changing a step already taken: %s", change)
    text = "%s: %s (of the frame files, the %s was compared, not the contents)"
    logger.info(text, begins, held, FRAMES_COVERED_BY)
    for difference in differences:
        logger.info("  because %s", difference)
    if shards := ours.get("shards"):
        text = "TRAIN.SHARDS is %d: the run may continue on 1 to %d processes, now %d, without changing a bit"
        logger.info(text, shards, shards, processes)
    return StartRecord(
        source=f"{manifest.path.parents[1].name}/{manifest.file}" if manifest else None,
        step=start.step,
        epoch=manifest.epoch if manifest else 0,
        fingerprint=ours,
        processes=processes,
        guarantee=held,
        differences=differences,
        config_changes=list(start.config_changes),
    )

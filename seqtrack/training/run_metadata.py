"""The files next to a run's checkpoints (run.json, configuration, data, environment), and its first log lines."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from seqtrack.checkpoints.resume_point import read_run, write_run
from seqtrack.checkpoints.safetensors_io import utc_now, write_atomic, write_json
from seqtrack.checkpoints.side_files import DatasetRecord, Manifest, RunRecord, StartRecord
from seqtrack.checkpoints.store import RESUMABLE, checkpoints_to_delete, list_checkpoints, remove_checkpoint
from seqtrack.config.environment import Environment
from seqtrack.config.loader import config_digest, dump_config
from seqtrack.config.schema import Config
from seqtrack.data.dataset import TrackingDataset
from seqtrack.data.loader import BatchLoader
from seqtrack.data.preview import write_preview
from seqtrack.data.sources import Source
from seqtrack.errors import RunError, UserError
from seqtrack.run_dir import CHECKPOINTS, CONFIG_FILE, DATASET_FILE, ENVIRONMENT_FILE, PLOTS, SAMPLES_FILE
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.environment import describe_device, environment_record, lock_digest, source_commit, versions
from seqtrack.training.resume import requested_epoch
from seqtrack.uploads.state import is_verified

logger = logging.getLogger(__name__)
_IN_IMAGE = Path("/app/.commit")  # written by the Dockerfile

_SHOWN_SAMPLES = 6


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn the error of a file of the run in `folder`, or next to it, into a RunError with its cause."""
    try:
        yield
    except OSError as error:
        # `logging` names its file by an absolute path without `..`.
        root = Path(os.path.normpath(folder.parent.absolute()))
        if error.filename is None or root not in Path(os.path.normpath(Path(error.filename).absolute())).parents:
            raise
        raise RunError(
            f"{error.filename} could not be written ({error.strerror}); older checkpoints in {folder} are untouched: "
            "fix the disk or make room and start again, the run continues from the latest of them",
            code="run.disk",
        ) from error


def log_run_header(
    environment: Environment,
    config: Config,
    distributed: DistributedContext,
    sources: list[Source],
    loader: BatchLoader,
) -> None:
    """Log code, lock, machine, configuration, data, sizes, and where output goes."""
    device, size, interval = describe_device(distributed.device), config.TRAIN.BATCH_SIZE, config.TRAIN.PRINT_INTERVAL
    processes = "1 process" if distributed.world_size == 1 else f"{distributed.world_size} processes"
    lines = [
        f"commit {source_commit()} , lock sha256 {lock_digest()[:16]}",
        f"torch {versions()['torch']} , {device} , {processes}",
        f"configuration {environment.config} , digest {config_digest(config)[:16]} , seed {config.TRAIN.SEED}",
    ]
    for source in sources:
        drawn = " (SYNTHETIC: drawn by code)" if source.synthetic else ""
        frames = sum(sequence.num_frames for sequence in source.sequences)
        classes = ", ".join(sorted({sequence.class_name for sequence in source.sequences}))
        lines.append(
            f"data set {source.name}{drawn} : {len(source.sequences)} sequences , {frames} frames , classes {classes}"
        )
    late = "" if interval % size == 0 else f" (at the end of the batch that reaches it: batches have {size})"
    lines += [
        f"{config.TRAIN.EPOCH} epochs of {loader.samples_per_epoch} samples in {loader.steps_per_epoch} steps of "
        f"{size} samples ; a line every {interval} samples{late}",
        f"output {environment.phase_folder()} , "
        + ("the sidecar uploads new files" if environment.target else "nothing is uploaded"),
    ]
    for line in lines:
        logger.info("%s", line)


def log_next_steps(environment: Environment) -> None:
    """Log where a finished run's results are, and the commands that use them."""
    logger.info("results: %s (checkpoints, logs, plots)", environment.phase_folder())
    command, phase = environment.seqtrack_command, environment.phase
    logger.info("next: %s evaluate --phase %d", command, phase)
    logger.info("      %s report --html", command)
    folder = environment.output_dir.absolute()
    if _IN_IMAGE.exists() and not any(one.is_mount() for one in (folder, *folder.parents[:-1])):
        logger.warning("%s is not a mounted folder: Docker discards all of it", folder)


def open_run(
    environment: Environment,
    config: Config,
    distributed: DistributedContext,
    *,
    data: DatasetRecord,
    began: StartRecord,
) -> tuple[RunRecord, dict[str, object]]:
    """Write config.yaml, run.json, dataset.json and environment.json; returns the record in run.json, and the fields of
    a manifest that are the same for all checkpoints of this process."""
    folder, now = environment.phase_folder(), utc_now()
    before = read_run(folder)
    record = RunRecord(
        state="running",
        phase=environment.phase,
        config=environment.config,
        resume_epoch=requested_epoch(environment, before),
        epochs=config.TRAIN.EPOCH,
        config_digest=config_digest(config),
        data_digest=data.digest,
        starts=[*(before.starts if before else []), began],
        started=before.started if before else utc_now("microseconds"),  # distinguishes runs
        updated=now,
    )
    write_atomic(folder / CONFIG_FILE, dump_config(config).encode())
    write_run(folder, record, "running")
    write_json(folder / DATASET_FILE, data.model_dump())
    write_json(folder / ENVIRONMENT_FILE, environment_record(distributed, began.fingerprint).model_dump())
    fields = {
        **record.model_dump(include={"phase", "config_digest", "data_digest"}),
        "config": yaml.safe_load(dump_config(config)),
        "fingerprint": began.fingerprint,
        "versions": versions(),
        "device": describe_device(distributed.device),
    }
    return record, fields


def draw_samples(folder: Path, dataset: TrackingDataset) -> Path | None:
    """Draw the first samples of epoch 1 into the run's plots, whatever epoch it starts at; None, with a warning, if
    that fails."""
    path = folder / PLOTS / SAMPLES_FILE
    try:
        path.parent.mkdir(exist_ok=True)
        write_preview(path, [dataset.sample(1, number) for number in range(_SHOWN_SAMPLES)], columns=2)
    except (OSError, UserError) as error:
        logger.warning("%s: the samples could not be drawn (%s)", path, error)
        return None
    return path


def delete_old_checkpoints(environment: Environment, keep: int) -> None:
    """Delete the checkpoints of this phase that are no longer needed; uploaded ones only once they are verified."""
    root, folder = environment.output_dir, environment.phase_folder() / CHECKPOINTS

    def is_safe(one: Manifest) -> bool:
        return environment.target is None or is_verified(root, one.path.relative_to(root).as_posix(), one.sha256)

    for old in checkpoints_to_delete(list_checkpoints(folder, kinds=RESUMABLE), keep=keep, is_safe=is_safe):
        remove_checkpoint(old)

"""The files next to a run's checkpoints (run.json, configuration, data, environment), and its first log lines."""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from seqtrack.checkpoints.manifest import Manifest
from seqtrack.checkpoints.resume_point import RESUMABLE, ResumePoint, read_run, write_run
from seqtrack.checkpoints.retention import checkpoints_to_delete
from seqtrack.checkpoints.safetensors_io import utc_now, write_atomic
from seqtrack.checkpoints.side_files import DatasetRecord, RunRecord, StartRecord, write_side_file
from seqtrack.checkpoints.store import list_checkpoints, remove_checkpoint
from seqtrack.config.environment import Environment
from seqtrack.config.loader import config_digest, dump_config
from seqtrack.config.schema import Config
from seqtrack.data.loader import BatchLoader
from seqtrack.data.sources import Source
from seqtrack.errors import RunError
from seqtrack.reports import verdict
from seqtrack.reports.plots import PhasePlots
from seqtrack.run_dir import CHECKPOINTS, CONFIG_FILE, DATASET_FILE, ENVIRONMENT_FILE
from seqtrack.runtime import environment as runtime_environment
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.training.build import run_fingerprint
from seqtrack.training.checkpointer import Checkpointer

logger = logging.getLogger(__name__)

_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOENT}
    | {errno.EISDIR, errno.ENOTDIR, errno.ESTALE}
)


@contextlib.contextmanager
def explain_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the file system during a run into a RunError with its cause.

    Raises:
        RunError: a file of the run could not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        where = error.filename or folder
        raise RunError(
            f"{where} could not be written ({error.strerror}); the checkpoints in {folder} are untouched: fix the "
            "disk or make room and start again, the run continues from the latest of them",
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
    uploads = "the sidecar uploads new files" if environment.target else "nothing is uploaded"
    logger.info(
        "commit %s , lock sha256 %s", runtime_environment.source_commit(), runtime_environment.lock_digest()[:16]
    )
    logger.info(
        "torch %s , %s , %d processes",
        runtime_environment.versions()["torch"],
        runtime_environment.describe_device(distributed.device),
        distributed.world_size,
    )
    logger.info(
        "configuration %s , digest %s , seed %d", environment.config, config_digest(config)[:16], config.TRAIN.SEED
    )
    for source in sources:
        classes = sorted({sequence.class_name for sequence in source.sequences})
        frames = sum(sequence.num_frames for sequence in source.sequences)
        logger.info(
            "data set %s%s : %d sequences , %d frames , classes %s",
            source.name,
            " (SYNTHETIC: drawn by code)" if source.synthetic else "",
            len(source.sequences),
            frames,
            ", ".join(classes),
        )
    size, interval = config.TRAIN.BATCH_SIZE, config.TRAIN.PRINT_INTERVAL
    true_interval = "" if interval % size == 0 else f" (at the end of the batch that reaches it: batches have {size})"
    logger.info(
        "%d epochs of %d samples in %d steps of %d samples ; a line every %d samples%s",
        config.TRAIN.EPOCH,
        loader.samples_per_epoch,
        loader.steps_per_epoch,
        size,
        interval,
        true_interval,
    )
    logger.info("output %s , %s", environment.phase_folder(), uploads)


def open_run(
    folder: Path,
    environment: Environment,
    config: Config,
    distributed: DistributedContext,
    *,
    data: DatasetRecord,
    began: StartRecord,
) -> RunRecord:
    """Write config.yaml, run.json, dataset.json and environment.json; returns the record in run.json."""
    before = read_run(folder)
    now = utc_now()
    write_atomic(folder / CONFIG_FILE, dump_config(config).encode())
    record = write_run(
        folder,
        RunRecord(
            state="running",
            phase=environment.phase,
            config=environment.config,
            resume_epoch=environment.resume_epoch or (before.resume_epoch if before else None),
            epochs=config.TRAIN.EPOCH,
            config_digest=config_digest(config),
            data_digest=data.digest,
            starts=[*(before.starts if before else []), began],
            started=before.started if before else now,
            updated=now,
        ),
    )
    write_side_file(folder / DATASET_FILE, data)
    write_side_file(folder / ENVIRONMENT_FILE, runtime_environment.environment_record(distributed, began.fingerprint))
    return record


def manifest_fields(
    environment: Environment, config: Config, distributed: DistributedContext, data_digest: str
) -> dict[str, Any]:
    """The fields of a manifest that are the same for all checkpoints of this process."""
    return {
        "phase": environment.phase,
        "config": yaml.safe_load(dump_config(config)),
        "config_digest": config_digest(config),
        "data_digest": data_digest,
        "fingerprint": run_fingerprint(config, distributed),
        "versions": runtime_environment.versions(),
        "device": runtime_environment.describe_device(distributed.device),
    }


def conclude(environment: Environment, record: RunRecord) -> int:
    """Compare both phases, if both exist, and mark the run complete; returns the exit code."""
    code = verdict.conclude(environment.output_dir, record)
    # Last: the sidecar expects no further files after it.
    write_run(environment.phase_folder(), record, state="complete")
    return code


def make_checkpointer(folder: Path, start: ResumePoint) -> Checkpointer:
    """The checkpointer of a run, which continues the hash chain of the checkpoint it starts from."""
    parent = None
    if start.manifest is not None:
        parent = start.manifest.sha256 if start.manifest.kind == "epoch" else start.manifest.parent_sha256
    return Checkpointer(folder / CHECKPOINTS, parent_sha256=parent)


def after_checkpoint(
    folder: Path, environment: Environment, config: Config, plots: PhasePlots
) -> Callable[[Manifest], None]:
    """Called after each durable checkpoint: deletes old checkpoints, and redraws the plots after an epoch."""

    def is_safe(manifest: Manifest) -> bool:
        if environment.target is None:
            return True
        from seqtrack.uploads.state import is_verified  # deferred: only runs with an upload target need it

        place = manifest.path.relative_to(environment.output_dir).as_posix()
        return is_verified(environment.output_dir, place, manifest.sha256)

    def on_durable(manifest: Manifest) -> None:
        present = list_checkpoints(folder / CHECKPOINTS, kinds=RESUMABLE)
        for old in checkpoints_to_delete(present, keep=config.TRAIN.KEEP_CHECKPOINTS, is_safe=is_safe):
            remove_checkpoint(old)
        if manifest.kind == "epoch":
            plots.redraw()

    return on_durable

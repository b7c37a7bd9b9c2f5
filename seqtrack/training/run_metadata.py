"""The files next to a run's checkpoints (run.json, configuration, data, environment), and its first log lines."""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from seqtrack.checkpoints.manifest import Manifest
from seqtrack.checkpoints.resume_point import RESUMABLE, read_run, write_run
from seqtrack.checkpoints.safetensors_io import utc_now, write_atomic
from seqtrack.checkpoints.side_files import DatasetRecord, RunRecord, StartRecord, write_side_file
from seqtrack.checkpoints.store import checkpoints_to_delete, list_checkpoints, remove_checkpoint
from seqtrack.config.environment import Environment
from seqtrack.config.loader import config_digest, dump_config
from seqtrack.config.schema import Config
from seqtrack.data.loader import BatchLoader
from seqtrack.data.sources import Source
from seqtrack.errors import RunError
from seqtrack.run_dir import CHECKPOINTS, CONFIG_FILE, DATASET_FILE, ENVIRONMENT_FILE
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.environment import describe_device, environment_record, lock_digest, source_commit, versions

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
        raise RunError(
            f"{error.filename or folder} could not be written ({error.strerror}); older checkpoints in {folder} are "
            "untouched: fix the disk or make room and start again, the run continues from the latest of them",
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
    device = describe_device(distributed.device)
    logger.info("commit %s , lock sha256 %s", source_commit(), lock_digest()[:16])
    logger.info("torch %s , %s , %d processes", versions()["torch"], device, distributed.world_size)
    logger.info(
        "configuration %s , digest %s , seed %d", environment.config, config_digest(config)[:16], config.TRAIN.SEED
    )
    for source in sources:
        logger.info(
            "data set %s%s : %d sequences , %d frames , classes %s",
            source.name,
            " (SYNTHETIC: drawn by code)" if source.synthetic else "",
            len(source.sequences),
            sum(sequence.num_frames for sequence in source.sequences),
            ", ".join(sorted({sequence.class_name for sequence in source.sequences})),
        )
    size, interval = config.TRAIN.BATCH_SIZE, config.TRAIN.PRINT_INTERVAL
    logger.info(
        "%d epochs of %d samples in %d steps of %d samples ; a line every %d samples%s",
        config.TRAIN.EPOCH,
        loader.samples_per_epoch,
        loader.steps_per_epoch,
        size,
        interval,
        "" if interval % size == 0 else f" (at the end of the batch that reaches it: batches have {size})",
    )
    uploads = "the sidecar uploads new files" if environment.target else "nothing is uploaded"
    logger.info("output %s , %s", environment.phase_folder(), uploads)


def open_run(
    environment: Environment,
    config: Config,
    distributed: DistributedContext,
    *,
    data: DatasetRecord,
    began: StartRecord,
) -> RunRecord:
    """Write config.yaml, run.json, dataset.json and environment.json; returns the record in run.json."""
    folder, now = environment.phase_folder(), utc_now()
    before = read_run(folder)
    record = RunRecord(
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
    )
    write_atomic(folder / CONFIG_FILE, dump_config(config).encode())
    write_run(folder, record, "running")
    write_side_file(folder / DATASET_FILE, data)
    write_side_file(folder / ENVIRONMENT_FILE, environment_record(distributed, began.fingerprint))
    return record


def manifest_fields(config: Config, distributed: DistributedContext, record: RunRecord | None) -> dict[str, object]:
    """The fields of a manifest that are the same for all checkpoints of this process; none without a record."""
    if record is None:
        return {}
    return {
        "phase": record.phase,
        "config": yaml.safe_load(dump_config(config)),
        "config_digest": record.config_digest,
        "data_digest": record.data_digest,
        "fingerprint": record.starts[-1].fingerprint,
        "versions": versions(),
        "device": describe_device(distributed.device),
    }


def delete_old_checkpoints(environment: Environment, keep: int) -> None:
    """Delete the checkpoints of this phase that are no longer needed; uploaded ones only once they are verified."""
    folder = environment.phase_folder() / CHECKPOINTS
    for old in checkpoints_to_delete(
        list_checkpoints(folder, kinds=RESUMABLE), keep=keep, is_safe=_is_safe(environment)
    ):
        remove_checkpoint(old)


def _is_safe(environment: Environment) -> Callable[[Manifest], bool]:
    if environment.target is None:
        return lambda manifest: True
    from seqtrack.uploads.state import is_verified  # deferred: only runs with an upload target need it

    root = environment.output_dir
    return lambda manifest: is_verified(root, manifest.path.relative_to(root).as_posix(), manifest.sha256)

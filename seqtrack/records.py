"""What stands beside a run: first log lines, run.json, configuration, data, environment, and the manifests' facts."""

import contextlib
import errno
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from seqtrack.checkpoints import start as starting
from seqtrack.checkpoints.files import utc_now, write_atomic
from seqtrack.checkpoints.retention import expendable
from seqtrack.checkpoints.side_files import (
    DatasetRecord,
    EnvironmentRecord,
    RunRecord,
    StartRecord,
    write_side_file,
)
from seqtrack.checkpoints.store import Manifest, list_checkpoints, remove_checkpoint
from seqtrack.config.environment import Environment
from seqtrack.config.loader import config_digest, dump_config
from seqtrack.config.schema import Config
from seqtrack.data.loader import BatchLoader
from seqtrack.data.sources import Source
from seqtrack.engine import fingerprint as prints
from seqtrack.engine.ranks import Ranks
from seqtrack.engine.saving import Saver
from seqtrack.errors import RunError
from seqtrack.prepare import run_fingerprint
from seqtrack.reports import verdict
from seqtrack.reports.plots import PhasePlots

logger = logging.getLogger(__name__)

_DISK_ERRORS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOENT}
    | {errno.EISDIR, errno.ENOTDIR, errno.ESTALE}
)


@contextlib.contextmanager
def disk_trouble(folder: Path) -> Iterator[None]:
    """Turn what the file system says while a run goes on into an end with a cause.

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
            f"{where} could not be written ({error.strerror}); the checkpoints in {folder} are untouched: mend the "
            "disk or make room and start again, the run goes on from the newest of them",
            code="run.disk",
        ) from error


def log_path(folder: Path, environment: Environment, ranks: Ranks) -> Path | None:
    """The human log of a run; None in a process that writes none."""
    if not ranks.is_main:
        return None
    return folder / "logs" / f"seqtrack-{Path(environment.config).stem}.log"


def say_what_runs(
    environment: Environment, config: Config, ranks: Ranks, sources: list[Source], loader: BatchLoader
) -> None:
    """The first lines of a log: code, lock, machine, configuration, data, sizes, and where output goes."""
    uploads = "the sidecar uploads new files" if environment.target else "nothing is uploaded"
    logger.info("commit %s , lock sha256 %s", prints.source_commit(), prints.lock_digest()[:16])
    logger.info(
        "torch %s , %s , %d processes", prints.versions()["torch"], prints.describe_device(ranks.device), ranks.world
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
    folder: Path, environment: Environment, config: Config, ranks: Ranks, *, data: DatasetRecord, began: StartRecord
) -> RunRecord:
    """Write what stands beside the run; returns the record in run.json.

    A kill right after it leaves a run without its other files, which the next start writes.
    """
    before = starting.read_run(folder)
    now = utc_now()
    write_atomic(folder / "config.yaml", dump_config(config).encode())
    record = starting.write_run(
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
    write_side_file(folder / "dataset.json", data)
    write_side_file(folder / "environment.json", EnvironmentRecord(**prints.environment(ranks, began.fingerprint)))
    return record


def manifest_facts(environment: Environment, config: Config, ranks: Ranks, data_digest: str) -> dict[str, Any]:
    """The fields of a manifest that are the same for all checkpoints of this process."""
    return {
        "phase": environment.phase,
        "config": yaml.safe_load(dump_config(config)),
        "config_digest": config_digest(config),
        "data_digest": data_digest,
        "fingerprint": run_fingerprint(config, ranks),
        "versions": prints.versions(),
        "device": prints.describe_device(ranks.device),
    }


def conclude(environment: Environment, record: RunRecord) -> int:
    """The verdict over both phases, where both are there, and the word that the run is complete; the exit code."""
    code = verdict.conclude(environment.output_dir, record)
    # Last: the sidecar takes this word for the end of all files.
    starting.write_run(environment.phase_folder(), record, state="complete")
    return code


def make_saver(folder: Path, start: starting.Start) -> Saver:
    """The saver of a run."""
    parent = None
    if start.manifest is not None:
        parent = start.manifest.sha256 if start.manifest.kind == "epoch" else start.manifest.parent_sha256
    return Saver(folder / starting.CHECKPOINTS, parent_sha256=parent)


def after_checkpoint(
    folder: Path, environment: Environment, config: Config, plots: PhasePlots
) -> Callable[[Manifest], None]:
    """What follows each durable checkpoint: the folder is tidied, and plots are drawn again after an epoch."""

    def is_safe(manifest: Manifest) -> bool:
        if environment.target is None:
            return True
        from seqtrack.uploads.journal import is_verified

        place = manifest.path.relative_to(environment.output_dir).as_posix()
        return is_verified(environment.output_dir, place, manifest.sha256)

    def tidy(manifest: Manifest) -> None:
        present = list_checkpoints(folder / starting.CHECKPOINTS, kinds=starting.RESUMABLE)
        for old in expendable(present, keep=config.TRAIN.KEEP_CHECKPOINTS, is_safe=is_safe):
            remove_checkpoint(old)
        if manifest.kind == "epoch":
            plots.redraw()

    return tidy

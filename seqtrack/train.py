"""One run, top to bottom; read this first.

Settings, data, resume point, state, training loop, comparison. Whatever is refused is refused before the first write.
"""

import contextlib
import logging
import os
from collections.abc import Mapping
from logging.handlers import MemoryHandler

from seqtrack.checkpoints.resume_point import ResumePoint, write_run
from seqtrack.checkpoints.side_files import DatasetRecord
from seqtrack.config.environment import Environment, configure
from seqtrack.config.schema import Config
from seqtrack.data.loader import BatchLoader
from seqtrack.data.sources import describe
from seqtrack.errors import STOPPED_EXIT_CODE
from seqtrack.reports.plots import PhasePlots
from seqtrack.run_dir import LOGS, log_path
from seqtrack.runtime.distributed import DistributedContext, join
from seqtrack.runtime.metrics_log import RunLog, early_log_records, logging_to
from seqtrack.runtime.stop import StopRequest
from seqtrack.training import build, run_metadata
from seqtrack.training.checkpointer import Checkpointer
from seqtrack.training.resume import CachedCheckpoint, claim_folder, find_run, load_state, log_resume_point
from seqtrack.training.state import TrainState
from seqtrack.training.train_step import TrainStep
from seqtrack.training.trainer import Trainer, Validation

logger = logging.getLogger(__name__)


def train(environ: Mapping[str, str] = os.environ) -> int:
    """Train one phase by the environment variables. Returns 0 when complete, 75 when stopped on request.

    Raises:
        UserError: configuration, data or checkpoints are invalid; nothing was written.
        RunError: the run could not continue.
    """
    with early_log_records() as early, StopRequest() as stop:
        environment, config = configure(environ)
        return _train(environment, config, stop, early)


def _train(environment: Environment, config: Config, stop: StopRequest, early: MemoryHandler) -> int:
    with join(environment.device) as distributed:
        build.set_kernels(config, distributed)
        sources = build.open_sources(config, environment.data_dir)
        data, cached = describe(sources), CachedCheckpoint()
        folder = environment.phase_folder()
        with contextlib.closing(build.build_loader(config, sources, distributed)) as loader:
            loader.start_workers()
            start = distributed.run_on_rank0_and_broadcast(
                lambda: find_run(environment, config, data.digest, cached, loader.steps_per_epoch)
            )
            if start.finished:
                logger.info("%s is complete after epoch %d; there is nothing to do", folder, config.TRAIN.EPOCH)
                return 0
            state = build.build_state(config, distributed, loader.steps_per_epoch, fresh=start.manifest is None)
            checkpointer = run_metadata.make_checkpointer(folder, start)
            load_state(state, start, distributed, cached)
            validate = build.make_validation(config, environment.data_dir, sources, distributed)
            with (
                claim_folder(folder, start, distributed),
                run_metadata.explain_disk_errors(folder),
                logging_to(
                    log_path(folder, environment.config) if distributed.is_main else None,
                    rank=distributed.rank,
                    earlier=early,
                ),
            ):
                run_metadata.log_run_header(environment, config, distributed, sources, loader)
                return _run(
                    environment,
                    config,
                    distributed,
                    stop,
                    data=data,
                    loader=loader,
                    state=state,
                    start=start,
                    checkpointer=checkpointer,
                    validate=validate,
                )


def _run(
    environment: Environment,
    config: Config,
    distributed: DistributedContext,
    stop: StopRequest,
    *,
    data: DatasetRecord,
    loader: BatchLoader,
    state: TrainState,
    start: ResumePoint,
    checkpointer: Checkpointer,
    validate: Validation | None,
) -> int:
    """Train from the resume point on, and compare the phases at the end."""
    folder = environment.phase_folder()
    began = log_resume_point(start, build.run_fingerprint(config, distributed))
    record = (
        run_metadata.open_run(folder, environment, config, distributed, data=data, began=began)
        if distributed.is_main
        else None
    )
    train_step = TrainStep(state, build.callable_form(config, state.model), distributed, config)
    log = RunLog(folder / LOGS, phase=environment.phase, resume_step=start.step, writes=distributed.is_main)
    plots = PhasePlots(folder)
    checkpointer.on_durable = run_metadata.after_checkpoint(folder, environment, config, plots)
    with contextlib.closing(log), contextlib.closing(plots), contextlib.closing(checkpointer):
        complete = Trainer(
            state,
            config,
            loader=loader,
            train_step=train_step,
            checkpointer=checkpointer,
            log=log,
            distributed=distributed,
            stop=stop,
            manifest_fields=run_metadata.manifest_fields(environment, config, distributed, data.digest),
            validate=validate,
        ).run()
    if record is None:
        return 0 if complete else STOPPED_EXIT_CODE
    plots.finish()
    if not complete:
        write_run(folder, record, state="stopped")
        return STOPPED_EXIT_CODE
    logger.info("[phase_%d] complete : %d epochs , %d steps", environment.phase, state.epoch, state.step)
    return run_metadata.conclude(environment, record)

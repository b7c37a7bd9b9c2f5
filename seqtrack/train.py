"""One run, top to bottom; read this first.

Settings, data, where to start, the state, the loop, the proof. What can be refused is refused before it writes.
"""

import contextlib
import logging
import os
from collections.abc import Mapping

import torch
from torch.amp.grad_scaler import GradScaler

from seqtrack import prepare, records
from seqtrack.checkpoints.side_files import DatasetRecord
from seqtrack.checkpoints.start import Start, write_run
from seqtrack.config.environment import Environment, configure
from seqtrack.config.schema import Config
from seqtrack.data.loader import BatchLoader
from seqtrack.data.sources import SOURCES, Source, describe
from seqtrack.engine.log import EarlyLines, RunLog, logging_to
from seqtrack.engine.loop import Loop, Validation
from seqtrack.engine.optimizer import NamedOptimizer, Schedule
from seqtrack.engine.ranks import Ranks, join
from seqtrack.engine.saving import Saver
from seqtrack.engine.state import History, Meters, RandomStates, TrainState
from seqtrack.engine.step import Stepper
from seqtrack.engine.stop import StopRequest
from seqtrack.errors import STOPPED_EXIT_CODE
from seqtrack.reports.plots import PhasePlots
from seqtrack.resuming import Reading, claim_folder, find_run, load_state, say_start

logger = logging.getLogger(__name__)


def train(environ: Mapping[str, str] = os.environ) -> int:
    """Train one phase as the environment asks. Returns 0 when complete, 75 when stopped on request.

    Raises:
        UserError: configuration, data or checkpoints are not as they must be; nothing was written.
        RunError: the run could not go on.
    """
    with EarlyLines() as early, StopRequest() as stop:
        environment, config = configure(environ, known_datasets=[name.lower() for name in SOURCES])
        return _train(environment, config, stop, early)


def _train(environment: Environment, config: Config, stop: StopRequest, early: EarlyLines) -> int:
    with join(environment.device) as ranks:
        prepare.set_kernels(config, ranks)
        sources = prepare.open_sources(config, environment.data_dir)
        data, reading = DatasetRecord.model_validate(describe(sources)), Reading()
        folder = environment.phase_folder()
        with contextlib.closing(_make_loader(config, sources, ranks)) as loader:
            loader.start_workers()
            start = ranks.agree(lambda: find_run(environment, config, data.digest, reading, loader.steps_per_epoch))
            if start.finished:
                logger.info("%s is complete after epoch %d; there is nothing to do", folder, config.TRAIN.EPOCH)
                return 0
            state = _make_state(config, ranks, loader.steps_per_epoch, fresh=start.manifest is None)
            saver = records.make_saver(folder, start)
            load_state(state, start, ranks, reading)
            validate = prepare.make_validation(config, environment.data_dir, sources, ranks)
            with (
                claim_folder(folder, start, ranks),
                records.disk_trouble(folder),
                logging_to(records.log_path(folder, environment, ranks), rank=ranks.rank, earlier=early.take()),
            ):
                records.say_what_runs(environment, config, ranks, sources, loader)
                return _run(
                    environment,
                    config,
                    ranks,
                    stop,
                    data=data,
                    loader=loader,
                    state=state,
                    start=start,
                    saver=saver,
                    validate=validate,
                )


def _make_loader(config: Config, sources: list[Source], ranks: Ranks) -> BatchLoader:
    dataset = prepare.make_dataset(config, sources)
    return BatchLoader(
        dataset,
        batch_size_global=config.TRAIN.BATCH_SIZE,
        samples_per_epoch=prepare.samples_per_epoch(config, dataset),
        world=ranks.world,
        rank=ranks.rank,
        num_workers=prepare.num_workers(config),
        pin=ranks.device.type == "cuda",
    )


def _make_state(config: Config, ranks: Ranks, steps_per_epoch: int, *, fresh: bool) -> TrainState:
    model = prepare.make_model(config, ranks, fresh=fresh)
    optimizer = NamedOptimizer(model, prepare.optimizer_settings(config))
    rng = RandomStates(ranks.rank)
    rng.seed(config.TRAIN.SEED)
    return TrainState(
        model=model,
        optimizer=optimizer,
        scheduler=Schedule(optimizer, prepare.schedule_settings(config, steps_per_epoch)),
        scaler=GradScaler(ranks.device.type, enabled=prepare.step_settings(config, ranks).amp is torch.float16),
        rng=rng,
        meters=Meters(),
        history=History(),
    )


def _run(
    environment: Environment,
    config: Config,
    ranks: Ranks,
    stop: StopRequest,
    *,
    data: DatasetRecord,
    loader: BatchLoader,
    state: TrainState,
    start: Start,
    saver: Saver,
    validate: Validation | None,
) -> int:
    """From where the run starts to the verdict."""
    folder = environment.phase_folder()
    began = say_start(start, prepare.run_fingerprint(config, ranks))
    record = records.open_run(folder, environment, config, ranks, data=data, began=began) if ranks.is_main else None
    stepper = Stepper(state, prepare.callable_form(config, state.model), ranks, prepare.step_settings(config, ranks))
    log = RunLog(folder / "logs", phase=environment.phase, resume_step=start.step, writes=ranks.is_main)
    plots = PhasePlots(folder, log.curves)
    saver.on_durable = records.after_checkpoint(folder, environment, config, plots)
    with contextlib.closing(log), contextlib.closing(plots), contextlib.closing(saver):
        complete = Loop(
            state,
            loader=loader,
            stepper=stepper,
            saver=saver,
            log=log,
            ranks=ranks,
            stop=stop,
            plan=prepare.loop_plan(config, records.manifest_facts(environment, config, ranks, data.digest)),
            validate=validate,
        ).run()
    if record is None:
        return 0 if complete else STOPPED_EXIT_CODE
    plots.finish()
    if not complete:
        write_run(folder, record, state="stopped")
        return STOPPED_EXIT_CODE
    logger.info("[phase_%d] complete : %d epochs , %d steps", environment.phase, state.epoch, state.step)
    return records.conclude(environment, record)

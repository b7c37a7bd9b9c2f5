"""One run, top to bottom; read this first.

Settings, data, resume point, state, training loop, comparison. Whatever is refused is refused before the first write.
"""

import contextlib
import logging

from seqtrack.checkpoints.resume_point import write_run
from seqtrack.checkpoints.side_files import Manifest
from seqtrack.config.environment import Environment
from seqtrack.config.loader import flat_values
from seqtrack.config.schema import Config
from seqtrack.data.sources import describe
from seqtrack.errors import STOPPED_EXIT_CODE
from seqtrack.reports import verdict
from seqtrack.reports.plots import PhasePlots
from seqtrack.run_dir import CHECKPOINTS, LOGS, log_path
from seqtrack.runtime.distributed import join
from seqtrack.runtime.metrics_log import RunLog, run_logging
from seqtrack.runtime.stop import StopRequest
from seqtrack.training import build, run_metadata
from seqtrack.training.checkpointer import Checkpointer
from seqtrack.training.resume import claim_folder, find_run, load_state, log_resume_point
from seqtrack.training.train_step import TrainStep
from seqtrack.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train(environment: Environment, config: Config) -> int:
    """Train one phase. Returns 0 when complete, 75 when stopped on request.

    Raises:
        UserError: data or checkpoints are invalid; nothing was written.
        RunError: the run could not continue.
    """
    with run_logging() as open_log, StopRequest(environment.stop_after_s) as stop, contextlib.ExitStack() as open_:
        folder = environment.phase_folder()
        distributed = join(environment.device)
        build.set_kernels(config, distributed)
        sources = build.open_sources(config, environment.data_dir)
        data = describe(sources)
        loader = open_.enter_context(contextlib.closing(build.build_loader(config, sources, distributed)))
        loader.start_workers()

        # Where the run starts, and the state there.
        start = distributed.run_on_rank0_and_broadcast(
            lambda: find_run(environment, config, data.digest, loader.steps_per_epoch)
        )
        if start.finished:
            logger.info("%s is complete after epoch %d; there is nothing to do", folder, config.TRAIN.EPOCH)
            run_metadata.log_next_steps(environment)
            return 0
        state = build.build_state(config, distributed, loader.steps_per_epoch, fresh=start.manifest is None)
        # Before the first step, for a run that does not resume.
        init_sha256 = start.manifest.init_sha256 if start.manifest else build.initial_digest(config, state.model)
        load_state(state, start, distributed)
        validate = build.make_validation(config, environment.data_dir, sources, distributed)

        # From here on files are written, by rank 0 alone.
        open_.enter_context(claim_folder(folder, start, distributed))
        open_.enter_context(run_metadata.explain_disk_errors(folder))
        open_log(log_path(folder, environment.config) if distributed.is_main else None, distributed.rank)
        run_metadata.log_run_header(environment, config, distributed, sources, loader)
        began = log_resume_point(start, build.run_fingerprint(config, distributed), distributed.world_size)
        record, manifest_fields = None, dict[str, object]()
        if distributed.is_main:
            opened = run_metadata.open_run(environment, config, distributed, data=data, began=began)
            record, manifest_fields = opened
            manifest_fields["init_sha256"] = init_sha256

        with contextlib.ExitStack() as writers:
            train_step = TrainStep(state, build.callable_form(config, state.model), distributed, config)
            log = RunLog(
                folder / LOGS,
                phase=environment.phase,
                epochs=config.TRAIN.EPOCH,
                resume_step=start.step,
                writes=distributed.is_main,
            )
            if distributed.is_main:
                log.settings, log.samples = flat_values(config), run_metadata.draw_samples(folder, loader.dataset)
            writers.enter_context(contextlib.closing(log))
            plots = writers.enter_context(contextlib.closing(PhasePlots(folder)))
            checkpointer = Checkpointer(folder / CHECKPOINTS, parent_sha256=start.parent_sha256)
            writers.enter_context(contextlib.closing(checkpointer))

            def after_checkpoint(manifest: Manifest) -> None:
                run_metadata.delete_old_checkpoints(environment, keep=config.TRAIN.KEEP_CHECKPOINTS)
                if manifest.kind != "step":
                    plots.redraw()

            checkpointer.on_durable = after_checkpoint
            complete = Trainer(
                state,
                config,
                loader=loader,
                train_step=train_step,
                checkpointer=checkpointer,
                log=log,
                distributed=distributed,
                stop=stop,
                manifest_fields=manifest_fields,
                validate=validate,
            ).run()

        if record is None:
            return 0 if complete else STOPPED_EXIT_CODE
        plots.finish()
        if not complete:
            write_run(folder, record, "stopped")
            return STOPPED_EXIT_CODE
        logger.info("[phase_%d] complete : %d epochs , %d steps", environment.phase, state.epoch, state.step)
        run_metadata.log_next_steps(environment)  # before the verdict, which is the last line
        code = verdict.conclude(environment.output_dir, record)
        write_run(folder, record, "complete")  # last: the sidecar expects no further files after it
        return code

"""A training run inside the test's process, which can be stopped after any step and resumed with any state."""

from collections.abc import Container, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from runs import TEST_DEVICE, environment
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from seqtrack.checkpoints.store import Manifest, manifest_of
from seqtrack.config.environment import configure
from seqtrack.data.sources import open_source
from seqtrack.device import choose_device
from seqtrack.run_dir import step_name
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.metrics_log import RunLog
from seqtrack.runtime.stop import StopRequest
from seqtrack.training import build
from seqtrack.training.checkpointer import Checkpointer
from seqtrack.training.state import TrainState
from seqtrack.training.train_step import TrainStep
from seqtrack.training.trainer import Trainer

RANKS = DistributedContext(0, 1, choose_device(TEST_DEVICE))
ALWAYS = {"TRAIN.SAVE_INTERVAL_S": "0", "TRAIN.VALIDATION_INTERVAL": "1"}
DESCRIBE = {"config_digest": "0" * 64, "data_digest": "0" * 64}


class StopAfter(StopRequest):
    """Requests a stop after a step, as a signal at that moment would."""

    def __init__(self, state: TrainState) -> None:
        super().__init__()
        self.state = state
        self.step: int | None = None

    @property
    def is_set(self) -> bool:
        return self.step is not None and self.state.step >= self.step


class Run:
    """A run of the tiny model in `folder`, its state fresh or given."""

    def __init__(
        self,
        folder: Path,
        data: Path,
        keys: Mapping[str, object] | None = None,
        *,
        state: tuple[dict[str, Tensor], dict[str, Any]] | None = None,
        resume_step: int = 0,
        parent: str | None = None,
        overflows: Container[int] = (),
        **hooks: Any,
    ) -> None:
        torch.set_num_threads(1)
        _, self.config = configure(environment(folder.parent, data, {**ALWAYS, **(keys or {})}))
        self.folder = folder
        for name in ("checkpoints", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        sources = [open_source("DEMO", data, classes=(), split="train")]
        self.loader = build.build_loader(self.config, sources, RANKS)
        self.state = build.build_state(self.config, RANKS, self.loader.steps_per_epoch, fresh=True)
        # A scaler that scales, and grows every third step, so that its state is one of those that count.
        self.state.scaler = GradScaler(RANKS.device.type, init_scale=1024.0, growth_interval=3, enabled=True)
        if state is not None:
            self.state.restore(*state)
        self.stop = StopAfter(self.state)
        self.resume_step = resume_step
        self.parent = parent
        self.hooks = hooks
        self.reads_late = RANKS.device.type == "cuda"
        # In these steps, counted from 1, a gradient is infinite, as fp16's is when its scale is too large.
        self.state.optimizer.parameters()[0].register_hook(
            lambda grad: grad * float("inf") if self.state.step + 1 in overflows else grad
        )

    def until(self, step: int | None) -> bool:
        """Train until after `step`, or to the end. Returns whether the last epoch is done."""
        self.stop.step = step
        checkpointer = Checkpointer(self.folder / "checkpoints", parent_sha256=self.parent)
        log = RunLog(
            self.folder / "logs", phase=1, epochs=3, resume_step=max(self.resume_step, self.state.step), writes=True
        )
        with closing(log), closing(checkpointer):
            loop = Trainer(
                self.state,
                self.config,
                loader=self.loader,
                train_step=TrainStep(self.state, self.state.model, RANKS, self.config),
                checkpointer=checkpointer,
                log=log,
                distributed=RANKS,
                stop=self.stop,
                manifest_fields=DESCRIBE,
                **self.hooks,
            )
            loop.reads_late = self.reads_late
            done = loop.run()
        self.parent = checkpointer.parent_sha256
        return done

    def at(self, step: int) -> Manifest:
        """The checkpoint inside an epoch that was saved after `step`."""
        return manifest_of(self.folder / "checkpoints" / step_name(step))

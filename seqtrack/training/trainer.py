"""The loop over epochs and steps: when to log, when to save, when to stop.

Knows the training state and the objects that act on it; knows nothing of how they were built or where a run starts.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from seqtrack.checkpoints.safetensors_io import utc_now
from seqtrack.checkpoints.side_files import IntervalRecord
from seqtrack.config.schema import Config
from seqtrack.data.loader import BatchLoader
from seqtrack.device import peak_memory
from seqtrack.run_dir import epoch_name, step_name
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.metrics_log import RunLog
from seqtrack.runtime.stop import StopRequest
from seqtrack.training import sanity_checks
from seqtrack.training.checkpointer import Checkpointer
from seqtrack.training.state import Meters, TrainState
from seqtrack.training.train_step import LaunchedStep, StepResult, TrainStep

logger = logging.getLogger(__name__)

_MAX_ETA_S = 9.99e9  # a record's seconds are below 1e10
# Scores a model on held-out sequences; None when it was stopped before it had them.
Validation = Callable[[nn.Module, StopRequest], dict[str, float] | None]


@dataclass(eq=False)
class Trainer:
    """Trains from where the state is to the last epoch, or until a stop is requested; `manifest_fields` are those that
    are the same for the whole run."""

    state: TrainState
    config: Config
    loader: BatchLoader
    train_step: TrainStep
    checkpointer: Checkpointer
    log: RunLog
    distributed: DistributedContext
    stop: StopRequest
    manifest_fields: Mapping[str, object]
    validate: Validation | None = None

    def __post_init__(self) -> None:
        # On a GPU a step's numbers are read when the next step has been launched, so that the GPU never waits for the
        # host. They are therefore counted, logged and checked one step late, but before any save.
        self.reads_late = self.distributed.device.type == "cuda"
        self._epoch_means: dict[str, float] = {}  # of the epoch that was finished last
        self._unread: deque[tuple[LaunchedStep, int]] = deque()
        self.checkpointer.before_write = self.log.sync
        self._started = self._last_save = time.perf_counter()

    def run(self) -> bool:
        """Train. Returns True when the last epoch is done, False when stopped on request, with the state saved."""
        state = self.state
        self._gather_generators()
        if self.distributed.is_main:
            expected = {f"optimizer/{path}": tensor for path, tensor in state.optimizer.expected_state_shapes().items()}
            self.checkpointer.preallocate({**expected, **state.capture()[0]})
        if state.epoch and not state.sample and not self._after_epoch(state.epoch):
            return False
        first = state.epoch if state.sample else state.epoch + 1
        done = all(self._train_epoch(epoch) for epoch in range(first, self.config.TRAIN.EPOCH + 1))
        self.checkpointer.wait()
        return done

    def _train_epoch(self, epoch: int) -> bool:
        """One epoch, or the rest of it. Returns False when stopped."""
        state, samples = self.state, self.loader.samples_per_epoch
        if state.sample == 0:
            state.epoch, state.meters = epoch, Meters()
        first, self._epoch_clock, self._interval_clock = state.sample, _Clock(), _Clock()
        batches = self.loader.batches(
            epoch, start_step=state.sample // self.config.TRAIN.BATCH_SIZE, stop=lambda: self.stop.is_set
        )
        with self.log.progress(epoch, samples, done=state.sample) as bar:
            while state.sample < samples:
                waited = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return self._stopped_waiting()
                for clock in (self._epoch_clock, self._interval_clock):
                    clock.wait_s += time.perf_counter() - waited
                launched = self.train_step(batch, self._votes)
                state.sample += launched.count
                bar.update(launched.count)
                self._unread.append((launched, state.sample))
                last = state.sample >= samples
                late = self.reads_late and not last and state.step > 1
                # Only between two steps is the state consistent: all ranks vote, then all save or all continue.
                stop, save = self._read(leave=int(late))
                if state.step == 1 and self.distributed.is_main:
                    sanity_checks.check_first_loss(state.meters.loss, self.config.MODEL.BINS)
                    sanity_checks.check_encoder_gradient(state.model)
                if last:
                    break
                if stop or save:
                    stop |= self._read()[0]
                    self._save("step")
                if stop:
                    return self._stopped()
        self._finish_epoch(epoch, state.sample - first)
        return self._after_epoch(epoch)

    def _after_epoch(self, epoch: int) -> bool:
        """Validate the epoch whose checkpoint was saved, unless it has scores. Returns False when stopped."""
        finished = True
        due = self.validate is not None and epoch % self.config.TRAIN.VALIDATION_INTERVAL == 0
        if self.validate is not None and due and self.log.lacks_scores(epoch):
            self.checkpointer.wait()  # a validation may take hours, and a death in it must not cost the epoch
            if scores := self.validate(self.state.model, self.stop):
                self.log.validation(epoch, self.state.step, scores)
            finished = bool(scores)
        # Only rank 0 validates; the others wait for it here.
        votes = torch.tensor([not finished, self.stop.is_set], dtype=torch.float64, device=self.distributed.device)
        unfinished, stop = self.distributed.sum_in_place(votes).tolist()
        if unfinished or (stop and epoch < self.config.TRAIN.EPOCH):
            if self._epoch_means and epoch % self.config.TRAIN.CHECKPOINT_EPOCHS:
                self._save("epoch", **self._epoch_means)
            return self._stopped()
        return True

    def _read(self, *, leave: int = 0) -> tuple[bool, bool]:
        """Count and log the launched steps, except the last `leave`. Returns whether any voted to stop, and to save."""
        results = []
        while len(self._unread) > leave:
            launched, sample = self._unread.popleft()
            result = self.train_step.read(launched)
            results.append(result)
            self.state.meters.add(result.loss_sum, result.iou_sum, result.count, result.grad_norm, result.checksum)
            if sample >= self.loader.samples_per_epoch or self._ends_interval(launched, sample):
                self._log_interval(launched, sample, result)
        return any(result.stop for result in results), any(result.save for result in results)

    def _ends_interval(self, launched: LaunchedStep, sample: int) -> bool:
        """Whether the log interval ends with this step, which trained up to `sample` of the epoch."""
        interval = self.config.TRAIN.PRINT_INTERVAL
        return sample // interval > (sample - launched.count) // interval

    def _votes(self) -> tuple[bool, bool]:
        """Whether this process wants to stop, and whether a save is due."""
        self.checkpointer.check()
        # With a disk slower than the interval saves are postponed; waiting for it would block training.
        due = 0 < self.config.TRAIN.SAVE_INTERVAL_S <= time.perf_counter() - self._last_save
        return self.stop.is_set, due and self.distributed.is_main and not self.checkpointer.is_busy

    def _stopped(self, saved: str = "the state is saved; start again to continue") -> bool:
        by, state = self.stop.signal_name or "of another process", self.state
        logger.info("stopped on request (%s) at epoch %d, step %d: %s", by, state.epoch, state.step, saved)
        return False

    def _stopped_waiting(self) -> bool:
        """Stop while the loader has no batch: between two steps the state is consistent."""
        self._read()
        if self.distributed.world_size > 1:  # the others wait inside their step and cannot save
            return self._stopped("nothing is saved")
        if self.state.sample:  # else the previous epoch's checkpoint holds this state
            self._save("step")
        return self._stopped()

    def _log_interval(self, launched: LaunchedStep, sample: int, result: StepResult) -> None:
        meters, samples = self.state.meters, self.loader.samples_per_epoch
        measured = self._interval_clock.measured(meters.interval_count)
        self._interval_clock = _Clock()
        record = IntervalRecord(
            type="interval",
            phase=self.log.phase,
            epoch=self.state.epoch,
            step=launched.step,
            sample=sample,
            samples=samples,
            interval_samples=meters.interval_count,
            loss=meters.loss,
            iou=meters.iou,
            interval_loss=meters.interval_loss_sum / meters.interval_count,
            interval_iou=meters.interval_iou_sum / meters.interval_count,
            lr=launched.rates,
            grad_norm=result.grad_norm,
            skipped_steps=meters.interval_skipped,
            checksum=f"{meters.interval_checksum:016x}",
            elapsed_s=self._elapsed(),
            eta_s=min((samples - sample) / measured["samples_per_s"], _MAX_ETA_S),
            **measured,
        )
        self.log.interval(record)
        meters.start_interval()

    def _elapsed(self) -> float:
        return self.log.elapsed_before_s + time.perf_counter() - self._started

    def _finish_epoch(self, epoch: int, trained: int) -> None:
        state, meters = self.state, self.state.meters
        record: dict[str, object] = {
            "epoch": epoch,
            "loss": meters.loss,
            "iou": meters.iou,
            "samples": meters.count,
            "steps": meters.steps,
            "lr": state.scheduler.rates(),
            "grad_norm": meters.grad_norm,
            "skipped_steps": meters.skipped,
            "checksum": f"{meters.checksum:016x}",
        }
        state.history.append(record)
        measured = {**self._epoch_clock.measured(trained), **peak_memory(self.distributed.device)}
        self.log.epoch({**record, **measured, "step": state.step, "elapsed_s": self._elapsed()})
        if self.distributed.is_main:
            sanity_checks.check_history(state.history)
        state.sample, state.meters = 0, Meters()
        self._epoch_means = {"loss": meters.loss, "iou": meters.iou}
        is_thin = epoch % self.config.TRAIN.CHECKPOINT_EPOCHS and epoch < self.config.TRAIN.EPOCH
        self._save("thin" if is_thin else "epoch", **self._epoch_means)

    def _save(self, kind: str, **means: float) -> None:
        """Save the state; `means` of an epoch's end, whose meters are empty again."""
        state = self.state
        self._gather_generators()
        if self.distributed.is_main:
            tensors, values = state.capture()
            describe = {
                "kind": kind,
                "epoch": state.epoch,
                "step": state.step,
                "sample": state.sample,
                **(means or {"loss": state.meters.loss, "iou": state.meters.iou}),
                "created": utc_now(),
                **self.manifest_fields,
            }
            name = step_name(state.step) if kind == "step" else epoch_name(state.epoch)
            self.checkpointer.save(name, tensors, values, describe=describe)
        if kind != "thin":  # which leaves nothing to resume from
            self._last_save = time.perf_counter()

    def _gather_generators(self) -> None:
        if self.config.TRAIN.SHARDS:  # they are equal
            return
        of_ranks = self.distributed.gather(self.state.rng.of_this_rank())
        self.state.rng.of_ranks = {str(rank): states for rank, states in enumerate(of_ranks)}


class _Clock:
    """Wall-clock time since it was made, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self.began, self.wait_s = time.perf_counter(), 0.0

    def measured(self, samples: int) -> dict[str, float]:
        """The fields of a record for `samples` trained in this time."""
        seconds = max(time.perf_counter() - self.began, math.ulp(1.0))
        return {
            "time_s": seconds,
            "samples_per_s": samples / seconds,
            "data_wait_s": self.wait_s,
            "data_wait_share": self.wait_s / seconds,
        }

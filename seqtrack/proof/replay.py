"""Train a part of a run again from one of its checkpoints, and compare everything with what the run recorded.

The part goes through the same `Trainer` as the run did; its log and its checkpointer compare instead of writing.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from seqtrack.checkpoints.resume_point import ResumePoint
from seqtrack.checkpoints.safetensors_io import DamagedFileError, sha256_file, write_checkpoint_file
from seqtrack.checkpoints.side_files import AuditedDifference, EpochRecord, IntervalRecord, Manifest
from seqtrack.checkpoints.store import DERIVED_FIELDS, MODEL_PART, write_checkpoint
from seqtrack.checkpoints.tensors import tensor_bytes
from seqtrack.config.schema import Config
from seqtrack.data.loader import BatchLoader
from seqtrack.errors import UserError
from seqtrack.reports.compare import COMPONENT_ORDER
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS, RunLog
from seqtrack.runtime.stop import StopRequest
from seqtrack.training import build
from seqtrack.training.checkpointer import Checkpointer, lineage
from seqtrack.training.resume import load_state
from seqtrack.training.state import LINEAGE, TrainState
from seqtrack.training.train_step import LaunchedStep, NotFiniteError, TrainStep
from seqtrack.training.trainer import Trainer

TrainingRecord = IntervalRecord | EpochRecord
# What a record's field tells, causes before their consequences: which samples, what the model made of them, what the
# optimizer did. A field that is not listed is part of the samples.
_FORWARD = ("loss", "iou", "interval_loss", "interval_iou")
_OPTIMIZER = ("grad_norm", "skipped_steps", "lr")


@dataclass(frozen=True)
class Segment:
    """A part of a run to be trained again.

    Args:
        epoch: the epoch whose records are compared; epochs between `start` and it are trained and compared as well.
        start: the checkpoint that training starts from; None for the untrained state of the seed.
        steps: how many steps of `epoch`; None for all of them and the state after them.
    """

    epoch: int
    start: Manifest | None
    steps: int | None = None


@dataclass
class Replayed:
    """What came of a segment.

    Args:
        records: how many records were compared.
        states: the epochs whose whole state was compared.
        largest_difference: relative, of any number that was compared.
    """

    segment: Segment
    steps: int = 0
    records: int = 0
    states: list[int] = field(default_factory=list)
    mismatch: AuditedDifference | None = None
    largest_difference: float = 0.0
    stopped: bool = False

    def found(self, epoch: int, step: int, quantity: str, recorded: object, recomputed: object) -> None:
        """Note a difference; the first one counts."""
        if self.mismatch is None:
            self.mismatch = AuditedDifference(
                epoch=epoch, step=step, quantity=quantity, recorded=str(recorded), recomputed=str(recomputed)
            )


class _ComparingLog(RunLog):
    """Compares records instead of writing them."""

    def __init__(self, phase: int, recorded: Sequence[TrainingRecord], result: Replayed, is_main: bool) -> None:
        super().__init__(Path(), phase=phase, epochs=result.segment.epoch, resume_step=0, writes=False)
        self._recorded = {(one.type, one.step): one for one in recorded}
        self._result, self._is_main = result, is_main

    def progress(self, epoch: int, samples: int, *, done: int) -> "tqdm[Any]":
        quiet = None if self._is_main else True  # None: shown on terminals only
        return tqdm(total=samples, desc=f"recomputing epoch {epoch}", unit="sample", leave=False, disable=quiet)

    def interval(self, record: IntervalRecord) -> None:
        self._compare(record)

    def epoch(self, values: Mapping[str, object]) -> None:
        self._compare(EpochRecord.model_validate({"phase": self.phase, **values}))

    def _compare(self, ours: TrainingRecord) -> None:
        if not self._is_main:
            return
        result, theirs = self._result, self._recorded.pop((ours.type, ours.step), None)
        if theirs is None:
            result.found(ours.epoch, ours.step, "records", f"no {ours.type} record", f"loss {ours.loss}")
            return
        result.records += 1
        there, here = theirs.model_dump(), ours.model_dump()
        names = [name for name in here if name not in (*_FORWARD, *_OPTIMIZER, *WALL_CLOCK_FIELDS, "phase")]
        for quantity, fields in (("samples", names), ("forward", _FORWARD), ("optimizer", _OPTIMIZER)):
            for name in (name for name in fields if name in here):
                if there[name] != here[name]:
                    result.found(ours.epoch, ours.step, f"{quantity} ({name})", there[name], here[name])
                result.largest_difference = max(result.largest_difference, _relative(there[name], here[name]))

    def check_all_met(self, first: int, last: int) -> None:
        """The run must not have records in this range of steps that did not come again."""
        for _, step in sorted(self._recorded, key=lambda key: key[1]):
            if first < step <= last and self._result.mismatch is None:
                record = next(one for (_, at), one in self._recorded.items() if at == step)
                self._result.found(record.epoch, step, "records", f"a {record.type} record", "none")


class _ComparingCheckpointer(Checkpointer):
    """Compares the digests of the whole state with those of the run's manifests instead of writing it."""

    def __init__(self, manifests: Mapping[int, Manifest], result: Replayed, keep_in: Path | None) -> None:
        start = result.segment.start
        super().__init__(Path(), parent_sha256=start.sha256 if start else None)
        self._manifests, self._result, self._keep_in = manifests, result, keep_in

    def preallocate(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing is copied."""

    def save(
        self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any], *, describe: Mapping[str, object]
    ) -> None:
        epoch, step = int(str(describe["epoch"])), int(str(describe["step"]))
        if describe["kind"] == "step":
            return
        theirs = self._manifests.get(epoch)
        of_run = theirs or self._manifests[max(self._manifests)]  # its data and first weights are those of every epoch
        raw = {name: tensor_bytes(one) for name, one in tensors.items()}
        values = {**values, LINEAGE: lineage(of_run.model_dump(), self.parent_sha256)}
        written, size = write_checkpoint_file(None, raw, values)
        if theirs is None:  # deleted, for TRAIN.KEEP_CHECKPOINTS
            self.parent_sha256 = written.sha256
            return
        ours = written.parts
        for part in (*COMPONENT_ORDER, *sorted({*ours, *theirs.parts} - {*COMPONENT_ORDER})):
            if ours.get(part) != theirs.parts.get(part):
                recorded, recomputed = ((one.get(part) or "none")[:16] for one in (theirs.parts, ours))
                self._result.found(epoch, step, f"state ({part})", recorded, recomputed)
        facts: dict[str, object] = {name: describe[name] for name in ("step", "sample", "loss", "iou")}
        facts |= {"parent_sha256": self.parent_sha256, "weights_sha256": ours[MODEL_PART]}
        facts |= {"bytes": size, "sha256": written.sha256}
        for name, fact in facts.items():
            if (claimed := getattr(theirs, name)) != fact:
                recorded, recomputed = (one[:16] if isinstance(one, str) else str(one) for one in (claimed, fact))
                self._result.found(epoch, step, f"state ({name})", recorded, recomputed)
        if theirs.kind == "epoch" and theirs.path.is_file() and (digest := _digest_of(theirs.path)) != written.sha256:
            self._result.found(epoch, step, "state (file)", digest[:16], written.sha256[:16])
        self._result.states.append(epoch)
        self.parent_sha256 = theirs.sha256
        if self._keep_in is not None and epoch == self._result.segment.epoch and self._result.mismatch is None:
            kept = theirs.model_copy(update={"kind": "epoch"}).model_dump(exclude={*DERIVED_FIELDS})
            write_checkpoint(self._keep_in / theirs.file, raw, values, describe=kept)


def _digest_of(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror or error})") from error


@dataclass(eq=False)
class _ReplayingTrainer(Trainer):
    """Ends a log interval at each of these steps: TRAIN.PRINT_INTERVAL may differ from start to start of a run."""

    interval_steps: Collection[int] = ()

    def _ends_interval(self, launched: LaunchedStep, sample: int) -> bool:
        return launched.step in self.interval_steps


class _Until(StopRequest):
    """Stops after a step, at the first difference, or by a signal."""

    def __init__(self, state: TrainState, last_step: int, result: Replayed, give_up: Callable[[], bool]) -> None:
        super().__init__()
        self._state, self._last_step, self._result, self._give_up = state, last_step, result, give_up

    @property
    def is_set(self) -> bool:
        return super().is_set or self._state.step >= self._last_step or self._give_up()


@dataclass(frozen=True)
class Replay:
    """What segments of one run are trained with: its configuration, data, records and manifests.

    Args:
        recorded: the interval and epoch records of metrics.jsonl.
        manifests: by epoch; those without a checkpoint file as well.
        stops_at_difference: whether a segment ends at its first difference; otherwise the largest one is looked for.
    """

    config: Config
    phase: int
    loader: BatchLoader
    distributed: DistributedContext
    recorded: Sequence[TrainingRecord]
    manifests: Mapping[int, Manifest]
    stops_at_difference: bool = True

    def run(self, segment: Segment, *, keep_in: Path | None = None) -> Replayed:
        """Train one segment again.

        Args:
            keep_in: where the checkpoint of the segment's epoch is written if everything before it was equal.

        Raises:
            UserError: the checkpoint is damaged or does not fit its configuration.
        """
        result, start, distributed = Replayed(segment), segment.start, self.distributed
        state = build.build_state(self.config, distributed, self.loader.steps_per_epoch, fresh=start is None)
        if start is not None:
            load_state(state, ResumePoint(start), distributed)
        else:
            self._check_initial(build.initial_digest(self.config, state.model))
        first, per_epoch = state.step, self.loader.steps_per_epoch
        steps = per_epoch if segment.steps is None else min(segment.steps, per_epoch)
        last = (segment.epoch - 1) * per_epoch + steps
        log = _ComparingLog(self.phase, self.recorded, result, distributed.is_main)
        checkpointer = _ComparingCheckpointer(self.manifests, result, keep_in)
        give_up = (lambda: result.mismatch is not None) if self.stops_at_difference else (lambda: False)
        with _Until(state, math.inf if steps == per_epoch else last, result, give_up) as stop:  # type: ignore[arg-type]
            train_to = self.config.TRAIN.model_copy(update={"EPOCH": segment.epoch, "SAVE_INTERVAL_S": 0})
            trainer = _ReplayingTrainer(
                state,
                self.config.model_copy(update={"TRAIN": train_to}),
                loader=self.loader,
                train_step=TrainStep(state, build.callable_form(self.config, state.model), distributed, self.config),
                checkpointer=checkpointer,
                log=log,
                distributed=distributed,
                stop=stop,
                manifest_fields={},
                interval_steps={one.step for one in self.recorded if isinstance(one, IntervalRecord)},
            )
            try:
                trainer.run()
            except NotFiniteError as error:
                result.found(state.epoch, state.step, "forward (loss)", "finite", error)
            result.stopped = stop.signal_name is not None
        result.steps = state.step - first
        if distributed.is_main and not result.stopped:
            log.check_all_met(first, state.step)
        return result

    def _check_initial(self, ours: str | None) -> None:
        theirs = self.manifests[min(self.manifests)].init_sha256
        if ours != theirs:
            text = f"the run began with weights of digest {str(theirs)[:16]}; here they are {str(ours)[:16]}"
            raise UserError(f"{text}: TRAIN.INIT_FROM must name the same weights", "audit.other_init")


def _relative(one: object, other: object) -> float:
    """The largest relative difference of two numbers or lists of numbers; 0 for anything else."""
    pairs = zip(one, other, strict=False) if isinstance(one, list) and isinstance(other, list) else [(one, other)]
    numbers = [(a, b) for a, b in pairs if isinstance(a, int | float) and isinstance(b, int | float) and a != b]
    return max((abs(a - b) / max(abs(a), abs(b)) for a, b in numbers), default=0.0)

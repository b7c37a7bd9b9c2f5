"""One optimizer step: forward, loss, backward, clip, update.

Knows the model, one batch and the recipe; knows nothing of epochs, files or time. Nothing here waits for the device
except `TrainStep.read`, which is called for a step when the next one has been launched.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqtrack.config.schema import Config
from seqtrack.data.loader import Batch
from seqtrack.device import DTYPES, LESS_MEMORY, capability_of, choose_precision, explain_out_of_memory
from seqtrack.errors import RunError
from seqtrack.model.images import normalise
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.runtime.distributed import DistributedContext, Gradients, ShardGradients
from seqtrack.seeding import step_seed
from seqtrack.shards import shard_range
from seqtrack.tokens import target_sequences
from seqtrack.training.state import TrainState


class NotFiniteError(RunError):
    """A loss or a gradient is NaN or infinite. Further training would ruin the weights, so the run ends."""


class SentBatch(NamedTuple):
    """What the device needs of a batch: images and brightness as in `Batch`; (B, 5) int64 tokens and targets; and
    `real`, (B,) float32, 0 for the placeholder sample of an empty shard."""

    templates: Tensor
    search: Tensor
    template_brightness: Tensor
    search_brightness: Tensor
    input_tokens: Tensor
    targets: Tensor
    real: Tensor


@dataclass(frozen=True)
class StepResult:
    """Sums over the whole global batch; the gradient's L2 norm before clipping, None where fp16 overflowed and the step
    was skipped; and whether any rank voted to stop, and to save."""

    loss_sum: float
    iou_sum: float
    count: int
    grad_norm: float | None
    checksum: int = 0  # of the samples
    stop: bool = False
    save: bool = False


@dataclass(frozen=True)
class LaunchedStep:
    """A step that the device may still be computing; `TrainStep.read` waits for it."""

    step: int  # in the run, from 1
    where: str  # epoch and samples, for a message
    count: int
    rates: list[float]  # learning rates of the coming step
    numbers: Tensor  # float64, in transfer to the host: loss, IoU, two votes, two halves of a checksum, gradient norm
    arrived: "torch.cuda.Event | None"  # after which `numbers` can be read; None on a CPU


class TrainStep:
    """Takes steps with one model. `callable_model` is the wrapped or compiled form of `state.model`."""

    def __init__(
        self, state: TrainState, callable_model: nn.Module, distributed: DistributedContext, config: Config
    ) -> None:
        self.state = state
        self.model = callable_model
        self.distributed = distributed
        self.config = config
        # None for plain float32.
        self.amp = DTYPES[choose_precision(config.TRAIN.AMP, capability_of(distributed.device))]
        self.shards = config.TRAIN.SHARDS
        self.gradients = (
            ShardGradients(state.model, distributed, self.shards)
            if self.shards
            else Gradients(state.model, distributed)
        )
        self._copies = torch.cuda.Stream(distributed.device) if distributed.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch, votes: Callable[[], tuple[bool, bool]] = lambda: (False, False)) -> LaunchedStep:
        """Train on this rank's shard of one global batch; at the end ask `votes` whether to stop, and to save."""
        state, train = self.state, self.config.TRAIN
        self.gradients.clear()
        size = batch.search.shape[0]
        with explain_out_of_memory(f"at step {state.step + 1} with {size} samples per process", LESS_MEMORY):
            sums = self._backward(self._send(batch), batch.global_count)
            self.gradients.sum_over_ranks()
            state.scaler.unscale_(state.optimizer.inner)
            grad_norm = nn.utils.clip_grad_norm_(state.optimizer.parameters(), train.GRAD_CLIP_NORM or math.inf)
            state.scaler.step(state.optimizer.inner)
            state.scaler.update()
        state.scheduler.advance()
        state.step += 1
        # The votes are launched as constants: a copy to the device would wait for everything before it.
        given = torch.stack([sums.new_full((), one) for one in (*votes(), *divmod(batch.checksum, 2**32))])
        # An all-reduce of shards adds zeros to what one process computed, which is exact in any order.
        shared = self.distributed.sum_in_place(torch.cat((sums.flatten(), given)))
        sums, given = shared[: sums.numel()].view_as(sums), shared[sums.numel() :]
        while sums.shape[1] > 1:  # up the tree
            sums = sums[:, 0::2] + sums[:, 1::2]
        last = torch.cat((sums.flatten(), given, grad_norm.double().reshape(1)))
        numbers = last.to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if self._copies is not None else None  # type: ignore[no-untyped-call]
        if arrived is not None:
            arrived.record()  # type: ignore[no-untyped-call]
        where = f"epoch {state.epoch}, samples {int(batch.indices[0])}..{int(batch.indices[-1])} of this rank"
        return LaunchedStep(state.step, where, batch.global_count, state.scheduler.rates(), numbers, arrived)

    def read(self, launched: LaunchedStep) -> StepResult:
        """Wait for a step and check its numbers.

        Raises:
            NotFiniteError: the loss or the gradient is not finite; the weights may be ruined and must not be saved.
            RunError: fp16's scale has shrunk so far that no gradient fits.
        """
        if launched.arrived is not None:
            launched.arrived.synchronize()
        loss, iou, stop, save, high, low, norm = launched.numbers.tolist()
        # fp16's scaler provokes infinite gradients by design: it then skips the step and lowers its scale.
        skipped = not math.isfinite(norm) and self.state.scaler.is_enabled()
        if not math.isfinite(loss) or not (skipped or math.isfinite(norm)):
            raise NotFiniteError(
                f"the loss is {loss / launched.count}, the gradient's norm {norm} at step {launched.step} "
                f"({launched.where}); the checkpoints before it are valid: lower TRAIN.LR or turn TRAIN.AMP off, and "
                "resume from one of them",
                code="train.not_finite",
            )
        if skipped and (scale := self.state.scaler.get_scale()) < 1:
            raise RunError(
                f"every gradient overflows in fp16 up to step {launched.step} ({launched.where}), although the loss is "
                f"scaled by {scale:g} only; the checkpoints are valid: use TRAIN.AMP bf16 or off",
                code="train.fp16_scale",
            )
        checksum = ((int(high) << 32) + int(low)) % 2**64
        return StepResult(loss, iou, launched.count, None if skipped else norm, checksum, stop > 0, save > 0)

    def _send(self, batch: Batch) -> SentBatch:
        """Copy a batch to the device while that still computes; values are checked on the host before."""
        inputs, targets = target_sequences(batch.boxes, self.config.MODEL.BINS, self.config.DATA.SEQ_FORMAT)
        real = (torch.arange(batch.search.shape[0]) < batch.count).to(torch.float32)
        images = (batch.templates, batch.search, batch.template_brightness, batch.search_brightness)
        on_host, device = SentBatch(*images, inputs, targets, real), self.distributed.device
        if self._copies is None:
            return SentBatch(*(tensor.to(device) for tensor in on_host))
        computing = torch.cuda.current_stream(device)
        with torch.cuda.stream(self._copies):
            sent = SentBatch(*(tensor.to(device, non_blocking=True) for tensor in on_host))
        computing.wait_stream(self._copies)
        for tensor in sent:  # so that its memory is not used again before the step has read it
            tensor.record_stream(computing)
        return sent

    def _parts(self, size: int, global_count: int) -> Iterator[tuple[int, slice]]:
        """The parts in which this process computes its samples: its shards by number, or accumulation parts."""
        if not self.shards:
            parts = min(self.config.TRAIN.ACCUMULATION_STEPS, size)
            yield from ((0, slice(one * size // parts, (one + 1) * size // parts)) for one in range(parts))
            return
        mine = shard_range(self.shards, self.distributed.world_size, self.distributed.rank)
        first = shard_range(global_count, self.shards, mine.start).start
        for shard in mine:
            of_batch = shard_range(global_count, self.shards, shard)
            yield shard, slice(of_batch.start - first, of_batch.stop - first)

    def _seed(self, number: int) -> None:
        """Seed dropout from the step, so that nothing between two steps can shift what it draws."""
        torch.manual_seed(step_seed(self.config.TRAIN.SEED, self.state.step, number))

    def _backward(self, batch: SentBatch, global_count: int) -> Tensor:
        """Gradients of the global batch's mean loss; returns this rank's sums of loss and IoU, on the device: (2, C)
        float64, a column for each of the batch's shards, or one."""
        # Ranks may hold unequal shards: each weighs its samples by the global count, and gradients are summed.
        scale = self.config.TRAIN.CE_WEIGHT / global_count
        sums = torch.zeros(2, max(1, self.shards), dtype=torch.float64, device=batch.real.device)
        self.state.scaler.scale(sums)  # makes the scale, also in a process whose shards are all empty
        if not self.shards:
            self._seed(self.distributed.rank)
        for shard, of_batch in self._parts(len(batch.real), global_count):
            if self.shards:
                self._seed(shard)
            if of_batch.start < of_batch.stop:
                sums[:, shard] += self._backward_part(SentBatch(*(tensor[of_batch] for tensor in batch)), scale)
            self.gradients.end_part(shard)
        if self.shards:  # the generators are saved, and must not tell which shard this process computed last
            self._seed(self.shards)
        return sums

    def _backward_part(self, batch: SentBatch, scale: float) -> Tensor:
        """Add gradients of `scale` times the summed loss; returns the sums of loss and IoU, (2,) float64."""
        data, bins = self.config.DATA, self.config.MODEL.BINS
        templates = normalise(batch.templates, batch.template_brightness, mean=data.MEAN, std=data.STD)
        search = normalise(batch.search, batch.search_brightness, mean=data.MEAN, std=data.STD)
        with torch.autocast(batch.real.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits = self.model(templates, search, batch.input_tokens)
        logits = logits.float()
        weighted = sequence_loss(logits, batch.targets, bins) * batch.real
        with torch.no_grad():
            ious = teacher_forced_iou(logits, batch.targets, bins, data.SEQ_FORMAT)
        self.state.scaler.scale(weighted.sum() * scale).backward()  # type: ignore[no-untyped-call]
        return torch.stack((weighted.detach().double().sum(), (ious * batch.real).double().sum()))

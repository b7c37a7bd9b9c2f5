"""One optimizer step: forward, loss, backward, clip, update.

Knows the model, one batch and the numbers of the recipe; knows nothing of epochs, files or time.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seqtrack.data.loader import Batch
from seqtrack.engine.ranks import Ranks
from seqtrack.engine.state import TrainState
from seqtrack.errors import RunError
from seqtrack.model.images import normalise
from seqtrack.model.loss import sequence_loss, teacher_forced_iou
from seqtrack.seeding import step_seed
from seqtrack.tokens import target_sequences


class NotFiniteError(RunError):
    """A loss or a gradient is NaN or infinite. Training on would spoil the weights, so the run ends."""


@dataclass(frozen=True)
class StepSettings:
    """The recipe's numbers that one step needs. `amp` is None for plain float32."""

    seed: int
    bins: int
    seq_format: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    loss_weight: float
    clip_norm: float
    accumulation: int
    amp: torch.dtype | None


@dataclass(frozen=True)
class StepResult:
    """Sums over the whole global batch, and the gradient's L2 norm before clipping."""

    loss_sum: float
    iou_sum: float
    count: int
    grad_norm: float


class Stepper:
    """Takes steps with one model. `callable_model` is the wrapped or compiled form of `state.model`."""

    def __init__(self, state: TrainState, callable_model: nn.Module, ranks: Ranks, settings: StepSettings) -> None:
        self.state = state
        self.model = callable_model
        self.ranks = ranks
        self.settings = settings

    def __call__(self, batch: Batch) -> StepResult:
        """Train on this rank's share of one global batch.

        Raises:
            NotFiniteError: the loss or the gradient is not finite; the weights may be spoilt and must not be saved.
            RunError: the batch does not fit into the device's memory.
        """
        state, settings = self.state, self.settings
        # Seeded from the step, so that nothing between two steps can shift what dropout draws.
        torch.manual_seed(step_seed(settings.seed, state.step, self.ranks.rank))
        state.optimizer.inner.zero_grad(set_to_none=True)
        try:
            loss_sum, iou_sum = self._backward(batch)
        except torch.OutOfMemoryError as error:
            raise RunError(
                f"out of GPU memory at step {state.step + 1} with {batch.search.shape[0]} samples a process ({error}); "
                "raise TRAIN.ACCUMULATION_STEPS, set MODEL.ENCODER.USE_CHECKPOINT True, or lower BATCH_SIZE"
            ) from error
        state.scaler.unscale_(state.optimizer.inner)
        grad_norm = nn.utils.clip_grad_norm_(state.optimizer.parameters(), settings.clip_norm)
        state.scaler.step(state.optimizer.inner)
        state.scaler.update()
        state.scheduler.advance()
        result = self._over_ranks(batch, loss_sum, iou_sum, grad_norm)
        state.step += 1
        return result

    def _backward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Gradients of the global batch's mean loss; returns this rank's sums of loss and IoU, on the device."""
        settings = self.settings
        device = self.ranks.device
        size = batch.search.shape[0]
        parts = min(settings.accumulation, size)
        # Ranks may hold unequal shares: each weighs its samples by the global count, and DDP's mean is undone.
        scale = settings.loss_weight * self.ranks.world / batch.global_count
        real = (torch.arange(size) < batch.count).to(device=device, dtype=torch.float32)
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        iou_sum = torch.zeros((), dtype=torch.float64, device=device)
        for part in range(parts):
            rows = slice(part * size // parts, (part + 1) * size // parts)
            with self._sync_only_after(part == parts - 1):
                losses, ious = self._losses(batch, rows)
                weighted = losses * real[rows]
                self.state.scaler.scale(weighted.sum() * scale).backward()  # type: ignore[no-untyped-call]
            loss_sum += weighted.detach().double().sum()
            iou_sum += (ious * real[rows]).double().sum()
        return loss_sum, iou_sum

    def _losses(self, batch: Batch, rows: slice) -> tuple[Tensor, Tensor]:
        """Loss (n,) and teacher-forced IoU (n,) of the samples `rows`."""
        settings = self.settings
        mean, std = settings.mean, settings.std
        templates = normalise(batch.templates[rows], batch.template_brightness[rows], mean=mean, std=std)
        search = normalise(batch.search[rows], batch.search_brightness[rows], mean=mean, std=std)
        inputs, targets = target_sequences(batch.boxes[rows], settings.bins, settings.seq_format)
        with torch.autocast(self.ranks.device.type, dtype=settings.amp, enabled=settings.amp is not None):
            logits = self.model(templates, search, inputs)
        logits = logits.float()
        losses = sequence_loss(logits, targets, settings.bins)
        with torch.no_grad():
            ious = teacher_forced_iou(logits, targets, settings.bins, settings.seq_format)
        return losses, ious

    def _sync_only_after(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once a step, with the last part of the batch."""
        no_sync = getattr(self.model, "no_sync", None)
        return nullcontext() if last or no_sync is None else no_sync()

    def _over_ranks(self, batch: Batch, loss_sum: Tensor, iou_sum: Tensor, grad_norm: Tensor) -> StepResult:
        loss, iou = self.ranks.sum([float(loss_sum), float(iou_sum)])
        norm = float(grad_norm)
        finite_loss = abs(loss) < float("inf")
        # fp16's scaler finds infinite gradients on purpose, takes no step, and lowers its scale: that is its design.
        finite_norm = abs(norm) < float("inf") or self.state.scaler.is_enabled()
        if not (finite_loss and finite_norm):
            what = f"the loss is {loss / batch.global_count}" if not finite_loss else f"the gradient's norm is {norm}"
            raise NotFiniteError(
                f"{what} at step {self.state.step + 1} (epoch {self.state.epoch}, samples "
                f"{batch.indices[0].item()}..{batch.indices[-1].item()} of this rank); the checkpoints before it are "
                "sound: lower TRAIN.LR or turn TRAIN.AMP off, and resume from one of them"
            )
        return StepResult(loss, iou, batch.global_count, norm)

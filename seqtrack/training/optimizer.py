"""Parameter groups, AdamW, and learning-rate schedules, set by the configuration's section TRAIN.

A schedule is a pure function of the optimizer step; the `Schedule` object only counts steps, and a checkpoint keeps
that count. The optimizer's state is kept by parameter name, so that a checkpoint can be read without the model.
"""

import itertools
import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import AdamW

from seqtrack.config.schema import Train
from seqtrack.errors import UserError


def learning_rate_factor(step: int, train: Train, steps_per_epoch: int) -> float:
    """What the base learning rate is multiplied by for optimizer step `step` (counted from 0), in [0, 1].

    SCHEDULER.TYPE step takes its factor from DECAY_RATE, as the authors' files do.
    """
    schedule = train.SCHEDULER
    finished_epochs = step // steps_per_epoch
    if schedule.TYPE == "step":
        factor = schedule.DECAY_RATE ** (finished_epochs // train.LR_DROP_EPOCH)
    elif schedule.TYPE == "mstep":
        factor = schedule.GAMMA ** sum(milestone <= finished_epochs for milestone in schedule.MILESTONES)
    else:
        decay_steps = max(1, steps_per_epoch * train.EPOCH - schedule.WARMUP_STEPS)
        progress = min(1.0, max(0, step - schedule.WARMUP_STEPS) / decay_steps)
        factor = schedule.FINAL_RATIO + (1 - schedule.FINAL_RATIO) * 0.5 * (1 + math.cos(math.pi * progress))
    if step < schedule.WARMUP_STEPS:
        factor *= (step + 1) / schedule.WARMUP_STEPS
    return factor


def first_changed_step(before: Train, after: Train, steps_per_epoch: int, *, steps: int) -> int | None:
    """The first of the first `steps` optimizer steps (counted from 1, as in the log) that `after` would take at another
    rate than `before`, or would not take at all; None if there is none."""
    for step in range(steps):
        rates = {learning_rate_factor(step, train, steps_per_epoch) for train in (before, after)}
        if step >= steps_per_epoch * after.EPOCH or len(rates) == 2:
            return step + 1
    return None


class Schedule:
    """Counts optimizer steps and sets the rates of the groups from `learning_rate_factor`."""

    def __init__(self, optimizer: "NamedOptimizer", train: Train, steps_per_epoch: int) -> None:
        self.optimizer = optimizer
        self.train = train
        self.steps_per_epoch = steps_per_epoch
        self.load_state_dict({"step_count": 0})

    def advance(self) -> None:
        """Count one optimizer step and set the rates for the next."""
        self.load_state_dict({"step_count": self.step_count + 1})

    def rates(self) -> list[float]:
        """The rates for the coming step, one per group."""
        factor = learning_rate_factor(self.step_count, self.train, self.steps_per_epoch)
        return [base * factor for base in self.optimizer.base_rates]

    def state_dict(self) -> dict[str, int]:
        return {"step_count": self.step_count}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.step_count = operator.index(state["step_count"])
        for group, rate in zip(self.optimizer.inner.param_groups, self.rates(), strict=True):
            group["lr"] = rate


def parameter_groups(model: nn.Module, train: Train) -> list[dict[str, Any]]:
    """Two groups by the word "encoder" in the name: all others at LR, the encoder at ENCODER_MULTIPLIER times it.

    With FREEZE_ENCODER, encoder parameters whose names contain none of ENCODER_OPEN are not trained. The decay applies
    to every parameter, norms and positions included (SeqTrack, section 4.1).

    Returns:
        dictionaries with `params`, `names`, `lr`, `weight_decay`, in the order of the authors' optimizer.

    Raises:
        UserError: no parameter is left to train.
    """
    rates = (train.LR, train.LR * train.ENCODER_MULTIPLIER)
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "lr": rate, "weight_decay": train.WEIGHT_DECAY} for rate in rates
    ]
    for name, parameter in model.named_parameters():
        in_encoder = "encoder" in name
        if in_encoder and train.FREEZE_ENCODER and not any(part in name for part in train.ENCODER_OPEN):
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups[in_encoder]["params"].append(parameter)
            groups[in_encoder]["names"].append(name)
    if found := [group for group in groups if group["params"]]:
        return found
    text = "no parameter is left to train: TRAIN.FREEZE_ENCODER and ENCODER_OPEN exclude all of them"
    raise UserError(text, code="train.all_frozen")


class NamedOptimizer:
    """AdamW whose saved state is keyed by parameter name."""

    def __init__(self, model: nn.Module, train: Train) -> None:
        groups = parameter_groups(model, train)
        self.names: list[list[str]] = [group.pop("names") for group in groups]
        self.base_rates: list[float] = [group["lr"] for group in groups]
        self.inner = AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]

    def _named(self) -> dict[str, Tensor]:
        return dict(zip(itertools.chain(*self.names), self.parameters(), strict=True))

    def expected_state_shapes(self) -> dict[str, Tensor]:
        """By the path that a saved state will have: a tensor like each one that the first step creates."""
        return {
            f"state/{name}/{key}": torch.zeros(()) if key == "step" else parameter
            for name, parameter in self._named().items()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }

    def state_dict(self) -> dict[str, Any]:
        """The names of each group's parameters, and the moments by name; the configuration has the rest."""
        state = {name: dict(self.inner.state[p]) for name, p in self._named().items() if p in self.inner.state}
        return {"names": self.names, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state.

        Raises:
            ValueError: it was saved for other parameters.
        """
        if state["names"] != self.names:
            raise ValueError("it belongs to other parameters than this model's")
        named = self._named()
        self.inner.state.clear()
        for name, values in state.get("state", {}).items():
            parameter = named[name]
            for key, tensor in values.items():
                # The fused step reads raw memory by the parameter's shape and type.
                expected = ((), torch.float32) if key == "step" else (tuple(parameter.shape), parameter.dtype)
                if (found := (tuple(tensor.shape), tensor.dtype)) != expected:
                    raise ValueError(f"{name}.{key} has shape and type {found}, expected {expected}")
                self.inner.state[parameter][key] = tensor.to(device=parameter.device, copy=True)

"""Parameter groups, AdamW, and learning-rate schedules.

A schedule is a pure function of the optimizer step; the `Schedule` object only counts steps, and that count is what a
checkpoint keeps. The optimizer's state is kept by parameter name, so that a checkpoint says in words what is in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import AdamW

from seqtrack.errors import UserError


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW as the authors set it: decay on every parameter, norms and positions included (SeqTrack paper, 4.1)."""

    name: str
    learning_rate: float
    encoder_multiplier: float
    weight_decay: float
    freeze_encoder: bool = False
    encoder_open: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScheduleSettings:
    """Everything that the learning rate depends on next to the step.

    `drop_epoch` is for kind "step" (full rate through that many epochs, then times `gamma`, and again), `milestones`
    for "mstep", `final_ratio` for "cosine". `warmup_steps` raises the rate linearly at the start of any of them.
    """

    kind: str
    steps_per_epoch: int
    epochs: int
    drop_epoch: int
    gamma: float
    milestones: tuple[int, ...] = ()
    warmup_steps: int = 0
    final_ratio: float = 0.0


def learning_rate_factor(step: int, settings: ScheduleSettings) -> float:
    """What the base learning rate is multiplied by for optimizer step `step` (counted from 0), in [0, 1].

    Raises:
        ValueError: an unknown kind of schedule.
    """
    finished_epochs = step // settings.steps_per_epoch
    if settings.kind == "step":
        factor = settings.gamma ** (finished_epochs // settings.drop_epoch)
    elif settings.kind == "mstep":
        factor = settings.gamma ** sum(milestone <= finished_epochs for milestone in settings.milestones)
    elif settings.kind == "cosine":
        decay_steps = max(1, settings.steps_per_epoch * settings.epochs - settings.warmup_steps)
        progress = min(1.0, max(0, step - settings.warmup_steps) / decay_steps)
        factor = settings.final_ratio + (1 - settings.final_ratio) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"schedule {settings.kind!r} is unknown; known are step, mstep, cosine")
    if step < settings.warmup_steps:
        factor *= (step + 1) / settings.warmup_steps
    return factor


def first_changed_step(before: ScheduleSettings, after: ScheduleSettings, *, steps: int) -> int | None:
    """The first of the first `steps` optimizer steps (counted from 1, as in the log) that `after` would take at another
    rate than `before`, or would not take at all; None if there is none."""
    last = after.steps_per_epoch * after.epochs
    for step in range(steps):
        if step >= last or learning_rate_factor(step, before) != learning_rate_factor(step, after):
            return step + 1
    return None


class Schedule:
    """Counts optimizer steps and sets the rates of the groups from `learning_rate_factor`."""

    def __init__(self, optimizer: "NamedOptimizer", settings: ScheduleSettings) -> None:
        self.optimizer = optimizer
        self.settings = settings
        self.step_count = 0
        self._apply()

    def advance(self) -> None:
        """One optimizer step was taken: set the rates for the next."""
        self.step_count += 1
        self._apply()

    def rates(self) -> list[float]:
        """The rates for the coming step, one a group."""
        factor = learning_rate_factor(self.step_count, self.settings)
        return [base * factor for base in self.optimizer.base_rates]

    def state_dict(self) -> dict[str, Any]:
        return {"step_count": self.step_count, "kind": self.settings.kind}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["kind"] != self.settings.kind:
            raise UserError(f"the checkpoint's schedule is {state['kind']!r}, this run's is {self.settings.kind!r}")
        self.step_count = int(state["step_count"])
        self._apply()

    def _apply(self) -> None:
        for group, rate in zip(self.optimizer.inner.param_groups, self.rates(), strict=True):
            group["lr"] = rate


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Two groups by the word "encoder" in the name: all others at the full rate, the encoder at its multiple of it.

    With `freeze_encoder`, encoder parameters whose names hold none of the words in `encoder_open` are not trained.

    Returns:
        dictionaries with `params`, `names`, `lr`, `weight_decay`, in the order the authors' optimizer has them.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "names": [], "lr": settings.learning_rate, "weight_decay": settings.weight_decay},
        {
            "params": [],
            "names": [],
            "lr": settings.learning_rate * settings.encoder_multiplier,
            "weight_decay": settings.weight_decay,
        },
    ]
    for name, parameter in model.named_parameters():
        in_encoder = "encoder" in name
        if in_encoder and settings.freeze_encoder and not any(token in name for token in settings.encoder_open):
            parameter.requires_grad_(False)
        if parameter.requires_grad:
            groups[in_encoder]["params"].append(parameter)
            groups[in_encoder]["names"].append(name)
    return [group for group in groups if group["params"]]


class NamedOptimizer:
    """AdamW whose saved state is keyed by parameter name."""

    def __init__(self, model: nn.Module, settings: OptimizerSettings) -> None:
        if settings.name.upper() != "ADAMW":
            raise UserError(f"TRAIN.OPTIMIZER is {settings.name!r}; known is ADAMW")
        groups = parameter_groups(model, settings)
        if not groups:
            raise UserError("no parameter is left to train: TRAIN.FREEZE_ENCODER and ENCODER_OPEN exclude all of them")
        self.names: list[list[str]] = [group.pop("names") for group in groups]
        self.base_rates: list[float] = [group["lr"] for group in groups]
        self.inner = AdamW(groups, betas=(0.9, 0.999), eps=1e-8, fused=True)

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.inner.param_groups for parameter in group["params"]]

    def _named(self) -> dict[str, Tensor]:
        flat_names = [name for names in self.names for name in names]
        return dict(zip(flat_names, self.parameters(), strict=True))

    def expected_state_shapes(self) -> dict[str, Tensor]:
        """By the path that a saved state will have: a tensor like each one that the first step makes."""
        return {
            f"state/{name}/{key}": torch.zeros(()) if key == "step" else parameter
            for name, parameter in self._named().items()
            for key in ("step", "exp_avg", "exp_avg_sq")
        }

    def state_dict(self) -> dict[str, Any]:
        groups = [
            {"names": names, "lr": group["lr"], "weight_decay": group["weight_decay"], "betas": list(group["betas"])}
            for names, group in zip(self.names, self.inner.param_groups, strict=True)
        ]
        # A parameter that no step has touched yet has no state; the absence is itself part of the state.
        state = {name: dict(self.inner.state[p]) for name, p in self._named().items() if p in self.inner.state}
        return {"groups": groups, "state": state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put a saved state back.

        Raises:
            UserError: it was saved for other parameters.
        """
        saved_names = [list(group["names"]) for group in state["groups"]]
        if saved_names != self.names:
            raise UserError("the checkpoint's optimizer belongs to other parameters than this model's")
        named = self._named()
        self.inner.state.clear()
        for name, values in state.get("state", {}).items():
            parameter = named[name]
            for key, tensor in values.items():
                # The fused step reads raw memory by the parameter's shape and type.
                expected = ((), torch.float32) if key == "step" else (tuple(parameter.shape), parameter.dtype)
                if (tuple(tensor.shape), tensor.dtype) != expected:
                    raise UserError(
                        f"optimizer state {name}.{key} has shape {tuple(tensor.shape)} and type {tensor.dtype}, "
                        f"expected {expected[0]} and {expected[1]}",
                        code="checkpoint.state",
                    )
            self.inner.state[parameter] = {
                key: tensor.to(device=parameter.device, copy=True) for key, tensor in values.items()
            }
        for group, saved in zip(self.inner.param_groups, state["groups"], strict=True):
            group["lr"] = float(saved["lr"])

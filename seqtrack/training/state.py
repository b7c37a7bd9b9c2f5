"""The training state: one dataclass, whose fields are what a checkpoint keeps.

A component is saved because it is a field, and loading refuses a missing or unknown one by its name: none can be
forgotten, as other trainers forgot the scheduler.
"""

import copy
import operator
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from seqtrack.errors import Problem, UserError
from seqtrack.model.weights import compare_states
from seqtrack.seeding import process_seed
from seqtrack.training.optimizer import NamedOptimizer, Schedule

# The components whose states hold tensors.
_WITH_TENSORS = {"model", "optimizer", "rng"}


@dataclass
class Meters:
    """Sums over the samples of the running epoch, and of the running log interval, over all ranks."""

    loss_sum: float = 0.0
    iou_sum: float = 0.0
    count: int = 0
    interval_loss_sum: float = 0.0
    interval_iou_sum: float = 0.0
    interval_count: int = 0
    interval_skipped: int = 0
    grad_norm_sum: float = 0.0
    steps: int = 0
    skipped: int = 0

    def add(self, loss_sum: float, iou_sum: float, count: int, grad_norm: float | None) -> None:
        """Add one step: sums over its `count` samples of all ranks, and its gradient norm, None if fp16 skipped it."""
        self.loss_sum += loss_sum
        self.iou_sum += iou_sum
        self.count += count
        self.interval_loss_sum += loss_sum
        self.interval_iou_sum += iou_sum
        self.interval_count += count
        self.steps += 1
        if grad_norm is None:
            self.skipped += 1
            self.interval_skipped += 1
        else:
            self.grad_norm_sum += grad_norm

    def start_interval(self) -> None:
        self.interval_loss_sum, self.interval_iou_sum, self.interval_count, self.interval_skipped = 0.0, 0.0, 0, 0

    @property
    def loss(self) -> float:
        """Mean loss per sample over the epoch so far."""
        return self.loss_sum / self.count

    @property
    def iou(self) -> float:
        return self.iou_sum / self.count

    @property
    def grad_norm(self) -> float | None:
        """Mean gradient norm of the steps that were not skipped; None without any."""
        taken = self.steps - self.skipped
        return self.grad_norm_sum / taken if taken else None

    def state_dict(self) -> dict[str, Any]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _expect_keys("meters", set(state), {item.name for item in fields(self)})
        for name, value in state.items():
            setattr(self, name, type(getattr(self, name))(value))


@dataclass
class History:
    """One record per finished epoch: epoch, loss, iou, samples, steps, lr, grad_norm, skipped_steps. No wall-clock
    time: the history of a resumed run must equal the uninterrupted one's."""

    epochs: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [dict(record) for record in self.epochs]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        _expect_keys("history", set(state), {"epochs"})
        self.epochs = [dict(record) for record in state["epochs"]]


class RandomStates:
    """The states of Python's, NumPy's, torch's CPU and every GPU's global generator, of every rank.

    Training itself draws from none of them between steps (see `seqtrack.seeding`); they are saved because other code
    in the process may. They stay on the CPU: a generator state moved to a GPU cannot be restored.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.of_ranks: dict[str, dict[str, Any]] = {}

    def seed(self, seed: int) -> None:
        """Seed every generator from the run's seed; a fresh process has seeded them from the machine's entropy."""
        number = process_seed(seed, self.rank)
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002
        torch.manual_seed(number)

    def of_this_rank(self) -> dict[str, Any]:
        """This process's states, as tensors and plain values."""
        version, internal, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002 - it is saved, not drawn from
        state: dict[str, Any] = {
            "python": {"version": version, "words": torch.tensor(internal, dtype=torch.int64), "gauss": gauss},
            "numpy": {
                "kind": kind,
                "keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
                "position": int(position),
                "has_gauss": int(has_gauss),
                "cached": float(cached),
            },
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = {str(i): torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
        return state

    def state_dict(self) -> dict[str, Any]:
        return self.of_ranks or {str(self.rank): self.of_this_rank()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore this rank's states; a rank that the saved run did not have takes rank 0's."""
        own = state.get(str(self.rank)) or state["0"]
        python, legacy = own["python"], own["numpy"]
        random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
        keys = legacy["keys"].numpy().astype(np.uint32)
        if not 0 <= legacy["position"] <= len(keys):  # NumPy does not check it, and would read beyond its table
            raise ValueError(f"NumPy's generator is at position {legacy['position']} of {len(keys)}")
        np.random.set_state(  # noqa: NPY002
            (legacy["kind"], keys, legacy["position"], legacy["has_gauss"], legacy["cached"])
        )
        torch.set_rng_state(own["torch"])
        for index, gpu_state in own.get("cuda", {}).items():
            if torch.cuda.is_available() and int(index) < torch.cuda.device_count():
                torch.cuda.set_rng_state(gpu_state, int(index))


@dataclass
class TrainState:
    """Everything that the next step depends on.

    `epoch` is the epoch in training, or the last finished one when `sample` is 0 and steps were taken; `step` counts
    optimizer steps of the whole run; `sample` counts the samples of this epoch that were trained, over all ranks.
    """

    model: nn.Module
    optimizer: NamedOptimizer
    scheduler: Schedule
    scaler: GradScaler
    rng: RandomStates
    meters: Meters
    history: History
    epoch: int = 0
    step: int = 0
    sample: int = 0

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as tensors by name ("model/...", live, not copied) and plain values by field."""
        tensors: dict[str, Tensor] = {}
        values: dict[str, Any] = {}
        for item in fields(self):
            part = getattr(self, item.name)
            if isinstance(part, int):
                values[item.name] = part
                continue
            plain, found = _split(part.state_dict(), item.name)
            tensors.update(found)
            if item.name != "model":
                values[item.name] = plain
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore a captured state.

        Raises:
            UserError: a component is missing, unknown, or belongs to another model.
        """
        names = {item.name for item in fields(self)}
        of_tensors = {name.split("/", 1)[0] for name in tensors}
        _expect_keys("the training state", set(values) | of_tensors, names)
        if of_tensors - _WITH_TENSORS:
            raise UserError(
                f"the checkpoint holds tensors in {sorted(of_tensors - _WITH_TENSORS)}, which has none",
                code="checkpoint.state",
            )
        for item in fields(self):
            try:
                self._restore_component(item.name, tensors, values)
            except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError) as error:
                raise UserError(
                    f"the checkpoint's state component {item.name} cannot be used: {error!r}", code="checkpoint.state"
                ) from error

    def _restore_component(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if isinstance(getattr(self, name), int):
            setattr(self, name, operator.index(values[name]))
            return
        part = _join(values.get(name, {}), name, tensors)
        if name == "model":
            _load_model(self.model, part)
        elif part or name != "scaler":  # only a run in fp16 has saved a scale
            getattr(self, name).load_state_dict(part)


def _load_model(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    problems = compare_states(weights, model.state_dict(), what="the checkpoint")
    if problems:
        raise UserError([*problems, Problem("the checkpoint belongs to another model", "weights.other_model")])
    model.load_state_dict(dict(weights), strict=True)


def _expect_keys(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        raise UserError(
            f"{what} of the checkpoint lacks {sorted(expected - found)} and has unknown {sorted(found - expected)}",
            code="checkpoint.state",
        )


def _split(tree: Mapping[str, Any], prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a nested dictionary into its plain values and its tensors by path."""
    plain: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}"
        if isinstance(value, Tensor):
            tensors[path] = value
        elif isinstance(value, Mapping):
            inner, found = _split(value, path)
            tensors.update(found)
            if inner or not found:
                plain[str(key)] = inner
        else:
            plain[str(key)] = value
    return plain, tensors


def _join(plain: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `_split`."""
    tree: dict[str, Any] = copy.deepcopy(dict(plain))
    for name, tensor in tensors.items():
        first, *folders = name.split("/")
        if first != prefix or not folders:
            continue
        place, leaf = tree, folders.pop()
        for folder in folders:
            place = place.setdefault(folder, {}) if isinstance(place, dict) else {}
        if not isinstance(place, dict) or leaf in place:
            raise UserError(f"the checkpoint holds {name} as a tensor and as a value", code="checkpoint.state")
        place[leaf] = tensor
    return tree

"""The training state: one dataclass, whose fields are what a checkpoint keeps.

A component is saved because it is a field, and loading refuses a missing or unknown one by its name: none can be
forgotten, as other trainers forgot the scheduler.
"""

import copy
import operator
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from seqtrack.errors import Problem, UserError
from seqtrack.model.weights import compare_states
from seqtrack.seeding import process_seed
from seqtrack.training.optimizer import NamedOptimizer, Schedule

# The state of a component: a tree of plain values and tensors.
State = dict[str, Any]
LINEAGE = "lineage"


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
    checksum: int = 0
    interval_checksum: int = 0

    def add(self, loss_sum: float, iou_sum: float, count: int, grad_norm: float | None, checksum: int = 0) -> None:
        """Add one step: sums over its `count` samples of all ranks, its gradient norm, None if fp16 skipped it, and its
        samples' checksum, which is added modulo 2**64."""
        self.checksum = (self.checksum + checksum) % 2**64
        self.interval_checksum = (self.interval_checksum + checksum) % 2**64
        added = {"loss_sum": loss_sum, "iou_sum": iou_sum, "count": count, "skipped": int(grad_norm is None)}
        for name, value in added.items():
            for kind in ("", "interval_"):
                setattr(self, kind + name, getattr(self, kind + name) + value)
        self.steps += 1
        self.grad_norm_sum += grad_norm or 0.0

    def start_interval(self) -> None:
        self.interval_loss_sum, self.interval_iou_sum, self.interval_count, self.interval_skipped = 0.0, 0.0, 0, 0
        self.interval_checksum = 0

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

    def state_dict(self) -> State:
        return asdict(self)

    def load_state_dict(self, state: State) -> None:
        _expect_keys("meters", set(state), set(asdict(self)))
        for name, value in state.items():
            setattr(self, name, type(getattr(self, name))(value))


class RandomStates:
    """The states of Python's, NumPy's, torch's CPU and every GPU's global generator, of every rank.

    Training itself draws from none of them between steps (see `seqtrack.seeding`); other code in the process may. They
    stay on the CPU: a generator state moved to a GPU cannot be restored.

    With `shared` the ranks have equal states, each with one GPU: rank 0's are saved, whatever the number of ranks.
    """

    def __init__(self, rank: int, *, shared: bool = False) -> None:
        self.rank, self.shared = 0 if shared else rank, shared
        self.of_ranks: dict[str, State] = {}

    def _gpus(self) -> list[int]:
        if not torch.cuda.is_available():
            return []
        return [torch.cuda.current_device()] if self.shared else list(range(torch.cuda.device_count()))

    def seed(self, seed: int) -> None:
        """Seed every generator from the run's seed; a fresh process has seeded them from the machine's entropy."""
        number = process_seed(seed, self.rank)
        random.seed(number)
        np.random.seed(number % 2**32)  # noqa: NPY002
        torch.manual_seed(number)

    def of_this_rank(self) -> State:
        """This process's states, as tensors and plain values."""
        version, words, gauss = random.getstate()
        kind, keys, *others = np.random.get_state()  # noqa: NPY002 - it is saved, not drawn from
        state: State = {
            "python": [version, list(words), gauss],
            "numpy": [str(kind), np.asarray(keys).tolist(), *others],
            "torch": torch.get_rng_state(),
        }
        if torch.cuda.is_available():
            state["cuda"] = {str(i): torch.cuda.get_rng_state(gpu) for i, gpu in enumerate(self._gpus())}
        return state

    def state_dict(self) -> State:
        return self.of_ranks or {str(self.rank): self.of_this_rank()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore this rank's states; a rank that the saved run did not have takes rank 0's."""
        own = state.get(str(self.rank)) or state["0"]
        version, words, gauss = own["python"]
        random.setstate((version, tuple(words), gauss))
        kind, keys, position, *others = own["numpy"]
        if not 0 <= position <= len(keys):  # NumPy does not check it, and would read beyond its table
            raise ValueError(f"NumPy's generator is at position {position} of {len(keys)}")
        np.random.set_state((kind, np.array(keys, np.uint32), position, *others))  # noqa: NPY002
        torch.set_rng_state(own["torch"])
        gpus = self._gpus()
        for index, gpu_state in own.get("cuda", {}).items():
            if int(index) < len(gpus):
                torch.cuda.set_rng_state(gpu_state, gpus[int(index)])


@dataclass
class TrainState:
    """Everything that the next step depends on.

    `history` has one record per finished epoch, without wall-clock time: that of a resumed run must equal the
    uninterrupted one's. `epoch` is the epoch in training, or the last finished one when `sample` is 0 and steps were
    taken; `step` counts optimizer steps of the whole run; `sample` counts the samples of this epoch that were trained,
    over all ranks.
    """

    model: nn.Module
    optimizer: NamedOptimizer
    scheduler: Schedule
    scaler: GradScaler
    rng: RandomStates
    meters: Meters = field(default_factory=Meters)
    history: list[State] = field(default_factory=list)
    epoch: int = 0
    step: int = 0
    sample: int = 0

    def capture(self) -> tuple[dict[str, Tensor], State]:
        """The state as tensors by name ("model/...", live, not copied) and plain values by field."""
        tensors: dict[str, Tensor] = {}
        values: State = {}
        for item in fields(self):
            part = getattr(self, item.name)
            is_plain = isinstance(part, int | list)
            plain = copy.deepcopy(part) if is_plain else _split(part.state_dict(), item.name, tensors)
            if item.name != "model":
                values[item.name] = plain
        return tensors, values

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore a captured state.

        Raises:
            UserError: a component is missing, unknown, or belongs to another model.
        """
        # Where the file belongs in the hash chain, which the checkpointer adds.
        values = {name: value for name, value in values.items() if name != LINEAGE}
        of_tensors = {name.split("/", 1)[0] for name in tensors}
        _expect_keys("the training state", set(values) | of_tensors, {item.name for item in fields(self)})
        for item in fields(self):
            try:
                self._restore_component(item.name, tensors, values)
            except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError) as error:
                _refuse(f"has a state component {item.name} that cannot be used: {error!r}", error)

    def _restore_component(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        if name == "history":
            self.history = [dict(record) for record in values[name]]
            return
        if isinstance(getattr(self, name), int):
            setattr(self, name, operator.index(values[name]))
            return
        part = _join(values.get(name, {}), name, tensors)
        if name == "model" and (problems := compare_states(part, self.model.state_dict(), what="the checkpoint")):
            raise UserError([*problems, Problem("the checkpoint belongs to another model", "weights.other_model")])
        if part or name != "scaler":  # only a run in fp16 has saved a scale
            getattr(self, name).load_state_dict(part)


def _refuse(what: str, cause: Exception | None = None) -> NoReturn:
    raise UserError(f"the checkpoint {what}", code="checkpoint.state") from cause


def _expect_keys(what: str, found: set[str], expected: set[str]) -> None:
    if found != expected:
        _refuse(f"lacks {sorted(expected - found)} and has unknown {sorted(found - expected)} in {what}")


def _split(tree: Mapping[str, Any], prefix: str, tensors: dict[str, Tensor]) -> State:
    """The plain values of a tree; its tensors are added to `tensors` by their paths."""
    plain: State = {}
    for key, value in tree.items():
        path = f"{prefix}/{key}"
        if isinstance(value, Tensor):
            tensors[path] = value
        elif not isinstance(value, Mapping):
            plain[str(key)] = value
        elif (inner := _split(value, path, tensors)) or not value:
            plain[str(key)] = inner
    return plain


def _join(plain: Mapping[str, Any], prefix: str, tensors: Mapping[str, Tensor]) -> State:
    """The inverse of `_split`."""
    tree: State = copy.deepcopy(dict(plain))
    for name, tensor in tensors.items():
        first, *folders, leaf = name.split("/")
        if first != prefix:
            continue
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        if leaf in place:
            raise ValueError(f"{name} is a tensor and a value")
        place[leaf] = tensor
    return tree

"""What a step waits for, late reads, and the graphs of `torch.compile`."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import assert_same_run, environment
from torch.utils._python_dispatch import TorchDispatchMode

from seqtrack.checkpoints.store import load_checkpoint
from seqtrack.config.environment import configure
from seqtrack.config.schema import Config
from seqtrack.data.loader import Batch
from seqtrack.errors import UserError
from seqtrack.model import images
from seqtrack.runtime.distributed import DistributedContext
from seqtrack.training import build, optimizer
from seqtrack.training.train_step import NotFiniteError, TrainStep
from training.harness import RANKS, Run

# In place of a GPU: its tensors hold no values, so that nothing on the host can read one.
GPU = DistributedContext(0, 1, torch.device("meta"))


class _Waits(TorchDispatchMode):
    """Counts the operators that would make the host wait for a GPU. A tensor without values refuses to be read by
    itself, but for the copy that a step reads later."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target, source, non_blocking = None, args[0] if args else None, False
        if func is torch.ops.aten._to_copy.default:
            target, non_blocking = kwargs.get("device"), kwargs.get("non_blocking", False)
        elif func is torch.ops.aten.copy_.default:
            target, source, non_blocking = args[0].device, args[1], len(args) > 2 and args[2]
        if target is not None and target != source.device:
            if not non_blocking:
                self.found.append(str(func))
            if target.type == "cpu":
                return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        return func(*args, **kwargs)


class _FakeEvent:
    waits = 0

    def record(self) -> None: ...

    def synchronize(self) -> None:
        _FakeEvent.waits += 1


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Streams and events that do nothing, and an AdamW that takes tensors without values."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: SimpleNamespace(wait_stream=lambda _: None))
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "Event", _FakeEvent)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    monkeypatch.setattr(torch, "meta", torch.cpu, raising=False)  # what `checkpoint` looks for
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(optimizer, "AdamW", lambda groups, *, fused, **rest: torch.optim.AdamW(groups, **rest))
    images._per_channel.cache_clear()
    yield
    images._per_channel.cache_clear()


def _batch(size: int, config: Config) -> Batch:
    search, template, templates = config.DATA.SEARCH.SIZE, config.DATA.TEMPLATE.SIZE, config.DATA.TEMPLATE.NUMBER
    return Batch(
        templates=torch.zeros(size, templates, 3, template, template, dtype=torch.uint8),
        search=torch.zeros(size, 3, search, search, dtype=torch.uint8),
        template_brightness=torch.ones(size, templates),
        search_brightness=torch.ones(size),
        boxes=torch.full((size, 4), 0.4),
        indices=torch.arange(size),
        global_count=size,
        count=size,
    )


STEPS: list[dict[str, object]] = [
    {}, {"TRAIN.ACCUMULATION_STEPS": 4, "MODEL.ENCODER.USE_CHECKPOINT": True},
    {"DATA.SEQ_FORMAT": "corner", "TRAIN.GRAD_CLIP_NORM": 0, "MODEL.ENCODER.DROP_PATH": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("keys", STEPS, ids=["default", "accumulated", "other"])
def test_a_step_on_a_gpu_launches_without_waiting_and_is_waited_for_once(
    keys: dict[str, object], fake_gpu: None, demo_data: Path, tmp_path: Path
) -> None:
    _, config = configure(environment(tmp_path, demo_data, keys))
    batch, state = _batch(4, config), build.build_state(config, GPU, 6, fresh=False)
    train_step = TrainStep(state, state.model, GPU, config)
    train_step._copies = SimpleNamespace()  # type: ignore[assignment]
    with _Waits() as control:
        train_step(batch)  # constants are copied once, and AdamW makes its state
        control.found.clear()
        torch.ones(3, device="meta").copy_(torch.ones(3).to("meta")).cpu()
    assert len(control.found) == 2, "the negative control"
    make = torch.tensor  # of a constant it makes a copy that waits, which no dispatch shows
    with _Waits() as waits, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "tensor", lambda *args, **kwargs: make(*args, **{**kwargs, "device": "cpu"}))
        launched = train_step(batch)
    assert not waits.found
    assert launched.numbers.device.type == "cpu" and launched.arrived is not None
    before = _FakeEvent.waits
    train_step.read(launched)
    assert _FakeEvent.waits == before + 1


@pytest.fixture(scope="module")
def whole(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("launch") / "whole", demo_data, overflows=(3,))
    assert run.until(None)
    return run


@pytest.mark.parametrize("stop", [1, 8])
def test_a_late_reader_stops_with_every_step_counted_and_continues_as_the_uninterrupted(
    stop: int, whole: Run, demo_data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    run = Run(folder, demo_data, overflows=(3,))
    run.reads_late = True
    assert not run.until(stop)
    assert run.state.step == stop + (stop > 1), "the vote is read when one step more was launched"
    assert run.state.meters.steps == (run.state.step - 1) % 6 + 1
    at = run.at(run.state.step)
    resumed = Run(folder, demo_data, overflows=(3,), state=load_checkpoint(at), resume_step=at.step, parent=run.parent)
    resumed.reads_late = True
    assert resumed.until(None)
    assert_same_run(folder, whole.folder)


@pytest.mark.parametrize("step", [1, 5, 6], ids=["first", "after the stop", "last"])
def test_a_late_reader_saves_nothing_after_a_loss_that_is_not_finite(
    step: int, demo_data: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", demo_data)
    run.reads_late = True
    run.state.model.register_forward_hook(
        lambda _module, _inputs, logits: logits * float("nan") if run.state.step + 1 == step else logits
    )
    with pytest.raises(NotFiniteError, match=rf"nan at step {step} \(.*samples \d+\.\.\d+ "):
        run.until(4 if step != 6 else None)
    assert not list((run.folder / "checkpoints").iterdir())


def test_a_full_batch_is_computed_by_the_same_graph_before_and_after_a_short_one(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[int] = []

    def counting(graph: Any, _example: Any) -> Any:
        return lambda *inputs: used.append(id(graph)) or graph.forward(*inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    torch._dynamo.reset()
    _, config = configure(environment(tmp_path, demo_data, {"TRAIN.COMPILE": "True"}))
    state = Run(tmp_path / "run", demo_data).state
    train_step = TrainStep(state, build.callable_form(config, state.model), RANKS, config)
    graphs = []
    for size in (3, 1, 2, 3):
        used.clear()
        train_step.read(train_step(_batch(size, config)))
        graphs.append(list(used))
    torch._dynamo.reset()
    assert graphs[0] and graphs[-1] == graphs[0], "the graph that a resumed process would take"
    assert all(other != graphs[0] for other in graphs[1:-1])


def test_compiling_without_a_compiler_is_refused_before_anything_is_written(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    _, config = configure(environment(tmp_path, demo_data, {"TRAIN.COMPILE": "True"}))
    with pytest.raises(UserError) as refused:
        build.set_kernels(config, RANKS)
    assert refused.value.code == "device.no_compiler"

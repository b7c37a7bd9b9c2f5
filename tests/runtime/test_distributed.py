"""Collectives of the processes of one run, and their rendezvous."""

import ctypes
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.process_pairs import free_port
from torch import distributed as dist
from torch import nn
from training.harness import Run

from seqtrack.runtime.distributed import (
    DistributedContext,
    Gradients,
    ShardGradients,
    hold_store,
    is_lost_peer,
    rendezvous_store,
)
from seqtrack.runtime.launcher import RENDEZVOUS_URL
from seqtrack.training.train_step import TrainStep

# Two ranks by name, in a group of one: every collective takes place and changes nothing.
TWO = DistributedContext(0, 2, torch.device("cpu"))


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)  # type: ignore[attr-defined]
    # Never freed: freeing waits for gloo's thread while it holds the interpreter, and that thread may need the
    # interpreter to drop the last tensor. Training never ends its group.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_exchanges_the_gradients_once_and_everything_else_once(
    parts: int, group: None, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path / "phase_1", demo_data, {"TRAIN.ACCUMULATION_STEPS": parts})
    train_step = TrainStep(run.state, run.state.model, TWO, run.config)
    sizes: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    monkeypatch.setattr(dist, "all_reduce", counted)
    batches = iter(run.loader.batches(1))
    results = [train_step.read(train_step(next(batches), lambda: (True, False))) for _ in range(3)]
    run.loader.close()
    gradients = sum(one.numel() for one in run.state.model.parameters() if one.requires_grad)
    assert Counter(sizes) == {gradients: 3, 6: 3}
    assert all(result.stop and not result.save for result in results)


class TwoTypes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 2)
        self.b = nn.Linear(2, 2).double()
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.b(self.a(x).double()).float()).sum()


def test_gradients_stay_where_they_are_from_step_to_step_and_equal_those_of_one_process(group: None) -> None:
    torch.manual_seed(0)
    model, x = TwoTypes(), torch.randn(4, 3)
    alone = Gradients(model, DistributedContext(0, 1, TWO.device))
    alone.clear()
    model(x).backward()
    expected = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    gradients = Gradients(model, TWO)
    places = {name: one.grad.data_ptr() for name, one in model.named_parameters() if one.grad is not None}
    assert len(places) == 4
    for _ in range(3):
        gradients.clear()
        model(x).backward()
        gradients.sum_over_ranks()
        for name, one in model.named_parameters():
            assert (one.grad is None) == (name not in expected)
            if one.grad is not None:
                assert torch.equal(one.grad, expected[name]) and one.grad.data_ptr() == places[name]


def test_gradients_of_shards_are_added_in_the_order_of_the_tree_and_at_most_log2_of_them_wait() -> None:
    torch.manual_seed(0)
    model, inputs = TwoTypes(), torch.randn(4, 5, 3)
    trained = [one for one in model.parameters() if one.requires_grad]
    found = [torch.autograd.grad(model(one), trained) for one in inputs]
    tree = [(a + b) + (c + d) for a, b, c, d in zip(*found, strict=True)]
    in_order = [((a + b) + c) + d for a, b, c, d in zip(*found, strict=True)]
    gradients = ShardGradients(model, DistributedContext(0, 1, TWO.device), 4)
    for _ in range(2):
        gradients.clear()
        alive = []
        for shard, one in enumerate(inputs):
            model(one).backward()
            alive.append(weakref.ref(trained[0].grad))
            assert sum(each() is not None for each in alive) <= 1 + 2
            gradients.end_part(shard)
        gradients.sum_over_ranks()
        assert all(torch.equal(one.grad, expected) for one, expected in zip(trained, tree, strict=True))
        assert not all(torch.equal(one.grad, other) for one, other in zip(trained, in_order, strict=True))


@pytest.mark.parametrize("url", ["env://", "file://{}/store"])  # torch itself separates starts for some, not all
def test_a_restart_reads_nothing_that_the_processes_before_it_wrote(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = hold_store("127.0.0.1", port := free_port())
    stores = []
    settings = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in {**settings, RENDEZVOUS_URL: url.format(tmp_path), "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for start in ("0", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", start)
        stores.append(rendezvous_store(2))
    first, same_start, restart = stores
    first.set("address of rank 1", "gone")
    assert same_start.check(["address of rank 1"])
    assert not restart.check(["address of rank 1"])
    del held


def test_another_failure_is_not_taken_for_a_lost_peer() -> None:
    assert not is_lost_peer(RuntimeError("size mismatch")) and not is_lost_peer(ValueError("gloo"))
    assert is_lost_peer(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"))

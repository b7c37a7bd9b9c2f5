"""Out of memory: on the device, and of page-locked memory."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints.test_damage import FACTS
from runs import environment
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from seqtrack import device
from seqtrack.checkpoints.store import manifest_of
from seqtrack.cli import main
from seqtrack.device import is_out_of_memory
from seqtrack.training.checkpointer import Checkpointer
from seqtrack.training.train_step import TrainStep
from training.harness import RANKS, Run

# As torch 2.4 to 2.11 report it: the allocator, the driver (AcceleratorError is a RuntimeError), cuBLAS, NCCL, the CPU.
LACKS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("NCCL error ... Last error: Cuda failure 2 'out of memory'"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]
OTHERS = [
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED"),
    ValueError("CUDA out of memory"),
]


def _raiser(error: BaseException) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_every_out_of_memory_error_is_recognised_and_no_other() -> None:
    assert all(map(is_out_of_memory, LACKS)) and not any(map(is_out_of_memory, OTHERS))


@pytest.fixture(scope="module")
def tiny(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tmp_path_factory.mktemp("memory") / "run", demo_data)
    run.state.scaler = GradScaler(RANKS.device.type, enabled=False)  # one that is on may not begin a step twice
    return run


@pytest.mark.parametrize("place", ["torch.optim.AdamW.step", "torch.nn.Module.to_empty"])
def test_a_step_or_a_model_that_finds_no_memory_ends_the_run_with_1_and_one_line(
    place: str, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment(tmp_path, demo_data).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(place, _raiser(LACKS[1]))
    assert main(["train"]) == 1
    printed = capsys.readouterr().err
    assert "[device.out_of_memory]" in printed and "Traceback" not in printed
    assert not list(tmp_path.glob("phase_1/checkpoints/*"))


class _OnGpu(Tensor):
    """A tensor on the CPU that claims to be on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def _save(folder: Path, tensors: dict[str, Tensor]) -> str:
    folder.mkdir()
    checkpointer = Checkpointer(folder, parent_sha256=None)
    checkpointer.preallocate(tensors)
    checkpointer.save("SEQTRACK_ep0001.safetensors", tensors, {}, describe=FACTS)
    checkpointer.wait()
    return manifest_of(folder / "SEQTRACK_ep0001.json").sha256


@pytest.mark.parametrize("refused", [True, False])
def test_a_checkpoint_is_the_same_whether_memory_can_be_page_locked_or_not(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"model/a": torch.rand(300, 3), "model/none": torch.zeros(0, 4), "rng/torch": torch.arange(9)}
    plain = _save(tmp_path / "plain", state)
    zeros, asked = torch.zeros, []

    def pinning(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            asked.append(size[0])
            if refused:
                raise RuntimeError("CUDA error: out of memory")
        return zeros(*size, **options)

    monkeypatch.setattr(torch, "zeros", pinning)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(device, "_not_pinned", set())
    tensors: dict[str, Tensor] = {name: tensor.as_subclass(_OnGpu) for name, tensor in state.items()}
    with caplog.at_level(logging.WARNING, logger="seqtrack"):
        assert _save(tmp_path / "pinned", tensors) == plain
    warned = [record for record in caplog.records if record.name == "seqtrack.device"]
    assert (len(asked), len(warned)) == ((1, 1) if refused else (3, 0)), "not tried again after the first failure"


def test_a_batch_that_cannot_be_page_locked_is_used_unpinned_and_saves_use_what_was_allocated_at_the_start(
    tiny: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(tiny.loader.batches(1)))
    monkeypatch.setattr(device, "_not_pinned", set())
    monkeypatch.setattr(torch.Tensor, "pin_memory", _raiser(LACKS[1]))
    assert batch.pin_memory() is batch

    checkpointer = Checkpointer(tiny.folder, parent_sha256=None)
    expected = {f"optimizer/{path}": one for path, one in tiny.state.optimizer.expected_state_shapes().items()}
    checkpointer.preallocate({**expected, **tiny.state.capture()[0]})
    places = {name: buffer.data_ptr() for name, buffer in checkpointer._buffers.items()}
    TrainStep(tiny.state, tiny.state.model, RANKS, tiny.config)(batch)
    copies = checkpointer._copy(tiny.state.capture()[0])
    assert {name: copy.data_ptr() for name, copy in copies.items()} == places


def test_reserved_memory_beyond_the_cards_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = {"max_memory_allocated": 3 << 30, "max_memory_reserved": 5 << 30}
    for name, value in {**numbers, "reset_peak_memory_stats": 0}.items():
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    for gib, warnings in ((6, 0), (4, 1)):
        card = SimpleNamespace(total_memory=gib << 30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, card=card: card)
        assert device.peak_memory(torch.device("cuda")) == numbers
        assert len(caplog.records) == warnings

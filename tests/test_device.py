"""Which device a process takes, with faked GPUs, and what a device of a compute capability can do."""

import pytest
import torch

from seqtrack.device import DevicePlan, choose_device, choose_precision, device_plan, has_tf32, is_emulated
from seqtrack.errors import UserError

P100, V100, T4, A100, RTX3050, H100 = (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)


@pytest.mark.parametrize(
    ("expected", "capabilities"), [("fp32", [None]), ("fp16", [P100, V100, T4]), ("bf16", [A100, RTX3050, H100])]
)
def test_auto_is_the_half_precision_that_the_hardware_has_and_another_is_used_as_given(
    capabilities: list[tuple[int, int] | None], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # torch counts emulation
    for capability in capabilities:
        assert choose_precision("auto", capability) == expected
        assert has_tf32(capability) == (expected == "bf16")
        assert choose_precision("off", capability) == "fp32" and choose_precision("bf16", capability) == "bf16"
        assert (is_emulated(expected, capability), is_emulated("bf16", capability)) == (False, expected == "fp16")
        assert capability is None or choose_precision("fp16", capability) == "fp16"
    with pytest.raises(UserError) as refused:
        choose_precision("fp16", None)
    assert refused.value.code == "device.fp16_on_cpu"


def fake_gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


PLANS: list[tuple[int, str, int | str, DevicePlan | str]] = [
    (0, "auto", "auto", DevicePlan("cpu", 1)), (0, "auto", 3, DevicePlan("cpu", 3)),
    (1, "auto", 1, DevicePlan("cuda", 1)), (1, "cpu", 2, DevicePlan("cpu", 2)),
    (4, "auto", "auto", DevicePlan("cuda", 4)), (4, "cuda", 3, DevicePlan("cuda", 3)),
    (4, "cpu", "auto", DevicePlan("cpu", 1)), (1, "auto", 2, "device.too_many_processes"),
    (1, "cuda", 2, "device.too_many_processes"), (3, "auto", 4, "device.too_many_processes"),
    (0, "cuda", 1, "device.no_gpu"), (0, "cuda", "auto", "device.no_gpu"),
]  # fmt: skip


def test_device_and_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for gpus, device, processes, expected in PLANS:
        fake_gpus(monkeypatch, gpus)
        if isinstance(expected, DevicePlan):
            assert device_plan(device, processes) == expected
        else:
            with pytest.raises(UserError) as caught:
                device_plan(device, processes)
            assert caught.value.code == expected


def test_no_process_falls_back_to_the_cpu_next_to_one_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, 2)
    for name in ("auto", "cuda"):
        assert [choose_device(name, local_rank=rank) for rank in (0, 1)] == [torch.device("cuda", i) for i in (0, 1)]
        with pytest.raises(UserError) as caught:
            choose_device(name, local_rank=2)
        assert caught.value.code == "device.too_many_processes"

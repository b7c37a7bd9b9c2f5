"""Which device a process takes, and how many processes a machine's GPUs allow; with faked GPUs."""

import pytest
import torch

from seqtrack.errors import UserError
from seqtrack.runtime.devices import DevicePlan, choose_device, device_plan


def fake_gpus(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: number > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: number)


@pytest.mark.parametrize(
    ("gpus", "device", "processes", "expected"),
    [
        (0, "auto", "auto", DevicePlan("cpu", 1)),
        (0, "auto", 3, DevicePlan("cpu", 3)),
        (1, "auto", 1, DevicePlan("cuda", 1)),
        (1, "cpu", 2, DevicePlan("cpu", 2)),
        (4, "auto", "auto", DevicePlan("cuda", 4)),
        (4, "cuda", 3, DevicePlan("cuda", 3)),
        (4, "cpu", "auto", DevicePlan("cpu", 1)),
        (1, "auto", 2, "device.too_many_processes"),
        (1, "cuda", 2, "device.too_many_processes"),
        (3, "auto", 4, "device.too_many_processes"),
        (0, "cuda", 1, "device.no_gpu"),
        (0, "cuda", "auto", "device.no_gpu"),
    ],
)
def test_device_and_number_of_processes(
    gpus: int, device: str, processes: int | str, expected: DevicePlan | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpus(monkeypatch, gpus)
    if isinstance(expected, DevicePlan):
        assert device_plan(device, processes) == expected
    else:
        with pytest.raises(UserError) as caught:
            device_plan(device, processes)
        assert caught.value.code == expected


@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_no_process_falls_back_to_the_cpu_next_to_one_on_the_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_gpus(monkeypatch, 2)
    assert [choose_device(name, local_rank=rank) for rank in (0, 1)] == [torch.device("cuda", i) for i in (0, 1)]
    with pytest.raises(UserError) as caught:
        choose_device(name, local_rank=2)
    assert caught.value.code == "device.too_many_processes"

"""The capabilities of a device as functions of its compute capability."""

import pytest
import torch

from seqtrack.device import choose_precision, has_tf32, is_emulated, stores_attention_scores
from seqtrack.errors import UserError

P100, V100, T4, A100, RTX3050, H100 = (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (9, 0)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [(None, "fp32"), (P100, "fp16"), (V100, "fp16"), (T4, "fp16"), (A100, "bf16"), (RTX3050, "bf16"), (H100, "bf16")],
)
def test_auto_is_the_half_precision_that_the_hardware_has(
    capability: tuple[int, int] | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # torch counts emulation
    assert choose_precision("auto", capability) == expected
    assert not is_emulated(expected, capability)
    assert has_tf32(capability) == (expected == "bf16")


@pytest.mark.parametrize("capability", [None, T4, A100])
def test_an_explicit_precision_is_used(capability: tuple[int, int] | None) -> None:
    assert choose_precision("off", capability) == "fp32"
    assert choose_precision("bf16", capability) == "bf16"
    assert is_emulated("bf16", capability) == (capability == T4)


def test_fp16_on_a_cpu_is_refused() -> None:
    assert choose_precision("fp16", T4) == choose_precision("fp16", H100) == "fp16"
    with pytest.raises(UserError) as refused:
        choose_precision("fp16", None)
    assert refused.value.code == "device.fp16_on_cpu"


@pytest.mark.parametrize(
    ("precision", "capability", "stored"),
    [("fp32", None, False), ("bf16", None, True), ("bf16", T4, True), ("fp16", T4, False), ("bf16", RTX3050, False)],
)
def test_attention_scores_are_stored_without_a_fused_kernel(
    precision: str, capability: tuple[int, int] | None, stored: bool
) -> None:
    assert stores_attention_scores(precision, capability) == stored

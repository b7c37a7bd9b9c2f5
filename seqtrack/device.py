"""What a device can do, answered once for training, tracking, `plan` and `doctor`: natively, never by emulation.

The answers are functions of a compute capability, so that they hold for a GPU that is not in this machine as well.
"""

import torch

from seqtrack.errors import UserError

Capability = tuple[int, int]
# Ampere: the first generation whose matrix units take bf16 and TF32. torch emulates bf16 on older ones, slower than
# float32, and calls that supported.
_AMPERE: Capability = (8, 0)
DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def capability_of(device: torch.device) -> Capability | None:
    """The compute capability of a GPU; None for the CPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def choose_precision(amp: str, capability: Capability | None) -> str:
    """What TRAIN.AMP means on a device: "fp32", "bf16" or "fp16".

    Args:
        amp: auto, off, bf16 or fp16. "auto" is bf16 from compute capability 8.0 on, fp16 on older GPUs, fp32 on a CPU.
        capability: the GPU's; None for the CPU.

    Raises:
        UserError: fp16 on a CPU, whose kernels for it are missing.
    """
    if amp == "auto":
        return "fp32" if capability is None else "bf16" if capability >= _AMPERE else "fp16"
    if amp == "fp16" and capability is None:
        raise UserError("TRAIN.AMP fp16 needs a GPU; use bf16 or off on a CPU", code="device.fp16_on_cpu")
    return "fp32" if amp == "off" else amp


def is_emulated(precision: str, capability: Capability | None) -> bool:
    """Whether a GPU computes in this precision without hardware for it: correct, and slower than float32."""
    return precision == "bf16" and capability is not None and capability < _AMPERE


def has_tf32(capability: Capability | None) -> bool:
    """Whether float32 products can run on the matrix units."""
    return capability is not None and capability >= _AMPERE


def stores_attention_scores(precision: str, capability: Capability | None) -> bool:
    """Whether the encoder's attention keeps its (tokens x tokens) scores for the backward pass.

    The fused kernels keep none. They refuse bf16 on GPUs that emulate it; on a CPU bf16 training takes the explicit
    form because its backward pass is faster.
    """
    return precision == "bf16" if capability is None else is_emulated(precision, capability)

"""Torch tensors as bytes of a checkpoint file, and back. The only file of this folder that imports torch."""

import torch
from torch import Tensor

from seqtrack.checkpoints.safetensors_io import DamagedFileError, TensorBytes

_TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "I32": torch.int32, "F16": torch.float16,
    "BF16": torch.bfloat16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def tensor_bytes(tensor: Tensor) -> TensorBytes:
    """The bytes of a tensor of one of the types above; shares memory with it where it is contiguous on the CPU."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
    return TensorBytes(_NAMES[tensor.dtype], tuple(tensor.shape), data)


def to_tensor(what: str, stored: TensorBytes) -> Tensor:
    """The tensor with these bytes, whose memory it shares; `what` names it in the DamagedFileError of another type."""
    if stored.dtype not in _TYPES:
        raise DamagedFileError(f"{what}: found element type {stored.dtype}, expected one of {', '.join(_TYPES)}")
    dtype = _TYPES[stored.dtype]
    flat = torch.frombuffer(stored.data, dtype=dtype) if stored.data else torch.empty(0, dtype=dtype)
    return flat.view(stored.shape)

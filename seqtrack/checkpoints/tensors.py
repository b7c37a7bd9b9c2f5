"""Torch tensors as bytes of a checkpoint file, and back. The only file of this folder that imports torch."""

import torch

from seqtrack.checkpoints.safetensors_io import DamagedFileError, Entry, TensorBytes

_TYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "I64": torch.int64, "F32": torch.float32, "I32": torch.int32, "F16": torch.float16,
    "BF16": torch.bfloat16, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def tensor_bytes(tensor: torch.Tensor) -> TensorBytes:
    """The bytes of a tensor; shares memory with it where it is contiguous on the CPU already.

    Raises:
        ValueError: an element type that checkpoint files cannot hold.
    """
    if tensor.dtype not in _NAMES:
        raise ValueError(f"tensors of type {tensor.dtype} cannot be stored; known are {', '.join(map(str, _NAMES))}")
    return TensorBytes(_NAMES[tensor.dtype], tuple(tensor.shape), memory_of(tensor.detach().cpu().contiguous()))


def new_tensor(what: str, entry: Entry) -> torch.Tensor:
    """An uninitialised tensor for an entry of a checkpoint file; `what` names both in the message.

    Raises:
        DamagedFileError: an element type that is never stored here.
    """
    if entry.dtype not in _TYPES:
        raise DamagedFileError(f"{what}: found element type {entry.dtype}, expected one of {', '.join(_TYPES)}")
    return torch.empty(entry.shape, dtype=_TYPES[entry.dtype])


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(b"")

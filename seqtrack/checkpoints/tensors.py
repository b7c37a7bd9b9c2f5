"""Torch tensors seen as bytes, for the container. The only file of this folder that imports torch."""

import torch

from seqtrack.checkpoints.safetensors_io import DamagedFileError, Entry, TensorBytes

_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


def tensor_bytes(tensor: torch.Tensor) -> TensorBytes:
    """The bytes of a tensor; shares memory with it where it lies contiguous on the CPU already.

    Raises:
        ValueError: an element type that the container does not know.
    """
    if tensor.dtype not in _NAMES:
        raise ValueError(f"tensors of type {tensor.dtype} cannot be stored; known are {', '.join(map(str, _NAMES))}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = memoryview(flat.view(torch.uint8).numpy().data) if flat.numel() else memoryview(b"")
    return TensorBytes(_NAMES[tensor.dtype], tuple(tensor.shape), data)


def new_tensor(what: str, entry: Entry) -> torch.Tensor:
    """Memory of torch's own for a tensor of a container, its values not set.

    Args:
        what: file and tensor, for the message.

    Raises:
        DamagedFileError: an element type that is never stored here.
    """
    if entry.dtype not in _TYPES:
        raise DamagedFileError(
            f"{what}: tensors of type {entry.dtype} are never stored here; known are {', '.join(_TYPES)}"
        )
    return torch.empty(entry.shape, dtype=_TYPES[entry.dtype])


def writable_bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else memoryview(bytearray())

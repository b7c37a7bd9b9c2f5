"""The authors' checkpoint files: `torch.save`d dictionaries with the weights under "net".

Parameter names are the same here; only the prefixes of wrappers are removed on import. Weights are checked completely
or refused. A full checkpoint of the authors also has Python objects of their training code (settings, meters), which
are refused, or on request skipped. `foreign_weights.py` reads the files.
"""

import io
import logging
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqtrack.errors import UserError
from seqtrack.model.foreign_weights import ForeignFile, ForeignTensor, Placeholder, read_foreign
from seqtrack.model.weights import compare_states
from seqtrack.parsing import short_repr

log = logging.getLogger(__name__)

NET_KEY = "net"
NET_TYPE = "SEQTRACK"
LAST_EPOCH = 10**6
# Prefixes of DistributedDataParallel, torch.compile, FullyShardedDataParallel and activation checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def write_authors_file(state: Mapping[str, Tensor], *, epoch: int) -> memoryview:
    """The bytes of a `.pth.tar` that the authors' tracker reads with `torch.load(...)["net"]`; plain data only."""
    buffer = io.BytesIO()
    net = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    torch.save({"epoch": epoch, "net_type": NET_TYPE, NET_KEY: net}, buffer)
    return buffer.getbuffer()  # without another copy of the weights


def read_authors_file(
    path: Path, expected: Mapping[str, Tensor], *, skip_objects: bool = False
) -> tuple[dict[str, Tensor], int]:
    """Read a `.pth.tar` as data: nothing in it is executed.

    Args:
        path: a checkpoint of the authors' trainer, or a bare state dict.
        expected: the state dict of the model that the weights are for; only names, shapes and types are used.
        skip_objects: skip Python objects of other code instead of refusing the file.

    Returns:
        the weights, finite and of the expected types, and the epoch in the file, 0 if none.

    Raises:
        UserError: unreadable, with objects that are not skipped, or with weights that do not fit (all problems).
    """
    try:
        file = read_foreign(path)
        if file.objects and not skip_objects:
            raise UserError(
                f"{path}: contains Python objects besides plain weights ({_list(file.objects)}), as the authors' full "
                "checkpoints do; --skip-objects reads the weights only",
                code="weights.foreign_objects",
            )
        if file.objects:
            log.warning("%s: skipped objects of %s without executing any of them", path.name, _list(file.objects))
        net = _net(path, file.content)
        epoch = _epoch(path, file) if NET_KEY in file.content else 0
        return _load(path, file, net, expected), epoch
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", code="file.unreadable") from error


def _list(names: list[str]) -> str:
    shown = ", ".join(_python3_name(name) if name.isprintable() else ascii(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _python3_name(name: str) -> str:
    """Old pickles use the module names of Python 2: "__builtin__.set" is "builtins.set"."""
    module, _, attribute = name.rpartition(".")
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"


def _net(path: Path, content: Any) -> dict[str, ForeignTensor]:
    """The descriptions of the weights, without the wrappers' prefixes."""
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: contains a {type(content).__name__}, expected a dictionary with {NET_KEY!r}", code="weights.none"
        )
    net = content.get(NET_KEY, content)
    if not isinstance(net, dict) or not net:
        raise UserError(f"{path}: no weights under {NET_KEY!r}; found the keys {_keys(content)}", code="weights.none")
    found: dict[str, ForeignTensor] = {}
    for name, tensor in net.items():
        if not isinstance(name, str) or not name.isprintable():
            raise UserError(f"{path}: a weight is named {short_repr(ascii(name))}", code="weights.name")
        if not isinstance(tensor, ForeignTensor):
            what = tensor.name if isinstance(tensor, Placeholder) else type(tensor).__name__
            raise UserError(
                f"{path}: {short_repr(name)} is a {short_repr(ascii(what))}, expected a dense tensor; found the keys "
                f"{_keys(content)}",
                code="weights.none",
            )
        own = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if own in found:
            raise UserError(f"{path}: {own} exists twice, with and without a wrapper's prefix", code="weights.name")
        found[own] = tensor
    return found


def _keys(content: Mapping[Any, Any]) -> str:
    return ascii(", ".join(str(key)[:40] for key in content if isinstance(key, str | int)))[:200]


def _epoch(path: Path, file: ForeignFile) -> int:
    """The epoch: a whole number, or a tensor of one."""
    value = file.content.get("epoch", 0)
    if isinstance(value, ForeignTensor):
        if value.shape in ((), (1,)) and value.dtype in (torch.int64, torch.int32, torch.int16, torch.uint8):
            value = int(file.load(value).item())
        else:
            value = f"a tensor of {value.dtype} with shape {list(value.shape)}"
    if type(value) is not int or not 0 <= value <= LAST_EPOCH:
        plain = isinstance(value, str | float | bool) or (type(value) is int and value.bit_length() < 64)
        raise UserError(
            f"{path}: epoch is {ascii(value)[:60] if plain else type(value).__name__}, expected a whole number from 0 "
            f"to {LAST_EPOCH}",
            code="weights.epoch",
        )
    return value


def _load(
    path: Path, file: ForeignFile, net: Mapping[str, ForeignTensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights in the expected types; only floating-point types are converted."""
    problems = compare_states(net, expected, what=str(path), convertible=True)
    if problems:
        raise UserError(problems)
    weights = {name: file.load(tensor).to(expected[name].dtype) for name, tensor in net.items()}
    bad = {name: count for name, tensor in weights.items() if (count := int((~torch.isfinite(tensor)).sum()))}
    if bad:
        shown = ", ".join(f"{name} ({count} of {weights[name].numel()})" for name, count in list(bad.items())[:5])
        shown += ", ..." if len(bad) > 5 else ""
        raise UserError(f"{path}: {len(bad)} tensors have NaN or infinite values: {shown}", code="weights.not_finite")
    converted = Counter(str(net[name].dtype) for name in net if net[name].dtype != expected[name].dtype)
    if converted:
        shown = ", ".join(f"{count} from {dtype}" for dtype, count in converted.items())
        log.warning("%s: tensors converted to the model's types: %s", path.name, shown)
    return weights

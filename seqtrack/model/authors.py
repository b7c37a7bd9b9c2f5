"""The authors' checkpoint files: `torch.save`d dictionaries with the weights under "net".

Our names are theirs, so the mapping is short: what wrappers put into the names is taken off on the way in, nothing
changes on the way out. Weights that come in have every property that the program relies on later, or are refused.
A full checkpoint of theirs holds Python objects of their training code (settings, meters) with the weights; those are
refused, or on request replaced by empty stand-ins. How files are read is in `foreign_weights.py`.
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
from seqtrack.model.foreign_weights import ForeignFile, ForeignTensor, StandIn, read_foreign
from seqtrack.model.weights import compare_states
from seqtrack.parsing import short_repr

log = logging.getLogger(__name__)

NET_KEY = "net"
NET_TYPE = "SEQTRACK"
LAST_EPOCH = 10**6
# DistributedDataParallel, torch.compile, FullyShardedDataParallel, activation checkpointing: each adds to the names.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the authors' names, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def write_authors_file(state: Mapping[str, Tensor], *, epoch: int) -> memoryview:
    """The bytes of a `.pth.tar` that the authors' tracker reads with `torch.load(...)["net"]`; plain data only."""
    buffer = io.BytesIO()
    torch.save({"epoch": epoch, "net_type": NET_TYPE, NET_KEY: to_authors(state)}, buffer)
    return buffer.getbuffer()  # not another copy: the weights fill the memory twice already


def read_authors_file(
    path: Path, expected: Mapping[str, Tensor], *, skip_objects: bool = False
) -> tuple[dict[str, Tensor], int]:
    """Read a `.pth.tar` as data: nothing in it is run.

    Args:
        path: a checkpoint of the authors' trainer, or a bare state dict.
        expected: the state dict of the model that the weights are for; only names, shapes and types are used.
        skip_objects: put empty stand-ins for Python objects of other code instead of refusing the file.

    Returns:
        the weights by our names, finite and of the types expected, and the epoch it names, 0 if none.

    Raises:
        UserError: unreadable, with objects that are not skipped, or with weights that do not fit (all problems).
    """
    try:
        file = read_foreign(path)
        if file.objects and not skip_objects:
            raise UserError(
                f"{path}: holds Python objects next to plain weights ({_list(file.objects)}). The authors' own full "
                "checkpoints do; read it with --skip-objects, which takes the weights alone",
                code="weights.foreign_objects",
            )
        if file.objects:
            log.warning("%s: skipped objects of %s; nothing of them was run", path.name, _list(file.objects))
        net = _net(path, file.content)
        epoch = _epoch(path, file) if NET_KEY in file.content else 0
        return _load(path, file, net, expected), epoch
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", code="file.unreadable") from error


def _list(names: list[str]) -> str:
    shown = ", ".join(_name_of_today(name) if name.isprintable() else ascii(name) for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _name_of_today(name: str) -> str:
    """Old pickles call modules as Python 2 did: "__builtin__.set" is "builtins.set"."""
    module, _, attribute = name.rpartition(".")
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"


def _net(path: Path, content: Any) -> dict[str, ForeignTensor]:
    """The descriptions of the weights, by our names."""
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, expected a dictionary with {NET_KEY!r}", code="weights.none"
        )
    net = content.get(NET_KEY, content)
    if not isinstance(net, dict) or not net:
        raise UserError(f"{path}: no weights under {NET_KEY!r}; found the keys {_keys(content)}", code="weights.none")
    found: dict[str, ForeignTensor] = {}
    for name, tensor in net.items():
        if not isinstance(name, str) or not name.isprintable():
            raise UserError(f"{path}: a weight is named {short_repr(ascii(name))}", code="weights.name")
        if not isinstance(tensor, ForeignTensor):
            what = tensor.name if isinstance(tensor, StandIn) else type(tensor).__name__
            raise UserError(
                f"{path}: {short_repr(name)} is a {short_repr(ascii(what))}, expected a dense tensor; found the keys "
                f"{_keys(content)}",
                code="weights.none",
            )
        own = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if own in found:
            raise UserError(f"{path}: {own} is there twice, with and without a wrapper's name", code="weights.name")
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
    """The weights of the types expected; floating ones are converted, all others must be the same."""
    problems = compare_states(net, expected, what=str(path), convertible=True)
    if problems:
        raise UserError(problems)
    weights = {name: file.load(tensor).to(expected[name].dtype) for name, tensor in net.items()}
    bad = {name: count for name, tensor in weights.items() if (count := int((~torch.isfinite(tensor)).sum()))}
    if bad:
        shown = ", ".join(f"{name} ({count} of {weights[name].numel()})" for name, count in list(bad.items())[:5])
        shown += ", ..." if len(bad) > 5 else ""
        raise UserError(f"{path}: {len(bad)} tensors hold NaN or infinite values: {shown}", code="weights.not_finite")
    converted = Counter(str(net[name].dtype) for name in net if net[name].dtype != expected[name].dtype)
    if converted:
        shown = ", ".join(f"{count} from {dtype}" for dtype, count in converted.items())
        log.warning("%s: tensors converted to the model's types: %s", path.name, shown)
    return weights

"""The authors' checkpoint files: `torch.save`d dictionaries with the weights under "net".

Parameter names are the same here; only the prefixes of wrappers are removed on import. Weights are checked completely
or refused. A full checkpoint of the authors also has Python objects of their training code (settings, meters), which
are refused, or on request skipped.
"""

import io
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from seqtrack.errors import UserError
from seqtrack.model.foreign_weights import ForeignFile, ForeignTensor, read_foreign
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
    file = read_foreign(path)
    if file.objects:
        shown = ascii(", ".join(file.objects))[1:-1][:500]
        if not skip_objects:
            raise UserError(
                f"{path}: contains Python objects besides plain weights ({shown}), as the authors' full checkpoints "
                "do; --skip-objects reads the weights only",
                code="weights.foreign_objects",
            )
        log.warning("%s: skipped objects of %s without executing any of them", path.name, shown)
    content = file.content
    if not isinstance(content, dict):
        raise UserError(f"{path}: contains no dictionary with {NET_KEY!r}", code="weights.none")
    net = _net(path, content.get(NET_KEY, content))
    epoch = _epoch(file, content.get("epoch", 0)) if NET_KEY in content else 0
    if problems := compare_states(net, expected, what=str(path), convertible=True):
        raise UserError(problems)
    weights = {name: file.load(tensor).to(expected[name].dtype) for name, tensor in net.items()}
    bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in weights.items()}
    shown = ", ".join(f"{name} ({count} of {weights[name].numel()})" for name, count in bad.items() if count)
    if shown:
        raise UserError(f"{path}: NaN or infinite values in {shown}", code="weights.not_finite")
    for dtype, count in Counter(net[name].dtype for name in net if net[name].dtype != expected[name].dtype).items():
        log.warning("%s: tensors converted to the model's types: %d from %s", path.name, count, dtype)
    return weights, epoch


def _net(path: Path, net: object) -> dict[str, ForeignTensor]:
    """The descriptions of the weights, without the wrappers' prefixes."""
    if not isinstance(net, dict) or not net:
        raise UserError(f"{path}: no weights under {NET_KEY!r}", code="weights.none")
    found: dict[str, ForeignTensor] = {}
    for name, tensor in net.items():
        if not isinstance(name, str) or not name.isprintable():
            raise UserError(f"{path}: a weight is named {ascii(name)[:80]}", code="weights.name")
        if not isinstance(tensor, ForeignTensor):
            what = ascii(getattr(tensor, "name", type(tensor).__name__))[:80]
            text = f"{path}: {short_repr(name)} is a {what}, expected a dense tensor"
            raise UserError(text, code="weights.none")
        own = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        if own in found:
            raise UserError(f"{path}: {own} exists twice, with and without a wrapper's prefix", code="weights.name")
        found[own] = tensor
    return found


def _epoch(file: ForeignFile, value: object) -> int:
    """The epoch: a whole number, or a tensor of one."""
    if isinstance(value, ForeignTensor) and value.shape in ((), (1,)) and value.dtype in (torch.int64, torch.int32):
        value = int(file.load(value).item())
    if type(value) is int and 0 <= value <= LAST_EPOCH:
        return value
    plain = isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 2**64)
    shown = ascii(value)[:60] if plain else type(value).__name__
    text = f"{file.path}: epoch is {shown}, expected a whole number from 0 to {LAST_EPOCH}"
    raise UserError(text, code="weights.epoch")

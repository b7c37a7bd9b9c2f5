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
from seqtrack.model.foreign_weights import ForeignFile, ForeignTensor
from seqtrack.model.weights import compare_states

log = logging.getLogger(__name__)

NET_KEY = "net"
_INFO_KEY = "net_info"  # the authors' trainer writes None here and ignores it when it loads
LAST_EPOCH = 10**6
# Prefixes of DistributedDataParallel, torch.compile, FullyShardedDataParallel and activation checkpointing.
_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


def write_authors_file(state: Mapping[str, Tensor], *, epoch: int, config: str | None = None) -> memoryview:
    """The bytes of a `.pth.tar` that the authors' tracker reads with `torch.load(...)["net"]`; plain data only.

    Args:
        config: the configuration as text, for `recorded_config`.
    """
    buffer = io.BytesIO()
    net = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    torch.save({"epoch": epoch, "net_type": "SEQTRACK", _INFO_KEY: {"config": config}, NET_KEY: net}, buffer)
    return buffer.getbuffer()  # without another copy of the weights


def recorded_config(path: Path) -> str | None:
    """The configuration in a file that `write_authors_file` wrote; None in any other."""
    content = ForeignFile(path).content
    info = content.get(_INFO_KEY) if isinstance(content, dict) else None
    config = info.get("config") if isinstance(info, dict) else None
    return config if isinstance(config, str) else None


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
    file = ForeignFile(path)
    if file.objects:
        shown = ascii(", ".join(sorted(file.objects)))[1:-1][:500]
        if not skip_objects:
            raise UserError(
                f"{path}: contains Python objects besides plain weights ({shown}), as the authors' full checkpoints "
                "do; --skip-objects reads the weights only",
                code="weights.foreign_objects",
            )
        log.warning("%s: skipped objects of %s without executing any of them", path.name, shown)
    content = file.content
    net = content.get(NET_KEY, content) if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(net, dict) or not net:
        raise UserError(f"{path}: no dictionary of weights, alone or under {NET_KEY!r}", code="weights.none")
    found: dict[str, ForeignTensor] = {}
    for name, tensor in net.items():
        is_text = isinstance(name, str) and name.isprintable()
        own = ".".join(part for part in name.split(".") if part not in _WRAPPERS) if is_text else ""
        if not own or own in found:
            shown = ascii(name)[:80] if isinstance(name, str) else f"a {type(name).__name__}"
            what = f"{shown} is no name of a weight, or the name of two: with and without a wrapper's prefix"
            raise UserError(f"{path}: {what}", code="weights.name")
        if not isinstance(tensor, ForeignTensor):
            what = ascii(getattr(tensor, "name", type(tensor).__name__))[:80]
            raise UserError(f"{path}: {name[:80]} is a {what}, expected a dense tensor", code="weights.none")
        found[own] = tensor
    epoch = content.get("epoch", 0) if net is not content else 0
    if type(epoch) is not int or not 0 <= epoch <= LAST_EPOCH:
        text = f"{path}: the epoch, a {type(epoch).__name__}, is not a whole number from 0 to {LAST_EPOCH}"
        raise UserError(text, code="weights.epoch")
    if problems := compare_states(found, expected, what=str(path), convertible=True):
        raise UserError(problems)
    weights = {name: file.load(tensor).to(expected[name].dtype) for name, tensor in found.items()}
    bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in weights.items()}
    if shown := ", ".join(f"{name} ({count} of {weights[name].numel()})" for name, count in bad.items() if count):
        raise UserError(f"{path}: NaN or infinite values in {shown}", code="weights.not_finite")
    for dtype, count in Counter(one.dtype for name, one in found.items() if one.dtype != expected[name].dtype).items():
        log.warning("%s: tensors converted to the model's types: %d from %s", path.name, count, dtype)
    return weights, epoch

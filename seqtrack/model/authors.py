"""The authors' checkpoint files: `torch.save`d dictionaries with the weights under "net".

Our names are theirs, so the mapping is short: a wrapper's "module." is taken off on the way in, nothing changes on the
way out. Files are read as data only. A full checkpoint of theirs holds Python objects of their training code (settings,
meters) beside the weights; those are refused, or on request replaced by empty stand-ins: nothing in a file is ever run.
"""

import io
import logging
import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqtrack.errors import UserError

log = logging.getLogger(__name__)

NET_KEY = "net"
NET_TYPE = "SEQTRACK"
_WRAPPER = "module."
_OLD_FORMAT_PICKLES = 5
# What reading gives where a file is cut, is something else, or does with an object what no stand-in can do.
_UNREADABLE = (
    pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, ValueError, LookupError, TypeError,
    AttributeError,
)  # fmt: skip


def to_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the authors' names, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def from_authors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' state dict under our names; what a DDP wrapper put before every name is taken off."""
    wrapped = bool(state) and all(name.startswith(_WRAPPER) for name in state)
    return {name[len(_WRAPPER) :] if wrapped else name: tensor for name, tensor in state.items()}


def write_authors_file(state: Mapping[str, Tensor], *, epoch: int) -> memoryview:
    """The bytes of a `.pth.tar` that the authors' tracker reads with `torch.load(...)["net"]`; plain data only."""
    buffer = io.BytesIO()
    torch.save({"epoch": epoch, "net_type": NET_TYPE, NET_KEY: to_authors(state)}, buffer)
    return buffer.getbuffer()  # not another copy: the weights fill the memory twice already


def read_authors_file(path: Path, *, skip_objects: bool = False) -> tuple[dict[str, Tensor], int]:
    """Read a `.pth.tar` without running anything in it.

    Args:
        path: a checkpoint of the authors' trainer, or a bare state dict.
        skip_objects: put empty stand-ins for Python objects of other code instead of refusing the file.

    Returns:
        the weights by our names, and the epoch it names, 0 if none.

    Raises:
        UserError: unreadable, with objects that are not skipped, or without weights.
    """
    try:
        foreign = _foreign_objects(path)
        if foreign and not skip_objects:
            raise UserError(
                f"{path}: a pickle that names Python objects beside plain weights ({_list(foreign)}), which could "
                "run code when read. The authors' own full checkpoints do; read it with --skip-objects, which takes "
                "the weights and puts empty stand-ins for the objects, and trust the file's source all the same"
            )
        if foreign:
            log.warning("%s: skipped objects of %s; nothing of them was run", path.name, _list(foreign))
        content = _load(path, foreign)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except _UNREADABLE as error:
        way = "; where it was made, save its 'net' alone: torch.save({'net': ...})" if skip_objects else ""
        raise UserError(f"{path}: cannot be read as weights: {_reason(error)}{way}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a dictionary with {NET_KEY!r}")
    net = content.get(NET_KEY, content)
    if not isinstance(net, dict) or not net or not all(isinstance(value, Tensor) for value in net.values()):
        raise UserError(f"{path}: no weights under {NET_KEY!r}; found the keys {', '.join(map(str, content))[:200]}")
    epoch = content.get("epoch", 0)
    return from_authors(net), epoch if isinstance(epoch, int) and NET_KEY in content else 0


def _reason(error: Exception) -> str:
    """The cause in one line. Torch says it last, behind the advice to let the file run its code: that is no way out."""
    _, _, cause = str(error).partition("WeightsUnpickler error: ")
    return next(iter((cause or str(error)).strip().splitlines()), type(error).__name__)


def _list(names: list[str]) -> str:
    return ", ".join(map(_name_of_today, names))


def _pickle_bytes(path: Path) -> bytes:
    """The pickle inside a file of `torch.save`, without its tensors where they lie apart."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inner = [name for name in archive.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
            if len(inner) != 1:
                raise ValueError("a zip file, but none that torch.save wrote")
            return archive.read(inner[0])
    return path.read_bytes()


def _foreign_objects(path: Path) -> list[str]:
    """Names of everything that the file would import, apart from what plain weights need. Reads opcodes, runs none."""
    found: set[str] = set()
    strings: list[str] = []
    data = _pickle_bytes(path)
    stream = io.BytesIO(data)
    # The old format is five pickles in a row (number, version, machine, content, storage keys), then raw storages.
    for _ in range(1 if zipfile.is_zipfile(path) else _OLD_FORMAT_PICKLES):
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name in ("GLOBAL", "INST"):
                found.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
        if stream.tell() >= len(data):
            break
    return sorted(name for name in found if not _is_plain(name))


def _name_of_today(name: str) -> str:
    """Old pickles call modules as Python 2 did: "__builtin__.set" is "builtins.set". Newer torch translates them."""
    module, _, attribute = name.rpartition(".")
    module, attribute = NAME_MAPPING.get((module, attribute), (IMPORT_MAPPING.get(module, module), attribute))
    return f"{module}.{attribute}"


def _is_plain(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if module == "torch":
        return attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype | type)
    return name in (
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_parameter",
        "torch.storage.UntypedStorage",
        "torch.nn.parameter.Parameter",
    )


def _load(path: Path, foreign: list[str]) -> Any:
    """`torch.load` of data only; `foreign` names stand for empty classes made here."""
    stand_ins = []
    for name in {*foreign, *map(_name_of_today, foreign)}:
        module, _, attribute = name.rpartition(".")
        stand_ins.append(type(attribute, (_StandIn,), {"__module__": module}))
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(stand_ins)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class _StandIn:
    """Takes whatever a pickle gives an object and keeps nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...  # a dictionary of another class; newer torch refuses those

"""Read files of `torch.save` as data, without `torch.load`: nothing that they name is imported, created or called.

`torch.load(weights_only=True)` could run code in versions that this project supports (CVE-2025-32434). Here Python's
unpickler is given dictionaries, tuples and descriptions of tensors only; every other name becomes an inert placeholder.
A tensor is a checked range of a storage's bytes. A zip archive must have exactly the structure that torch.save gives
it. `authors.py` interprets the content.
"""

import io
import math
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import torch
from torch import Tensor

from seqtrack.checkpoints.recognize import PICKLE, SAFETENSORS, TORCH_ZIP, recognize
from seqtrack.errors import UserError

_T = TypeVar("_T")
_DTYPES: dict[str, torch.dtype] = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_STORAGE = re.compile(r"torch\.(?:storage\.|cuda\.)?([A-Za-z0-9]+)Storage")
_MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]+"
)
_LEGACY_START = [0x1950A86A20F9469CFC6C, 1001]  # magic number and protocol version
_LARGEST_PICKLE = 16 * 1024 * 1024
# A full checkpoint of the largest model with its optimizer has about 60,000 opcodes, 15,000 of them tuples. More could
# exhaust memory, or the stack where a deep tuple is a dictionary's key.
_MOST_OPCODES, _MOST_TUPLES = 300_000, 20_000


class Placeholder:
    """Replaces an object of any class that is not read here, and ignores what the file does to it."""

    name = ""

    def __new__(cls, *_: object, **__: object) -> "Placeholder":
        return super().__new__(cls)

    def _ignore(self, *_: object) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _ignore


class _Dict(dict[object, object]):
    """An OrderedDict without the attributes that torch gives to a state dict."""

    def __setstate__(self, _: object) -> None: ...


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype | None  # None: of a type that is not read here
    length: int  # in elements

    @property
    def num_bytes(self) -> int:
        return self.length * (self.dtype.itemsize if self.dtype else 0)


class ForeignTensor(NamedTuple):
    """A view of a storage, in elements; `ForeignFile.load` reads its values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype | None:
        return self.storage.dtype


class _Reader(pickle.Unpickler):
    """Builds plain values, `ForeignTensor` and `Placeholder`."""

    def __init__(self, file: BinaryIO, storages: dict[str, _Storage], objects: set[str]) -> None:
        super().__init__(file)
        self._storages, self._objects = storages, objects

    def find_class(self, module: str, name: str) -> object:
        """The stand-in for a name in the file; old protocols have the names of Python 2."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        full = f"{module}.{name}"
        known: dict[str, object] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
            "collections.OrderedDict": _Dict,
            "torch.Size": tuple,
        }
        if full in known:
            return known[full]
        harmless = full == "torch.device" or (module == "torch" and isinstance(vars(torch).get(name), torch.dtype))
        if not harmless and not _STORAGE.fullmatch(full):
            self._objects.add(full)
        return type("Placeholder", (Placeholder,), {"name": full})

    def persistent_load(self, description: object) -> _Storage:
        """The storage that a file names by ("storage", its type, key, device, number of elements[, None])."""
        match description:
            case ("storage", type() as kind, str(key), _, int(length), *more) if length >= 0 and more in ([], [None]):
                found = _STORAGE.fullmatch(getattr(kind, "name", ""))
                storage = _Storage(key, _DTYPES.get(found[1]) if found else None, length)
                if self._storages.setdefault(key, storage) == storage:
                    return storage
        raise ValueError("a storage is described in two ways, or as torch.save does not")

    def _tensor(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> ForeignTensor:
        numbers = (offset, *shape, *stride)
        if not isinstance(storage, _Storage) or len(shape) != len(stride) or len(shape) > 16:
            raise ValueError("a tensor is not described as torch.save does")
        if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
            raise ValueError("a tensor's shape, stride or offset is out of range")
        last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
        if math.prod(shape) and last >= storage.length:
            raise ValueError(f"a tensor of shape {list(shape)} needs element {last} of a storage of {storage.length}")
        return ForeignTensor(storage, offset, shape, stride)


@dataclass
class ForeignFile:
    """The content of a file: plain values, `ForeignTensor` and `Placeholder`; `objects` names what the latter replace.

    `read_storage` gives the bytes of a storage.
    """

    path: Path
    content: object
    objects: list[str]
    read_storage: Callable[[_Storage], bytes]

    def load(self, tensor: ForeignTensor) -> Tensor:
        """The values of a tensor, on the CPU.

        Raises:
            UserError: the storage cannot be read, is missing, has another size, or is damaged.
        """
        assert tensor.dtype is not None, "the caller checks the type first"
        if 0 in tensor.shape:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        data = _guarded(self.path, lambda: self._bytes(tensor.storage))
        return torch.frombuffer(data, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)

    def _bytes(self, storage: _Storage) -> bytearray:
        data = self.read_storage(storage)
        if len(data) != storage.num_bytes:
            raise ValueError(f"storage {storage.key} has {len(data)} bytes, expected {storage.num_bytes}")
        return bytearray(data)


def read_foreign(path: Path) -> ForeignFile:
    """Read a file of torch.save, in the zip format or the one before PyTorch 1.6.

    Raises:
        UserError: another kind of file, unreadable, incomplete, or not as torch.save writes it.
    """

    def read() -> ForeignFile:
        kind = recognize(path)
        if kind.name in (TORCH_ZIP, PICKLE):
            return _read_zip(path) if kind.name == TORCH_ZIP else _read_legacy(path)
        own = "; a checkpoint of this program needs no import" if kind.name == SAFETENSORS else ""
        raise UserError(f"{path} is {kind.name}, expected a file of torch.save (.pth.tar){own}", code=kind.code)

    return _guarded(path, read)


def _guarded(path: Path, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}", code="file.unreadable") from error
    except Exception as error:  # whatever zipfile and pickle raise for damaged bytes; neither documents it
        text = f"{path}: damaged, or not written by torch.save ({type(error).__name__}: {ascii(str(error))[:200]})"
        raise UserError(text, code="file.damaged") from error


def _unpickle(file: BinaryIO, storages: dict[str, _Storage], objects: set[str]) -> object:
    start, tuples = file.tell(), 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        tuples += opcode.name.startswith("TUPLE")
        far = opcode.name.endswith("BINPUT") and isinstance(argument, int) and argument > _MOST_OPCODES
        if count > _MOST_OPCODES or tuples > _MOST_TUPLES or far:
            raise ValueError("its pickle is too large for weights")
    file.seek(start)
    return _Reader(file, storages, objects).load()


def _read_zip(path: Path) -> ForeignFile:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 22))  # the last record of an archive without a comment
        if file.read(4) != b"PK\x05\x06":
            text = f"{path}: incomplete: the archive's directory at its end is missing ({size} bytes)"
            raise UserError(text, code="file.incomplete")
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        folder = next((i.filename.removesuffix("data.pkl") for i in infos if i.filename.endswith("/data.pkl")), "/")
        members = {info.filename.removeprefix(folder): info for info in infos}
        strange = [name for name in members if not _MEMBER.fullmatch(name)]
        strange += [name for name, i in members.items() if i.compress_type or i.flag_bits & 1]
        overlapping = len(members) != len(infos) or sum(info.file_size for info in infos) > size
        if strange or overlapping or "data.pkl" not in members or min(info.header_offset for info in infos):
            what = f"a member {strange[0]!r:.100}" if strange else "another structure"
            raise UserError(f"{path}: a zip archive that torch.save did not write: it has {what}", code="file.archive")
        if members["data.pkl"].file_size > _LARGEST_PICKLE:
            raise ValueError("its pickle is too large for weights")
        if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
            raise UserError(f"{path}: its byte order is not little", code="file.byte_order")
        objects: set[str] = set()
        content = _unpickle(io.BytesIO(archive.read(members["data.pkl"])), {}, objects)

    def read_storage(storage: _Storage) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(members[f"data/{storage.key}"])  # zipfile compares the checksum

    return ForeignFile(path, content, sorted(objects), read_storage)


def _read_legacy(path: Path) -> ForeignFile:
    """Five pickles (magic number, version, system, content, keys of the storages), then the storages in that order."""
    storages: dict[str, _Storage] = {}
    objects: set[str] = set()
    offsets: dict[str, int] = {}
    with path.open("rb") as file:
        # In memory, so that a length in a damaged pickle allocates no more than the file has.
        head = io.BytesIO(file.read(_LARGEST_PICKLE))
        if [_unpickle(head, {}, objects), _unpickle(head, {}, objects)] != _LEGACY_START:
            raise UserError(f"{path}: a pickle, but not one that torch.save wrote", code="file.pickle")
        system = _unpickle(head, {}, objects)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise UserError(f"{path}: its byte order is not little", code="file.byte_order")
        content, keys = _unpickle(head, storages, objects), _unpickle(head, {}, objects)
        assert isinstance(keys, list)
        place = head.tell()
        for key in keys:
            file.seek(place)
            if int.from_bytes(file.read(8), "little") != storages[key].length or key in offsets:
                raise ValueError("its list of storages is not that of its content")
            offsets[key] = place + 8
            place += 8 + storages[key].num_bytes
        if place != file.seek(0, 2):
            text = f"{path}: incomplete, or with bytes after its end: {file.tell()} bytes, expected {place}"
            raise UserError(text, code="file.incomplete")

    def read_storage(storage: _Storage) -> bytes:
        with path.open("rb") as file:
            file.seek(offsets[storage.key])
            return file.read(storage.num_bytes)

    return ForeignFile(path, content, sorted(objects), read_storage)

"""Read files of `torch.save` as data, without `torch.load`: nothing that they name is imported, created or called.

`torch.load(weights_only=True)` could run code in versions that this project supports (CVE-2025-32434). Here Python's
unpickler is given dictionaries, tuples and descriptions of tensors only; every other name becomes an inert placeholder.
A tensor is a checked range of a storage's bytes. A zip archive must have exactly the structure that torch.save gives
it. `authors.py` interprets the content.
"""

import contextlib
import io
import math
import pickle
import pickletools
import re
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from seqtrack.checkpoints.recognize import PICKLE, SAFETENSORS, TORCH_ZIP, recognize
from seqtrack.errors import UserError

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

    __setstate__ = Placeholder._ignore


class ForeignTensor(NamedTuple):
    """A view of `length` stored elements; `ForeignFile.load` reads its values. Offset and stride count elements."""

    key: str
    dtype: torch.dtype | None  # None: of a type that is not read here
    length: int
    offset: int = 0
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()

    @property
    def stored_bytes(self) -> int:
        return self.length * (self.dtype.itemsize if self.dtype else 0)


def _view(storage: object, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: object) -> ForeignTensor:
    numbers = (offset, *shape, *stride)
    if not isinstance(storage, ForeignTensor) or len(shape) != len(stride) or len(shape) > 16:
        raise ValueError("a tensor is not described as torch.save does")
    if not all(type(number) is int and 0 <= number < 2**48 for number in numbers):
        raise ValueError("a tensor's shape, stride or offset is out of range")
    last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
    if math.prod(shape) and last >= storage.length:
        raise ValueError(f"a tensor of shape {list(shape)} needs element {last} of a storage of {storage.length}")
    return storage._replace(offset=offset, shape=shape, stride=stride)


class _Reader(pickle.Unpickler):
    """Builds plain values, `ForeignTensor` and `Placeholder`; notes storages, and the names of other objects."""

    def __init__(self, file: BinaryIO, storages: dict[str, ForeignTensor], objects: set[str]) -> None:
        super().__init__(file)
        self._storages, self._objects = storages, objects

    def find_class(self, module: str, name: str) -> object:
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # from Python 2's
        full = f"{module}.{name}"
        if full.startswith("torch._utils._rebuild_tensor"):
            return lambda *described: _view(*described)  # a new function each time: the file may give it attributes
        if full == "torch._utils._rebuild_parameter":
            return lambda data, *_: data
        if full in ("collections.OrderedDict", "torch.Size"):
            return _Dict if name == "OrderedDict" else tuple
        harmless = full == "torch.device" or (module == "torch" and isinstance(vars(torch).get(name), torch.dtype))
        if not harmless and not _STORAGE.fullmatch(full):
            self._objects.add(full)
        return type("Placeholder", (Placeholder,), {"name": full})

    def persistent_load(self, description: object) -> ForeignTensor:
        """The storage that a file names by ("storage", its type, key, device, number of elements[, None])."""
        match description:
            case ("storage", type() as kind, str(key), _, int(length), *more) if length >= 0 and more in ([], [None]):
                found = _STORAGE.fullmatch(getattr(kind, "name", ""))
                storage = ForeignTensor(key, _DTYPES.get(found[1]) if found else None, length)
                if self._storages.setdefault(key, storage) == storage:
                    return storage
        raise ValueError("a storage is described in two ways, or as torch.save does not")


class ForeignFile:
    """A file of torch.save, in the zip format or the one before PyTorch 1.6.

    `content` has plain values, `ForeignTensor` and `Placeholder`; `objects` names what the latter replace.

    Raises:
        UserError: another kind of file, unreadable, incomplete, or not as torch.save writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.objects = path, set[str]()
        self._storages: dict[str, ForeignTensor] = {}
        self._folder, self._offsets = "", dict[str, int]()  # where an archive, or a file of the old format, has them
        with self._refusing_damage():
            kind = recognize(path)
            if kind.name not in (TORCH_ZIP, PICKLE):
                own = "; a checkpoint of this program needs no import" if kind.name == SAFETENSORS else ""
                raise UserError(f"{path} is {kind.name}, expected a file of torch.save (.pth.tar){own}", code=kind.code)
            self.content = self._read_zip() if kind.name == TORCH_ZIP else self._read_legacy()

    def load(self, tensor: ForeignTensor) -> Tensor:
        """The values of a tensor of a known type, on the CPU.

        Raises:
            UserError: the storage cannot be read, is missing, has another size, or is damaged.
        """
        assert tensor.dtype is not None, "the caller checks the type first"
        if 0 in tensor.shape:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        with self._refusing_damage(), self.path.open("rb") as file:
            if self._folder:
                data = bytearray(zipfile.ZipFile(file).read(f"{self._folder}data/{tensor.key}"))  # compares checksums
            else:
                file.seek(self._offsets[tensor.key])
                data = bytearray(file.read(tensor.stored_bytes))
            if len(data) != tensor.stored_bytes:
                raise ValueError(f"storage {tensor.key} has {len(data)} bytes, expected {tensor.stored_bytes}")
        return torch.frombuffer(data, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)

    @contextlib.contextmanager
    def _refusing_damage(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror or error}", code="file.unreadable") from error
        except Exception as error:  # whatever zipfile and pickle raise for damaged bytes; neither documents it
            text = f"damaged, or not written by torch.save ({type(error).__name__}: {ascii(str(error))[:200]})"
            raise UserError(f"{self.path}: {text}", code="file.damaged") from error

    def _unpickle(self, file: BinaryIO) -> object:
        start, tuples = file.tell(), 0
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            tuples += opcode.name.startswith("TUPLE")
            far = opcode.name.endswith("BINPUT") and isinstance(argument, int) and argument > _MOST_OPCODES
            if count > _MOST_OPCODES or tuples > _MOST_TUPLES or far:
                raise ValueError("its pickle is too large for weights")
        file.seek(start)
        return _Reader(file, self._storages, self.objects).load()

    def _read_zip(self) -> object:
        if not zipfile.is_zipfile(self.path):
            text = f"{self.path}: incomplete: the archive's directory at its end is missing"
            raise UserError(text, code="file.incomplete")
        with zipfile.ZipFile(self.path) as archive:
            infos = archive.infolist()
            folder = next((i.filename.removesuffix("data.pkl") for i in infos if i.filename.endswith("/data.pkl")), "/")
            members = {info.filename.removeprefix(folder): info for info in infos}
            strange = [n for n, i in members.items() if not _MEMBER.fullmatch(n) or i.compress_type or i.flag_bits & 1]
            size, whole = self.path.stat().st_size, sum(info.file_size for info in infos)
            overlapping = len(members) != len(infos) or whole > size or min(info.header_offset for info in infos)
            if strange or overlapping or "data.pkl" not in members:
                what = f"a member {strange[0]!r:.100}" if strange else "another structure"
                text = f"{self.path}: a zip archive that torch.save did not write: it has {what}"
                raise UserError(text, code="file.archive")
            if members["data.pkl"].file_size > _LARGEST_PICKLE:
                raise ValueError("its pickle is too large for weights")
            if "byteorder" in members and archive.read(members["byteorder"]) != b"little":
                raise UserError(f"{self.path}: its byte order is not little", code="file.byte_order")
            self._folder = folder
            return self._unpickle(io.BytesIO(archive.read(members["data.pkl"])))

    def _read_legacy(self) -> object:
        """Five pickles (magic number, version, system, content, keys of the storages), then the storages."""
        with self.path.open("rb") as file:
            # In memory, so that a length in a damaged pickle allocates no more than the file has.
            head = io.BytesIO(file.read(_LARGEST_PICKLE))
            if [self._unpickle(head), self._unpickle(head)] != _LEGACY_START:
                raise UserError(f"{self.path}: a pickle, but not one that torch.save wrote", code="file.pickle")
            system, content, keys = (self._unpickle(head) for _ in range(3))
            assert isinstance(system, dict) and system["little_endian"] is True and isinstance(keys, list)
            end = head.tell()
            for key in keys:
                file.seek(end)
                if int.from_bytes(file.read(8), "little") != self._storages[key].length or key in self._offsets:
                    raise ValueError("its list of storages is not that of its content")
                self._offsets[key] = end + 8
                end += 8 + self._storages[key].stored_bytes
            if end != (size := file.seek(0, 2)):
                text = f"{self.path}: incomplete or too long: {size} bytes, expected {end}"
                raise UserError(text, code="file.incomplete")
        return content

"""Read files of `torch.save` as data, without a deserialiser of torch or Python: nothing in them is ever called.

`torch.load(weights_only=True)` is not safe in every torch that this project supports (CVE-2025-32434). Here the pickle
is interpreted opcode by opcode: it can build dictionaries, lists, numbers, strings and descriptions of tensors;
everything else becomes an inert placeholder with a name. A tensor is a checked range of a storage's bytes. A zip
archive must have exactly the structure that torch.save gives it. `authors.py` interprets the content.
"""

import errno
import functools
import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

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
_REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_DICTIONARY = "collections.OrderedDict"
_NEW: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": lambda: Placeholder("set"),
}  # fmt: skip
_LITERAL = re.compile(r"BININT[12]?|LONG[14]|BINFLOAT|(SHORT_)?(BINUNICODE|BINSTRING|BINBYTES)8?")
_PLAIN = (*_REBUILD, *_PARAMETER, _DICTIONARY, "torch.Size", "torch.device", "torch.nn.parameter.Parameter")
_MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]+"
)
_LEGACY_MAGIC, _LEGACY_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# A full checkpoint of the largest model with its optimizer has about 60,000.
_MOST_OPCODES = 300_000
_ZIP_END = 22  # the last record of an archive without a comment
_LARGEST_PICKLE = 16 * 1024 * 1024


class _Unreadable(Exception):
    """The file is not as torch.save writes it."""

    def __init__(self, message: str, code: str = "file.damaged") -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True)
class Placeholder:
    """Replaces a class, function or object that the file names; it has a name and nothing else."""

    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype | None  # None: of a type that is not read here
    length: int  # in elements


@dataclass(frozen=True)
class ForeignTensor:
    """A view of a storage, in elements; `ForeignFile.load` reads its values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype | None:
        return self.storage.dtype


@dataclass
class ForeignFile:
    """The content of a file: plain values, `ForeignTensor` and `Placeholder`; `objects` names the latter."""

    content: Any
    objects: list[str]
    read_storage: Callable[[str, int], bytearray] = field(repr=False)

    def load(self, tensor: ForeignTensor) -> Tensor:
        """The values of a tensor, on the CPU; tensors of one storage share its memory.

        Raises:
            OSError: it cannot be read.
            UserError: the storage is missing, has another size, or is damaged.
        """
        assert tensor.dtype is not None, "the caller checks the type first"
        if 0 in tensor.shape:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        data = self.read_storage(tensor.storage.key, tensor.storage.length * tensor.dtype.itemsize)
        return torch.frombuffer(data, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride, tensor.offset)


def read_foreign(path: Path) -> ForeignFile:
    """Read a file of torch.save, in the zip format or the one before PyTorch 1.6.

    Raises:
        OSError: it cannot be read.
        UserError: another kind of file, incomplete, or not as torch.save writes it.
    """
    kind = recognize(path)
    if kind.is_impostor:
        raise UserError(f"{path} is {kind.name}", code=kind.code)
    if kind.name == SAFETENSORS:
        raise UserError(
            f"{path} is a safetensors file; `import` reads files of torch.save (.pth.tar). A checkpoint of this "
            "program needs no import",
            code=kind.code,
        )
    if kind.name not in (TORCH_ZIP, PICKLE):
        raise UserError(f"{path} is {kind.name}, expected a file of torch.save", code=kind.code)
    return _translate_errors(path, lambda: _read_zip(path) if kind.name == TORCH_ZIP else _read_legacy(path))


def _translate_errors(path: Path, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except _Unreadable as error:
        raise UserError(f"{path}: {error}", code=error.code) from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OverflowError, ValueError, struct.error) as error:
        raise UserError(f"{path}: a damaged zip archive ({error})", code="file.damaged") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # zipfile seeks to before the beginning of the file
            raise
        raise UserError(f"{path}: a damaged zip archive", code="file.damaged") from error


def _read_zip(path: Path) -> ForeignFile:
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _ZIP_END))
        if file.read(4) != b"PK\x05\x06":
            raise _Unreadable(
                f"incomplete: the archive's directory at its end is missing ({size} bytes)", "file.incomplete"
            )
    with zipfile.ZipFile(path) as archive:
        members = _members(archive.infolist(), size)
        if members["data.pkl"].file_size > _LARGEST_PICKLE:
            raise _Unreadable(f"data.pkl has {members['data.pkl'].file_size} bytes, too many for names of tensors")
        if (order := archive.read(members["byteorder"]) if "byteorder" in members else b"little") != b"little":
            raise _Unreadable(f"its byte order is {order[:20]!r}, expected little", "file.byte_order")
        content, objects = _Interpreter().run(io.BytesIO(archive.read(members["data.pkl"])))

    def read_storage(key: str, num_bytes: int) -> bytearray:
        info = members.get(f"data/{key}")
        if info is None or info.file_size != num_bytes:
            found = "missing" if info is None else f"{info.file_size} bytes"
            raise _Unreadable(f"storage {key} is {found}, expected {num_bytes} bytes")
        with zipfile.ZipFile(path) as archive:
            return bytearray(archive.read(info))  # zipfile compares the checksum

    return _foreign_file(path, content, objects, read_storage)


def _members(infos: list[zipfile.ZipInfo], size: int) -> dict[str, zipfile.ZipInfo]:
    """The archive's members by their names below its one folder."""
    names = [info.filename for info in infos]
    if any(name.split("/")[1:2] in (["code"], ["constants.pkl"]) for name in names):
        raise _Unreadable("a TorchScript archive, not a file of torch.save", "file.torchscript")
    if not any(name.endswith("/data.pkl") for name in names):
        raise _Unreadable("a zip archive, but not one that torch.save wrote (no data.pkl)", "file.archive")
    if len({name.casefold() for name in names}) != len(names):
        raise _Unreadable("the archive has two members whose names are equal or differ only in case")
    folder = next(name for name in names if name.endswith("/data.pkl")).removesuffix("data.pkl")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = info.filename.removeprefix(folder)
        if not info.filename.startswith(folder) or "/" in folder[:-1] or not _MEMBER.fullmatch(name):
            raise _Unreadable(f"the archive has {info.filename!r:.100}, which torch.save never writes")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise _Unreadable(f"{info.filename!r:.100} is compressed or encrypted, which torch.save never does")
        found[name] = info
    if min(info.header_offset for info in infos):
        raise _Unreadable("bytes precede the archive")
    if sum(info.file_size for info in infos) > size:
        raise _Unreadable("the archive's members overlap")
    return found


def _read_legacy(path: Path) -> ForeignFile:
    """Five pickles (magic number, version, system, content, keys of the storages), then the storages in that order."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        # From memory, so that a length in a damaged pickle does not allocate as many bytes.
        head = io.BytesIO(file.read(_LARGEST_PICKLE))
        reader = _Interpreter()
        if reader.run(head)[0] != _LEGACY_MAGIC:
            raise _Unreadable("a pickle, but not one that torch.save wrote", "file.pickle")
        version, machine = reader.run(head)[0], reader.run(head)[0]
        if version != _LEGACY_PROTOCOL or not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise _Unreadable("torch.save's format is of another version, or its byte order is big", "file.byte_order")
        content, objects = reader.run(head)
        keys = reader.run(head)[0]
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise _Unreadable("its list of storages is damaged")
        file.seek(head.tell())
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            storage = reader.storages.get(key)
            if storage is None or storage.dtype is None or key in places:
                raise _Unreadable("its list of storages is not that of its content")
            length = int.from_bytes(file.read(8), "little")
            places[key] = (file.tell(), storage.length * storage.dtype.itemsize)
            if file.seek(sum(places[key])) > size:
                raise _Unreadable(f"incomplete: it ends inside its tensors ({size} bytes)", "file.incomplete")
            if length != storage.length:
                raise _Unreadable(f"storage {key!r:.40} has {length} elements, expected {storage.length}")
        if file.tell() != size:
            raise _Unreadable(f"{size - file.tell()} bytes follow its last tensor")

    def read_storage(key: str, num_bytes: int) -> bytearray:
        if key not in places or places[key][1] != num_bytes:
            raise _Unreadable(f"storage {key!r:.40} is missing")
        data = bytearray(num_bytes)
        with path.open("rb") as file:
            file.seek(places[key][0])
            if file.readinto(data) != num_bytes:
                raise _Unreadable("it became shorter while it was read", "file.incomplete")
        return data

    return _foreign_file(path, content, objects, read_storage)


def _foreign_file(
    path: Path, content: Any, objects: list[str], read_storage: Callable[[str, int], bytearray]
) -> ForeignFile:
    # Several tensors may share a storage; it is read once.
    cached = functools.cache(read_storage)
    return ForeignFile(content, objects, lambda key, size: _translate_errors(path, lambda: cached(key, size)))


class _Interpreter:
    """A pickle machine with the opcodes of plain data only."""

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}

    def run(self, file: io.BytesIO) -> tuple[Any, list[str]]:
        """The value of the pickle that starts here, and the names of everything in it that is not plain data."""
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._names: set[str] = set()
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if opcode.name == "STOP":
                    (value,) = self._stack
                    return value, sorted(name for name in self._names if not _is_plain(name))
                if count > _MOST_OPCODES:
                    raise _Unreadable("its pickle is too long for names of tensors")
                self._step(opcode.name, argument)
        except (ValueError, LookupError) as error:
            place = file.tell()
            if place == file.seek(0, 2) and place < _LARGEST_PICKLE:
                raise _Unreadable(f"incomplete: it ends inside a pickle ({place} bytes)", "file.incomplete") from error
            raise _Unreadable(f"its pickle is damaged before byte {place}") from error
        raise _Unreadable("its pickle has no end")

    def _step(self, name: str, argument: Any) -> None:
        stack, memo = self._stack, self._memo
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(stack))
            case _ if name in _NEW:
                stack.append(_NEW[name]())
            case _ if _LITERAL.fullmatch(name):
                stack.append(argument)
            case "TUPLE" | "LIST" | "FROZENSET":
                items = self._since_mark()
                stack.append({"TUPLE": tuple(items), "LIST": items, "FROZENSET": Placeholder("frozenset")}[name])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                number = int(name[-1])
                stack[-number:] = [tuple(_top(stack, number))]
            case "DICT":
                items = self._since_mark()
                stack.append({})
                _put(stack[-1], items)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = [stack.pop()] if name == "APPEND" else self._since_mark()
                _extend(stack[-1], items)
            case "SETITEM" | "SETITEMS":
                items = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else self._since_mark()
                _put(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "POP" | "BUILD":  # BUILD sets an object's attributes; torch's state dicts keep their versions there
                stack.pop()
            case "POP_MARK":
                self._since_mark()
            case "GLOBAL" | "STACK_GLOBAL":
                parts = argument.split(" ") if name == "GLOBAL" else [_text(stack.pop()), _text(stack.pop())][::-1]
                stack.append(Placeholder(".".join(parts)))
                self._names.add(stack[-1].name)
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                if name == "NEWOBJ_EX":
                    stack.pop()
                arguments, called = stack.pop(), stack.pop()
                stack.append(_called(called, () if name == "NEWOBJ_EX" else arguments))
            case _:
                raise _Unreadable(f"its pickle has the opcode {name}, which plain weights do not need")

    def _since_mark(self) -> list[Any]:
        place = self._marks.pop()
        items = self._stack[place:]
        del self._stack[place:]
        return items

    def _storage(self, description: Any) -> _Storage:
        match description:
            case ("storage", Placeholder() as kind, str(key), _, int(length)) if length >= 0:
                pass
            case ("storage", Placeholder() as kind, str(key), _, int(length), None) if length >= 0:
                pass
            case _:
                raise _Unreadable("a storage is described in a way that torch.save does not use")
        found = re.fullmatch(r"torch\.(?:storage\.|cuda\.)?([A-Za-z0-9]+)Storage", kind.name)
        storage = _Storage(key, _DTYPES.get(found[1]) if found else None, length)
        if self.storages.setdefault(key, storage) != storage:
            raise _Unreadable(f"storage {key!r:.40} is described in two ways")
        return storage


def _is_plain(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if module in ("torch", "torch.storage", "torch.cuda") and attribute.endswith("Storage"):
        return True
    return name in _PLAIN or (module == "torch" and isinstance(vars(torch).get(attribute), torch.dtype))


def _top(stack: list[Any], number: int) -> list[Any]:
    if len(stack) < number:
        raise IndexError(number)
    return stack[-number:]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _Unreadable("its pickle names an object by something that is not a string")
    return value


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Placeholder):
        raise _Unreadable("its pickle appends to something that is not a list")


def _put(target: Any, items: list[Any]) -> None:
    if isinstance(target, Placeholder):
        return
    if not isinstance(target, dict) or len(items) % 2:
        raise _Unreadable("its pickle sets items of something that is not a dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Plain keys only: hashing a tuple that is nested a million times deep would crash the process.
        if isinstance(key, str | int | float | bytes | None):
            if key in target:
                raise _Unreadable("a dictionary has a key twice")
            target[key] = value


def _called(called: Any, arguments: Any) -> Any:
    """The result of a plain constructor; a placeholder for any other call."""
    if not isinstance(called, Placeholder) or not isinstance(arguments, tuple):
        raise _Unreadable("its pickle calls something that is not a name")
    if called.name in _REBUILD:
        return _tensor(arguments)
    if called.name in _PARAMETER and arguments and isinstance(arguments[0], ForeignTensor):
        return arguments[0]
    if called.name == _DICTIONARY:
        result: dict[Any, Any] = {}
        for pair in arguments[0] if arguments and isinstance(arguments[0], list) else ():
            if not isinstance(pair, list | tuple) or len(pair) != 2:
                raise _Unreadable("a dictionary is built from something other than pairs")
            _put(result, [*pair])
        return result
    if called.name == "torch.Size" and len(arguments) == 1 and isinstance(arguments[0], tuple):
        return arguments[0]
    return Placeholder(called.name)


def _tensor(arguments: tuple[Any, ...]) -> ForeignTensor:
    if len(arguments) < 4:
        raise _Unreadable("a tensor is described in a way that torch.save does not use")
    storage, offset, shape, stride = arguments[:4]
    whole = isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(stride, tuple)
    if not whole or len(shape) != len(stride) or len(shape) > 16:
        raise _Unreadable("a tensor is described in a way that torch.save does not use")
    if not all(type(number) is int and 0 <= number < 2**48 for number in (offset, *shape, *stride)):
        raise _Unreadable("a tensor's shape, stride or offset is out of range")
    if math.prod(shape):
        last = offset + sum((count - 1) * step for count, step in zip(shape, stride, strict=True))
        if last >= storage.length:
            raise _Unreadable(f"a tensor of shape {list(shape)} needs element {last} of a storage of {storage.length}")
    return ForeignTensor(storage, offset, shape, stride)

"""Files that are complete or absent, and safetensors files read and written as bytes.

Knows bytes, digests and the file's head; knows nothing of training and needs no torch, so that the sidecar can list and
verify checkpoints. The bytes are written here and not by the library, which needs a second copy of all tensors and
leaves no place to compute digests in the same pass; the result is an ordinary file that the library reads (format:
github.com/huggingface/safetensors, "Format").
"""

import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from seqtrack.checkpoints.recognize import JSON, SAFETENSORS, recognize_bytes
from seqtrack.errors import UserError
from seqtrack.parsing import ParseError, parse_json

CHUNK = 8 * 1024 * 1024
_MAX_HEADER = 64 * 1024 * 1024
DTYPE_BYTES: dict[str, int] = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip


class DamagedFileError(UserError):
    """A file is not what its name, head or manifest claims."""

    def __init__(self, message: str, code: str = "checkpoint.damaged") -> None:
        super().__init__(message, code)


@dataclass(frozen=True)
class TensorBytes:
    """A tensor's safetensors element type, its shape, and its raw little-endian bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True)
class Entry:
    """Element type, shape and place of a tensor: [begin, end) in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The head of a checkpoint file: tensors by name in file order, and the free metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Contents:
    """A checkpoint file that was read or written: head, size, sha256, and the digest of each state component."""

    header: Header
    size: int
    sha256: str
    parts: dict[str, str]


def utc_now() -> str:
    """The time as every file of a run has it: UTC, ISO 8601, whole seconds, `2026-01-31T12:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and without spaces, so that equal values give equal bytes; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` durable; without this a power cut can lose the rename itself."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Name `path` in every OSError of the block: a failed write or flush would not name its file."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A hidden file next to `path`, open for unbuffered writing, that becomes `path` durably when the block succeeds.

    Every file of a run that is not appended to is made here. Its mode is what the umask leaves of 0666: an uploader of
    another user can read a run under umask 022, and nobody else one under 077.

    Raises:
        OSError: no space, no permission, a read-only folder; it names `path`, and the hidden file is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with name_in_errors(path):
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(handle, "wb", buffering=0) as file:
                yield file
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_whole(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write all of `data` to an unbuffered file, whose single write may take less than it is given."""
    view = memoryview(data)
    while view.nbytes:
        view = view[file.write(view) :]


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` such that a reader finds the old file or the new one, now and after a power cut.

    Raises:
        OSError: as for `new_file`.
    """
    with new_file(path) as file:
        write_whole(file, data)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of a readable JSON document."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        DamagedFileError: it cannot be read as one.
        FileNotFoundError: there is no such file.
    """
    try:
        data = path.read_bytes()
        value = parse_json(data)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read ({error.strerror or error})", "file.unreadable") from error
    except ParseError as error:
        kind = recognize_bytes(data[:512], len(data))
        if kind.name == JSON or kind.code == "file.unknown":
            raise DamagedFileError(f"{path} is not readable JSON ({error})", "file.json") from error
        raise DamagedFileError(f"{path} is {kind.name}; JSON was expected", kind.code) from error
    if not isinstance(value, dict):
        raise DamagedFileError(f"{path} holds a JSON {type(value).__name__}; an object was expected", "file.json")
    return value


def sha256_file(path: Path) -> str:
    """Hex sha256 of the bytes of `path`, read in pieces so that memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


@dataclass
class _Hasher:
    """Digests of a file and of each of its tensors, computed in two threads while the next piece is read or written."""

    header: Header
    _threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2))
    _running: list[Future[None]] = field(default_factory=list)
    _size: int = 0

    def __post_init__(self) -> None:
        self._whole = hashlib.sha256()
        self._tensors = {name: hashlib.sha256() for name in self.header.entries}

    def __enter__(self) -> "_Hasher":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown()

    def add(self, piece: bytes | memoryview, name: str | None = None) -> None:
        """The next piece of the file, a part of the tensor `name` or of the head."""
        wait(self._running)  # one piece ahead and no more: buffers must not pile up
        digests = [self._whole] if name is None else [self._whole, self._tensors[name]]
        self._running = [self._threads.submit(digest.update, piece) for digest in digests]
        self._size += len(piece)

    def contents(self) -> Contents:
        wait(self._running)
        rows = {
            name: (entry.dtype, entry.shape, self._tensors[name].hexdigest())
            for name, entry in self.header.entries.items()
        }
        return Contents(self.header, self._size, self._whole.hexdigest(), _join_digests(rows))


def write_checkpoint_file(path: Path, tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> Contents:
    """Write a safetensors file durably; every digest is computed in the same pass.

    Raises:
        OSError: the write failed; neither the file nor its temporary is left.
    """
    head, header = _lay_out(tensors, metadata)
    with new_file(path) as file, _Hasher(header) as hasher:
        hasher.add(head)
        write_whole(file, head)
        for name in header.entries:
            data = memoryview(tensors[name].data)
            flat = data.cast("B") if data.nbytes else memoryview(b"")
            for start in range(0, flat.nbytes, CHUNK):
                piece = flat[start : start + CHUNK]
                hasher.add(piece, name)
                write_whole(file, piece)
        return hasher.contents()


def _lay_out(tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> tuple[bytes, Header]:
    """The head's bytes, and the tensors in file order.

    Wide element types come first, so that every tensor starts at a multiple of its element size; names sort within a
    type, so that equal contents give equal files.
    """
    head: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    order = sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name].dtype], name))
    ends = list(itertools.accumulate((tensors[name].data.nbytes for name in order), initial=0))
    for name, offsets in zip(order, itertools.pairwise(ends), strict=True):
        head[name] = {"dtype": tensors[name].dtype, "shape": list(tensors[name].shape), "data_offsets": list(offsets)}
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    entries = {
        name: Entry(tensors[name].dtype, tensors[name].shape, start + begin, start + end)
        for name, (begin, end) in zip(order, itertools.pairwise(ends), strict=True)
    }
    return len(text).to_bytes(8, "little") + text, Header(entries, dict(metadata))


def read_header(path: Path) -> Header:
    """Read and check the head of a checkpoint file without reading its tensors.

    Raises:
        DamagedFileError: the head is incomplete, is not JSON, or its offsets do not tile the file exactly.
    """
    with path.open("rb") as file:
        return _parse_head(path, _read_head(path, file), os.fstat(file.fileno()).st_size)


def read_checkpoint_file(path: Path, place: Callable[[Header], Mapping[str, memoryview]] | None = None) -> Contents:
    """Read a checkpoint file once, from first byte to last, so that what was verified is what was loaded.

    Args:
        place: given the head, the memory for the bytes of the wanted tensors, by name; none are wanted without it.

    Raises:
        DamagedFileError: as for `read_header`, or the file changed its size meanwhile.
    """
    with path.open("rb", buffering=0) as file:
        head = _read_head(path, file)
        header = _parse_head(path, head, os.fstat(file.fileno()).st_size)
        wanted = place(header) if place is not None else {}
        with _Hasher(header) as hasher:
            hasher.add(head)
            for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
                for start in range(entry.begin, entry.end, CHUNK):
                    end = min(start + CHUNK, entry.end)
                    inside = slice(start - entry.begin, end - entry.begin)
                    piece = wanted[name][inside] if name in wanted else memoryview(bytearray(end - start))
                    _read_into(path, file, piece)
                    hasher.add(piece, name)
            if file.read(1):
                raise DamagedFileError(f"{path} grew while it was read")
            return hasher.contents()


def _read_into(path: Path, file: io.FileIO, piece: memoryview) -> None:
    read = 0
    while read < piece.nbytes:  # one call may read less than there is room for
        count = file.readinto(piece[read:])
        if not count:
            raise DamagedFileError(f"{path} became shorter while it was read")
        read += count


def _read_head(path: Path, file: BinaryIO | io.FileIO) -> bytes:
    """The bytes before the first tensor: eight of length, and the head's text."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8) or b""
    length = int.from_bytes(prefix, "little")
    if size < 8 or length > min(_MAX_HEADER, size - 8):
        kind = recognize_bytes(prefix + (file.read(504) or b""), size)
        if kind.name != SAFETENSORS:
            raise DamagedFileError(f"{path} is {kind.name}; a safetensors file was expected", kind.code)
        raise DamagedFileError(
            f"{path} ({size} bytes) is incomplete or damaged: its head claims {length} bytes", "file.incomplete"
        )
    return prefix + (file.read(length) or b"")


def _parse_head(path: Path, raw: bytes, size: int) -> Header:
    """Stricter than the library: no key twice, no reading that a second parser could take otherwise."""
    try:
        head = parse_json(raw[8:])
    except ParseError as error:
        raise DamagedFileError(f"{path}: the head cannot be read ({error})", "checkpoint.head") from error
    if not isinstance(head, dict) or not raw.startswith(b"{", 8):
        raise DamagedFileError(f"{path}: the head is not a JSON object", "checkpoint.head")
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedFileError(f"{path}: the metadata in the head are not strings by name", "checkpoint.head")
    entries = {name: _entry(path, name, value, len(raw)) for name, value in head.items()}
    position = len(raw)
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise DamagedFileError(f"{path}: tensor {name} starts at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != size:
        raise DamagedFileError(f"{path} has {size} bytes; its head describes {position}")
    return Header(entries, metadata)


def _entry(path: Path, name: str, value: Any, start: int) -> Entry:
    problem = DamagedFileError(f"{path}: tensor {name} has a malformed description: {value!r:.200}", "checkpoint.head")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise problem
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise problem
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > 16:
        raise problem
    if not all(type(number) is int and 0 <= number < 2**48 for number in [*shape, *offsets]):
        raise problem
    if math.prod(shape) * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise problem
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def digest_components(path: Path, header: Header) -> dict[str, str]:
    """Hex sha256 of each state component's tensors, by the first part of their names ("model/...", "optimizer/...").

    It is that of the canonical JSON list of [name, element type, shape, sha256 of the bytes] in name order, so that it
    depends on nothing else in the file and can be computed in any order of the tensors.
    """
    rows = {}
    with path.open("rb") as file:
        for name, entry in header.entries.items():
            digest = hashlib.sha256()
            file.seek(entry.begin)
            for start in range(entry.begin, entry.end, CHUNK):
                digest.update(file.read(min(CHUNK, entry.end - start)))
            rows[name] = (entry.dtype, entry.shape, digest.hexdigest())
    return _join_digests(rows)


def _join_digests(rows: Mapping[str, tuple[str, tuple[int, ...], str]]) -> dict[str, str]:
    parts: dict[str, list[Any]] = {}
    for name in sorted(rows):
        dtype, shape, digest = rows[name]
        parts.setdefault(name.split("/", 1)[0], []).append([name, dtype, list(shape), digest])
    return {part: hashlib.sha256(canonical_json(listed).encode()).hexdigest() for part, listed in parts.items()}

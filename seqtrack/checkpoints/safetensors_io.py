"""Files that are whole or absent, and the safetensors container read and written as bytes.

Knows bytes, digests and the container's header; knows nothing of training, and needs no torch: listing and verifying
checkpoints works in the sidecar too. The container is written here rather than by the library because the digest is
taken while the bytes go out and the bytes must be durable before the name appears; the result is an ordinary
safetensors file that the library reads (format: github.com/huggingface/safetensors, "Format").
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from seqtrack.checkpoints.recognize import JSON, SAFETENSORS, recognize_bytes
from seqtrack.parsing import ParseError, parse_json

CHUNK = 8 * 1024 * 1024
_MAX_HEADER = 64 * 1024 * 1024
DTYPE_BYTES: dict[str, int] = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


class DamagedFileError(Exception):
    """A file is not what it says it is; the message tells file, what was found and what was expected."""

    def __init__(self, message: str, code: str = "checkpoint.damaged") -> None:
        self.code = code
        super().__init__(message)


@dataclass(frozen=True)
class TensorBytes:
    """A tensor as the container holds it: element type, shape and its raw little-endian bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def num_bytes(self) -> int:
        return self.data.nbytes


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: element type, shape, and [begin, end) in bytes from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The head of a container: tensors by name in file order, and the free metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def utc_now() -> str:
    """The time as every file of a run spells it: UTC, ISO 8601, whole seconds, `2026-01-31T12:00:00Z`."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def canonical_json(value: Any) -> str:
    """One spelling for one value: sorted keys, no spaces, NaN refused; equal values give equal bytes."""
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
    """Let every OSError of the block name `path`: a failed write or flush would not say which file it was about."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A hidden file next to `path`, open for unbuffered writing; it becomes `path`, durably, when the block ends well.

    Every file of a run that is not appended to is made here. Its mode is what the umask leaves of 0666, as for a file
    that a shell makes: a run under umask 022 can be read by an uploader of another user, one under 077 by nobody.

    Raises:
        OSError: no space, no right, a read-only folder; it names `path`, and the hidden file is taken away again.
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
    """Put `data` at `path` so that a reader, now or after a power cut, finds the old file or the new one, never a part.

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


def checkpoint_header(tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The head of a container and the order in which the tensors' bytes follow it.

    Wide element types come first, so that every tensor starts at a multiple of its element size; names sort within a
    type, so that equal contents give equal files.
    """
    order = sorted(tensors, key=lambda name: (-DTYPE_BYTES[tensors[name].dtype], name))
    head: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + tensor.num_bytes
        head[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


@dataclass(frozen=True)
class Written:
    """What reached a container: its size, its sha256, and the digest of every state component (`digest_components`)."""

    size: int
    sha256: str
    parts: dict[str, str]


def write_checkpoint_file(path: Path, tensors: Mapping[str, TensorBytes], metadata: Mapping[str, str]) -> Written:
    """Write a safetensors file durably; every digest is taken in the same pass, in threads next to the write.

    Raises:
        OSError: the write failed; neither the file nor its temporary is left.
    """
    head, order = checkpoint_header(tensors, metadata)
    whole = hashlib.sha256()
    digests = {name: hashlib.sha256() for name in order}
    with new_file(path) as file, ThreadPoolExecutor(2) as threads:
        for name, piece in _pieces(head, tensors, order):
            hashed = [threads.submit(whole.update, piece)]
            if name is not None:
                hashed.append(threads.submit(digests[name].update, piece))
            write_whole(file, piece)
            wait(hashed)
        size = file.tell()
    rows = {name: (tensors[name].dtype, tensors[name].shape, digests[name].hexdigest()) for name in order}
    return Written(size, whole.hexdigest(), _join_digests(rows))


def _pieces(
    head: bytes, tensors: Mapping[str, TensorBytes], order: list[str]
) -> Iterator[tuple[str | None, memoryview]]:
    yield None, memoryview(head)
    for name in order:
        data = tensors[name].data
        if data.nbytes:
            flat = data.cast("B") if data.format != "B" or data.ndim != 1 else data
            for start in range(0, flat.nbytes, CHUNK):
                yield name, flat[start : start + CHUNK]


def read_header(path: Path) -> Header:
    """Read and check the head of a container without reading its tensors.

    Raises:
        DamagedFileError: the head is cut, is not JSON, or its offsets do not tile the file exactly.
    """
    with path.open("rb") as file:
        return _parse_head(path, _read_head(path, file), os.fstat(file.fileno()).st_size)


@dataclass(frozen=True)
class Contents:
    """What was read of a checkpoint file: its head, its sha256, and every component's digest."""

    header: Header
    sha256: str
    parts: dict[str, str]


def read_checkpoint_file(path: Path, place: Callable[[Header], Mapping[str, memoryview]] | None = None) -> Contents:
    """Read a container once, from its first byte to its last, so that what was digested is what was loaded.

    The digests are taken in other threads while the next piece is read.

    Args:
        place: given the head, the memory into which the bytes of the wanted tensors go, by name; none are wanted
            without it.

    Raises:
        DamagedFileError: as for `read_header`, or the file changed its size meanwhile.
    """
    with path.open("rb", buffering=0) as file, ThreadPoolExecutor(2) as threads:
        text = _read_head(path, file)
        header = _parse_head(path, text, os.fstat(file.fileno()).st_size)
        wanted = place(header) if place is not None else {}
        whole = hashlib.sha256(text)
        digests = {name: hashlib.sha256() for name in header.entries}
        digested: list[Future[None]] = []
        for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            for start in range(entry.begin, entry.end, CHUNK):
                end = min(start + CHUNK, entry.end)
                inside = slice(start - entry.begin, end - entry.begin)
                piece = wanted[name][inside] if name in wanted else memoryview(bytearray(end - start))
                _read_into(path, file, piece)
                wait(digested)  # one piece ahead and no more: pieces that nobody wants must not pile up
                digested = [threads.submit(digest.update, piece) for digest in (whole, digests[name])]
        if file.read(1):
            raise DamagedFileError(f"{path} grew while it was read")
        wait(digested)
    rows = {name: (entry.dtype, entry.shape, digests[name].hexdigest()) for name, entry in header.entries.items()}
    return Contents(header, whole.hexdigest(), _join_digests(rows))


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
    length = len(raw) - 8
    try:
        head = parse_json(raw[8:])
    except ParseError as error:
        raise DamagedFileError(f"{path}: the head cannot be read ({error})", "checkpoint.head") from error
    if not isinstance(head, dict) or not raw.startswith(b"{", 8):
        raise DamagedFileError(f"{path}: the head is not a JSON object", "checkpoint.head")
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DamagedFileError(f"{path}: the metadata in the head is not a table of texts")
    entries = {name: _entry(path, name, value, 8 + length) for name, value in head.items()}
    position = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise DamagedFileError(f"{path}: tensor {name} starts at byte {entry.begin}, expected {position}")
        position = entry.end
    if position != size:
        raise DamagedFileError(f"{path} has {size} bytes; its head describes {position}")
    return Header(entries, metadata)


def _entry(path: Path, name: str, value: Any, start: int) -> Entry:
    problem = DamagedFileError(f"{path}: tensor {name} has a malformed description: {value!r:.200}")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise problem
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise problem
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        raise problem
    if not all(type(number) is int and 0 <= number < 2**48 for number in [*shape, *offsets]):
        raise problem
    if len(shape) > 16 or math.prod(shape) * DTYPE_BYTES[dtype] != offsets[1] - offsets[0]:
        raise problem
    return Entry(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def digest_components(path: Path, header: Header) -> dict[str, str]:
    """Hex sha256 of each state component's tensors, by the first word of their names ("model/...", "optimizer/...").

    It is that of the canonical JSON list of [name, element type, shape, sha256 of the bytes] in name order, so that it
    depends on nothing else in the file, and can be computed in any order of the tensors.
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

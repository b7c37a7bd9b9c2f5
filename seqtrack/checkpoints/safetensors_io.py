"""Files that are complete or absent, and safetensors files read and written as bytes. Needs no torch.

The library checks a file's head here, but does not write: its writer leaves files of mode 0600 and temporary files of
its own after a kill, reports a full disk without its error number, and gives no digest in the same pass.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from safetensors import SafetensorError, safe_open

from seqtrack.checkpoints.recognize import SAFETENSORS, recognize
from seqtrack.errors import UserError
from seqtrack.parsing import ParseError, parse_json


class DamagedFileError(UserError):
    """A file is not what its name, head or manifest claims."""

    def __init__(self, problems: str | Sequence[str], code: str = "checkpoint.damaged") -> None:
        super().__init__(problems, code)


class TensorBytes(NamedTuple):
    """A tensor's safetensors element type, its shape, and its raw little-endian bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview | bytearray


class Contents(NamedTuple):
    """A checkpoint file that was read or written."""

    sha256: str
    values: dict[str, Any]  # the training state's plain values by component
    rows: dict[str, list[object]]  # name, element type, shape and digest of each tensor
    parts: dict[str, str]  # the digest of each state component: its tensors, its plain values, or both
    kept: dict[str, TensorBytes]  # the tensors that the reader asked for


def utc_now(timespec: str = "seconds") -> str:
    """The time as every file of a run has it: UTC, ISO 8601, `2026-01-31T12:00:00Z`."""
    return datetime.now(timezone.utc).isoformat(timespec=timespec).replace("+00:00", "Z")


def canonical_json(value: object) -> str:
    """JSON with sorted keys and without spaces, so that equal values give equal bytes; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


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
    """A hidden file next to `path` that becomes `path` durably when the block succeeds; an error names `path`.

    Every file of a run that is not appended to is made here. Its mode is what the umask leaves of 0666: an uploader of
    another user can read a run under umask 022, and nobody else one under 077.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    with name_in_errors(path):
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Replace `path` such that a reader finds the old file or the new one, now and after a power cut."""
    with new_file(path) as file:
        file.write(data)


def write_json(path: Path, value: object) -> None:
    """`write_atomic` of a readable JSON document."""
    write_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_zip(path: Path, members: Mapping[str, bytes]) -> None:
    """Write a zip whose bytes depend on names and contents only; `path` is whole or absent."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)  # dated 1980
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            file.writestr(info, data)
    write_atomic(path, buffer.getvalue())


def sha256_file(path: Path) -> str:
    """Hex sha256 of the bytes of `path`, read in pieces so that memory stays flat."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(8 * 1024 * 1024):
            digest.update(piece)
    return digest.hexdigest()


def write_checkpoint_file(
    path: Path | None, tensors: Mapping[str, TensorBytes], values: Mapping[str, Any]
) -> tuple[Contents, int]:
    """Write a safetensors file durably, as `new_file` does; every digest is computed in the same pass.

    Args:
        path: None computes the digests of the file that would be written.

    Returns:
        its contents, and its size in bytes.
    """
    # Wide element types first, so that each tensor is aligned; then by name, so that equal states give equal files.
    width = {name: len(one.data) // max(1, math.prod(one.shape)) for name, one in tensors.items()}
    order = sorted(tensors, key=lambda name: (-width[name], name))
    described: dict[str, object] = {"__metadata__": {"state": canonical_json(values)}}
    end = 0
    for name in order:
        start, end = end, end + len(tensors[name].data)
        described[name] = {"dtype": tensors[name].dtype, "shape": tensors[name].shape, "data_offsets": [start, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    with contextlib.nullcontext() if path is None else new_file(path) as file:
        pairs = ((name, tensors[name]) for name in order)
        return _digest(head, dict(values), pairs, write=file.write if file else len), len(head) + end


def read_checkpoint_file(path: Path, keep: Callable[[str], bool] = lambda name: False) -> Contents:
    """Read a checkpoint file once, from first byte to last, so that what was verified is what was loaded; a
    DamagedFileError if it is none. `keep` tells whether to keep the bytes of the tensor of this name."""
    head, described, values = _read_head(path)
    with path.open("rb") as file:
        file.seek(len(head))

        def read() -> Iterator[tuple[str, TensorBytes]]:
            for name, one in sorted(described.items(), key=lambda item: item[1]["data_offsets"]):
                data = bytearray(one["data_offsets"][1] - one["data_offsets"][0])
                file.readinto(data)  # a file that becomes shorter meanwhile has another digest
                yield name, TensorBytes(one["dtype"], tuple(one["shape"]), data)

        return _digest(head, values, read(), keep)


def read_values(path: Path) -> dict[str, Any]:
    """The plain values of a checkpoint's state, from its head alone.

    Raises:
        DamagedFileError: as for `read_checkpoint_file`.
    """
    return _read_head(path)[2]


def _read_head(path: Path) -> tuple[bytes, dict[str, Any], dict[str, Any]]:
    """The bytes before the first tensor, the tensors that they describe, and the state's plain values."""
    kind = recognize(path)
    if kind.name != SAFETENSORS:
        raise DamagedFileError(f"{path} is {kind.name}; expected {SAFETENSORS}", kind.code)
    try:
        # The library checks types, sizes, and that the tensors fill the file without a gap.
        with safe_open(path, framework="np"), path.open("rb") as file:
            head = file.read(8)
            head += file.read(int.from_bytes(head, "little"))
        described = parse_json(head[8:])  # the library takes a key twice
    except (SafetensorError, ParseError) as error:
        raise DamagedFileError(f"{path} is damaged or incomplete: {error}", "checkpoint.head") from error
    try:
        values = parse_json(described.pop("__metadata__", {}).get("state", "null"))
    except ParseError as error:
        raise DamagedFileError(f"{path}: the state cannot be read ({error})", "checkpoint.state") from error
    if not isinstance(values, dict):
        raise DamagedFileError(f"{path} holds no training state", "checkpoint.state")
    lineage, history = values.get("lineage", {}), values.get("history", [])
    if not isinstance(lineage, dict) or not isinstance(history, list) or any(type(one) is not dict for one in history):
        text = f"{path}: expected an object as the state's lineage, and a list of objects as its history"
        raise DamagedFileError(text, "checkpoint.state")
    return head, described, values


def _digest(
    head: bytes,
    values: dict[str, Any],
    tensors: Iterable[tuple[str, TensorBytes]],
    keep: Callable[[str], bool] = lambda name: False,
    write: Callable[[bytes | bytearray | memoryview], object] = lambda data: None,
) -> Contents:
    """Digest a file while it is read or written: each tensor here, the whole in a second thread."""
    write(head)
    whole = hashlib.sha256(head)
    rows: dict[str, list[object]] = {}
    kept: dict[str, TensorBytes] = {}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(whole.update, b"")
        for name, tensor in tensors:
            running.result()  # one piece ahead and no more: buffers must not pile up
            running = pool.submit(whole.update, tensor.data)
            write(tensor.data)
            rows[name] = [name, tensor.dtype, tensor.shape, hashlib.sha256(tensor.data).hexdigest()]
            if keep(name):
                kept[name] = tensor
    contents: dict[str, Any] = {}
    for name in sorted(rows):
        contents.setdefault(name.split("/", 1)[0], []).append(rows[name])
    for name, value in values.items():
        contents[name] = [*contents[name], value] if name in contents else value
    parts = {name: hashlib.sha256(canonical_json(contents[name]).encode()).hexdigest() for name in sorted(contents)}
    return Contents(whole.hexdigest(), values, rows, parts, kept)

"""Files of a data set in folders, or in LMDB environments: folders whose names end in _lmdb, in which the path below is
the key and the file's bytes are the value. Both have the same paths, so that no reader knows the difference.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from seqtrack.errors import UserError

if TYPE_CHECKING:
    import lmdb

SUFFIX = "_lmdb"


def _parts(path: Path) -> tuple[Path, str] | None:
    """The environment that holds a path, and its key there."""
    if SUFFIX not in os.fspath(path):
        return None
    inside = next(
        (one for one in (path, *path.parents) if one.name.endswith(SUFFIX) and (one / "data.mdb").exists()), None
    )
    return (inside, path.relative_to(inside).as_posix()) if inside else None


@functools.lru_cache(maxsize=64)
def _opened(folder: Path, process: int) -> "lmdb.Environment":
    try:
        import lmdb  # deferred: an optional dependency
    except ImportError as error:
        text = f"{folder}: is an LMDB environment; `pip install lmdb` is needed to read it"
        raise UserError(text, "data.lmdb") from error
    try:
        opened = lmdb.open(os.fspath(folder), readonly=True, lock=False, readahead=False, max_readers=1)
    except lmdb.Error as error:
        raise UserError(f"{folder}: cannot be opened as an LMDB environment ({error})", "data.lmdb") from error
    size, needed = (folder / "data.mdb").stat().st_size, (opened.info()["last_pgno"] + 1) * opened.stat()["psize"]
    if size < needed:  # reading a page beyond the end would kill the process
        raise UserError(f"{folder}: data.mdb has {size} bytes of {needed}; download it again", "data.lmdb")
    return opened


@contextlib.contextmanager
def _reading(folder: Path) -> "Iterator[lmdb.Transaction]":
    environment = _opened(folder, os.getpid())  # an environment must not be used after a fork
    import lmdb  # as above

    try:
        with environment.begin(buffers=True) as transaction:
            yield transaction
    except (lmdb.Error, UnicodeDecodeError) as error:
        raise UserError(f"{folder}: is a damaged LMDB environment ({error})", "data.lmdb") from error


def read_bytes(path: Path) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read, or does not exist.
        UserError: the environment cannot be opened, or is damaged.
    """
    if (parts := _parts(path)) is None:
        return path.read_bytes()
    with _reading(parts[0]) as transaction:
        data = transaction.get(parts[1].encode())
        if data is None:
            raise FileNotFoundError(2, "no such key", os.fspath(path))
        return bytes(data)


def exists(path: Path) -> bool:
    """Whether there is such a file, or a folder with files."""
    if (parts := _parts(path)) is None:
        return path.exists()
    return parts[1] == "." or bool(_children(*parts)) or _size(*parts) is not None


def _size(folder: Path, key: str) -> int | None:
    with _reading(folder) as transaction:
        data = transaction.get(key.encode())
        return None if data is None else len(data)


def list_folder(folder: Path) -> dict[str, int | None]:
    """What is in a folder, by name: files with their sizes in bytes, and None for whatever is not a file.

    Raises:
        OSError: it cannot be read, or does not exist.
        UserError: the environment cannot be opened.
    """
    if parts := _parts(folder):
        return dict(_children(*parts))
    with os.scandir(folder) as entries:
        return {one.name: one.stat().st_size if one.is_file() else None for one in entries}


def _children(folder: Path, key: str) -> list[tuple[str, int | None]]:
    return list(_walk(folder, b"" if key == "." else key.encode() + b"/"))


def _walk(folder: Path, prefix: bytes) -> Iterator[tuple[str, int | None]]:
    with _reading(folder) as transaction, transaction.cursor() as cursor:
        found = cursor.set_range(prefix) if prefix else cursor.first()
        while found and bytes(cursor.key()[: len(prefix)]) == prefix:
            name, slash, _ = bytes(cursor.key())[len(prefix) :].partition(b"/")
            if slash:  # past everything in that folder: "0" follows "/"
                yield name.decode(), None
                found = cursor.set_range(prefix + name + b"0")
            else:
                yield name.decode(), len(cursor.value())
                found = cursor.next()

"""What a file is, by its first bytes, so that a download that brought an HTML page or an LFS pointer is reported so."""

import re
from pathlib import Path
from typing import NamedTuple

SAFETENSORS = "a safetensors file"
TORCH_ZIP = "a zip archive"
PICKLE = "a pickle"
JSON = "JSON text"
_LFS = b"version https://git-lfs.github.com/spec/"
_ARCHIVES = re.compile(rb"\x1f\x8b|BZh|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!|.{257}ustar", re.DOTALL)
_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)", re.IGNORECASE)


class FileKind(NamedTuple):
    """`name` completes "this is ..."; `code` is the error code where something else was expected; `is_impostor` marks
    what no reader of checkpoints can use."""

    name: str
    code: str
    is_impostor: bool = True


def recognize(path: Path) -> FileKind:
    """What the file at `path` is.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(512)
        return recognize_bytes(head, file.seek(0, 2))


def recognize_bytes(head: bytes, size: int) -> FileKind:
    """As `recognize`, from the first 512 bytes of a file of `size` bytes."""
    if not size:
        return FileKind("an empty file", "file.empty")
    if head.startswith(_LFS):
        found = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
        of_size = f" ({found[1].decode()} bytes)" if found else ""
        return FileKind(f"a Git LFS pointer{of_size}: fetch the file with `git lfs pull`", "file.lfs_pointer")
    if _PAGE.match(head):
        return FileKind("an HTML page, not a checkpoint", "file.html_page")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return FileKind(TORCH_ZIP, "file.torch", is_impostor=False)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind(PICKLE, "file.torch", is_impostor=False)
    # Eight bytes of length, whose upper ones are zero for any head that fits into memory, then a JSON object.
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return FileKind(SAFETENSORS, "file.safetensors", is_impostor=False)
    if _ARCHIVES.match(head):
        return FileKind("an archive: unpack it first", "file.archive")
    if head.lstrip().startswith((b"{", b"[")):
        return FileKind(JSON, "file.json", is_impostor=False)
    return FileKind(f"an unknown kind of file (it begins with {head[:16]!r})", "file.unknown")

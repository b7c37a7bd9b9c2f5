"""What a file is, by its first bytes.

Every reader of checkpoint-like files asks before it parses one, so that a download that brought an HTML page, an LFS
pointer or another archive is reported as that.
"""

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

SAFETENSORS = "a safetensors file"
TORCH_ZIP = "a zip archive"
PICKLE = "a pickle"
JSON = "JSON text"
_HEAD_BYTES = 512
_LFS = b"version https://git-lfs.github.com/spec/"
_ARCHIVES: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"), (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip"), (b"Rar!", "RAR"),
)  # fmt: skip
_OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"\x93NUMPY", "a NumPy array"), (b"\x89HDF\r\n", "an HDF5 file"), (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"), (b"%PDF", "a PDF document"), (b"\x7fELF", "a program"),
)  # fmt: skip


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    `name` completes "this is ..."; `code` is the error code where something else was expected; `is_impostor` marks what
    no reader of checkpoints can use.
    """

    name: str
    code: str
    is_impostor: bool = True


def recognize(path: Path) -> FileKind:
    """What the file at `path` is.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
        return recognize_bytes(head, file.seek(0, 2))


def recognize_bytes(head: bytes, size: int) -> FileKind:
    """As `recognize`, from the first 512 bytes of a file of `size` bytes."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not size:
        return FileKind("an empty file", "file.empty")
    if head.startswith(_LFS):
        found = re.search(rb"^size (\d{1,18})$", head, re.MULTILINE)
        size_text = f" ({found[1].decode()} bytes)" if found else ""
        return FileKind(
            f"a Git LFS pointer, not the file itself{size_text}: fetch it with `git lfs pull`", "file.lfs_pointer"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<body", b"<?xml")):
        return FileKind("an HTML page, not a checkpoint", "file.html_page")
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return FileKind(TORCH_ZIP, "file.torch", is_impostor=False)
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return FileKind(PICKLE, "file.torch", is_impostor=False)
    # Eight bytes of length, whose upper ones are zero for any head that fits into memory, then a JSON object.
    if head[8:9] == b"{" and head[5:8] == b"\0\0\0":
        return FileKind(SAFETENSORS, "file.safetensors", is_impostor=False)
    if _is_tar(head):
        return FileKind("a tar archive, not a file of torch.save", "file.archive")
    for start, name in _ARCHIVES:
        if head.startswith(start):
            return FileKind(f"a {name} archive: unpack it first", "file.archive")
    for start, name in _OTHERS:
        if head.startswith(start):
            return FileKind(f"{name}, not a checkpoint", "file.unknown")
    if text.startswith((b"{", b"[")):
        return FileKind(JSON, "file.json", is_impostor=False)
    if not head.strip(b"\0"):
        return FileKind("zero bytes only: it was never written completely", "file.unknown")
    return FileKind(f"an unknown kind of file (it begins with {head[:16]!r})", "file.unknown")


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True

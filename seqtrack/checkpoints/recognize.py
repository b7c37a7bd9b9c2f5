"""What a file is, by its first bytes, so that a download that brought an HTML page or an LFS pointer is reported so."""

import re
from pathlib import Path
from typing import NamedTuple

SAFETENSORS = "a safetensors file"
TORCH_ZIP = "a zip archive"
PICKLE = "a pickle"


class FileKind(NamedTuple):
    """`name` completes "this is ..."; `code` is the error code where something else was expected."""

    name: str
    code: str


_KINDS = {
    rb"\Z": FileKind("an empty file", "file.empty"),
    # Eight bytes of length, whose upper ones are zero for any head that fits into memory, then a JSON object. First,
    # because the lower ones may be those of any other kind.
    rb".{5}\0\0\0\{": FileKind(SAFETENSORS, "file.safetensors"),
    rb"version https://git-lfs\.github\.com/spec/": FileKind(
        "a Git LFS pointer: fetch the file with `git lfs pull`", "file.lfs_pointer"
    ),
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|body|\?xml)": FileKind("an HTML page", "file.html_page"),
    rb"PK(\x03\x04|\x05\x06)": FileKind(TORCH_ZIP, "file.torch"),
    rb"\x80[\x02-\x05]": FileKind(PICKLE, "file.torch"),
    rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!|.{257}ustar": FileKind(
        "an archive: unpack it first", "file.archive"
    ),
    rb"\s*[{\[]": FileKind("JSON text", "file.json"),
}


def recognize(path: Path) -> FileKind:
    """What the file at `path` is."""
    with path.open("rb") as file:
        head = file.read(512)
    kinds = (kind for pattern, kind in _KINDS.items() if re.match(pattern, head, re.DOTALL | re.IGNORECASE))
    return next(kinds, FileKind(f"an unknown kind of file (it begins with {head[:16]!r})", "file.unknown"))

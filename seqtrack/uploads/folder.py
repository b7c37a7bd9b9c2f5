"""A folder as a target: another disk, a network mount, a mounted folder of the host.

Each file appears complete (temporary file, fsync, rename, fsync of the folder) and a manifest after its checkpoint.
`look` reads the files, since a folder lists no digests.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.safetensors_io import sync_folder
from seqtrack.errors import UserError
from seqtrack.uploads.target import (
    Account,
    ChangedError,
    Receipt,
    Remote,
    Staged,
    digest_of,
    require_unchanged,
    safe_path,
)

_TEMPORARY = ".partial"


class FolderTarget:
    """Files below `root`.

    Args:
        root: made if its parent exists. A missing parent is taken for a disk that is not mounted: an error, rather
            than a copy on the wrong disk.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def prepare(self, *, make: bool = True) -> Account:
        if not self.root.parent.is_dir():
            raise OSError(2, "no such folder; is the disk mounted?", str(self.root.parent))
        if make:
            self.root.mkdir(exist_ok=True)
        probe = self.root / f".seqtrack-probe{_TEMPORARY}"
        probe.write_bytes(b"")
        probe.unlink()
        return Account(name=str(os.getuid()), place=str(self.root))

    def head(self) -> str | None:
        return None

    def look(self, paths: Sequence[str], revision: str | None = None) -> dict[str, Remote]:
        found: dict[str, Remote] = {}
        for path in paths:
            place = self.root / safe_path(path)
            if place.is_file():
                found[path] = Remote(path, place.stat().st_size, digest_of(place))
        return found

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> Receipt:
        if not self.root.is_dir():
            raise OSError(2, "the target folder does not exist; is the disk mounted?", str(self.root))
        written: list[tuple[Path, Path]] = []
        try:
            # A checkpoint counts once its manifest exists, so that must appear last.
            for staged in sorted(files, key=lambda item: (item.path.endswith(".json"), item.path)):
                place = self.root / safe_path(staged.path)
                place.parent.mkdir(parents=True, exist_ok=True)
                temporary = place.with_name(f".{place.name}{_TEMPORARY}")
                written.append((temporary, place))
                _copy_durably(Path(staged.source), temporary)
                if digest_of(temporary) != staged.sha256:
                    raise ChangedError(staged.path)
            require_unchanged(files)
            for temporary, place in written:
                temporary.replace(place)
                sync_folder(place.parent)
        except (OSError, ChangedError):
            for temporary, _ in written:
                temporary.unlink(missing_ok=True)
            raise
        return Receipt(message, tuple(staged.path for staged in files))

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        source, place = self.root / safe_path(path), folder / Path(path).name
        if not source.is_file():
            raise UserError(f"{source} does not exist", code="upload.no_such_file")
        _copy_durably(source, place)
        return place

    def list(self, revision: str | None = None) -> list[Remote]:
        names = (str(p.relative_to(self.root)) for p in sorted(self.root.rglob("*")) if p.is_file())
        paths = [name for name in names if not any(part.startswith(".") for part in Path(name).parts)]
        return [Remote(path, (self.root / path).stat().st_size) for path in paths]


def _copy_durably(source: Path, place: Path) -> None:
    with source.open("rb") as reader, place.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)
        writer.flush()
        os.fsync(writer.fileno())


def open_folder(settings: dict[str, Any]) -> FolderTarget:
    """`{"place": "/mnt/backup"}` as a target."""
    return FolderTarget(Path(settings["place"]))

"""A folder as a target: another disk, a network mount, a mounted folder of the host.

Each file appears complete (temporary file, fsync, rename, fsync of the folder) and a manifest after its checkpoint.
`look` reads the files, since a folder lists no digests.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import sync_folder
from seqtrack.errors import UserError
from seqtrack.uploads.target import ChangedError, Digests, Staged, require_unchanged, safe_path, stage


class FolderTarget:
    """Files in `prefix` of `place`, if its parent exists (else no disk is mounted); none of `output_dir` itself."""

    def __init__(self, place: Path, prefix: str = "", output_dir: Path | None = None) -> None:
        self._parent, self.root, self._output_dir = place.parent, place / prefix, output_dir

    def prepare(self, *, make: bool) -> str:
        if not self._parent.is_dir():
            raise FileNotFoundError(2, "no such folder; is the disk mounted?", str(self._parent))
        if make:
            self.root.mkdir(parents=True, exist_ok=True)
        if not os.access(self.root, os.W_OK):
            raise PermissionError(13, "the folder is missing or cannot be written to", str(self.root))
        return str(self.root)

    def head(self) -> str | None:
        return None

    def look(self, paths: Sequence[str] | None, revision: str | None = None) -> dict[str, Digests]:
        if paths is None:
            names = [str(place.relative_to(self.root)) for place in sorted(self.root.rglob("*")) if place.is_file()]
            shown = [name for name in names if not name.startswith(".") and "/." not in name]
            return {name: Digests(size=(self.root / name).stat().st_size) for name in shown}
        held = {path: self.root / path for path in paths if (self.root / safe_path(path)).is_file()}
        for path, place in held.items():
            if self._output_dir and (here := self._output_dir / path).exists() and place.samefile(here):
                raise UserError(f"{place} is {here} itself; name a folder outside", code="upload.overlap")
        return {path: stage(path, place) for path, place in held.items()}

    def put(self, files: Sequence[Staged], message: str, parent: str | None) -> str:
        written: list[tuple[Path, Path]] = []
        try:
            # A checkpoint counts once its manifest exists, so that must appear last.
            for staged in sorted(files, key=lambda item: (item.path.endswith(".json"), item.path)):
                place = self.root / safe_path(staged.path)
                place.parent.mkdir(parents=True, exist_ok=True)
                temporary = place.with_name(f".{place.name}.partial")
                written.append((temporary, place))
                _copy_durably(Path(staged.source), temporary)
                if stage(staged.path, temporary).sha256 != staged.sha256:
                    raise ChangedError(staged.path, "changed while it was copied")
            require_unchanged(files)
            for temporary, place in written:
                temporary.replace(place)
                sync_folder(place.parent)
        finally:
            for temporary, _ in written:
                temporary.unlink(missing_ok=True)
        return message

    def fetch(self, path: str, revision: str | None, folder: Path) -> Path:
        source, place = self.root / safe_path(path), folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        _copy_durably(source, place)
        return place


def _copy_durably(source: Path, place: Path) -> None:
    shutil.copyfile(source, place)
    with place.open("rb") as file:
        os.fsync(file.fileno())

"""The repository of LaSOT on the tests' Hub."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from uploads.hub_server import Hub, Repo, make_entry


class LasotHub(Hub):
    """Files of the data set, which anybody may read."""

    name = "datasets/l-lt/LaSOT"

    def __init__(self) -> None:
        super().__init__()
        self.tokens[""] = "read"
        self.repos[self.name] = Repo()

    def put(self, path: str, data: bytes) -> None:
        entry = make_entry(data)
        (self.folder / entry.sha256).write_bytes(data)
        self.add_commit(self.name, {path: replace(entry, lfs=True, data=None)})

    @property
    def ranges(self) -> list[str | None]:
        """Range of each request to the storage host."""
        return [call["range"] for call in self.calls if call["stage"] == "storage-get"]


@contextmanager
def serving() -> Iterator[LasotHub]:
    hub = LasotHub()
    hub.start()
    yield hub
    hub.clear()
    hub.stop()


def zip_of(members: dict[str, bytes], path: Path) -> bytes:
    """A stored zip with these members."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path.read_bytes()

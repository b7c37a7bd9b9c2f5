"""What is to be sent next: which files are new, which are still, which belong into one batch.

Puts together what the walk found and what the journal remembers. Decides, and touches neither target nor file.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from seqtrack.uploads.journal import Row
from seqtrack.uploads.scan import FileInfo, Survey, UploadUnit

_ALONE_BYTES = 256 * 1024 * 1024  # a checkpoint this large is worth being seen before others are sent with it
_MOST_FILES = 5000


@dataclass
class StabilityTracker:
    """Since when each file has stood still, by the clock of whoever looks: never by the file's own times.

    `seen` maps a path to (stat key, monotonic time of the first look that met it); `changed_at` is when a look last
    met something else than the one before it, None if none has.
    """

    seen: dict[str, tuple[str, float]] = field(default_factory=dict)
    changed_at: float | None = None
    _gist: dict[str, str] | None = None

    def look(self, scan: Survey, now: float) -> None:
        """Take in one walk."""
        fresh: dict[str, tuple[str, float]] = {}
        for unit in scan.units:
            for found in unit.files:
                before = self.seen.get(found.path)
                fresh[found.path] = before if before is not None and before[0] == found.key else (found.key, now)
        self.seen = fresh
        # Without the ctime: our own hard links move it.
        gist = {path: "-".join(key.split("-")[i] for i in (0, 1, 3)) for path, (key, _) in fresh.items()}
        if self._gist is not None and gist != self._gist:
            self.changed_at = now
        self._gist = gist

    def age(self, path: str, now: float) -> float:
        """Seconds for which a file has been as it is."""
        return now - self.seen[path][1]


@dataclass(frozen=True)
class UploadQueue:
    """The units that are not yet known to be on the target.

    `ready` may go now; `growing` are logs that never are still and may ride along; `held` wait (settling, set
    apart, damaged).
    """

    ready: tuple[UploadUnit, ...]
    growing: tuple[UploadUnit, ...]
    held: tuple[UploadUnit, ...]

    @property
    def units(self) -> tuple[UploadUnit, ...]:
        return self.ready + self.growing + self.held

    @property
    def num_bytes(self) -> int:
        return sum(unit.size for unit in self.units)


def make_agenda(
    scan: Survey, rows: dict[str, Row], *, settled: Callable[[FileInfo], bool], blocked: Callable[[Row], bool]
) -> UploadQueue:
    """Sort the units of a walk.

    Args:
        settled: whether a file without a manifest has stood still long enough.
        blocked: whether a file was set apart and must still wait.
    """
    ready: list[UploadUnit] = []
    growing: list[UploadUnit] = []
    held: list[UploadUnit] = []
    for unit in scan.units:
        if all(_arrived(rows.get(found.path), found) for found in unit.files):
            continue
        known = [row for found in unit.files if (row := rows.get(found.path)) is not None and row.key == found.key]
        if len(known) == len(unit.files) and (known[0].state == "damaged" or blocked(known[0])):
            held.append(unit)
        elif unit.is_checkpoint or settled(unit.files[0]):
            ready.append(unit)
        elif unit.files[0].grows:
            growing.append(unit)
        else:
            held.append(unit)
    return UploadQueue(tuple(ready), tuple(growing), tuple(held))


def _arrived(row: Row | None, found: FileInfo) -> bool:
    return row is not None and row.state == "verified" and row.key == found.key


def choose_batch(
    ready: Iterable[UploadUnit],
    opportunistic_files: Iterable[UploadUnit],
    *,
    most_bytes: float,
    unit_limit: int | None,
    is_apart: set[str],
) -> list[UploadUnit]:
    """The next batch: the newest checkpoint first, small files along with it.

    Files that were set apart go only when there are no others, so that they can spoil no other's commit.
    """
    units = sorted(
        ready, key=lambda unit: (-unit.is_checkpoint, -max(f.mtime_ns for f in unit.files), unit.files[0].path)
    )
    good = [unit for unit in units if unit.files[0].path not in is_apart] or units
    batch: list[UploadUnit] = []
    size, checkpoint_bytes = 0, 0
    for unit in good:
        crowded = unit.is_checkpoint and checkpoint_bytes and checkpoint_bytes + unit.size >= _ALONE_BYTES
        if batch and (crowded or size + unit.size > most_bytes):
            continue
        checkpoint_bytes += unit.size if unit.is_checkpoint else 0
        batch.append(unit)
        size += unit.size
        if len(batch) >= (unit_limit or _MOST_FILES):
            return batch
    return batch + [unit for unit in opportunistic_files if unit_limit is None]

"""Annotations parsed once: one compact file in which an unchanged sequence is found again by size and time of change.

Knows the file's format and which file times can be trusted. It must not know what the numbers mean. Losing the cache
costs seconds and nothing else, so a damaged or unwritable one is passed over with a line in the log.
"""

import hashlib
import json
import logging
import os
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.annotations import Annotation

_log = logging.getLogger(__name__)

_FORMAT = 1
_FILE = f"annotations-v{_FORMAT}.npz"
# Within this time a second write could leave size and time of change as they were, so a younger file is read again.
_TRUST_AFTER_S = 2.0
_ABSENT, _MISSING = 1, 2

Stamp = list[int]


def stamp(folder: Path) -> Stamp | None:
    """Sizes and times (ns) of what a sequence's annotation depends on; None when one of them is not there.

    The time of the frame folder changes when a file in it comes, goes or is renamed, which is all that matters of it.
    """
    numbers: list[int] = []
    for name in ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt", "img"):
        try:
            status = os.stat(folder / name)  # noqa: PTH116 - four thousand calls; Path.stat costs twice as much
        except OSError:
            return None
        numbers += [status.st_size, status.st_mtime_ns]
    return numbers


class AnnotationCache:
    """What was parsed before, by sequence folder.

    Args:
        root: the data set's folder. The cache stands in it, or in the user's cache folder where it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._index: dict[str, tuple[Stamp, int, int]] = {}
        self._boxes: NDArray[np.float64] = np.zeros((0, 4))
        self._flags: NDArray[np.uint8] = np.zeros(0, dtype=np.uint8)
        self._fresh: dict[str, tuple[Stamp, Annotation]] = {}
        for path in self._places():
            if self._load(path):
                break

    def _places(self) -> list[Path]:
        digest = hashlib.sha256(str(self._root.resolve()).encode()).hexdigest()[:16]
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return [self._root / ".seqtrack" / _FILE, home / "seqtrack" / digest / _FILE]

    def _load(self, path: Path) -> bool:
        try:
            with np.load(path, allow_pickle=False) as file:
                index = json.loads(file["index"].tobytes())
                boxes, flags = file["boxes"].astype(np.float64), file["flags"]
            self._index = {key: (list(times), int(start), int(count)) for key, times, start, count in index}
        except (FileNotFoundError, PermissionError):
            return False
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            _log.warning("annotation cache %s is damaged (%s); annotations are read again", path, error)
            return False
        if boxes.shape != (len(flags), 4) or any(start + n > len(flags) for _, start, n in self._index.values()):
            self._index = {}
            return False
        self._boxes, self._flags = boxes, flags
        return True

    def get(self, key: str, now: Stamp) -> Annotation | None:
        """The annotation parsed from files with this very stamp, or None."""
        known = self._index.get(key)
        if known is None or known[0] != now:
            return None
        rows = slice(known[1], known[1] + known[2])
        flags = self._flags[rows]
        return Annotation(self._boxes[rows], (flags & _ABSENT) > 0, (flags & _MISSING) > 0)

    def put(self, key: str, before: Stamp, annotation: Annotation) -> None:
        """Remember what was parsed. `before` was taken before reading, so that a change while reading is noticed."""
        if max(before[1::2]) < time.time_ns() - int(_TRUST_AFTER_S * 1e9):
            self._fresh[key] = (before, annotation)

    def save(self) -> None:
        """Write the cache whole, if anything was added and there is a place that can be written."""
        if not self._fresh:
            return
        kept = {key: (known[0], self.get(key, known[0])) for key, known in self._index.items()}
        entries = {**kept, **self._fresh}
        index, boxes, flags, start = [], [], [], 0
        for key, (times, annotation) in sorted(entries.items()):
            assert annotation is not None
            count = len(annotation.boxes_xywh)
            index.append((key, times, start, count))
            boxes.append(annotation.boxes_xywh)
            flags.append(annotation.absent * np.uint8(_ABSENT) + annotation.missing * np.uint8(_MISSING))
            start += count
        table = np.concatenate(boxes)
        narrow = table.astype(np.float32)
        arrays = {
            "index": np.frombuffer(json.dumps(index).encode(), dtype=np.uint8),
            "boxes": narrow if np.array_equal(narrow.astype(np.float64), table) else table,
            "flags": np.concatenate(flags),
        }
        inside, outside = self._places()
        # Asking the mode and not only the system: root may write everywhere, and a folder marked read-only is meant so.
        writable = self._root.stat().st_mode & 0o222
        if not any(_write(path, arrays) for path in ((inside, outside) if writable else (outside,))):
            _log.info("annotations of %s are not cached: no folder to write them to", self._root)
        self._fresh = {}


def _write(path: Path, arrays: dict[str, NDArray[np.generic]]) -> bool:
    """Write to a temporary name and rename; False when the place cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            try:
                np.savez(file, **arrays)  # type: ignore[arg-type]
                file.flush()
                temporary.chmod(0o644)  # made 0600, which another user of the same data could not read
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
    except OSError:
        return False
    return True

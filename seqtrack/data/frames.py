"""The only reader of a folder of frames: which files are its frames, and in which order.

Training, evaluation, `data check` and `track` all list frames here and decode them in `decode`, so the same folder is
the same video for all of them. Knows file names only.
"""

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from seqtrack.errors import UserError

_log = logging.getLogger(__name__)

JPEG_SUFFIXES = (".jpg", ".jpeg")
IMAGE_SUFFIXES = (*JPEG_SUFFIXES, ".png", ".bmp", ".tif", ".tiff", ".webp")
_NUMBERED = re.compile(r"[0-9]{8}\.jpg")
_OF_FILE_MANAGERS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"})


@dataclass(frozen=True)
class FrameFolder:
    """The frames of a folder in order.

    Attributes:
        paths: of the frames.
        sizes: of their files, bytes.
        is_numbered: named 00000001.jpg as in the data sets; then other images in the folder are not frames.
        left_out: names of the other entries, hidden files excepted.
    """

    paths: list[Path]
    sizes: list[int]
    is_numbered: bool
    left_out: list[str]


def is_hidden(name: str) -> bool:
    """Files that operating systems create: `._*` and `.DS_Store` of macOS, `Thumbs.db` of Windows."""
    return name.startswith(".") or name.lower() in _OF_FILE_MANAGERS


def scan_frames(folder: Path) -> FrameFolder:
    """Find the frames of a folder without opening them.

    Raises:
        UserError: the folder cannot be read, holds no image, or an entry with the name of a frame is not a file.
    """
    expected = f"expected frames such as 00000001.jpg ({', '.join(IMAGE_SUFFIXES)})"
    images: dict[str, int] = {}
    left_out: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                if not entry.name.lower().endswith(IMAGE_SUFFIXES):
                    left_out.append(entry.name)
                elif entry.is_file():
                    images[entry.name] = entry.stat().st_size
                else:
                    raise UserError(f"{entry.path}: is not a file, but has the name of a frame", "data.frame")
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no such folder; {expected}", "data.no_frames") from error
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})", "data.frame") from error
    if not images:
        raise UserError(f"{folder}: no images found; {expected}", "data.no_frames")
    numbered = sorted(name for name in images if _NUMBERED.fullmatch(name))
    names = numbered or sorted(images, key=_natural_order)
    left_out += sorted(set(images) - set(names))
    return FrameFolder([folder / name for name in names], [images[name] for name in names], bool(numbered), left_out)


def _natural_order(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", name) if part]


def list_video_frames(folder: Path) -> list[Path]:
    """The frames of a folder that is tracked as a video; entries left out and missing numbers are logged.

    Raises:
        UserError: as `scan_frames`.
    """
    found = scan_frames(folder)
    if found.left_out:
        _log.warning("%s: %d files are not frames: %s", folder, len(found.left_out), ", ".join(found.left_out))
    if found.is_numbered:
        numbers = {int(path.stem) for path in found.paths}
        if gone := sorted({*range(min(numbers), max(numbers))} - numbers):
            _log.warning("%s: %d frame files are missing: %s", folder, len(gone), ", ".join(map(str, gone)))
    return found.paths

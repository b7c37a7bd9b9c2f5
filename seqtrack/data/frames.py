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
        left_out: names of the other entries, hidden files excepted.
    """

    paths: list[Path]
    sizes: list[int]
    left_out: list[str]


def is_hidden(name: str) -> bool:
    """Files that operating systems create: `._*` and `.DS_Store` of macOS, `Thumbs.db` of Windows."""
    return name.startswith(".") or name.lower() in _OF_FILE_MANAGERS


def scan_frames(folder: Path, must_be_numbered: bool = False) -> FrameFolder:
    """Find the frames of a folder without opening them.

    If any is named 00000001.jpg as in the data sets, other images in the folder are not frames.

    Raises:
        UserError: the folder cannot be read, holds no (numbered) image, or an entry with the name of a frame is not a
            file.
    """
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
    except FileNotFoundError:
        pass  # as an empty one
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror})", "data.frame") from error
    names = sorted(filter(_NUMBERED.fullmatch, images)) or sorted(
        {} if must_be_numbered else images, key=_natural_order
    )
    if not names:
        expected = f"expected a folder with frames such as 00000001.jpg ({', '.join(IMAGE_SUFFIXES)})"
        raise UserError(f"{folder}: holds no images, or does not exist; {expected}", "data.no_frames")
    left_out += sorted(set(images) - set(names))
    return FrameFolder([folder / name for name in names], [images[name] for name in names], left_out)


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
    if _NUMBERED.fullmatch(found.paths[0].name):
        numbers = {int(path.stem) for path in found.paths}
        if gone := sorted({*range(min(numbers), max(numbers))} - numbers):
            _log.warning("%s: %d frame files are missing: %s", folder, len(gone), ", ".join(map(str, gone)))
    return found.paths

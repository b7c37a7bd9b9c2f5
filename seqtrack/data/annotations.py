"""Reading LaSOT's annotation files strictly: every malformed row is reported with its file and line.

Knows the text form of `groundtruth.txt`, `full_occlusion.txt` and `out_of_view.txt` and the numbering of frame files.
It mends nothing: a file that can be read in two ways is refused, because a box that was guessed is a box the model
learns. It must not know of splits, classes or images.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# No image is larger; a number beyond it is damage, and would overflow the crop arithmetic later.
LARGEST_COORDINATE = 100_000.0

# Rows of the official annotations with a negative size. They are published as they are, so they count as frames
# without a box; a negative size anywhere else is damage. (sequence, line): the row's text.
KNOWN_NEGATIVE_ROWS = {
    ("person-7", 2111): "2,2,-1,-1",
    ("pool-14", 146): "1,1,-1,-1",
    ("tank-17", 627): "1125,730,155,-10",
    ("lion-5", None): "1,1,-1,-1",
    ("tiger-6", None): "613,731,247,-11",
}

_NUMBER = rb"-?[0-9]{1,9}(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"
_ROW = re.compile(rb"%(n)s,%(n)s,%(n)s,%(n)s" % {b"n": _NUMBER})
_ROWS = re.compile(rb"(?:%(n)s,%(n)s,%(n)s,%(n)s\n)*(?:%(n)s,%(n)s,%(n)s,%(n)s)?" % {b"n": _NUMBER})
_FLAGS = re.compile(rb"[01](?:[,\n][01])*\n?")
FRAME_NAME = re.compile(r"[0-9]{8}\.jpg")
_BOM = b"\xef\xbb\xbf"
_LARGEST_ANNOTATION_BYTES = 64 * 1024 * 1024
_SHOWN_PER_FILE = 20


@dataclass(frozen=True)
class Annotation:
    """What one sequence folder says: boxes (N, 4) float64, absent (N,) bool, missing (N,) bool frame files."""

    boxes_xywh: NDArray[np.float64]
    absent: NDArray[np.bool_]
    missing: NDArray[np.bool_]


def read_annotation(folder: Path) -> tuple[Annotation | None, list[str]]:
    """Read one sequence folder of LaSOT's layout.

    Returns:
        the annotation and no problem, or None and every problem found, each naming the file and, where there is
        one, the line.
    """
    problems: list[str] = []
    boxes = read_boxes(folder / "groundtruth.txt", folder.name, problems)
    rows = None if boxes is None else len(boxes)
    hidden = [_read_flags(folder / name, rows, problems) for name in ("full_occlusion.txt", "out_of_view.txt")]
    missing = find_missing(folder / "img", rows, problems)
    occluded, outside = hidden
    if problems or boxes is None or occluded is None or outside is None or missing is None:
        return None, problems
    return Annotation(boxes, occluded | outside, missing), []


def _read_bytes(path: Path, problems: list[str]) -> bytes | None:
    try:
        if path.stat().st_size > _LARGEST_ANNOTATION_BYTES:
            problems.append(f"{path}: {path.stat().st_size} bytes is too large for an annotation file")
            return None
        return path.read_bytes()
    except FileNotFoundError:
        problems.append(f"{path}: no such file; a sequence needs groundtruth.txt, full_occlusion.txt, out_of_view.txt")
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
    return None


def read_boxes(path: Path, sequence: str, problems: list[str]) -> NDArray[np.float64] | None:
    """Boxes (N, 4) float64, or None with the reasons appended."""
    data = _read_bytes(path, problems)
    if data is None:
        return None
    if not data.strip():
        problems.append(f"{path}: empty; expected one row x,y,w,h a frame")
        return None
    found: list[str] = []
    if _ROWS.fullmatch(data) is None:
        found = _malformed_rows(path, data)
    else:
        boxes = np.array(data.replace(b"\n", b",").rstrip(b",").split(b","), dtype="S32").astype(np.float64)
        boxes = boxes.reshape(-1, 4)
        for row in np.flatnonzero((np.abs(boxes) > LARGEST_COORDINATE).any(axis=1)):
            found.append(f"{path}, line {row + 1}: {_shown(boxes[row])} is beyond any image")
        for row in np.flatnonzero((boxes[:, 2:] < 0).any(axis=1)):
            text = _shown(boxes[row])
            if text not in (
                KNOWN_NEGATIVE_ROWS.get((sequence, int(row) + 1)),
                KNOWN_NEGATIVE_ROWS.get((sequence, None)),
            ):
                found.append(f"{path}, line {row + 1}: {text} has a negative width or height")
        if not found:
            return boxes
    problems.extend(found[:_SHOWN_PER_FILE])
    if len(found) > _SHOWN_PER_FILE:
        problems.append(f"{path}: {len(found) - _SHOWN_PER_FILE} more malformed rows")
    return None


def _shown(box: NDArray[np.float64]) -> str:
    return ",".join(f"{value:g}" for value in box)


def _malformed_rows(path: Path, data: bytes) -> list[str]:
    """One sentence a row that is not four plain numbers with commas between them."""
    if data.startswith(_BOM):
        return [f"{path}, line 1: starts with a byte order mark; save it as plain text without one"]
    if b"\r" in data:
        line = data[: data.index(b"\r")].count(b"\n") + 1
        return [f"{path}, line {line}: ends with a carriage return; convert the file to Unix line ends"]
    found: list[str] = []
    rows = data.split(b"\n")
    if rows and not rows[-1]:
        rows.pop()
    for number, row in enumerate(rows, start=1):
        if _ROW.fullmatch(row) is None:
            shown = ascii(row[:60].decode("utf-8", errors="backslashreplace"))
            found.append(
                f"{path}, line {number}: found {shown}, expected four numbers x,y,w,h with commas between them"
            )
    return found


def _read_flags(path: Path, rows: int | None, problems: list[str]) -> NDArray[np.bool_] | None:
    """One 0 or 1 a frame, (N,) bool, or None with the reasons appended."""
    data = _read_bytes(path, problems)
    if data is None:
        return None
    if _FLAGS.fullmatch(data) is None:
        bad = re.search(rb"[^01,\n]|[,\n]{2}|[01]{2}", data.rstrip(b"\n"))
        line = data[: bad.start()].count(b"\n") + 1 if bad else 1
        problems.append(f"{path}, line {line}: expected 0 or 1 for each frame with commas between them")
        return None
    flags: NDArray[np.bool_] = np.frombuffer(data.replace(b",", b"").replace(b"\n", b""), dtype=np.uint8) == ord("1")
    if rows is not None and len(flags) != rows:
        problems.append(f"{path}: {len(flags)} flags, but groundtruth.txt has {rows} rows")
        return None
    return flags


def find_missing(folder: Path, rows: int | None, problems: list[str]) -> NDArray[np.bool_] | None:
    """Which frames 1..rows have no file, (N,) bool, or None with the reasons appended.

    A gap inside the sequence is a missing file, and the frame is left out of sampling. A last frame that is not the
    last row means that boxes and frames do not belong together, and nobody can say which box is whose.
    """
    numbers: list[int] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if FRAME_NAME.fullmatch(entry.name):
                    if entry.is_file():
                        numbers.append(int(entry.name[:8]))
                    else:
                        problems.append(f"{entry.path}: not a file")
    except FileNotFoundError:
        problems.append(f"{folder}: no such folder; frames are expected in it as 00000001.jpg, 00000002.jpg, ...")
        return None
    except OSError as error:
        problems.append(f"{folder}: cannot be read ({error.strerror})")
        return None
    if not numbers:
        problems.append(f"{folder}: holds no frame named like 00000001.jpg")
        return None
    if rows is None:
        return None
    if max(numbers) != rows or min(numbers) < 1:
        problems.append(
            f"{folder.parent}: groundtruth.txt has {rows} rows, but the frames are numbered "
            f"{min(numbers)} to {max(numbers)} ({len(numbers)} files); rows and frames must be the same in number"
        )
        return None
    missing = np.ones(rows, dtype=np.bool_)
    missing[np.array(numbers) - 1] = False
    return missing

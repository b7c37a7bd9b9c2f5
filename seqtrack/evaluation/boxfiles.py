"""Box files in the field's text form, and the `.npz` form that holds a whole set of them.

Knows lines and arrays; knows nothing of models, data sets or metrics. A line holds four numbers x,y,w,h in pixels,
separated by commas, tabs or spaces. Reading refuses what is not that and tells every place; writing keeps every digit,
so that scoring the file and scoring the array give the same number.
"""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seqtrack.checkpoints.files import write_atomic
from seqtrack.errors import UserError
from seqtrack.evaluation.metrics import Array, Mask

_SEPARATORS = str.maketrans(",;\t", "   ")
_SHOWN = 5  # places told of each file; a file of another kind has thousands


def read_numbers(path: Path, columns: int) -> Array:
    """(N, columns) float64 of a text file; blank lines at its end do not count.

    Raises:
        UserError: unreadable, empty, or lines that do not hold `columns` numbers, each with its place.
    """
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    rows: list[list[float]] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.translate(_SEPARATORS).split()
        try:
            rows.append([float(word) for word in words])
        except ValueError:
            problems.append(f"{path}:{number}: expected {columns} numbers, found {line.strip()[:60]!r}")
            continue
        if len(words) != columns:
            problems.append(f"{path}:{number}: expected {columns} numbers, found {len(words)} in {line.strip()[:60]!r}")
    if problems:
        more = [f"{path}: and {len(problems) - _SHOWN} more such lines"] if len(problems) > _SHOWN else []
        raise UserError(problems[:_SHOWN] + more)
    if not rows:
        raise UserError(f"{path}: is empty; expected one line of {columns} numbers a frame")
    return np.array(rows, dtype=np.float64)


def read_boxes(path: Path) -> Array:
    """(N, 4) float64 xywh of a box file; NaN is a number here. Errors as `read_numbers`."""
    return read_numbers(path, 4)


def read_flags(path: Path) -> Mask:
    """(N,) bool of a file of 0 and 1: one a line, or all on one line separated by commas.

    Raises:
        UserError: unreadable, or anything else than 0 and 1.
    """
    try:
        words = path.read_text(encoding="utf-8").translate(_SEPARATORS).split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    strange = sorted(set(words) - {"0", "1"})
    if strange:
        raise UserError(f"{path}: expected 0 and 1 only, found {', '.join(map(repr, strange[:_SHOWN]))}")
    return np.array([word == "1" for word in words], dtype=bool)


def write_boxes(path: Path, boxes_xywh: Array) -> None:
    """Write (N, 4) boxes, one `x,y,w,h` a line; read again they are equal to the last bit."""
    lines = [",".join(repr(float(value)) for value in row) for row in boxes_xywh]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_box_archive(path: Path) -> dict[str, Array]:
    """Boxes of many sequences from an `.npz` with `names`, `offsets` (one more than names) and `boxes` (N, 4).

    Raises:
        UserError: unreadable or of another form.
    """
    arrays = read_archive(path, ("names", "offsets", "boxes"))
    names, offsets, boxes = arrays["names"], arrays["offsets"], arrays["boxes"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or names.ndim != 1 or offsets.shape != (len(names) + 1,):
        raise UserError(
            f"{path}: expected names (S,), offsets (S + 1,) and boxes (N, 4), "
            f"found {names.shape}, {offsets.shape} and {boxes.shape}"
        )
    if offsets[0] != 0 or offsets[-1] != len(boxes) or (np.diff(offsets) < 0).any():
        raise UserError(f"{path}: offsets must rise from 0 to the number of boxes ({len(boxes)})")
    return {
        str(name): boxes[int(begin) : int(end)].astype(np.float64)
        for name, begin, end in zip(names, offsets, offsets[1:], strict=False)
    }


def read_archive(path: Path, keys: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of an `.npz` by name; pickled objects are refused.

    Raises:
        UserError: unreadable, or an array is missing.
    """
    wanted = list(keys)
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: holds a single array; expected an .npz archive with {', '.join(wanted)}")
        with stored:
            missing = [key for key in wanted if key not in stored.files]
            if missing:
                raise UserError(f"{path}: holds no {', '.join(missing)}; expected {', '.join(wanted)}")
            return {key: stored[key] for key in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as an .npz archive ({error})") from error

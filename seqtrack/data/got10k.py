"""GOT-10k's layout: `<sequence>/00000001.jpg`, `groundtruth.txt`, `absence.label`, `cover.label`, and a `list.txt`.

Knows that layout only, and the two training sets that the authors' experiments make of it. The official test split has
no published boxes beyond the first frame, so "test" is the folder `val`.
"""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.data.annotations import find_missing, read_boxes
from seqtrack.data.sequence import Sequence, visible_frames
from seqtrack.errors import UserError

_FOLDERS = {"train": "train", "test": "val"}
# The authors' list of what VOT's challenge does not hold: places in `train/list.txt`, counted from 0.
VOT_LIST = "got10k_vot_train_split.txt"
_NUMBERS = re.compile(rb"[0-9]{1,3}(?:\r?\n[0-9]{1,3})*\r?\n?")
# Classes are named by a line of each sequence's meta file; without one the data set is one class.
_CLASS = re.compile(r"^object_class:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_NO_CLASS = "object"


def open_got10k(data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """Sequences of `data_dir/got10k/<split>` (or of `data_dir/<split>`) in the order of their list.

    Args:
        classes: empty for all.
        split: "train" (the folder `train`, 9,335 sequences) or "test" (the folder `val`, 180).

    Raises:
        UserError: everything that is wrong with the folder, the list, the classes and the annotations, at once.
    """
    return _open(data_dir, classes, split, chosen=None)


def open_got10k_without_vot(data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """As `open_got10k`, without the training sequences that VOT's challenge holds: 7,086 stay.

    They are the ones that the authors' list names, which has to stand beside the folder `train`.

    Raises:
        UserError: as `open_got10k`; and the list is missing or names no place of `train/list.txt`.
    """
    return _open(data_dir, classes, split, chosen=VOT_LIST if split == "train" else None)


def _open(data_dir: Path, classes: tuple[str, ...], split: str, *, chosen: str | None) -> list[Sequence]:
    root = next((p for p in (data_dir / "got10k", data_dir) if (p / _FOLDERS[split] / "list.txt").is_file()), None)
    if root is None:
        raise UserError(
            f"DATA_DIR: {data_dir.absolute()} holds no GOT-10k: expected got10k/{_FOLDERS[split]}/list.txt and beside "
            "it a folder for each sequence"
        )
    folder = root / _FOLDERS[split]
    try:
        names = (folder / "list.txt").read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / 'list.txt'}: cannot be read ({error})") from error
    problems: list[str] = []
    if chosen is not None:
        names = _pick(names, root / chosen, problems)
    sequences = [_read(folder / name, problems) for name in names if _is_plain(name, folder, problems)]
    found = [sequence for sequence in sequences if sequence is not None]
    known = sorted({sequence.class_name for sequence in found})
    problems += [
        f"CLASSES: GOT-10k has no class {name!r} here; it has {', '.join(known)}"
        for name in sorted(set(classes) - set(known))
    ]
    if classes:
        found = [sequence for sequence in found if sequence.class_name in classes]
    if not found and not problems:
        problems.append(f"{folder / 'list.txt'} names no sequence")
    if problems:
        raise UserError(problems)
    return found


def _pick(names: list[str], path: Path, problems: list[str]) -> list[str]:
    """The names at the places that a file lists, one a line from 0; none of them if it cannot be used."""
    try:
        words = path.read_text("utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(
            f"{path}: cannot be read ({error}); it comes with the authors' code (lib/train/data_specs) and with "
            "pytracking, and names the sequences to train on by their places in train/list.txt"
        )
        return []
    wrong = [word for word in words if re.fullmatch(r"[0-9]{1,9}", word) is None or int(word) >= len(names)]
    if wrong or len(set(words)) != len(words) or not words:
        found = f"{wrong[0][:20]!a}" if wrong else "a place twice" if words else "nothing"
        problems.append(f"{path}: expected different places from 0 to {len(names) - 1}, one a line, found {found}")
        return []
    return [names[int(word)] for word in words]


def _is_plain(name: str, folder: Path, problems: list[str]) -> bool:
    plain = re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name) is not None
    if not plain:
        problems.append(f"{folder / 'list.txt'}: {name[:60]!a} is not the name of a sequence")
    return plain


def _read(folder: Path, problems: list[str]) -> Sequence | None:
    """One sequence, or None with the reasons appended."""
    boxes = read_boxes(folder / "groundtruth.txt", folder.name, problems)
    rows = None if boxes is None else len(boxes)
    away = _read_numbers(folder / "absence.label", rows, problems)
    cover = _read_numbers(folder / "cover.label", rows, problems)
    missing = find_missing(folder, rows, problems)
    if boxes is None or away is None or cover is None or missing is None:
        return None
    absent = (away > 0) | (cover == 0)
    return Sequence(
        name=folder.name,
        class_name=_class_of(folder),
        folder=folder,
        boxes_xywh=boxes,
        visible=visible_frames(boxes, absent, missing),
        absent=absent,
        missing=missing,
    )


def _read_numbers(path: Path, rows: int | None, problems: list[str]) -> NDArray[np.int64] | None:
    """One number a frame, (N,) int64."""
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error.strerror})")
        return None
    if _NUMBERS.fullmatch(data) is None:
        problems.append(f"{path}: expected one number from 0 a line")
        return None
    numbers = np.array(data.split(), dtype="S3").astype(np.int64)
    if rows is not None and len(numbers) != rows:
        problems.append(f"{path}: {len(numbers)} lines, but groundtruth.txt has {rows} rows")
        return None
    return numbers


def _class_of(folder: Path) -> str:
    try:
        match = _CLASS.search((folder / "meta_info.ini").read_text("utf-8"))
    except (OSError, UnicodeDecodeError):
        match = None
    return match.group(1) if match else _NO_CLASS

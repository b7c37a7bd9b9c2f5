"""GOT-10k's layout: `<sequence>/00000001.jpg`, `groundtruth.txt`, `absence.label`, `cover.label`, and a `list.txt`.

Knows that layout only, and the two training sets that the authors' experiments make of it. The official test split has
no published boxes beyond the first frame, so "test" is the folder `val`.
"""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from seqtrack.annotation_files import attempt, read_flags, read_labels, read_names, read_places, read_text_file
from seqtrack.data.annotations import make_sequence, read_sequence_folder
from seqtrack.data.sequence import Sequence
from seqtrack.errors import Problem, UserError

_FOLDERS = {"train": "train", "test": "val"}
# The authors' list of what VOT's challenge does not hold: places in `train/list.txt`, counted from 0. It comes with
# their code (lib/train/data_specs) and with pytracking.
VOT_LIST = "got10k_vot_train_split.txt"
_WHOLLY_VISIBLE = 8  # cover.label counts eighths
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

    They are the ones that the authors' list names, which has to are next to the folder `train`.

    Raises:
        UserError: as `open_got10k`; and the list is missing or names no place of `train/list.txt`.
    """
    return _open(data_dir, classes, split, chosen=VOT_LIST if split == "train" else None)


def _open(data_dir: Path, classes: tuple[str, ...], split: str, *, chosen: str | None) -> list[Sequence]:
    root = next((p for p in (data_dir / "got10k", data_dir) if (p / _FOLDERS[split] / "list.txt").is_file()), None)
    if root is None:
        raise UserError(
            f"DATA_DIR: {data_dir.absolute()} holds no GOT-10k: expected got10k/{_FOLDERS[split]}/list.txt and next to "
            "it a folder for each sequence",
            "data.no_folder",
        )
    folder = root / _FOLDERS[split]
    names = read_names(folder / "list.txt")
    problems: list[Problem] = []
    if chosen is not None and not (root / chosen).exists():
        text = f"{root / chosen}: no such file; the authors' code (lib/train/data_specs) and pytracking bring it"
        raise UserError(text, "file.missing")
    if chosen is not None:
        places = attempt(problems, read_places, root / chosen, len(names))
        names = [names[place] for place in places or ()]
    read = [attempt(problems, _read, folder / name) for name in names]
    found = [sequence for sequence in read if sequence is not None]
    known = sorted({sequence.class_name for sequence in found})
    problems += [
        Problem(f"CLASSES: GOT-10k has no class {name!r} here; it has {', '.join(known)}", "data.unknown_class")
        for name in sorted(set(classes) - set(known))
    ]
    if classes:
        found = [sequence for sequence in found if sequence.class_name in classes]
    if not found and not problems:
        problems.append(Problem(f"{folder / 'list.txt'} names no sequence", "data.no_sequence"))
    if problems:
        raise UserError(problems)
    return found


def _read(folder: Path) -> Sequence:
    labels: dict[Path, Callable[[Path], NDArray[np.bool_]]] = {
        folder / "absence.label": read_flags,
        folder / "cover.label": lambda path: read_labels(path, largest=_WHOLLY_VISIBLE) == 0,
    }
    annotation = read_sequence_folder(folder, folder, labels)
    return make_sequence(folder.name, _class_of(folder), folder, annotation)


def _class_of(folder: Path) -> str:
    description = folder / "meta_info.ini"
    match = _CLASS.search(read_text_file(description)) if description.exists() else None
    return match.group(1) if match else _NO_CLASS

"""GOT-10k's layout: `<sequence>/00000001.jpg`, `groundtruth.txt`, `absence.label`, `cover.label`, and a `list.txt`.

Knows only that layout, and the training sets that the authors' experiments make of it. The official test split has
no published boxes beyond the first frame, so "test" is the folder `val`.
"""

import re
from pathlib import Path

from seqtrack.data import files
from seqtrack.data.annotations import attempt, read_labels, read_names, read_text_file, unknown_classes
from seqtrack.data.sequence import Sequence, read_sequence
from seqtrack.errors import Problem, UserError

_FOLDERS = {"train": "train", "test": "val"}
_LISTS_FROM = "it comes with the authors' code (lib/train/data_specs) and pytracking"
# Classes are named by a line of each sequence's meta file; without one the data set is one class.
_CLASS = re.compile(r"^object_class:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_NO_CLASS = "object"
# As `FLAG_FILES`; the second has the eighths of the target that are visible.
_FLAG_FILES = {"absence.label": (1, 1), "cover.label": (8, 0)}


def open_got10k(data_dir: Path, *, classes: tuple[str, ...], split: str, listed: str = "") -> list[Sequence]:
    """Sequences of `data_dir/got10k/<split>` (or of `data_dir/<split>`, or `got10k_lmdb`) in the order of their list.

    Args:
        classes: empty for all.
        split: "train" (the folder `train`, 9,335 sequences) or "test" (the folder `val`, 180).
        listed: the file with the positions, from 0, of the training sequences that are used: 7,086 of `vot_train` and
            1,249 of `vot_val`, which are not in VOT's challenge, 7,934 of `train`.

    Raises:
        UserError: every problem with the folder, the lists, the classes and the annotations.
    """
    roots = (data_dir / "got10k", data_dir, data_dir / "got10k_lmdb")
    root = next((one for one in roots if files.exists(one / _FOLDERS[split] / "list.txt")), None)
    if root is None:
        expected = f"expected got10k/{_FOLDERS[split]}/list.txt and next to it a folder for each sequence"
        raise UserError(f"DATA_DIR: {data_dir.absolute()} holds no GOT-10k: {expected}", "data.no_folder")
    folder = root / _FOLDERS[split]
    names = read_names(folder / "list.txt")
    if listed and split == "train":
        place = next((one / listed for one in (root, data_dir) if (one / listed).exists()), None)
        if place is None:
            raise UserError(f"{root / listed}: no such file; {_LISTS_FROM}", "file.missing")
        indices = read_labels(place, len(names) - 1)
        names = [names[index] for index in dict.fromkeys(indices.tolist())]
    problems: list[Problem] = []
    found = [one for one in (attempt(problems, _read, folder / name) for name in names) if one is not None]
    problems += unknown_classes("GOT-10k", classes, (sequence.class_name for sequence in found))
    if not found and not problems:
        problems.append(Problem(f"{folder / 'list.txt'} names no sequence", "data.no_sequence"))
    if problems:
        raise UserError(problems)
    return [sequence for sequence in found if not classes or sequence.class_name in classes]


def _read(folder: Path) -> Sequence:
    description = folder / "meta_info.ini"
    match = _CLASS.search(read_text_file(description)) if files.exists(description) else None
    return read_sequence(folder, match.group(1) if match else _NO_CLASS, ".", _FLAG_FILES)

"""GOT-10k's layout: `<sequence>/00000001.jpg`, `groundtruth.txt`, `absence.label`, `cover.label`, and a `list.txt`.

Knows only that layout, and the two training sets that the authors' experiments make of it. The official test split has
no published boxes beyond the first frame, so "test" is the folder `val`.
"""

import re
from pathlib import Path

from seqtrack.data.annotations import attempt, read_flags, read_indices, read_labels, read_names, read_text_file
from seqtrack.data.sequence import Sequence, log_missing_frames, read_sequence
from seqtrack.errors import Problem, UserError

_FOLDERS = {"train": "train", "test": "val"}
# The authors' list of the sequences that are not in VOT's challenge: indices into `train/list.txt`, from 0. It comes
# with their code (lib/train/data_specs) and with pytracking.
VOT_LIST = "got10k_vot_train_split.txt"
_FULLY_VISIBLE = 8  # cover.label counts eighths
# Classes are named by a line of each sequence's meta file; without one the data set is one class.
_CLASS = re.compile(r"^object_class:[ \t]*(.+?)[ \t]*$", re.MULTILINE)
_NO_CLASS = "object"


def open_got10k(data_dir: Path, *, classes: tuple[str, ...], split: str, chosen: str | None = None) -> list[Sequence]:
    """Sequences of `data_dir/got10k/<split>` (or of `data_dir/<split>`) in the order of their list.

    Args:
        classes: empty for all.
        split: "train" (the folder `train`, 9,335 sequences) or "test" (the folder `val`, 180).
        chosen: name of a file next to the folder `train` with the indices of the sequences to use; None for all.

    Raises:
        UserError: every problem with the folder, the lists, the classes and the annotations.
    """
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
    if chosen is not None:
        if not (root / chosen).exists():
            text = (
                f"{root / chosen}: no such file; it comes with the authors' code (lib/train/data_specs) and pytracking"
            )
            raise UserError(text, "file.missing")
        names = [names[index] for index in attempt(problems, read_indices, root / chosen, len(names)) or ()]
    found = [one for one in (attempt(problems, _read, folder / name) for name in names) if one is not None]
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


def open_got10k_without_vot(data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """As `open_got10k`, without the training sequences that are in VOT's challenge: 7,086 remain."""
    return open_got10k(data_dir, classes=classes, split=split, chosen=VOT_LIST if split == "train" else None)


def _read(folder: Path) -> Sequence:
    description = folder / "meta_info.ini"
    match = _CLASS.search(read_text_file(description)) if description.exists() else None
    sequence = read_sequence(
        folder,
        match.group(1) if match else _NO_CLASS,
        images=folder,
        flag_files={
            folder / "absence.label": read_flags,
            folder / "cover.label": lambda path: read_labels(path, largest=_FULLY_VISIBLE) == 0,
        },
    )
    log_missing_frames(sequence)
    return sequence

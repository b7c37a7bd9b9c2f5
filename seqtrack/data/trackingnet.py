"""TrackingNet's training set: `TRAIN_0` to `TRAIN_11`, each `anno/<name>.txt` and `frames/<name>/0.jpg`, 1.jpg, ..., or
environments `TRAIN_0_lmdb`, ... with these as keys. Some or all of the twelve may exist. Its test set is a row of
`TEST_SETS`.
"""

from pathlib import Path

from seqtrack.data import files
from seqtrack.data.annotations import attempt, read_text_file, unknown_classes
from seqtrack.data.decode import Numbered, is_hidden
from seqtrack.data.sequence import Sequence, read_video
from seqtrack.data.test_sets import open_test_set
from seqtrack.errors import Problem, UserError

_PARTS = [f"TRAIN_{number}{end}" for number in range(12) for end in ("", files.SUFFIX)]
# A line for each sequence: its name and its class; without it the data set is one class.
_CLASSES = "trackingnet_classmap.txt"
_NO_CLASS = "object"
_FRAMES = Numbered("{}.jpg", 0)


def open_trackingnet(data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """Sequences of `data_dir/trackingnet`, or of `data_dir`, by part and name.

    Args:
        classes: empty for all.
        split: "train", or "test" for the folder TEST, whose boxes but the first are unknown.

    Raises:
        UserError: every problem with the folder, the classes, the annotations and the frames.
    """
    if split == "test":
        return open_test_set("TRACKINGNET", data_dir, classes=classes, split=split)
    roots = [data_dir / name for name in ("trackingnet", "TrackingNet", "trackingnet_lmdb")] + [data_dir]
    there = ([root / one for one in _PARTS if (root / one).is_dir()] for root in roots)
    parts = next((some for some in there if some), [])
    if not parts:
        expected = "expected trackingnet/TRAIN_0/anno/<name>.txt and TRAIN_0/frames/<name>/0.jpg, to TRAIN_11"
        raise UserError(f"DATA_DIR: {data_dir.absolute()} holds no TrackingNet: {expected}", "data.no_folder")
    classes_file, of_name, problems = parts[0].parent / _CLASSES, dict[str, str](), list[Problem]()
    if classes_file.exists():
        lines = (attempt(problems, read_text_file, classes_file) or "").split("\n")
        pairs = [line.split(maxsplit=1) for line in lines if line]
        if wrong := [number for number, pair in enumerate(pairs, 1) if len(pair) != 2]:
            problems.append(Problem(f"{classes_file}, line {wrong[0]}: expected a name and a class", "file.row"))
        of_name = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    problems += unknown_classes("TrackingNet", classes, of_name.values() or [_NO_CLASS])
    found: list[Sequence] = []
    for part in parts:
        for name in sorted(attempt(problems, _names, part / "anno") or []):
            class_name = of_name.get(name, _NO_CLASS)
            if not classes or class_name in classes:
                rows, images = part / "anno" / f"{name}.txt", part / "frames" / name
                one = attempt(problems, read_video, name, class_name, rows, {}, images, _FRAMES)
                found += [one] if one else []
    if not found and not problems:
        problems.append(Problem(f"{parts[0].parent}: no sequence in {len(parts)} parts", "data.no_sequence"))
    if problems:
        raise UserError(problems)
    return found


def _names(folder: Path) -> list[str]:
    try:
        return [name[:-4] for name in files.list_folder(folder) if name.endswith(".txt") and not is_hidden(name)]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})", "data.folder") from error

"""LaSOT's folder layout: finds sequences, selects classes, applies the split, and reports every problem at once.

Knows the official split and the layouts in which the data set is found on disks. Knows nothing of sampling or images,
and writes nothing.
"""

import difflib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from seqtrack.data.annotations import attempt, class_of, read_names, sequence_order
from seqtrack.data.frames import is_hidden
from seqtrack.data.sequence import Sequence, log_missing_frames, read_sequence
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

SPLITS = ("train", "test")
LIST_FILES = {"train": "training_set.txt", "test": "testing_set.txt"}
_THREADS = 8  # reading many small files waits more than it computes, above all on a network file system
_ROOT_NAMES = ("lasot", "LaSOT", "LaSOTBenchmark")
_CLASS_STREAM = 0xC1A55  # drawing classes must not share random numbers with drawing samples


@dataclass(frozen=True)
class Layout:
    """Where a data set's sequences are.

    Attributes:
        root: the folder that holds classes or sequences, and possibly lists of its own.
        folders: sequence name -> its folder, in the order of class and number.
        lists: "train" and "test" -> names in the split.
        own_lists: the files that the lists come from, where they are not the official split's.
        problems: of the layout or the lists.
    """

    root: Path
    folders: dict[str, Path]
    lists: dict[str, tuple[str, ...]]
    own_lists: dict[str, Path] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Classes that have at least one sequence on the disk."""
        return sorted({class_of(name) for name in self.folders})

    def names(self, split: str, classes: Iterable[str]) -> list[str]:
        """Names in the split of these classes, on the disk or not, by class and number."""
        wanted = set(classes)
        return sorted((name for name in self.lists[split] if class_of(name) in wanted), key=sequence_order)


def official_split() -> dict[str, tuple[str, ...]]:
    """The published split: 1,120 training and 280 test sequences of 70 classes."""
    folder = resources.files("seqtrack.data") / "splits"
    return {
        "train": tuple((folder / "lasot_training_set.txt").read_text("utf-8").split()),
        "test": tuple((folder / "lasot_testing_set.txt").read_text("utf-8").split()),
    }


def draw_classes(chosen: tuple[str, ...], *, count: int, seed: int) -> tuple[str, ...]:
    """The chosen classes and `count` further ones, drawn at random from the rest of LaSOT's 70 classes.

    All official classes are candidates, whatever is on this disk, so that every machine draws the same ones.

    Raises:
        UserError: fewer than `count` classes are left.
    """
    if count == 0:
        return chosen
    others = sorted({class_of(name) for name in official_split()["train"]} - set(chosen))
    if count > len(others):
        text = f"DATA.RANDOM_CLASSES is {count}, but only {len(others)} classes are left to draw from"
        raise UserError(text, "data.random_classes")
    generator = np.random.default_rng([_CLASS_STREAM, seed])
    return (*chosen, *(others[i] for i in sorted(generator.choice(len(others), size=count, replace=False))))


def find_layout(data_dir: Path, *, lists: dict[str, Path] | None = None) -> Layout:
    """Find the sequences below a data folder, which holds classes or sequences itself or in a folder named lasot.

    Args:
        lists: files with sequence names for "train" and "test", used instead of the folder's own lists and of the
            official split.

    Raises:
        UserError: the folder is missing or holds no sequence.
    """
    if not data_dir.is_dir():
        text = f"DATA_DIR: {data_dir.absolute()} is not a folder; set it to the folder that holds LaSOT"
        raise UserError(text, "data.no_folder")
    for root in (*(data_dir / name for name in _ROOT_NAMES), data_dir):
        folders, problems = _find_sequences(root)
        if folders:
            own = {split: root / name for split, name in LIST_FILES.items() if (root / name).is_file()}
            paths = own if lists is None else lists
            names = _read_lists(root, folders, paths, problems, custom=lists is not None)
            return Layout(root, folders, names, paths, problems)
    raise UserError(
        f"no sequence in {data_dir.absolute()}: expected <class>/<class>-<n>/groundtruth.txt and img/00000001.jpg; "
        "`seqtrack data download --classes book,coin` fetches classes of LaSOT",
        "data.no_sequence",
    )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not is_hidden(child.name) and child.is_dir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})", "data.folder") from error


def _find_sequences(root: Path) -> tuple[dict[str, Path], list[Problem]]:
    """Sequences directly in the root, in class folders, and in class folders unpacked one level too deep."""
    found: dict[str, Path] = {}
    problems: list[Problem] = []
    pending = [(child, 0) for child in _subfolders(root)]
    for folder, depth in pending:
        is_sequence = class_of(folder.name) != folder.name
        if is_sequence and ((folder / "groundtruth.txt").exists() or (folder / "img").exists()):
            if folder.name in found:
                text = f"sequence {folder.name} exists twice: {found[folder.name]} and {folder}"
                problems.append(Problem(text, "data.sequence_twice"))
            else:
                found[folder.name] = folder
        elif depth == 0:
            pending += [(child, 1) for child in _subfolders(folder)]
        elif depth == 1 and folder.name == folder.parent.name:
            pending += [(child, 2) for child in _subfolders(folder)]
    return dict(sorted(found.items(), key=lambda item: sequence_order(item[0]))), problems


def _read_lists(
    root: Path, folders: dict[str, Path], paths: dict[str, Path], problems: list[Problem], *, custom: bool
) -> dict[str, tuple[str, ...]]:
    """Names by split; problems of the lists are appended to `problems`."""
    official = official_split()
    names = dict(official)
    for split, path in paths.items():
        names[split] = tuple(attempt(problems, read_names, path) or ())
    if len(paths) == 1 and not custom:
        # A single list: harmless where it agrees with the official split, else it would mix two splits.
        (split, path), on_disk = next(iter(paths.items())), set(folders)
        if set(names[split]) & on_disk != set(official[split]) & on_disk:
            other = next(name for key, name in LIST_FILES.items() if key != split)
            text = f"{path} differs from the official split and {root / other} is missing; give both lists"
            problems.append(Problem(text, "data.one_list"))
    both = set(names["train"]) & set(names["test"])
    problems += [
        Problem(f"sequence {name} is in the training list and in the test list", "data.leak")
        for name in sorted(both, key=sequence_order)
    ]
    return names


def check_classes(wanted: tuple[str, ...], layout: Layout) -> list[Problem]:
    """A problem for each wanted class that has no sequence on the disk, with the nearest name that has."""
    problems: list[Problem] = []
    names = (*layout.lists["train"], *layout.lists["test"], *official_split()["train"])
    known = sorted({class_of(name) for name in names})
    for name in wanted:
        if name in layout.classes:
            continue
        if name in known:
            text = (
                f"CLASSES: class {name!r} is not in {layout.root.absolute()}, which has {', '.join(layout.classes)}; "
                f"`seqtrack data download --classes {name}` fetches it"
            )
            problems.append(Problem(text, "data.class_missing"))
            continue
        # Classes on this disk first: "bus" is nearer to "buk" than "book", and of no use where only book exists.
        near = [
            match
            for names in (layout.classes, known)
            for match in difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        ]
        hint = f"; did you mean {near[0]!r}?" if near else ""
        text = f"CLASSES: unknown class {name!r}; {layout.root.absolute()} has {', '.join(layout.classes)}{hint}"
        problems.append(Problem(text, "data.unknown_class"))
    return problems


def _load_sequences(layout: Layout, names: list[str], problems: list[Problem]) -> list[Sequence]:
    def load(name: str) -> tuple[Sequence | None, list[Problem]]:
        found: list[Problem] = []
        return attempt(found, read_sequence, layout.folders[name], class_of(name)), found

    sequences: list[Sequence] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for sequence, found in pool.map(load, names):
            problems += found
            if sequence is not None:
                log_missing_frames(sequence)
                sequences.append(sequence)
    return sequences


def open_lasot(
    data_dir: Path, *, classes: tuple[str, ...], split: str, lists: dict[str, Path] | None = None
) -> list[Sequence]:
    """Sequences of one split, in the order of class and number.

    Args:
        data_dir: see `find_layout`.
        classes: empty for all that exist there.
        split: "train" or "test".
        lists: see `find_layout`.

    Raises:
        UserError: every problem with the folder, the lists, the classes and the annotations.
    """
    layout = find_layout(data_dir, lists=lists)
    problems = layout.problems + check_classes(classes, layout)
    chosen = [name for name in (classes or layout.classes) if name in layout.classes]
    # Of a user's own list every name counts; of the official split only those of classes that exist here.
    listed = not classes and split in layout.own_lists
    names = sorted(layout.lists[split], key=sequence_order) if listed else layout.names(split, chosen)
    here = [name for name in names if name in layout.folders]
    if len(here) < len(names):
        gone = [name for name in names if name not in layout.folders]
        _log.warning(
            "%d of %d %s sequences are not in %s: %s", len(gone), len(names), split, layout.root, ", ".join(gone)
        )
    sequences = _load_sequences(layout, here, problems)
    if not problems and not sequences:
        text = f"no {split} sequence of {', '.join(chosen)} in {layout.root.absolute()}"
        problems = [Problem(text, "data.no_sequence")]
    if problems:
        raise UserError(problems)
    return sequences

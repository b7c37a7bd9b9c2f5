"""LaSOT's folder layout: finds sequences, selects classes, applies the split, and reports every problem at once.

Knows the official split and the layouts in which the data set is found on disks. Knows nothing of sampling or images,
and writes nothing.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from seqtrack.data import files
from seqtrack.data.annotations import attempt, class_of, read_names, sequence_order
from seqtrack.data.decode import is_hidden
from seqtrack.data.sequence import Sequence, read_sequence
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import did_you_mean

_log = logging.getLogger(__name__)

SPLITS = ("train", "test")
LIST_FILES = {"train": "training_set.txt", "test": "testing_set.txt"}
_ROOT_NAMES = ("lasot", "LaSOT", "LaSOTBenchmark", "lasot_lmdb")
_CLASS_STREAM = 0xC1A55  # drawing classes must not share random numbers with drawing samples


@dataclass(frozen=True)
class Layout:
    """Where a data set's sequences are.

    Attributes:
        folders: sequence name -> its folder, in the order of class and number.
        lists: "train" and "test" -> names in the split, on the disk or not, by class and number: those of the folder's
            own list, or of the official split those of classes that are on the disk.
    """

    root: Path
    folders: dict[str, Path]
    lists: dict[str, list[str]]
    problems: list[Problem]

    @property
    def classes(self) -> list[str]:
        """Classes that have at least one sequence on the disk."""
        return sorted({class_of(name) for name in self.folders})

    def check_classes(self, wanted: tuple[str, ...]) -> list[Problem]:
        """A problem for each wanted class that has no sequence on the disk."""
        problems, here = [], f"{self.root.absolute()}, which has {', '.join(self.classes)}"
        for name in (one for one in wanted if one not in self.classes):
            fetch = f"; `seqtrack data download --classes {name}` fetches it"
            hint = fetch if f"{name}-1" in sum(official_split().values(), ()) else did_you_mean(name, self.classes)
            problems.append(Problem(f"CLASSES: {name!r} is not in {here}{hint}", "data.unknown_class"))
        return problems


def official_split() -> dict[str, tuple[str, ...]]:
    """The published split: 1,120 training and 280 test sequences of 70 classes."""
    folder = resources.files("seqtrack.data") / "splits"
    return {split: tuple((folder / f"lasot_{name}").read_text("utf-8").split()) for split, name in LIST_FILES.items()}


def unpublished_classes(wanted: Iterable[str]) -> list[Problem]:
    """A problem for each wanted class that LaSOT does not have."""
    known = {class_of(name) for names in official_split().values() for name in names}
    return [
        Problem(f"CLASSES: LaSOT has no class {name!r}{did_you_mean(name, known)}", "data.unknown_class")
        for name in wanted
        if name not in known
    ]


def draw_classes(chosen: tuple[str, ...], *, count: int, seed: int) -> tuple[str, ...]:
    """The chosen classes and `count` further ones, drawn at random from the rest of LaSOT's 70 classes.

    All official classes are candidates, whatever is on this disk, so that every machine draws the same ones.

    Raises:
        UserError: fewer than `count` classes are left.
    """
    others = sorted({class_of(name) for name in official_split()["train"]} - set(chosen))
    if count > len(others):
        text = f"DATA.RANDOM_CLASSES is {count}, but only {len(others)} classes are left to draw from"
        raise UserError(text, "data.random_classes")
    generator = np.random.default_rng([_CLASS_STREAM, seed])
    return (*chosen, *(others[i] for i in sorted(generator.choice(len(others), size=count, replace=False))))


def find_layout(data_dir: Path) -> Layout:
    """Find the sequences below a data folder, which holds classes or sequences itself or in a folder named lasot.

    Raises:
        UserError: the folder is missing or holds no sequence.
    """
    if not data_dir.is_dir():
        text = f"DATA_DIR: {data_dir.absolute()} is not a folder; set it to the folder that holds LaSOT"
        raise UserError(text, "data.no_folder")
    problems: list[Problem] = []
    for root in (*(data_dir / name for name in _ROOT_NAMES), data_dir):
        if folders := _find_sequences(root, problems):
            break
    else:
        expected = "expected <class>/<class>-<n>/groundtruth.txt and img/00000001.jpg"
        advice = "`seqtrack data download --classes book,coin` fetches classes of LaSOT"
        raise UserError(f"no sequence in {data_dir.absolute()}: {expected}; {advice}", "data.no_sequence")
    classes, lists = {class_of(name) for name in folders}, {}
    for split, official in official_split().items():
        names = [name for name in official if class_of(name) in classes]
        if (own := root / LIST_FILES[split]).is_file():
            names = attempt(problems, read_names, own) or []
        lists[split] = sorted(names, key=sequence_order)
    leaks = sorted({*lists["train"]} & {*lists["test"]}, key=sequence_order)
    problems += [Problem(f"sequence {one} is in the training list and in the test list", "data.leak") for one in leaks]
    return Layout(root, folders, lists, problems)


def _find_sequences(root: Path, problems: list[Problem]) -> dict[str, Path]:
    """Sequences directly in the root, in class folders, and in class folders unpacked one level too deep."""
    found: dict[str, Path] = {}
    pending = [root] if root.is_dir() else []
    for folder in pending:
        if class_of(folder.name) != folder.name and (
            files.exists(folder / "groundtruth.txt") or files.exists(folder / "img")
        ):
            if folder.name in found:
                text = f"sequence {folder.name} exists twice: {found[folder.name]} and {folder}"
                problems.append(Problem(text, "data.sequence_twice"))
            found[folder.name] = folder
        elif folder in (root, root / folder.name, root / folder.name / folder.name):
            try:
                entries = files.list_folder(folder).items()
                pending += sorted(folder / name for name, size in entries if size is None and not is_hidden(name))
            except OSError as error:
                raise UserError(f"{folder}: cannot be read ({error.strerror})", "data.folder") from error
    return dict(sorted(found.items(), key=lambda item: sequence_order(item[0])))


def open_lasot(data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
    """Sequences of one split, in the order of class and number.

    Args:
        data_dir: see `find_layout`.
        classes: empty for all that exist there.
        split: "train" or "test".

    Raises:
        UserError: every problem with the folder, the lists, the classes and the annotations.
    """
    layout = find_layout(data_dir)
    problems = layout.problems + layout.check_classes(classes)
    names = [name for name in layout.lists[split] if not classes or class_of(name) in classes]
    here = [name for name in names if name in layout.folders]
    if len(here) < len(names):
        gone = ", ".join(name for name in names if name not in layout.folders)
        missing = len(names) - len(here)
        _log.warning("%d of %d %s sequences are not in %s: %s", missing, len(names), split, layout.root, gone)

    read = [attempt(problems, read_sequence, layout.folders[name], class_of(name)) for name in here]
    if not problems and not here:
        wanted = ", ".join(classes or layout.classes)
        problems = [Problem(f"no {split} sequence of {wanted} in {layout.root.absolute()}", "data.no_sequence")]
    if problems:
        raise UserError(problems)
    return [sequence for sequence in read if sequence is not None]

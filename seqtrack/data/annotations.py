"""The only reader and writer of annotation files, result files and sequence lists, for all data sets and evaluation.

Text files are UTF-8 with numbers as `parsing` defines them, separated by commas, semicolons or blanks, at most one
separator at the end of a line, and empty lines at the end of the file only. Everything else is refused with file, line,
what was found and what was expected. Knows no data set, frame or tracker.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.data import files
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import NUMBER, ParseError, decode_text, did_you_mean, short_repr

Boxes = NDArray[np.float64]
Flags = NDArray[np.bool_]
# LaSOT's files that tell where the target is absent: name -> largest value in it, and the value that means absent.
FLAG_FILES = {"full_occlusion.txt": (1, 1), "out_of_view.txt": (1, 1)}
T = TypeVar("T")

_BETWEEN = r"(?:[ \t\n]*[,;][ \t\n]*|[ \t\n]+)"
_FINITE_ROW, _ANY_ROW = (
    re.compile(rf"[ \t]*{number}(?:{_BETWEEN}{number}){{3}}{_BETWEEN}?")
    for number in (NUMBER, rf"(?:{NUMBER}|[+-]?(?i:nan|inf|infinity))")
)
_CORNERS_ROW = re.compile(
    "[0-9]+" + rf"[ \t]+({NUMBER})" * 4 + r"(?:[ \t]+[0-9]+){4}[ \t]+\"[^\"]*\"[ \t]*",
)
_SEQUENCE_NAME = re.compile(r"(.+)-([0-9]+)")


@dataclass(frozen=True, eq=False)
class Annotation:
    """The boxes of a sequence, such as "person-1" of class "person": `boxes_xywh` (N, 4) float64, pixels, as in the
    file; `absent` (N,) bool, the target is fully occluded or out of view."""

    name: str
    class_name: str
    boxes_xywh: Boxes
    absent: Flags

    @property
    def num_frames(self) -> int:
        return len(self.boxes_xywh)


def class_of(name: str) -> str:
    """ "racing-car-3" -> "racing-car"."""
    return sequence_order(name)[0]


def sequence_order(name: str) -> tuple[str, int]:
    """Sort key of sequence names: class, then number, so that "coin-2" comes before "coin-10"."""
    match = _SEQUENCE_NAME.fullmatch(name)
    return (match.group(1), int(match.group(2))) if match else (name, 0)


def attempt(problems: list[Problem], read: Callable[..., T], *arguments: object) -> T | None:
    """The result of `read`, or None with its problems appended, so that the next file can be read as well."""
    try:
        return read(*arguments)
    except UserError as error:
        problems += error.problems
        return None


def first_problems(problems: list[Problem], limit: int = 20) -> list[Problem]:
    """The first problems and the number of the others: in a file of another format every line is wrong."""
    others = [Problem(f"{len(problems) - limit} more such problems", one.code) for one in problems[limit : limit + 1]]
    return problems[:limit] + others


def read_text_file(path: Path, may_be_empty: bool = True) -> str:
    """The text of a small file with `\\n` at line ends, but without blanks and empty lines at its end.

    Raises:
        UserError: missing, unreadable, too large, not UTF-8, or empty.
    """
    try:
        text = decode_text(files.read_bytes(path)).rstrip("\n\t ")
    except (OSError, ParseError) as error:
        code = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})", f"file.{code}") from error
    if not text and not may_be_empty:
        raise UserError(f"{path}: found nothing, expected numbers", "file.empty")
    return text


def read_boxes(path: Path, *, allow_not_finite: bool = False) -> Boxes:
    """Rows x,y,w,h of a text file, (N, 4) float64.

    Args:
        allow_not_finite: also read `nan` and `inf`, which broken trackers write; LaSOT's toolkit has a rule for them.

    Raises:
        UserError: unreadable, empty, or lines that are not four numbers.
    """
    text, row = read_text_file(path, may_be_empty=False), _ANY_ROW if allow_not_finite else _FINITE_ROW
    lines = text.split("\n")
    wrong = [number for number, line in enumerate(lines) if not row.fullmatch(line)]
    boxes: Boxes = np.zeros((0, 4))
    if not wrong:
        boxes = np.fromstring(re.sub("[,;]", " ", text), sep=" ").reshape(-1, 4) + 0.0  # turns -0 into 0
        wrong = [] if allow_not_finite else np.flatnonzero(~np.isfinite(boxes).all(axis=1)).tolist()
    if wrong:
        found = ((f"{path}, line {number + 1}: found", short_repr(lines[number])) for number in wrong)
        texts = (f"{start} {line}, expected four finite numbers x,y,w,h" for start, line in found)
        raise UserError(first_problems([Problem(text, "file.row") for text in texts]))
    return boxes


def read_corners(path: Path) -> Boxes:
    """Boxes (N, 4) x,y,w,h from NfS's rows: id, xmin, ymin, xmax, ymax, frame, lost, occluded, generated, "label".

    Raises:
        UserError: unreadable, empty, or another row.
    """
    rows = []
    for number, line in enumerate(read_text_file(path, may_be_empty=False).split("\n"), start=1):
        match = _CORNERS_ROW.fullmatch(line)
        if match is None:
            expected = 'nine numbers and a "label", xmin, ymin, xmax, ymax after the first'
            raise UserError(f"{path}, line {number}: found {short_repr(line)}, expected {expected}", "file.row")
        left, top, right, bottom = map(float, match.groups())
        rows.append((left, top, right - left, bottom - top))
    return np.array(rows, dtype=np.float64)


def write_boxes(path: Path, boxes_xywh: Boxes) -> None:
    """Write (N, 4) boxes, one `x,y,w,h` per line; `read_boxes` returns them to the last bit."""
    lines = [",".join(repr(float(value)) for value in row) for row in boxes_xywh]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_labels(path: Path, largest: int) -> NDArray[np.int64]:
    """One integer from 0 to `largest` per frame, (N,) int64, all on one line or one per line; `1.0` is 1.

    Raises:
        UserError: unreadable, empty, or an entry that is not such an integer.
    """
    allowed = {f"{value}{end}": value for value in range(largest + 1) for end in ("", ".0")}
    entries = re.split(_BETWEEN, read_text_file(path, may_be_empty=False).lstrip("\t "))
    entries = entries[:-1] if len(entries) > 1 and not entries[-1] else entries
    for number, entry in enumerate(entries, start=1):
        if entry not in allowed:
            where, expected = f"{path}, entry {number} of {len(entries)}", f"a whole number from 0 to {largest}"
            raise UserError(f"{where}: found {short_repr(entry)}, expected {expected}", "file.row")
    return np.array([allowed[entry] for entry in entries], dtype=np.int64)


def read_names(path: Path) -> list[str]:
    """Names of sequences, separated by line ends, blanks or commas, in file order; the list may be empty.

    Raises:
        UserError: unreadable, or a name that cannot be a folder name, or that is listed twice.
    """
    names = read_text_file(path).replace(",", " ").split()
    problems = [
        Problem(f"{path}, entry {number}: found {name[:60]!a}, expected the name of a sequence", "file.name")
        for number, name in enumerate(names, start=1)
        if not name.isprintable() or name.startswith(".") or set(name) & set("/\\")
    ]
    twice = [name for name, count in Counter(names).items() if count > 1]
    problems += [Problem(f"{path}: {short_repr(name)} is listed twice", "file.duplicate") for name in twice]
    if problems:
        raise UserError(first_problems(problems))
    return names


def read_boxes_and_absence(boxes_file: Path, flag_files: Mapping[Path, tuple[int, int]]) -> tuple[Boxes, Flags]:
    """Boxes (N, 4), and absent (N,), true where any of the files marks it; see `FLAG_FILES`.

    Raises:
        UserError: every problem in every file.
    """
    problems: list[Problem] = []
    boxes = attempt(problems, read_boxes, boxes_file)
    absent: Flags = np.zeros(0 if boxes is None else len(boxes), dtype=np.bool_)
    for path, (largest, means_absent) in flag_files.items():
        labels = attempt(problems, read_labels, path, largest)
        if labels is not None and boxes is not None and len(labels) == len(boxes):
            absent |= labels == means_absent
        elif labels is not None and boxes is not None:
            expected = f"expected one for each of {len(boxes)} rows of {boxes_file.name}"
            problems.append(Problem(f"{path}: found {len(labels)} entries, {expected}", "file.count"))
    if boxes is None or problems:
        raise UserError(problems)
    return boxes, absent


def read_annotations(place: Path) -> list[Annotation]:
    """Annotations that are stored without their frames.

    Args:
        place: an archive (see `read_archive`); a folder `annos` with `<sequence>.txt`, and `absent/<sequence>.txt` if
            there is that folder, or its parent; or LaSOT's layout, with or without class folders.

    Raises:
        UserError: no annotations found, or every problem in every file.
    """
    if place.is_file():
        return [*read_archive(place, of_annotations=True).values()]
    annos = place / "annos" if (place / "annos").is_dir() else place
    found = [*place.glob("*/groundtruth.txt"), *place.glob("*/*/groundtruth.txt")]
    if found and annos == place:  # texts next to the folders are lists of the split
        files = [
            (path.parent.name, path, {path.with_name(name): how for name, how in FLAG_FILES.items()}) for path in found
        ]
    else:
        absent = (annos / "absent").is_dir()
        texts = annos.glob("[!.]*.txt")
        files = [(path.stem, path, {annos / "absent" / path.name: (1, 1)} if absent else {}) for path in texts]
    if not files:
        expected = "an .npz file, a folder of <sequence>.txt, or folders with groundtruth.txt"
        raise UserError(f"{place}: no annotations found; expected {expected}", "annotations.none")
    counts = Counter(name for name, _, _ in files)
    problems = [
        Problem(f"{place}: {short_repr(name)} is listed twice", "file.duplicate") for name in counts if counts[name] > 1
    ]
    annotations = []
    for name, boxes_file, flag_files in sorted(files, key=lambda one: (sequence_order(one[0]), one[1])):
        if parts := attempt(problems, read_boxes_and_absence, boxes_file, flag_files):
            annotations.append(Annotation(name, class_of(name), *parts))
    if problems:
        raise UserError(problems)
    return annotations


def read_archive(path: Path, *, of_annotations: bool = False) -> dict[str, Annotation]:
    """Boxes by sequence from an `.npz` with `names` (S,), `offsets` (S + 1,) and `boxes` (N, 4).

    Args:
        of_annotations: read `absent` as well, a bit per frame, if it exists; the lowest number of int16 is NaN, and
            infinite boxes and sequences without frames are refused.

    Raises:
        UserError: unreadable, or of another format.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            names, offsets, boxes = stored["names"], stored["offsets"], stored["boxes"]
            flagged = of_annotations and "absent" in stored
            bits = np.unpackbits(stored["absent"]) if flagged else np.zeros(-(-len(boxes) // 8) * 8)
        kinds = names.dtype.kind + offsets.dtype.kind + boxes.dtype.kind
        if (
            not re.fullmatch("U[iu][iuf]", kinds)
            or offsets.shape != (len(names) + 1,)
            or boxes.shape != (offsets[-1], 4)
        ):
            raise ValueError(f"{kinds} {names.shape}, {offsets.shape}, {boxes.shape}")
        ends = offsets.astype(np.int64)
        if ends[0] != 0 or (np.diff(ends) < of_annotations).any() or len({*names.tolist()}) < len(names):
            raise ValueError("offsets that do not rise from 0, a sequence without frames, or a name twice")
        if bits.shape != (-(-len(boxes) // 8) * 8,) or (of_annotations and np.isinf(boxes).any()):
            raise ValueError("absent of another number of frames, or infinite boxes")
        rows = np.where(boxes == -32768, np.nan, boxes) if boxes.dtype == np.int16 else boxes.astype(np.float64)
        parts = (np.split(array, ends[1:-1]) for array in (rows, bits[: len(boxes)].astype(bool)))
        return {name: Annotation(name, class_of(name), *one) for name, *one in zip(names.tolist(), *parts, strict=True)}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})", "file.unreadable") from error
    except Exception as error:  # zipfile and NumPy document none for damaged bytes
        expected = "names (S,), offsets (S + 1,) and boxes (N, 4), for annotations also absent"
        text = f"{path}: found {short_repr(str(error), 200)}, expected an .npz archive with {expected}"
        raise UserError(text, "file.archive") from error


def unknown_classes(data_set: str, wanted: Iterable[str], known: Iterable[str]) -> list[Problem]:
    """A problem for each wanted class that the data set on this disk does not have."""
    names = sorted({*known})
    here = f"which has {', '.join(names)}"
    return [
        Problem(f"CLASSES: {name!r} is not in {data_set} here, {here}{did_you_mean(name, names)}", "data.unknown_class")
        for name in sorted({*wanted} - {*names})
    ]

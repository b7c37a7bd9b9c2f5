"""The only reader and writer of annotation files, result files and sequence lists, for all data sets and evaluation.

Text files are UTF-8 with numbers as `parsing` defines them, separated by commas, semicolons or blanks, at most one
separator at the end of a line, and empty lines at the end of the file only. Everything else is refused with file, line,
what was found and what was expected. Knows no data set, frame or tracker.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, parse_float, read_text, short_repr

Boxes = NDArray[np.float64]
Flags = NDArray[np.bool_]
FLAG_FILES = ("full_occlusion.txt", "out_of_view.txt")  # LaSOT's
T = TypeVar("T")

_MAX_SHOWN = 20  # in a file of another format every line is wrong
_SEPARATOR = re.compile(r"[ \t]*[,;][ \t]*|[ \t]+")
# Rows in the official formats are parsed by NumPy, twenty times as fast as line by line; integers three times faster.
_PLAIN_BOXES = [
    (re.compile(rf"(?:(?:{number},){{3}}{number}\n)+"), kind)
    for number, kind in ((r"-?[0-9]{1,9}", np.int64), (r"-?[0-9]{1,9}(?:\.[0-9]{1,17})?", np.float64))
]
_SEQUENCE_NAME = re.compile(r"(.+)-([0-9]+)")


@dataclass(frozen=True, eq=False)
class Annotation:
    """The annotated boxes of one sequence.

    Attributes:
        name: unique in its data set, such as "person-1".
        class_name: "person".
        boxes_xywh: (N, 4) float64, pixels, exactly as in the file.
        absent: (N,) bool, the target is fully occluded or out of view.
    """

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


def read_text_file(path: Path) -> str:
    """The whole text of a small file, with `\\n` at line ends.

    Raises:
        UserError: missing, unreadable, too large, or not UTF-8.
    """
    try:
        return read_text(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "file.missing") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "file.unreadable") from error
    except ParseError as error:
        raise UserError(f"{path}: {error}", "file.not_text") from error


def read_boxes(path: Path, *, allow_not_finite: bool = False) -> Boxes:
    """Rows x,y,w,h of a text file, (N, 4) float64.

    Args:
        allow_not_finite: also read `nan` and `inf`, which broken trackers write; LaSOT's toolkit has a rule for them.

    Raises:
        UserError: unreadable, empty, or lines that are not four numbers.
    """
    text = _read_content(path)
    plain = text if "," in text else text.replace("\t", ",")
    for form, kind in _PLAIN_BOXES:
        if form.fullmatch(plain):
            values = np.fromstring(plain.replace("\n", ",")[:-1], dtype=kind, sep=",")
            return values.reshape(-1, 4).astype(np.float64) + 0.0  # turns -0 into 0
    parse = _parse_any_float if allow_not_finite else parse_float
    rows: list[list[float]] = []
    problems: list[Problem] = []
    for number, line in enumerate(text[:-1].split("\n"), start=1):
        try:
            rows.append([parse(entry) for entry in _split(line)])
            if len(rows[-1]) != 4:
                raise ParseError(f"found {short_repr(line)}, expected a row x,y,w,h")
        except ValueError as error:
            problems.append(Problem(f"{path}, line {number}: {error}", "file.row"))
    if len(problems) > _MAX_SHOWN:
        problems[_MAX_SHOWN:] = [Problem(f"{path}: {len(problems) - _MAX_SHOWN} more such lines", "file.row")]
    if problems:
        raise UserError(problems)
    return np.array(rows, dtype=np.float64) + 0.0


def write_boxes(path: Path, boxes_xywh: Boxes) -> None:
    """Write (N, 4) boxes, one `x,y,w,h` per line; `read_boxes` returns them to the last bit."""
    lines = [",".join(repr(float(value)) for value in row) for row in boxes_xywh]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_labels(path: Path, *, largest: int) -> NDArray[np.int64]:
    """One integer from 0 to `largest` per frame, (N,) int64, all on one line or one per line; `1.0` is 1.

    Raises:
        UserError: unreadable, empty, or an entry that is not such an integer.
    """
    text = _read_content(path)
    codes = np.frombuffer(text.encode(), dtype=np.uint8)
    digits, ends = codes[::2].astype(np.int64) - ord("0"), codes[1::2]
    is_official = len(digits) == len(ends) and np.isin(ends, [ord(","), ord("\n")]).all()
    if is_official and 0 <= digits.min() <= digits.max() <= min(largest, 9):
        return digits
    allowed = {f"{value}{end}": value for value in range(largest + 1) for end in ("", ".0")}
    entries = _split(text.replace("\n", " "))
    for number, entry in enumerate(entries, start=1):
        if entry not in allowed:
            where = f"{path}, entry {number} of {len(entries)}"
            expected = f"a whole number from 0 to {largest}"
            raise UserError(f"{where}: found {short_repr(entry)}, expected {expected}", "file.row")
    return np.array([allowed[entry] for entry in entries], dtype=np.int64)


def read_flags(path: Path) -> Flags:
    """One 0 or 1 per frame, (N,) bool; errors as for `read_labels`."""
    return read_labels(path, largest=1) > 0


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
        raise UserError(problems[:_MAX_SHOWN])
    return names


def _read_content(path: Path) -> str:
    """The text without empty lines at its end, but with a last line end."""
    text = read_text_file(path).rstrip("\n\t ")
    if not text:
        raise UserError(f"{path}: found nothing, expected numbers", "file.empty")
    return text + "\n"


def _split(line: str) -> list[str]:
    entries = _SEPARATOR.split(line.strip(" \t"))
    return entries[:-1] if len(entries) > 1 and not entries[-1] else entries


def _parse_any_float(text: str) -> float:
    return float(text) if text.lower().lstrip("+-") in ("nan", "inf", "infinity") else parse_float(text)


def read_boxes_and_absence(
    boxes_file: Path, flag_files: Mapping[Path, Callable[[Path], Flags]], problems: list[Problem]
) -> tuple[Boxes | None, Flags]:
    """Boxes (N, 4), None with all problems appended to `problems`, and absent (N,), true where any of the files is.

    Args:
        flag_files: each with the function that reads it as (N,) bool.
    """
    boxes = attempt(problems, read_boxes, boxes_file)
    absent: Flags = np.zeros(0 if boxes is None else len(boxes), dtype=np.bool_)
    for path, read in flag_files.items():
        flags = attempt(problems, read, path)
        if flags is None or boxes is None:
            continue
        if len(flags) == len(boxes):
            absent = absent | flags
        else:
            text = (
                f"{path}: found {len(flags)} entries, expected one for each of {len(boxes)} rows of {boxes_file.name}"
            )
            problems.append(Problem(text, "file.count"))
    return boxes, absent


def read_annotations(place: Path) -> list[Annotation]:
    """Annotations that are stored without their frames.

    Args:
        place: an `.npz` with names, offsets, boxes, absent (bits) and n; a folder `annos` with `<sequence>.txt` and
            `absent/<sequence>.txt`, or its parent; or LaSOT's layout, with or without class folders.

    Raises:
        UserError: no annotations found, or every problem in every file.
    """
    if place.is_file():
        with _open_archive(place) as stored:
            by_name = _boxes_by_name(stored)
            ends = np.cumsum([len(one) for one in by_name.values()])
            if stored["n"].tolist() != ends[-1] or stored["absent"].shape != (-(-ends[-1] // 8),):
                raise ValueError("n and absent that are not of as many frames as boxes")
            if not all(np.isfinite(one).all() for one in by_name.values()):
                raise ValueError("boxes that are not finite")
            flags = np.split(np.unpackbits(stored["absent"])[: ends[-1]].astype(bool), ends[:-1])
        return [Annotation(name, class_of(name), by_name[name], one) for name, one in zip(by_name, flags, strict=True)]
    annos = place / "annos" if (place / "annos").is_dir() else place
    if (annos / "absent").is_dir():
        files = [(path.stem, path, [annos / "absent" / path.name]) for path in annos.glob("*.txt")]
    else:
        found = [*place.glob("*/groundtruth.txt"), *place.glob("*/*/groundtruth.txt")]
        files = [(path.parent.name, path, [path.with_name(name) for name in FLAG_FILES]) for path in found]
    if not files:
        expected = "an .npz file, a folder annos with absent/ in it, or folders with groundtruth.txt"
        raise UserError(f"{place}: no annotations found; expected {expected}", "annotations.none")
    problems: list[Problem] = []
    annotations = []
    for name, boxes_file, flag_files in sorted(files, key=lambda one: (sequence_order(one[0]), one[1])):
        boxes, absent = read_boxes_and_absence(boxes_file, dict.fromkeys(flag_files, read_flags), problems)
        if boxes is not None:
            annotations.append(Annotation(name, class_of(name), boxes, absent))
    if problems:
        raise UserError(problems)
    return annotations


def read_box_archive(path: Path) -> dict[str, Boxes]:
    """Boxes by sequence name from an `.npz` with `names`, `offsets` (one more than names) and `boxes` (N, 4).

    Raises:
        UserError: unreadable, or of another format.
    """
    with _open_archive(path) as stored:
        return _boxes_by_name(stored)


def _boxes_by_name(stored: Mapping[str, NDArray[Any]]) -> dict[str, Boxes]:
    names, offsets, boxes = stored["names"], stored["offsets"], stored["boxes"]
    kinds = names.dtype.kind + offsets.dtype.kind + boxes.dtype.kind
    if not re.fullmatch("U[iu][iuf]", kinds) or offsets.shape != (len(names) + 1,) or boxes.shape != (offsets[-1], 4):
        raise ValueError(f"{names.dtype} {names.shape}, {offsets.dtype} {offsets.shape}, {boxes.dtype} {boxes.shape}")
    ends = offsets.astype(np.int64)
    if ends[0] != 0 or (np.diff(ends) < 0).any() or len({*names.tolist()}) < len(names):
        raise ValueError("offsets that do not rise from 0, or a name twice")
    return dict(zip(names.tolist(), np.split(boxes.astype(np.float64), ends[1:-1]), strict=True))


@contextlib.contextmanager
def _open_archive(path: Path) -> Iterator[Mapping[str, NDArray[Any]]]:
    """The arrays of an `.npz`, without pickled objects; what is wrong with them becomes a `UserError`."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            yield stored
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})", "file.unreadable") from error
    except Exception as error:  # zipfile and NumPy document none for damaged bytes
        expected = "names (S,), offsets (S + 1,) and boxes (N, 4), for annotations also absent and n"
        text = f"{path}: found {short_repr(str(error), 200)}, expected an .npz archive with {expected}"
        raise UserError(text, "file.archive") from error

"""The only reader and writer of annotation files, result files and sequence lists, for all data sets and evaluation.

One grammar for all text files: UTF-8 with or without a byte order mark, any line ending, numbers as `parsing` defines
them, separated by commas, semicolons or blanks but not a mixture, at most one separator at the end of a line, and empty
lines only at the end of the file. Everything else is refused with file, line, entry and the text that was found.
Knows no data set, frame or tracker.
"""

import re
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, decode_text, parse_float, parse_int, short_repr

Boxes = NDArray[np.float64]
Flags = NDArray[np.bool_]
T = TypeVar("T")

# In a file of another format every line is wrong; the first problems are enough.
_MAX_SHOWN, _MAX_PROBLEMS = 20, 10_000
_MAX_TEXT_BYTES = 16 * 1024 * 1024
_MAX_ARCHIVE_BYTES = 256 * 1024 * 1024
# What zipfile and NumPy's header parser raise for damaged bytes; neither documents it.
_ARCHIVE_ERRORS = (
    ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError, RuntimeError, MemoryError,
    SyntaxError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip

# Files in the official format are parsed by NumPy, twenty times as fast as line by line; integers three times faster.
_INTEGER, _DECIMAL = rb"-?[0-9]{1,9}", rb"-?[0-9]{1,9}(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"
_PLAIN_BOXES = [
    (re.compile(rb"(?:%(n)s,%(n)s,%(n)s,%(n)s\n)*%(n)s,%(n)s,%(n)s,%(n)s\n?" % {b"n": number}), kind)
    for number, kind in ((_INTEGER, np.int64), (_DECIMAL, np.float64))
]
_PLAIN_LABELS = re.compile(rb"[0-9](?:[,\n][0-9])*[,\n]?")
_LABEL = re.compile(r"([0-9])(?:\.0*)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
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


def attempt(problems: list[Problem], read: Callable[..., T], *arguments: Any) -> T | None:
    """The result of `read`, or None with its problems appended, so that the next file can be read as well."""
    try:
        return read(*arguments)
    except UserError as error:
        problems += error.problems
        return None


def read_boxes(path: Path, *, allow_not_finite: bool = False) -> Boxes:
    """Rows x,y,w,h of a text file, (N, 4) float64.

    Args:
        allow_not_finite: also read `nan` and `inf`, which broken trackers write; LaSOT's toolkit has a rule for them.

    Raises:
        UserError: unreadable, empty, or lines that are not four numbers, each with its position.
    """
    data = _read_bytes(path)
    plain = _without_line_variants(data)
    if b"," not in plain:
        plain = plain.replace(b"\t", b",")
    for form, kind in _PLAIN_BOXES:
        if form.fullmatch(plain):
            flat = np.fromstring(plain.replace(b"\n", b",").rstrip(b",").decode("ascii"), dtype=kind, sep=",")
            return flat.reshape(-1, 4).astype(np.float64) + 0.0  # turns -0 into 0
    number = _float_or_not_finite if allow_not_finite else parse_float
    rows: list[list[float]] = []
    problems: list[Problem] = []
    for line, entries in _lines(path, data, problems):
        values = _parse(f"{path}, line {line}", entries, number, problems)
        if values is not None and len(values) != 4:
            found = f"found {len(values)} in {short_repr(','.join(entries))}"
            problems.append(Problem(f"{path}, line {line}: expected four numbers x,y,w,h, {found}", "file.columns"))
        elif values is not None:
            rows.append(values)
    _raise_problems(path, problems)
    if not rows:
        raise UserError(f"{path}: is empty; expected one row x,y,w,h per frame", "file.empty")
    return np.array(rows, dtype=np.float64) + 0.0


def write_boxes(path: Path, boxes_xywh: Boxes) -> None:
    """Write (N, 4) boxes, one `x,y,w,h` per line; `read_boxes` returns them to the last bit."""
    lines = [",".join(repr(float(value)) for value in row) for row in boxes_xywh]
    write_atomic(path, ("\n".join(lines) + "\n").encode())


def read_labels(path: Path, *, largest: int) -> NDArray[np.int64]:
    """One integer per frame, (N,) int64, all on one line or one per line; `1.0` is 1.

    Raises:
        UserError: unreadable, empty, or an entry that is not an integer from 0 to `largest`.
    """
    data = _read_bytes(path)
    plain = _without_line_variants(data)
    if _PLAIN_LABELS.fullmatch(plain):
        labels = np.frombuffer(plain, dtype=np.uint8)[::2].astype(np.int64) - ord("0")
        if labels.max() <= largest:
            return labels

    def label(text: str) -> int:
        match = _LABEL.fullmatch(text)
        if match is None or int(match.group(1)) > largest:
            raise ParseError(f"found {short_repr(text)}, expected {'0 or 1' if largest == 1 else f'0 to {largest}'}")
        return int(match.group(1))

    return np.array(_read_entries(path, data, label, "one number per frame"), dtype=np.int64)


def read_flags(path: Path) -> Flags:
    """One 0 or 1 per frame, (N,) bool; errors as for `read_labels`."""
    return read_labels(path, largest=1) > 0


def read_boxes_and_absence(
    boxes_file: Path,
    flag_files: Mapping[Path, Callable[[Path], Flags]],
    problems: list[Problem],
    read: Callable[[Path], Boxes] = read_boxes,
) -> tuple[Boxes | None, Flags]:
    """Boxes (N, 4) and absent (N,), true where any of the flag files is.

    Args:
        flag_files: each with the function that reads it as (N,) bool.
        problems: every problem is appended; without boxes the first value is None.
    """
    boxes = attempt(problems, read, boxes_file)
    absent: Flags = np.zeros(0 if boxes is None else len(boxes), dtype=np.bool_)
    for path, read_one in flag_files.items():
        flags = attempt(problems, read_one, path)
        if flags is None or boxes is None:
            continue
        if len(flags) == len(boxes):
            absent = absent | flags
        else:
            text = f"{path}: {len(flags)} entries, but {boxes_file.name} has {len(boxes)} rows"
            problems.append(Problem(text, "file.count"))
    return boxes, absent


def read_names(path: Path) -> list[str]:
    """Names of sequences, one per line or separated by blanks or commas, in file order; the list may be empty.

    Raises:
        UserError: unreadable, or a name that cannot be a folder name, or that is listed twice.
    """
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, text in enumerate(read_text_file(path).split("\n"), start=1):
        for name in filter(None, re.split(r"[ \t,;]+", text)):
            where = f"{path}, line {line}: {name[:60]!a}"
            if not name.isprintable() or "/" in name or "\\" in name or name.startswith(".") or len(name) > 200:
                problems.append(Problem(f"{where} is not a sequence name", "file.name"))
            elif name in seen:
                problems.append(Problem(f"{where} is listed twice, first in line {seen[name]}", "file.duplicate"))
            seen.setdefault(name, line)
    _raise_problems(path, problems)
    return list(seen)


def read_indices(path: Path, count: int) -> list[int]:
    """Distinct indices into a list of `count` names, from 0.

    Raises:
        UserError: unreadable, empty, or an entry that is not such an index or appears twice.
    """

    def index(text: str) -> int:
        value = parse_int(text)
        if not 0 <= value < count:
            raise ParseError(f"found {short_repr(text)}, expected an index from 0 to {count - 1}")
        return value

    indices = _read_entries(path, _read_bytes(path), index, f"indices from 0 to {count - 1}")
    if len(set(indices)) < len(indices):
        twice = Counter(indices).most_common(1)[0][0]
        raise UserError(f"{path}: index {twice} is listed twice", "file.duplicate")
    return indices


def read_annotations(place: Path) -> list[Annotation]:
    """Annotations that are stored without their frames.

    Args:
        place: an `.npz` with names, offsets, boxes, absent (bits) and n; a folder `annos` with `<sequence>.txt` and
            `absent/<sequence>.txt`, or its parent; or LaSOT's layout, with or without class folders.

    Raises:
        UserError: no annotations found, or every problem in every file.
    """
    if place.is_file():
        return _annotations_from_archive(place)
    files: list[tuple[str, Path, tuple[Path, ...]]]
    folder = next((one for one in (place, place / "annos") if (one / "absent").is_dir()), None)
    if folder is not None:
        files = [(path.stem, path, (folder / "absent" / path.name,)) for path in folder.glob("*.txt")]
    else:
        found = {path.parent for path in (*place.glob("*/groundtruth.txt"), *place.glob("*/*/groundtruth.txt"))}
        files = [
            (one.name, one / "groundtruth.txt", (one / "full_occlusion.txt", one / "out_of_view.txt")) for one in found
        ]
    if not files:
        raise UserError(
            f"{place}: no annotations found; expected an .npz file, a folder annos with absent/ in it, "
            "or folders with groundtruth.txt",
            "annotations.none",
        )
    problems: list[Problem] = []
    annotations = []
    for name, boxes_file, flag_files in sorted(files, key=lambda one: (sequence_order(one[0]), one[1])):
        boxes, absent = read_boxes_and_absence(boxes_file, dict.fromkeys(flag_files, read_flags), problems)
        if boxes is not None:
            annotations.append(Annotation(name, class_of(name), boxes, absent))
    if problems:
        raise UserError(problems)
    return annotations


def _annotations_from_archive(path: Path) -> list[Annotation]:
    boxes = read_box_archive(path)
    stored = _read_arrays(path, {"absent": "u", "n": "iu"})
    total = sum(len(one) for one in boxes.values())
    n, bits = stored["n"], stored["absent"]
    if n.shape != () or int(n) != total or bits.dtype != np.uint8 or bits.shape != (-(-total // 8),):
        raise UserError(f"{path}: n and absent must be of {total} frames, as boxes is", "file.archive")
    if not all(np.isfinite(one).all() for one in boxes.values()):
        raise UserError(f"{path}: an annotation must be four finite numbers", "file.archive")
    absent = np.unpackbits(bits)[:total].astype(bool)
    ends = np.cumsum([len(one) for one in boxes.values()])
    return [
        Annotation(name, class_of(name), one, absent[end - len(one) : end])
        for (name, one), end in zip(boxes.items(), ends, strict=True)
    ]


def read_box_archive(path: Path) -> dict[str, Boxes]:
    """Boxes by sequence name from an `.npz` with `names`, `offsets` (one more than names) and `boxes` (N, 4).

    Raises:
        UserError: unreadable, or of another format.
    """
    arrays = _read_arrays(path, {"names": "U", "offsets": "iu", "boxes": "iuf"})
    names, boxes = arrays["names"], arrays["boxes"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or names.ndim != 1 or arrays["offsets"].shape != (len(names) + 1,):
        shapes = f"{names.shape}, {arrays['offsets'].shape} and {boxes.shape}"
        text = f"{path}: expected names (S,), offsets (S + 1,) and boxes (N, 4), found {shapes}"
        raise UserError(text, "file.archive")
    offsets = [int(value) for value in arrays["offsets"]]
    if offsets[0] != 0 or offsets[-1] != len(boxes) or offsets != sorted(offsets):
        raise UserError(f"{path}: offsets must rise from 0 to the number of boxes ({len(boxes)})", "file.archive")
    found: dict[str, Boxes] = {}
    for name, begin, end in zip(map(str, names), offsets, offsets[1:], strict=False):
        if name in found:
            raise UserError(f"{path}: sequence {short_repr(name)} appears twice", "file.duplicate")
        found[name] = boxes[begin:end].astype(np.float64)
    return found


def _read_arrays(path: Path, kinds: dict[str, str]) -> dict[str, NDArray[Any]]:
    """Arrays of an `.npz` by name; `kinds` gives the NumPy kinds allowed for each. Pickled objects are refused."""
    wanted = ", ".join(kinds)
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: holds a single array; expected an .npz archive with {wanted}", "file.archive")
        with stored:
            missing = [key for key in kinds if key not in stored.files]
            if missing:
                raise UserError(f"{path}: holds no {', '.join(missing)}; expected {wanted}", "file.archive")
            size = sum(member.file_size for member in stored.zip.infolist())
            if size > _MAX_ARCHIVE_BYTES:
                raise UserError(f"{path}: {size} bytes unpacked are too many for boxes", "file.too_large")
            arrays = {key: stored[key] for key in kinds}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})", "file.unreadable") from error
    except _ARCHIVE_ERRORS as error:
        reason = short_repr(str(error), 200)
        raise UserError(f"{path}: cannot be read as an .npz archive ({reason})", "file.archive") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds[key]:
            found = array.dtype if isinstance(array, np.ndarray) else "no array"
            raise UserError(f"{path}: {key} has elements of type {found}", "file.archive")
    return arrays


def read_text_file(path: Path) -> str:
    """The whole text of a small file.

    Raises:
        UserError: missing, unreadable, too large, or not UTF-8.
    """
    return _decode(path, _read_bytes(path))


def _float_or_not_finite(text: str) -> float:
    return float(text) if _NOT_FINITE.fullmatch(text) else parse_float(text)


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _MAX_TEXT_BYTES:
            raise UserError(f"{path}: {size} bytes are too many for a file of boxes or names", "file.too_large")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "file.missing") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "file.unreadable") from error


def _without_line_variants(data: bytes) -> bytes:
    """The bytes without a byte order mark and without carriage returns before line feeds."""
    return data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")


def _decode(path: Path, data: bytes) -> str:
    try:
        return decode_text(data)
    except ParseError as error:
        raise UserError(f"{path}: {error}", "file.not_text") from error


def _lines(path: Path, data: bytes, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Line number and entries of each line, without empty lines at the end."""
    text = _decode(path, data).rstrip("\n\t ")
    for line, content in enumerate(text.split("\n") if text else (), start=1):
        if len(problems) >= _MAX_PROBLEMS:
            return
        stripped = content.strip(" \t")
        separators = [one for one in ",;" if one in stripped]
        if len(separators) > 1:
            found = f"found commas and semicolons in {short_repr(stripped)}"
            problems.append(Problem(f"{path}, line {line}: {found}, expected one of them", "file.separator"))
            continue
        if separators:
            entries = [entry.strip(" \t") for entry in stripped.split(separators[0])]
            yield line, entries[:-1] if len(entries) > 1 and not entries[-1] else entries
        else:
            yield line, re.split(r"[ \t]+", stripped)


def _parse(where: str, entries: list[str], parse: Callable[[str], T], problems: list[Problem]) -> list[T] | None:
    """The values of a line, or None with a problem for each entry that cannot be parsed."""
    values: list[T] = []
    before = len(problems)
    for number, entry in enumerate(entries, start=1):
        try:
            values.append(parse(entry))
        except ParseError as error:
            problems.append(Problem(f"{where}, entry {number}: {error}", "file.entry"))
    return values if len(problems) == before else None


def _read_entries(path: Path, data: bytes, parse: Callable[[str], T], expected: str) -> list[T]:
    """All entries of a file, whatever lines they are on; at least one."""
    values: list[T] = []
    problems: list[Problem] = []
    count = 0
    for line, entries in _lines(path, data, problems):
        count += len(entries)
        values += _parse(f"{path}, line {line}", entries, parse, problems) or []
    _raise_problems(path, [Problem(f"{one} (the file has {count} entries)", one.code) for one in problems])
    if not values:
        raise UserError(f"{path}: is empty; expected {expected}", "file.empty")
    return values


def _raise_problems(path: Path, problems: list[Problem]) -> None:
    """Raise if there are any, the first 20 in full."""
    if len(problems) > _MAX_SHOWN:
        code = problems[_MAX_SHOWN].code
        problems[_MAX_SHOWN:] = [Problem(f"{path}: {len(problems) - _MAX_SHOWN} more problems", code)]
    if problems:
        raise UserError(problems)

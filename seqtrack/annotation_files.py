"""The only reader of annotation files, result files and lists of sequences, in all data sets and in the evaluation.

One grammar for all: UTF-8 with or without a byte order mark, any kind of line end, numbers as `parsing` defines them,
separated by commas, semicolons or blanks, but not by a mixture, with at most one separator at a line's end and empty
lines only at the file's end. What that grammar reads, it reads in one way; everything else is refused with file, line,
entry and the text that was found. Knows rows, flags and names; must not know of data sets, frames or trackers.
"""

import re
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from seqtrack.errors import Problem, UserError
from seqtrack.parsing import ParseError, decode_text, parse_float, parse_int, short_repr

Boxes = NDArray[np.float64]
Flags = NDArray[np.bool_]
T = TypeVar("T")

# Of a file of another kind every line is wrong; the first of them tell enough.
_SHOWN, _MOST_PROBLEMS = 20, 10_000
_LARGEST_TEXT_BYTES = 16 * 1024 * 1024
_LARGEST_ARCHIVE_BYTES = 256 * 1024 * 1024
# What zipfile and NumPy's parser of headers raise for damaged bytes; neither documents it.
_ARCHIVE_FAULTS = (
    ValueError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError, RuntimeError, MemoryError,
    SyntaxError, zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError,
)  # fmt: skip
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_INTEGER = rb"-?[0-9]{1,9}"
_DECIMAL = rb"-?[0-9]{1,9}(?:\.[0-9]{1,17})?(?:[eE][+-]?[0-9]{1,2})?"
# Files in the official form, four plain numbers a line, are read by NumPy: twenty times as fast as line by line.
_PLAIN_BOXES = [
    (re.compile(rb"(?:%(n)s,%(n)s,%(n)s,%(n)s\n)*(?:%(n)s,%(n)s,%(n)s,%(n)s\n?)?" % {b"n": number}), kind)
    for number, kind in ((_INTEGER, np.int64), (_DECIMAL, np.float64))
]
_PLAIN_LABELS = re.compile(rb"[0-9](?:[,\n][0-9])*[,\n]?")
_LABEL = re.compile(r"([0-9])(?:\.0*)?")
_NOT_FINITE = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t]+")
_NAME_SEPARATORS = re.compile(r"[ \t,;]+")


def attempt(problems: list[Problem], read: Callable[..., T], *arguments: Any) -> T | None:
    """What `read` returns, or None with its problems appended, so that the next file can be read as well."""
    try:
        return read(*arguments)
    except UserError as error:
        problems += error.problems
        return None


def read_boxes(path: Path, *, allow_not_finite: bool = False) -> Boxes:
    """Rows x,y,w,h of a text file, (N, 4) float64, exactly as the decimal numbers say.

    Args:
        allow_not_finite: read `nan` and `inf` too: broken trackers write them, and the toolkit has a rule for them.

    Raises:
        UserError: unreadable, empty, or lines that are not four numbers, each with its place.
    """
    data = _read_bytes(path)
    plain = _plain(data)
    if b"," not in plain:
        plain = plain.replace(b"\t", b",")
    for form, kind in _PLAIN_BOXES:
        if plain and form.fullmatch(plain):
            flat = np.fromstring(plain.replace(b"\n", b",").rstrip(b",").decode("ascii"), dtype=kind, sep=",")
            return flat.reshape(-1, 4).astype(np.float64) + 0.0  # -0 is 0, however it was read
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
    _refuse(path, problems)
    if not rows:
        raise UserError(f"{path}: is empty; expected one row x,y,w,h per frame", "file.empty")
    return np.array(rows, dtype=np.float64) + 0.0


def read_labels(path: Path, *, largest: int) -> NDArray[np.int64]:
    """One whole number per frame, (N,) int64, all on one line or one per line; `1.0` is 1.

    Raises:
        UserError: unreadable, empty, or an entry that is no whole number from 0 to `largest`.
    """
    data = _read_bytes(path)
    plain = _plain(data)
    if _PLAIN_LABELS.fullmatch(plain):
        labels = np.frombuffer(plain, dtype=np.uint8)[::2].astype(np.int64) - ord("0")
        if labels.max() <= largest:
            return labels

    def label(text: str) -> int:
        match = _LABEL.fullmatch(text)
        if match is None or int(match.group(1)) > largest:
            raise ParseError(f"found {short_repr(text)}, expected {'0 or 1' if largest == 1 else f'0 to {largest}'}")
        return int(match.group(1))

    found: list[int] = []
    problems: list[Problem] = []
    count = 0
    for line, entries in _lines(path, data, problems):
        count += len(entries)
        found += _parse(f"{path}, line {line}", entries, label, problems) or []
    _refuse(path, [Problem(f"{one} (the file has {count} entries)", one.code) for one in problems])
    if not found:
        raise UserError(f"{path}: is empty; expected one number per frame", "file.empty")
    return np.array(found, dtype=np.int64)


def read_flags(path: Path) -> Flags:
    """One 0 or 1 per frame, (N,) bool; errors as for `read_labels`."""
    return read_labels(path, largest=1) > 0


def read_boxes_and_absence(
    boxes_file: Path,
    flag_files: Mapping[Path, Callable[[Path], Flags]],
    problems: list[Problem],
    read: Callable[[Path], Boxes] = read_boxes,
) -> tuple[Boxes | None, Flags]:
    """Boxes (N, 4) and absent (N,), true where any of the flag files says so.

    Args:
        flag_files: each with the function that reads it as (N,) bool.
        problems: everything that is wrong is appended; without boxes the first value is None.
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
    """Names of sequences, one per line or separated by blanks or commas, in the file's order; it may be empty.

    Raises:
        UserError: unreadable, or a name that cannot be a folder's, or that is listed twice.
    """
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, text in enumerate(_text(path, _read_bytes(path)).split("\n"), start=1):
        for name in _NAME_SEPARATORS.split(text.strip(" \t,;")):
            where = f"{path}, line {line}: {name[:60]!a}"
            if not name:
                continue
            if not name.isprintable() or "/" in name or "\\" in name or name.startswith(".") or len(name) > 200:
                problems.append(Problem(f"{where} is not the name of a sequence", "file.name"))
            elif name in seen:
                problems.append(Problem(f"{where} is listed twice, first in line {seen[name]}", "file.duplicate"))
            seen.setdefault(name, line)
    _refuse(path, problems)
    return list(seen)


def read_places(path: Path, count: int) -> list[int]:
    """Places in a list of `count` names, counted from 0, each of them once.

    Raises:
        UserError: unreadable, empty, or an entry that is no such place or is there twice.
    """

    def place(text: str) -> int:
        value = parse_int(text)
        if not 0 <= value < count:
            raise ParseError(f"found {short_repr(text)}, expected a place from 0 to {count - 1}")
        return value

    places: list[int] = []
    problems: list[Problem] = []
    for line, entries in _lines(path, _read_bytes(path), problems):
        places += _parse(f"{path}, line {line}", entries, place, problems) or []
    if len(set(places)) < len(places):
        twice = Counter(places).most_common(1)[0][0]
        problems.append(Problem(f"{path}: place {twice} is listed twice", "file.duplicate"))
    _refuse(path, problems)
    if not places:
        raise UserError(f"{path}: is empty; expected places from 0 to {count - 1}", "file.empty")
    return places


def read_box_archive(path: Path) -> dict[str, Boxes]:
    """Boxes of many sequences from an `.npz` with `names`, `offsets` (one more than names) and `boxes` (N, 4).

    Raises:
        UserError: unreadable or of another form.
    """
    arrays = read_archive(path, {"names": "U", "offsets": "iu", "boxes": "iuf"})
    names, boxes = arrays["names"], arrays["boxes"]
    if boxes.ndim != 2 or boxes.shape[1] != 4 or names.ndim != 1 or arrays["offsets"].shape != (len(names) + 1,):
        raise UserError(
            f"{path}: expected names (S,), offsets (S + 1,) and boxes (N, 4), "
            f"found {names.shape}, {arrays['offsets'].shape} and {boxes.shape}",
            "file.archive",
        )
    offsets = [int(value) for value in arrays["offsets"]]
    if offsets[0] != 0 or offsets[-1] != len(boxes) or offsets != sorted(offsets):
        raise UserError(f"{path}: offsets must rise from 0 to the number of boxes ({len(boxes)})", "file.archive")
    found: dict[str, Boxes] = {}
    for name, begin, end in zip(map(str, names), offsets, offsets[1:], strict=False):
        if name in found:
            raise UserError(f"{path}: sequence {short_repr(name)} is there twice", "file.duplicate")
        found[name] = boxes[begin:end].astype(np.float64)
    return found


def read_archive(path: Path, kinds: dict[str, str]) -> dict[str, NDArray[Any]]:
    """Arrays of an `.npz` by name; `kinds` says which NumPy kinds each may have. Pickled objects are refused.

    Raises:
        UserError: unreadable, or an array is missing or of another kind.
    """
    wanted = ", ".join(kinds)
    try:
        stored = np.load(path, allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: holds a single array; expected an .npz archive with {wanted}", "file.archive")
        with stored:
            missing = [key for key in kinds if key not in stored.files]
            if missing:
                raise UserError(f"{path}: holds no {', '.join(missing)}; expected {wanted}", "file.archive")
            claimed = sum(member.file_size for member in stored.zip.infolist())
            if claimed > _LARGEST_ARCHIVE_BYTES:
                raise UserError(f"{path}: {claimed} bytes unpacked are too many for boxes", "file.too_large")
            arrays = {key: stored[key] for key in kinds}
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})", "file.unreadable") from error
    except _ARCHIVE_FAULTS as error:
        said = short_repr(str(error), 200)
        raise UserError(f"{path}: cannot be read as an .npz archive ({said})", "file.archive") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.kind not in kinds[key]:
            found = array.dtype if isinstance(array, np.ndarray) else "no array"
            raise UserError(f"{path}: {key} has elements of type {found}", "file.archive")
    return arrays


def read_text_file(path: Path) -> str:
    """The whole text of a small file.

    Raises:
        UserError: it is not there, cannot be read, or is no UTF-8 text.
    """
    return _text(path, _read_bytes(path))


def _float_or_not_finite(text: str) -> float:
    return float(text) if _NOT_FINITE.fullmatch(text) else parse_float(text)


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > _LARGEST_TEXT_BYTES:
            raise UserError(f"{path}: {size} bytes are too many for a file of boxes or names", "file.too_large")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "file.missing") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})", "file.unreadable") from error


def _plain(data: bytes) -> bytes:
    """The bytes without what never changes a meaning: a byte order mark, carriage returns before line feeds."""
    return data.removeprefix(_BYTE_ORDER_MARK).replace(b"\r\n", b"\n")


def _text(path: Path, data: bytes) -> str:
    try:
        return decode_text(data)
    except ParseError as error:
        raise UserError(f"{path}: {error}", "file.not_text") from error


def _lines(path: Path, data: bytes, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and entries of each line; empty lines at the end are no lines."""
    text = _text(path, data).rstrip("\n\t ")
    for line, content in enumerate(text.split("\n") if text else (), start=1):
        if len(problems) >= _MOST_PROBLEMS:
            return
        stripped = content.strip(" \t")
        kinds = [kind for kind in ",;" if kind in stripped]
        if len(kinds) > 1:
            found = f"found commas and semicolons in {short_repr(stripped)}"
            problems.append(Problem(f"{path}, line {line}: {found}, expected one of them", "file.separator"))
            continue
        entries = [entry.strip(" \t") for entry in stripped.split(kinds[0])] if kinds else _BLANKS.split(stripped)
        if kinds and len(entries) > 1 and not entries[-1]:
            entries.pop()
        yield line, entries


def _parse(where: str, entries: Iterable[str], parse: Callable[[str], T], problems: list[Problem]) -> list[T] | None:
    """The values of a line, or None with a problem for each entry that is none."""
    values: list[T] = []
    before = len(problems)
    for number, entry in enumerate(entries, start=1):
        try:
            values.append(parse(entry))
        except ParseError as error:
            problems.append(Problem(f"{where}, entry {number}: {error}", "file.entry"))
    return values if len(problems) == before else None


def _refuse(path: Path, problems: list[Problem]) -> None:
    if len(problems) > _SHOWN:
        code = problems[_SHOWN].code
        problems[_SHOWN:] = [Problem(f"{path}: {len(problems) - _SHOWN} more like these", code)]
    if problems:
        raise UserError(problems)

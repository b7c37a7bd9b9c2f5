"""Files for the servers of GOT-10k and TrackingNet, which keep the annotation of their test sets to themselves.

A server that does not like a file rejects it late and without a reason, so that every rule is checked here first. Knows
result files and zips; no model.
"""

import io
import math
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from seqtrack.data.annotations import Boxes, attempt, first_problems, read_boxes, read_names, read_text_file
from seqtrack.data.test_sets import read_test_set
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.results import Naming, result_files
from seqtrack.parsing import NUMBER, ParseError, decode_text, short_repr

COUNTS = {"GOT10K_TEST": 180, "TRACKINGNET": 511}  # sequences that the servers expect
_MOST_RUNS = 3
_LARGEST_BYTES = 512 * 1024 * 1024  # of a zip's contents: a real one has 10 MB
_ROW, _TIMES = re.compile(rf"{NUMBER}(?:,{NUMBER}){{3}}"), re.compile(rf"{NUMBER}(?:,{NUMBER})*")


@dataclass(frozen=True)
class Expected:
    """What a server knows: the names, and as far as they are known here the frames and the first box of each."""

    names: Sequence[str]
    lengths: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, Sequence[float]] = field(default_factory=dict)


def expected_sequences(key: str, place: Path | None, data_dir: Path) -> Expected:
    """The sequences of a test set.

    Args:
        place: a list of names, or an `.npz` with `names`, `lengths`, `first_box`; None for the set in `data_dir`.

    Raises:
        UserError: unreadable, or not as many as the server has.
    """
    if place is None:
        found = read_test_set(key, data_dir)
        lengths = {one.name: one.num_frames for one in found}
        expected = Expected([*lengths], lengths, {one.name: one.boxes_xywh[0].tolist() for one in found})
    elif place.suffix == ".npz":
        try:
            with np.load(place, allow_pickle=False) as stored:
                names, counts, boxes = (stored[name].tolist() for name in ("names", "lengths", "first_box"))
            pairs = dict(zip(names, counts, strict=True)), dict(zip(names, boxes, strict=True))
            expected = Expected(names, *pairs)
        except Exception as error:  # zipfile and NumPy document none for damaged bytes
            text = "expected an .npz with names (S,), lengths (S,), first_box (S, 4)"
            raise UserError(f"{place}: found {error!s:.200}, {text}", "file.archive") from error
    else:
        expected = Expected(read_names(place))
    if len(expected.names) != COUNTS[key]:
        text = f"found {len(expected.names)} sequences of {key}, but the server expects {COUNTS[key]}"
        raise UserError(f"{place or data_dir}: {text}", "submission.sequences")
    return expected


def members_of(key: str, folder: Path, expected: Expected, naming: Naming) -> dict[str, bytes]:
    """The files of a zip by name, from a folder of results; the first box is the one that was given, where it is known.

    Raises:
        UserError: results or times that are missing or cannot be read.
    """
    files, problems, members = result_files(folder, expected.names, naming), list[Problem](), dict[str, bytes]()
    for name in expected.names:
        columns, lines = [], 0
        for run, path in enumerate(files.get(name, [folder / f"{name}.txt"]), start=1):
            rows = attempt(problems, read_boxes, path)
            if rows is None:
                continue
            lines = len(rows)
            rows[0] = expected.first.get(name, rows[0])
            members[f"{name}/{name}_{run:03d}.txt" if key == "GOT10K_TEST" else f"{name}.txt"] = box_lines(rows)
            if key == "GOT10K_TEST" and (run == 1 or path.parent == folder):
                stem = name if path.parent != folder else path.stem
                columns += attempt(problems, _read_times, path.with_name(f"{stem}_time.txt")) or []
        if columns and all(len(column) == lines for column in columns):
            members[f"{name}/{name}_time.txt"] = time_lines(columns)
        elif columns:
            text = f"{folder}: {name} has {len(columns[0])} times for {lines} boxes"
            problems.append(Problem(text, "submission.times"))
    if problems:
        raise UserError(first_problems(problems))
    return members


def _read_times(path: Path) -> list[list[float]]:
    """Columns of seconds."""
    rows = [re.split(r"[,;\s]+", line.strip(" ,;\t")) for line in read_text_file(path, may_be_empty=False).split("\n")]
    bad = [number for number, row in enumerate(rows, 1) if not all(re.fullmatch(NUMBER, one) for one in row)]
    if bad or len({len(row) for row in rows}) > 1:
        text = f"{path}, line {(bad or [1])[0]}: expected a number of seconds for each run, the same number per line"
        raise UserError(text, "file.row")
    return [[float(row[column]) for row in rows] for column in range(len(rows[0]))]


def box_lines(boxes_xywh: Boxes) -> bytes:
    """Boxes (N, 4) as both servers read them."""
    return "".join(",".join(f"{value:.3f}" for value in row) + "\n" for row in boxes_xywh.tolist()).encode()


def time_lines(columns: Sequence[Sequence[float]]) -> bytes:
    """Seconds per frame, a column per run."""
    return "".join(",".join(f"{value:.8f}" for value in row) + "\n" for row in zip(*columns, strict=True)).encode()


def read_zip(path: Path) -> dict[str, bytes]:
    """The files of a zip by name.

    Raises:
        UserError: unreadable, damaged, encrypted, too large, or a name twice.
    """
    try:
        data = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})", "file.unreadable") from error
    try:
        with zipfile.ZipFile(data) as file:
            infos = [one for one in file.infolist() if not one.is_dir()]
            twice = [name for name, count in Counter(one.filename for one in infos).items() if count > 1]
            if twice or sum(one.file_size for one in infos) > _LARGEST_BYTES:
                raise ValueError(f"{twice[0]!a:.60} twice" if twice else f"more than {_LARGEST_BYTES} bytes in it")
            return {one.filename: file.read(one) for one in infos}
    except Exception as error:  # zipfile documents none for damaged bytes, and has some of each way of packing
        raise UserError(f"{path}: is no whole zip without a password ({error})", "submission.zip") from error


def check_members(key: str, members: Mapping[str, bytes], expected: Expected) -> list[Problem]:
    """Everything for which the server of a test set would reject a zip, or score something else than what was meant."""
    find = _got10k_problems if key == "GOT10K_TEST" else _trackingnet_problems
    problems: list[Problem] = []
    try:
        for one in find(dict(members), expected):
            problems.append(one)  # one by one: what precedes a file that is no text stays
    except UserError as error:
        problems += error.problems
    return first_problems(problems)


def _got10k_problems(members: dict[str, bytes], expected: Expected) -> Iterator[Problem]:
    around = {name.split("/")[0] for name in members}
    if len(around) == 1 and all(name.count("/") == 2 for name in members):  # a folder of the tracker's name is read too
        members = {name.split("/", 1)[1]: data for name, data in members.items()}
    runs = max((int(name[-7:-4]) for name in members if re.search(r"_00[1-9]\.txt\Z", name)), default=1)
    if runs > _MOST_RUNS:
        yield Problem(f"found {runs} runs, expected at most {_MOST_RUNS}", "submission.runs")
    wanted = {
        f"{one}/{one}_{end}.txt": one
        for one in expected.names
        for end in (*(f"{r:03d}" for r in range(1, runs + 1)), "time")
    }
    yield from _name_problems(members, wanted)
    for member, name in wanted.items():
        if member in members and not member.endswith("_time.txt"):
            yield from _row_problems(member, members[member], name, expected, has_size=True)
        elif member in members:
            boxes = f"{name}/{name}_001.txt"
            count = len(_lines(boxes, members.get(boxes, b"")))
            yield from _time_problems(member, members[member], runs, expected.lengths.get(name, count))


def _trackingnet_problems(members: dict[str, bytes], expected: Expected) -> Iterator[Problem]:
    wanted = {f"{name}.txt": name for name in expected.names}
    yield from _name_problems(members, wanted)
    every = "\n".join(members)
    for member, name in wanted.items():
        if every.count(name) > 1:  # the server takes none of them
            containing = [one for one in members if name in one]
            yield Problem(f"{name} is in the names of {' and '.join(containing[:3])}", "submission.name")
        if member in members:
            yield from _row_problems(member, members[member], name, expected, has_size=False)


def _name_problems(members: Mapping[str, bytes], wanted: Mapping[str, str]) -> Iterator[Problem]:
    if missing := [name for name in wanted if name not in members]:
        yield Problem(f"{len(missing)} files are missing, such as {missing[0]}", "submission.missing")
    for name in members:
        if name not in wanted:
            text = (
                f"{short_repr(name)} is not a file of this server; expected {len(wanted)} such as {next(iter(wanted))}"
            )
            yield Problem(text, "submission.name")


def _lines(member: str, data: bytes) -> list[str]:
    try:
        return decode_text(data).removesuffix("\n").split("\n")
    except ParseError as error:
        raise UserError(f"{member}: {error}", "submission.text") from error


def _row_problems(member: str, data: bytes, name: str, expected: Expected, *, has_size: bool) -> Iterator[Problem]:
    lines = _lines(member, data)
    for number, line in enumerate(lines, start=1):
        values = [float(one) for one in line.split(",")] if _ROW.fullmatch(line) else []
        if not values or not all(map(math.isfinite, values)):
            text = "expected four finite numbers x,y,w,h with commas and nothing else"
            yield Problem(f"{member}, line {number}: found {short_repr(line)}, {text}", "submission.row")
            return
        if min(values[2:]) <= 0 and has_size:
            yield Problem(f"{member}, line {number}: found {line}, expected a size above 0", "submission.size")
            return
        given = expected.first.get(name) if number == 1 else None
        if given is not None and max(abs(a - b) for a, b in zip(values, given, strict=True)) >= 1:  # whole numbers pass
            text = f"{member}, line 1: found {line}, expected the given box {','.join(f'{one:g}' for one in given)}"
            yield Problem(text, "submission.first_box")
    if len(lines) != expected.lengths.get(name, len(lines)):
        text = f"{member}: found {len(lines)} lines, expected one for each of {expected.lengths[name]} frames"
        yield Problem(text, "submission.lines")


def _time_problems(member: str, data: bytes, runs: int, boxes: int) -> Iterator[Problem]:
    lines = _lines(member, data)
    for number, line in enumerate(lines, start=1):
        values = [float(one) for one in line.split(",")] if _TIMES.fullmatch(line) else []
        if len(values) != runs or not all(0 <= one < math.inf for one in values):
            text = f"expected the seconds of {runs} runs, not below 0, with commas"
            yield Problem(f"{member}, line {number}: found {short_repr(line)}, {text}", "submission.times")
            return
    if len(lines) != boxes:
        yield Problem(f"{member}: found {len(lines)} times for {boxes} boxes", "submission.times")

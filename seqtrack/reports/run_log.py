"""Hold a run's log against its other files. Needs no torch.

The log of a run that was started several times also has lines of records and checkpoints that a later start replaced,
and a kill leaves a checkpoint without its line: what has no line must be such a case.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import DamagedFileError
from seqtrack.checkpoints.side_files import (
    DatasetRecord,
    EnvironmentRecord,
    Manifest,
    Record,
    RunRecord,
    StartRecord,
    problems_of,
)
from seqtrack.config.schema import Config
from seqtrack.parsing import short_repr
from seqtrack.run_dir import LOGS
from seqtrack.runtime.metrics_log import record_line

_RECORD = re.compile(r"\[phase_\d+\] Epoch \d+ (finished |validation )?: ")
_CHECKPOINT = re.compile(r"checkpoint (SEQTRACK_ep\d+\.safetensors) : ([\d.]+) MB , .* , sha256 ([0-9a-f]{16})")
_GUARANTEE = re.compile(r"(starts from scratch; )?reproducibility guarantee .*: (bitwise|same_samples) \(.*\)")
_RESUMED = re.compile(r"resumes after step (\d+) \(epoch (\d+), \d+ samples into it\) from .*")
_COMMIT = re.compile(r"commit (.+) , lock sha256 (\S+)")
_MACHINE = re.compile(r"torch (\S+) , (.+) , (\d+) process(?:es)?")
_CONFIGURATION = re.compile(r"configuration (.+) , digest ([0-9a-f]{16}) , seed (\d+)")
_DATA = re.compile(r"data set (\S+)( \(SYNTHETIC: .*\))? : (\d+) sequences , (\d+) frames , classes (.*)")
_SIZES = re.compile(r"(\d+) epochs of \d+ samples in \d+ steps of (\d+) samples ; a line every (\d+) samples.*")


def device_name(fingerprint: Mapping[str, object]) -> object:
    """The device as manifests and the log name it; None where the fingerprint does not tell."""
    return fingerprint.get("gpu", f"CPU {fingerprint['cpu']}" if "cpu" in fingerprint else None)


def log_contradictions(
    folder: Path,
    run: RunRecord,
    config: Config,
    data: DatasetRecord | None,
    machine: EnvironmentRecord | None,
    manifests: Mapping[int, Manifest],
    records: list[Record],
) -> Iterator[str]:
    """Every record, start and checkpoint has its lines in the log, and its first lines are those of the last start."""
    lines = _lines(folder / LOGS)
    yield from _records(folder / LOGS, run, records, lines)
    yield from _checkpoints(folder / LOGS, run, manifests, lines)
    yield from _starts(folder / LOGS, run, lines)
    last, digest = run.starts[-1], run.config_digest[:16]
    wanted = [
        (_CONFIGURATION, (run.config, digest, str(config.TRAIN.SEED))),
        (_SIZES, tuple(map(str, (config.TRAIN.EPOCH, config.TRAIN.BATCH_SIZE, config.TRAIN.PRINT_INTERVAL)))),
    ]
    if machine is not None:
        wanted.append((_COMMIT, (machine.commit, machine.lock_sha256[:16])))
        known = (machine.versions.get("torch"), device_name(last.fingerprint), last.processes)
        wanted += [(_MACHINE, tuple(map(str, known)))] if None not in known else []
    for one in data.sources if data is not None else []:
        facts = one.name, one.synthetic, one.sequences, one.frames, ", ".join(sorted(one.classes))
        wanted.append((_DATA, tuple(map(str, facts))))
    for pattern, expected in wanted:
        found = [match.groups() for line in lines if (match := pattern.fullmatch(line))]
        if pattern is _DATA:
            found = [(name, str(drawn is not None), *rest) for name, drawn, *rest in found]
        if expected not in found:
            text = short_repr(" , ".join(expected), 80)
            yield f"{folder / LOGS}: the other files have {text}, which is in no line of the log"


def _lines(folder: Path) -> list[str]:
    """The lines of all logs; a DamagedFileError names one that cannot be read."""
    lines: list[str] = []
    for path in sorted(folder.glob("*.log")):
        try:
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError as error:
            raise DamagedFileError(problems_of(path, error)) from error
    return lines


def _records(folder: Path, run: RunRecord, records: list[Record], lines: list[str]) -> Iterator[str]:
    """Each record has its line; a run that was never interrupted has no others, but for one that a kill cut off."""
    known, expected = set(lines), [record_line(one) for one in records]
    found = sum(_RECORD.match(line) is not None for line in lines)
    if missing := [line for line in expected if line not in known]:
        yield f"{folder}: the log lacks {len(missing)} lines of metrics.jsonl, first: {missing[0]}"
    elif len(run.starts) == 1 and not 0 <= found - len(expected) <= (run.state == "running"):
        yield f"{folder}: the log has {found} lines of records, metrics.jsonl {len(expected)} records"


def _checkpoints(folder: Path, run: RunRecord, manifests: Mapping[int, Manifest], lines: list[str]) -> Iterator[str]:
    """Each checkpoint that this run wrote has its line, unless the run was killed before it."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for match in filter(None, map(_CHECKPOINT.fullmatch, lines)):
        found[match[1]].add((match[2], match[3]))
    ends = {run.starts[0].step, *(start.step for start in run.starts)}
    ends |= {manifests[max(manifests)].step} if run.state == "running" else set()
    for one in manifests.values():
        expected = f"{one.bytes / 1e6:.1f}", one.sha256[:16]
        others = found[one.file] - {expected} if len(run.starts) == 1 else set()
        if one.step > run.starts[0].step and (others or (expected not in found[one.file] and one.step not in ends)):
            text = f"is {expected[0]} MB, sha256 {expected[1]} in its manifest, not in the log"
            yield f"{folder}: checkpoint {one.file} {text}"


def _starts(folder: Path, run: RunRecord, lines: list[str]) -> Iterator[str]:
    """Each start has its line with the reproducibility guarantee, and one with the step that it resumed after."""
    guarantees = Counter((match[1] is None, match[2]) for match in filter(None, map(_GUARANTEE.fullmatch, lines)))
    points = Counter((int(match[1]), int(match[2])) for match in filter(None, map(_RESUMED.fullmatch, lines)))

    def lacking(start: StartRecord) -> bool:
        kind, point = (start.source is not None, start.guarantee), (start.step, start.epoch)
        guarantees[kind] -= 1
        points[point] -= start.source is not None
        return guarantees[kind] < 0 or points[point] < 0

    for number, start in enumerate(run.starts, start=1):
        if lacking(start):
            text = f"after step {start.step} (epoch {start.epoch}), guarantee {start.guarantee}"
            yield f"{folder}: the log has no lines of start {number}, {text}"

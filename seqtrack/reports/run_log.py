"""Hold a run's log against its other files. Needs no torch.

The log of a run that was started several times also has lines of records and checkpoints that a later start replaced,
and a kill leaves a checkpoint without its line: what has no line must be such a case.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import DamagedFileError
from seqtrack.checkpoints.side_files import (
    Manifest,
    Record,
    RunRecord,
    problems_of,
)
from seqtrack.run_dir import LOGS
from seqtrack.runtime.metrics_log import record_line

_RECORD = re.compile(r"\[phase_\d+\] Epoch \d+ (finished |validation )?: ")
_CHECKPOINT = re.compile(r"checkpoint (SEQTRACK_ep\d+\.safetensors) : ([\d.]+) MB , .* , sha256 ([0-9a-f]{16})")


def device_name(fingerprint: Mapping[str, object]) -> object:
    """The device as manifests and the log name it; None where the fingerprint does not tell."""
    return fingerprint.get("gpu", f"CPU {fingerprint['cpu']}" if "cpu" in fingerprint else None)


def log_contradictions(
    folder: Path, run: RunRecord, manifests: Mapping[int, Manifest], records: list[Record]
) -> Iterator[str]:
    """Every record and checkpoint has its line in the log."""
    lines = _lines(folder / LOGS)
    yield from _records(folder / LOGS, run, records, lines)
    yield from _checkpoints(folder / LOGS, run, manifests, lines)


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

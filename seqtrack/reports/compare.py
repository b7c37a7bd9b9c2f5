"""Are two runs the same run? Compared by the bytes of their checkpoints and the numbers of their logs.

Digests are taken from the files, not believed from the manifests: a bit changed after the run shows as well. Needs no
torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqtrack.checkpoints.resume_point import CHECKPOINTS, RUN_FILE
from seqtrack.checkpoints.safetensors_io import DamagedFileError, Header, digest_components, read_header, sha256_file
from seqtrack.checkpoints.side_files import (
    SHOWN_PROBLEMS,
    DatasetRecord,
    EnvironmentRecord,
    Record,
    RunRecord,
    Strict,
    read_metrics,
    read_side_file,
)
from seqtrack.checkpoints.store import Manifest, component_digests, list_checkpoints, verify_checkpoint
from seqtrack.errors import UserError
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS

IDENTICAL = "identical"
DIFFERS = "differs"
# The order in which parts are named when several differ: what was trained first, what follows from it last.
PART_ORDER = ("epoch", "step", "sample", "model", "optimizer", "scheduler", "scaler", "rng", "meters", "history")

# Which keys decide how often such records are written. They may differ between a run and its resumption, and then the
# records of that kind cannot be held against each other; checkpoints and means of epochs can.
_RHYTHM = {"interval": ("PRINT_INTERVAL",), "validation": ("VALIDATION_INTERVAL", "VALIDATION_SEQUENCES")}


@dataclass(frozen=True)
class EpochRow:
    """One epoch in both runs. `differences` names parts of the state, "log numbers", or what is wrong with a file."""

    epoch: int
    manifests: tuple[Manifest, Manifest]
    sha256: tuple[str, str]
    differences: list[str]
    first_log_step: int | None

    @property
    def is_same(self) -> bool:
        return not self.differences


@dataclass(frozen=True)
class Comparison:
    """The outcome: rows by epoch, remarks, and the first difference in words (None when there is none)."""

    folders: tuple[Path, Path]
    rows: list[EpochRow]
    remarks: list[str] = field(default_factory=list)
    first_difference: str | None = None

    @property
    def verdict(self) -> str:
        return IDENTICAL if self.first_difference is None else DIFFERS


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two phase folders epoch by epoch, for the epochs that both hold.

    Raises:
        UserError: a folder is missing, or there is no epoch in both.
    """
    sides = tuple(_epochs(folder) for folder in (first, second))
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        held = " and ".join(str(sorted(side) or "none") for side in sides)
        raise UserError(f"{first} and {second} have no epoch in common: they hold {held}")
    damaged = [problem for folder in (first, second) for problem in _damaged_files(folder)]
    logs = tuple(_numbers(folder, common, damaged) for folder in (first, second))
    rows = [_compare_epoch(epoch, (sides[0][epoch], sides[1][epoch]), (logs[0], logs[1])) for epoch in common]
    remarks, unequal_end = _coverage((first, second), sides)
    apart = {kind for row in rows for kind in _written_apart(row.manifests)}
    remarks += [
        f"{kind} records are not compared: the runs differ in TRAIN.{' and '.join(_RHYTHM[kind])}"
        for kind in sorted(apart)
    ]
    found = [(row.epoch, _describe(row)) for row in rows if not row.is_same]
    for folder, side in zip((first, second), sides, strict=True):
        found += _unusable(folder, side)
    differences = [text for _, text in sorted(found)] + damaged + unequal_end
    remarks += damaged[:SHOWN_PROBLEMS]
    return Comparison((first, second), rows, remarks, differences[0] if differences else None)


def _unusable(folder: Path, side: dict[int, Manifest]) -> list[tuple[int, str]]:
    """Epochs whose manifest is there and cannot be used: they must not pass for epochs that were never saved."""
    found = []
    for path in sorted((folder / CHECKPOINTS).glob("SEQTRACK_ep*.json")):
        number = path.stem.removeprefix("SEQTRACK_ep")
        if number.isdigit() and int(number) not in side:
            found.append((int(number), f"epoch {int(number)}: the manifest {path.name} of {folder.name} is unusable"))
    return found


def _epochs(folder: Path) -> dict[int, Manifest]:
    if not (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder} is not a folder of a run: it has no {CHECKPOINTS}/")
    return {item.epoch: item for item in list_checkpoints(folder / CHECKPOINTS, kinds=("epoch",))}


def _damaged_files(folder: Path) -> list[str]:
    """What is wrong with the files next to the checkpoints: they must not pass for files that were never written."""
    problems: list[str] = []
    kinds: dict[str, type[Strict]] = {
        RUN_FILE: RunRecord,
        "environment.json": EnvironmentRecord,
        "dataset.json": DatasetRecord,
    }
    for name, kind in kinds.items():
        try:
            read_side_file(folder / name, kind)
        except UserError as error:
            problems += error.problems
    return problems


def _numbers(folder: Path, epochs: Iterable[int], damaged: list[str]) -> dict[int, list[Record]]:
    """The records of `metrics.jsonl` by epoch; lines that are none are added to `damaged`."""
    by_epoch: dict[int, list[Record]] = {epoch: [] for epoch in epochs}
    metrics = read_metrics(folder / "logs" / "metrics.jsonl")
    damaged += metrics.problems
    for record in metrics.records:
        if record.epoch in by_epoch:
            by_epoch[record.epoch].append(record)
    return by_epoch


def _measured(record: Record) -> dict[str, Any]:
    """A record without what depends on the clock or names the phase."""
    return record.model_dump(exclude={"phase", *WALL_CLOCK_FIELDS})


def _compare_epoch(epoch: int, pair: tuple[Manifest, Manifest], logs: tuple[dict[int, list[Record]], ...]) -> EpochRow:
    differences: list[str] = []
    digests = []
    for manifest in pair:
        try:
            digest = sha256_file(manifest.path)
        except OSError as error:
            digest = "unreadable"
            differences.append(
                f"{manifest.path.name} of {manifest.folder.parent.name} cannot be read ({error.strerror})"
            )
        else:
            if digest != manifest.sha256:
                differences.append(
                    f"{manifest.path.name} of {manifest.folder.parent.name} is not the file of its manifest"
                )
        digests.append(digest)
    if digests[0] != digests[1] and "unreadable" not in digests:
        differences = _different_parts(pair) + differences
    if pair[0].data_digest != pair[1].data_digest:
        differences.insert(0, "the data (data_digest; dataset.json says which)")
    apart = _written_apart(pair)
    ours, theirs = ([record for record in log[epoch] if record.type not in apart] for log in logs)
    step = _first_different_step(ours, theirs)
    if step is not None:
        differences.append("log numbers")
    return EpochRow(epoch, pair, (digests[0], digests[1]), differences, step)


def _written_apart(pair: tuple[Manifest, Manifest]) -> list[str]:
    """Kinds of log records that the two runs were told to write at different times."""
    sides = [(manifest.config or {}).get("TRAIN", {}) for manifest in pair]
    return [kind for kind, keys in _RHYTHM.items() if any(sides[0].get(key) != sides[1].get(key) for key in keys)]


def _different_parts(pair: tuple[Manifest, Manifest]) -> list[str]:
    try:
        headers = [read_header(manifest.path) for manifest in pair]
        parts = [component_digests(manifest.path, header) for manifest, header in zip(pair, headers, strict=True)]
    except DamagedFileError as error:
        return [str(error)]
    names = {name for side in parts for name in side if parts[0].get(name) != parts[1].get(name)}
    ordered = [name for name in PART_ORDER if name in names] + sorted(names - set(PART_ORDER))
    return [_name_part(name, pair, headers) for name in ordered] or ["bytes of the container"]


def _name_part(part: str, pair: tuple[Manifest, Manifest], headers: list[Header]) -> str:
    """The part, with its first differing tensor where it has tensors."""
    tensors = [
        {name: entry for name, entry in header.entries.items() if name.split("/", 1)[0] == part} for header in headers
    ]
    for name in sorted(set(tensors[0]) | set(tensors[1])):
        if name not in tensors[0] or name not in tensors[1]:
            return f"{part} ({name} is in one of them only)"
        single = [
            digest_components(manifest.path, Header({name: side[name]}, {}))
            for manifest, side in zip(pair, tensors, strict=True)
        ]
        if single[0] != single[1]:
            return f"{part} ({name.split('/', 1)[1]})"
    return part


def _first_different_step(ours: list[Record], theirs: list[Record]) -> int | None:
    for mine, other in zip(ours, theirs, strict=False):
        if _measured(mine) != _measured(other):
            return min(mine.step, other.step)
    if len(ours) != len(theirs):
        return max(ours, theirs, key=len)[min(len(ours), len(theirs))].step
    return None


def _coverage(folders: tuple[Path, Path], sides: tuple[dict[int, Manifest], ...]) -> tuple[list[str], list[str]]:
    """What was not compared, and whether the runs end at different epochs, which makes them different runs."""
    remarks = []
    for folder, mine, other in ((folders[0], sides[0], sides[1]), (folders[1], sides[1], sides[0])):
        only = sorted(epoch for epoch in mine if epoch not in other)
        if only:
            remarks.append(f"only {folder.name} has a checkpoint of epochs {', '.join(map(str, only))}: not compared")
    ends = [max(side) for side in sides]
    if ends[0] == ends[1]:
        return remarks, []
    return remarks, [f"{folders[0].name} ends at epoch {ends[0]}, {folders[1].name} at epoch {ends[1]}"]


def _describe(row: EpochRow) -> str:
    step = f"; first log numbers that differ are at step {row.first_log_step}" if row.first_log_step is not None else ""
    return f"epoch {row.epoch}: {row.differences[0]}{step}"


def check_hash_chain(folders: Iterable[Path]) -> list[str]:
    """Follow the digests from each epoch's checkpoint to the one it was trained on from.

    Args:
        folders: the run's folder, then those that it resumed from.

    Returns:
        every missing, altered or foreign link in words; empty when the chain is whole.
    """
    places = [(folder, _epochs(folder)) for folder in folders]
    own = places[0][1]
    if not own:
        return ["there is no epoch's checkpoint to begin the chain with"]
    problems: list[str] = []
    digests: dict[int, str] = {}
    for folder, side in reversed(places):
        problems += [problem for _, problem in _unusable(folder, side)]
        for epoch, manifest in side.items():
            try:
                digests[epoch] = sha256_file(manifest.path)
            except OSError as error:
                problems.append(f"epoch {epoch}: {manifest.path} cannot be read ({error.strerror})")
                continue
            problems += [f"epoch {epoch}: {problem}" for problem in _altered(manifest, digests[epoch])]
    for epoch, manifest in sorted(own.items()):
        if epoch == 1:
            if manifest.parent_sha256 is not None:
                problems.append("epoch 1: names a parent, but a run from scratch has none")
        elif epoch - 1 not in digests:
            problems.append(f"epoch {epoch}: the link to epoch {epoch - 1} is missing: that checkpoint is not there")
        elif manifest.parent_sha256 != digests[epoch - 1]:
            problems.append(
                f"epoch {epoch}: was not trained on from this epoch {epoch - 1}: its parent's sha256 differs"
            )
    return problems


def _altered(manifest: Manifest, digest: str) -> list[str]:
    """What of a checkpoint is not as it was written: its bytes, or what its manifest says of them."""
    if digest != manifest.sha256:
        return [f"{manifest.path} was altered: its sha256 is not the manifest's"]
    try:
        parts = component_digests(manifest.path, verify_checkpoint(manifest))
    except DamagedFileError as error:
        return [str(error)]
    if parts != manifest.parts or parts.get("model") != manifest.weights_sha256:
        return [f"{manifest.manifest_path} was altered: the digests of its parts are not those of the file"]
    return []

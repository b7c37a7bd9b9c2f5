"""Compare two runs by the bytes of their checkpoints and the numbers of their logs.

Digests are computed from the files, not taken from the manifests, so that a bit changed after the run is found too.
Needs no torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from seqtrack.run_dir import CHECKPOINTS, DATASET_FILE, ENVIRONMENT_FILE, RUN_FILE, metrics_path
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS

IDENTICAL = "identical"
DIFFERS = "differs"
# The order in which differing components are named: causes before their consequences.
COMPONENT_ORDER = ("epoch", "step", "sample", "model", "optimizer", "scheduler", "scaler", "rng", "meters", "history")

# Keys of TRAIN that decide how often records of a kind are written. They may differ between a run and its resumption;
# then records of that kind cannot be compared, but checkpoints and the means of epochs can.
_INTERVAL_KEYS = {"interval": ("PRINT_INTERVAL",), "validation": ("VALIDATION_INTERVAL", "VALIDATION_SEQUENCES")}
_SIDE_FILES: dict[str, type[Strict]] = {
    RUN_FILE: RunRecord,
    ENVIRONMENT_FILE: EnvironmentRecord,
    DATASET_FILE: DatasetRecord,
}
_Epochs = dict[int, Manifest]


@dataclass(frozen=True)
class EpochRow:
    """One epoch in both runs. `differences` names state components, "log numbers", or what is wrong with a file."""

    epoch: int
    manifests: tuple[Manifest, Manifest]
    sha256: tuple[str, str]
    differences: list[str]
    first_log_step: int | None

    @property
    def is_same(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        step = "" if self.first_log_step is None else f"; log numbers differ from step {self.first_log_step}"
        return f"epoch {self.epoch}: {self.differences[0]}{step}"


@dataclass(frozen=True)
class Comparison:
    """The outcome: rows by epoch, remarks, and the first difference as text (None when there is none)."""

    folders: tuple[Path, Path]
    rows: list[EpochRow]
    remarks: list[str] = field(default_factory=list)
    first_difference: str | None = None

    @property
    def verdict(self) -> str:
        return IDENTICAL if self.first_difference is None else DIFFERS


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two phase folders epoch by epoch, for the epochs that both have.

    Raises:
        UserError: a folder is missing, or the runs have no epoch in common.
    """
    sides = _epochs(first), _epochs(second)
    common = sorted(set(sides[0]) & set(sides[1]))
    if not common:
        found = " and ".join(str(sorted(side) or "none") for side in sides)
        raise UserError(f"{first} and {second} have no epoch in common: they have {found}", "verify.no_common_epoch")
    invalid = [problem for folder in (first, second) for problem in _invalid_files(folder)]
    logs = _records_by_epoch(first, invalid), _records_by_epoch(second, invalid)
    rows = [
        _compare_epoch((sides[0][epoch], sides[1][epoch]), (logs[0].get(epoch, []), logs[1].get(epoch, [])))
        for epoch in common
    ]
    remarks, unequal_end = _coverage((first, second), sides)
    skipped = {kind for row in rows for kind in _incomparable_kinds(row.manifests)}
    remarks += [
        f"{kind} records are not compared: the runs differ in TRAIN.{' and '.join(_INTERVAL_KEYS[kind])}"
        for kind in sorted(skipped)
    ]
    found_at = [(row.epoch, str(row)) for row in rows if not row.is_same]
    for folder, side in zip((first, second), sides, strict=True):
        found_at += _unusable_manifests(folder, side)
    differences = [text for _, text in sorted(found_at)] + invalid + unequal_end
    remarks += invalid[:SHOWN_PROBLEMS]
    return Comparison((first, second), rows, remarks, differences[0] if differences else None)


def _epochs(folder: Path) -> _Epochs:
    if not (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder} is not the folder of a run: it has no {CHECKPOINTS}/", "verify.not_a_run")
    return {item.epoch: item for item in list_checkpoints(folder / CHECKPOINTS, kinds=("epoch",))}


def _unusable_manifests(folder: Path, side: _Epochs) -> list[tuple[int, str]]:
    """Epochs whose manifest exists but is invalid: they must not look like epochs that were never saved."""
    found = []
    for path in sorted((folder / CHECKPOINTS).glob("SEQTRACK_ep*.json")):
        number = path.stem.removeprefix("SEQTRACK_ep")
        if number.isdigit() and int(number) not in side:
            found.append((int(number), f"epoch {int(number)}: the manifest {path.name} of {folder.name} is unusable"))
    return found


def _invalid_files(folder: Path) -> list[str]:
    """What is wrong with the files next to the checkpoints: they must not look like files that were never written."""
    problems: list[str] = []
    for name, kind in _SIDE_FILES.items():
        try:
            read_side_file(folder / name, kind)
        except UserError as error:
            problems += error.problems
    return problems


def _records_by_epoch(folder: Path, invalid: list[str]) -> dict[int, list[Record]]:
    """The records of `metrics.jsonl` by epoch; its invalid lines are appended to `invalid`."""
    by_epoch: dict[int, list[Record]] = {}
    metrics = read_metrics(metrics_path(folder))
    invalid += metrics.problems
    for record in metrics.records:
        by_epoch.setdefault(record.epoch, []).append(record)
    return by_epoch


def _compare_epoch(pair: tuple[Manifest, Manifest], logs: tuple[list[Record], list[Record]]) -> EpochRow:
    differences: list[str] = []
    digests = []
    for manifest in pair:
        where = f"{manifest.path.name} of {manifest.folder.parent.name}"
        try:
            digests.append(sha256_file(manifest.path))
        except OSError as error:
            digests.append("unreadable")
            differences.append(f"{where} cannot be read ({error.strerror})")
        else:
            if digests[-1] != manifest.sha256:
                differences.append(f"{where} is not the file of its manifest")
    if digests[0] != digests[1] and "unreadable" not in digests:
        differences = _different_components(pair) + differences
    if pair[0].data_digest != pair[1].data_digest:
        differences.insert(0, "the data (data_digest; see dataset.json)")
    skipped = _incomparable_kinds(pair)
    step = _first_different_step(*([record for record in log if record.type not in skipped] for log in logs))
    if step is not None:
        differences.append("log numbers")
    return EpochRow(pair[0].epoch, pair, (digests[0], digests[1]), differences, step)


def _incomparable_kinds(pair: tuple[Manifest, Manifest]) -> list[str]:
    """Kinds of log records that the two runs were configured to write at different times."""
    ours, theirs = ((manifest.config or {}).get("TRAIN", {}) for manifest in pair)
    return [kind for kind, keys in _INTERVAL_KEYS.items() if any(ours.get(key) != theirs.get(key) for key in keys)]


def _different_components(pair: tuple[Manifest, Manifest]) -> list[str]:
    try:
        headers = [read_header(manifest.path) for manifest in pair]
        sides = [component_digests(manifest.path, header) for manifest, header in zip(pair, headers, strict=True)]
    except DamagedFileError as error:
        return [str(error)]
    names = {name for side in sides for name in side if sides[0].get(name) != sides[1].get(name)}
    ordered = [name for name in COMPONENT_ORDER if name in names] + sorted(names - set(COMPONENT_ORDER))
    return [_with_tensor(name, pair, headers) for name in ordered] or ["bytes of the file"]


def _with_tensor(component: str, pair: tuple[Manifest, Manifest], headers: list[Header]) -> str:
    """The component, with its first differing tensor where it has tensors."""
    sides = [{name: e for name, e in header.entries.items() if name.split("/")[0] == component} for header in headers]
    for name in sorted(set(sides[0]) | set(sides[1])):
        if name not in sides[0] or name not in sides[1]:
            return f"{component} ({name} is in one of them only)"
        digests = [
            digest_components(manifest.path, Header({name: side[name]}, {}))
            for manifest, side in zip(pair, sides, strict=True)
        ]
        if digests[0] != digests[1]:
            return f"{component} ({name.split('/', 1)[1]})"
    return component


def _first_different_step(ours: list[Record], theirs: list[Record]) -> int | None:
    for mine, other in zip(ours, theirs, strict=False):
        if _measured(mine) != _measured(other):
            return min(mine.step, other.step)
    if len(ours) != len(theirs):
        return max(ours, theirs, key=len)[min(len(ours), len(theirs))].step
    return None


def _measured(record: Record) -> dict[str, Any]:
    """A record without wall-clock fields and the phase."""
    return record.model_dump(exclude={"phase", *WALL_CLOCK_FIELDS})


def _coverage(folders: tuple[Path, Path], sides: tuple[_Epochs, _Epochs]) -> tuple[list[str], list[str]]:
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


def check_hash_chain(folders: Iterable[Path]) -> list[str]:
    """Follow the digests from each epoch's checkpoint to its parent, the checkpoint it was trained from.

    Args:
        folders: the run's folder, then those that it resumed from.

    Returns:
        every missing, altered or foreign link as text; empty when the chain is complete.
    """
    runs = [(folder, _epochs(folder)) for folder in folders]
    own = runs[0][1]
    if not own:
        return ["no epoch's checkpoint to start the chain with"]
    problems: list[str] = []
    digests: dict[int, str] = {}
    for folder, side in reversed(runs):
        problems += [problem for _, problem in _unusable_manifests(folder, side)]
        for epoch, manifest in side.items():
            try:
                digests[epoch] = sha256_file(manifest.path)
            except OSError as error:
                problems.append(f"epoch {epoch}: {manifest.path} cannot be read ({error.strerror})")
                continue
            problems += [f"epoch {epoch}: {problem}" for problem in _alterations(manifest, digests[epoch])]
    for epoch, manifest in sorted(own.items()):
        if epoch == 1:
            if manifest.parent_sha256 is not None:
                problems.append("epoch 1: names a parent, but a run from scratch has none")
        elif epoch - 1 not in digests:
            problems.append(f"epoch {epoch}: the checkpoint of epoch {epoch - 1} is missing")
        elif manifest.parent_sha256 != digests[epoch - 1]:
            problems.append(f"epoch {epoch}: was not trained from this epoch {epoch - 1}: its parent's sha256 differs")
    return problems


def _alterations(manifest: Manifest, digest: str) -> list[str]:
    """What of a checkpoint is not as it was written: its bytes, or their digests in the manifest."""
    if digest != manifest.sha256:
        return [f"{manifest.path} was altered: its sha256 is not the manifest's"]
    try:
        digests = component_digests(manifest.path, verify_checkpoint(manifest))
    except DamagedFileError as error:
        return [str(error)]
    if digests != manifest.parts or digests.get("model") != manifest.weights_sha256:
        return [f"{manifest.manifest_path} was altered: its component digests are not those of the file"]
    return []

"""Compare two runs by the bytes of their checkpoints and the numbers of their logs.

Digests are computed from the files, not taken from the manifests, so that a bit changed after the run is found too.
Needs no torch.
"""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from seqtrack.checkpoints.safetensors_io import DamagedFileError, read_checkpoint_file, sha256_file, utc_now
from seqtrack.checkpoints.side_files import (
    Certificate,
    CertifiedEpoch,
    CertifiedRun,
    DatasetRecord,
    EnvironmentRecord,
    Record,
    RunRecord,
    Strict,
    read_metrics,
    read_side_file,
)
from seqtrack.checkpoints.store import Manifest, list_checkpoints, verify_checkpoint
from seqtrack.errors import UserError
from seqtrack.run_dir import (
    CHECKPOINTS,
    DATASET_FILE,
    ENVIRONMENT_FILE,
    RUN_FILE,
    metrics_path,
    parse_checkpoint_name,
)
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS

# The order in which differing components are named: causes before their consequences.
COMPONENT_ORDER = ("epoch", "step", "sample", "model", "optimizer", "scheduler", "scaler", "rng", "meters", "history")

# Keys of TRAIN that decide how often records of a kind are written. They may differ between a run and its resumption;
# then records of that kind cannot be compared, but checkpoints and the means of epochs can.
_INTERVAL_KEYS = {"interval": ("PRINT_INTERVAL",), "validation": ("VALIDATION_INTERVAL", "VALIDATION_SEQUENCES")}
_SIDE_FILES: dict[str, type[Strict]] = {
    RUN_FILE: RunRecord, ENVIRONMENT_FILE: EnvironmentRecord, DATASET_FILE: DatasetRecord,
}  # fmt: skip
_Pair = tuple[Manifest, Manifest]


_Unusable = list[tuple[int, str]]  # epochs whose manifest is unusable, with what is wrong


def compare_runs(first: Path, second: Path) -> Certificate:
    """Compare two phase folders epoch by epoch, for the epochs that both have.

    Raises:
        UserError: a folder is missing, or the runs have no epoch in common.
    """
    folders, unusable, invalid = (first, second), _Unusable(), list[str]()
    names = distinguishing_names(first, second)
    ours, theirs = (_read_epochs(*run, unusable) for run in zip(folders, names, strict=True))
    common = sorted(set(ours) & set(theirs))
    if not common:
        found = " and ".join(str(sorted(epochs) or "none") for epochs in (ours, theirs))
        raise UserError(f"{first} and {second} have no epoch in common: they have {found}", "verify.no_common_epoch")
    facts = [_facts(*run, invalid) for run in zip(folders, names, strict=True)]
    skipped = {kind for epoch in common for kind in _incomparable_kinds(ours[epoch], theirs[epoch])}
    logs = [_records_by_epoch(folder, skipped, invalid) for folder in folders]
    epochs = [_compare_epoch((ours[epoch], theirs[epoch]), logs[0][epoch], logs[1][epoch]) for epoch in common]
    remarks = [
        f"only {name} has a checkpoint of epochs {', '.join(map(str, sorted(only)))}: not compared"
        for name, only in zip(names, (set(ours) - set(theirs), set(theirs) - set(ours)), strict=True)
        if only
    ]
    remarks += [
        f"{kind} records are not compared: the runs differ in TRAIN.{' and '.join(_INTERVAL_KEYS[kind])}"
        for kind in sorted(skipped)
    ]
    found_at = [(one.epoch, f"epoch {one.epoch}: {one.differences[0]}") for one in epochs if one.differences]
    differences = [text for _, text in sorted(found_at + unusable)] + invalid
    if max(ours) != max(theirs):
        differences.append(f"{names[0]} ends at epoch {max(ours)}, {names[1]} at epoch {max(theirs)}")
    return Certificate(
        verdict="differs" if differences else "identical",
        first_difference=differences[0] if differences else None,
        remarks=remarks + invalid,
        created=utc_now(),
        runs=facts,
        epochs=epochs,
    )


def distinguishing_names(first: Path, second: Path) -> tuple[str, str]:
    """The shortest ends of two paths that differ: `a/phase_1` and `b/phase_1`, but `phase_1` and `phase_2`."""
    one, two = first.resolve().parts, second.resolve().parts
    depth = next((n for n in range(1, min(len(one), len(two))) if one[-n] != two[-n]), 1)
    return "/".join(one[-depth:]), "/".join(two[-depth:])


def _read_epochs(folder: Path, run: str, unusable: _Unusable) -> dict[int, Manifest]:
    """The epochs' checkpoints; those that must not look like ones that were never saved are appended to `unusable`."""
    if not (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder} is not the folder of a run: it has no {CHECKPOINTS}/", "verify.not_a_run")
    epochs = {item.epoch: item for item in list_checkpoints(folder / CHECKPOINTS, kinds=("epoch",))}
    for path in (folder / CHECKPOINTS).glob("*.json"):
        kind, epoch = parse_checkpoint_name(path.name) or ("", 0)
        if kind == "ep" and epoch not in epochs:
            unusable.append((epoch, f"epoch {epoch}: the manifest {path.name} of {run} is unusable"))
    return epochs


def _facts(folder: Path, run: str, invalid: list[str]) -> CertifiedRun:
    """What the files next to the checkpoints record; what is wrong with them is appended to `invalid`."""
    found: dict[str, Strict | None] = {}
    for name, kind in _SIDE_FILES.items():
        try:
            found[name] = read_side_file(folder / name, kind)
        except UserError as error:
            invalid += error.problems
    records = {"run": found.get(RUN_FILE), "environment": found.get(ENVIRONMENT_FILE)}
    return CertifiedRun.model_validate({"folder": run, **records})


def _records_by_epoch(folder: Path, skipped: set[str], invalid: list[str]) -> dict[int, list[Record]]:
    """The records of `metrics.jsonl` but for some kinds; its invalid lines are appended to `invalid`."""
    metrics = read_metrics(metrics_path(folder))
    invalid += metrics.problems
    by_epoch: dict[int, list[Record]] = defaultdict(list)
    for record in metrics.records:
        if record.type not in skipped:
            by_epoch[record.epoch].append(record)
    return by_epoch


def _incomparable_kinds(first: Manifest, second: Manifest) -> list[str]:
    """Kinds of log records that the two runs were configured to write at different times."""
    ours, theirs = ((manifest.config or {}).get("TRAIN", {}) for manifest in (first, second))
    return [kind for kind, keys in _INTERVAL_KEYS.items() if any(ours.get(key) != theirs.get(key) for key in keys)]


def _compare_epoch(pair: _Pair, ours: list[Record], theirs: list[Record]) -> CertifiedEpoch:
    (first, damage), (second, other_damage) = _check(pair[0]), _check(pair[1])
    differences = []
    if pair[0].data_digest != pair[1].data_digest:
        differences.append("the data (data_digest; see dataset.json)")
    if first != second:
        differences += _different_components(pair)
    differences += damage + other_damage
    step = _first_different_step(ours, theirs)
    if step is not None:
        differences.append(f"log numbers from step {step}")
    return CertifiedEpoch(
        epoch=pair[0].epoch,
        same=not differences,
        differences=differences,
        sha256=[first, second],
        weights_sha256=[manifest.weights_sha256 for manifest in pair],
        loss=[manifest.loss for manifest in pair],
        iou=[manifest.iou for manifest in pair],
    )


def _check(manifest: Manifest) -> tuple[str, list[str]]:
    """The sha256 of a checkpoint file, and in what it is not as it was written."""
    try:
        verify_checkpoint(manifest)
    except DamagedFileError as error:
        try:
            return sha256_file(manifest.path), [str(error)]
        except OSError:
            return "unreadable", [str(error)]
    return manifest.sha256, []


def _different_components(pair: _Pair) -> list[str]:
    """The differing state components, each with its first differing tensor; none where a file cannot be read."""
    try:
        first, second = (read_checkpoint_file(manifest.path) for manifest in pair)
    except (DamagedFileError, OSError):
        return []
    names = [*COMPONENT_ORDER, *sorted({*first.parts, *second.parts} - {*COMPONENT_ORDER})]
    different = [name for name in names if first.parts.get(name) != second.parts.get(name)]
    tensors = sorted(name for name in {*first.rows, *second.rows} if first.rows.get(name) != second.rows.get(name))
    for at, component in enumerate(different):
        inside = [name.removeprefix(f"{component}/") for name in tensors if name.startswith(f"{component}/")]
        if inside:
            different[at] = f"{component} ({inside[0]})"
    return different or ["bytes of the file"]


def _first_different_step(ours: list[Record], theirs: list[Record]) -> int | None:
    outside = {"phase", *WALL_CLOCK_FIELDS}
    for mine, other in zip(ours, theirs, strict=False):
        if mine.model_dump(exclude=outside) != other.model_dump(exclude=outside):
            return min(mine.step, other.step)
    shorter, longer = sorted((ours, theirs), key=len)
    return longer[len(shorter)].step if len(shorter) < len(longer) else None


def check_hash_chain(folders: Iterable[Path]) -> list[str]:
    """Follow the digests from each epoch's checkpoint to its parent, the checkpoint it was trained from.

    Args:
        folders: the run's folder, then those that it resumed from.

    Returns:
        every missing, altered or foreign link as text; empty when the chain is complete.
    """
    unusable = _Unusable()
    runs = [_read_epochs(folder, folder.name, unusable) for folder in folders]
    own = runs[0]
    problems = [text for _, text in unusable] if own else ["no epoch's checkpoint to start the chain with"]
    digests: dict[int, str] = {}
    for run in reversed(runs):
        for epoch, manifest in run.items():
            digests[epoch], damage = _check(manifest)
            problems += [f"epoch {epoch}: {text}" for text in damage]
    for epoch, manifest in sorted(own.items()):
        if epoch == 1:
            if manifest.parent_sha256 is not None:
                problems.append("epoch 1: names a parent, but a run from scratch has none")
        elif epoch - 1 not in digests:
            problems.append(f"epoch {epoch}: the checkpoint of epoch {epoch - 1} is missing")
        elif manifest.parent_sha256 != digests[epoch - 1]:
            problems.append(f"epoch {epoch}: was not trained from this epoch {epoch - 1}: its parent's sha256 differs")
    return problems

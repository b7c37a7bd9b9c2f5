"""Compare two runs by the bytes of their checkpoints and the numbers of their logs.

Digests are computed from the files, not taken from the manifests, so that a bit changed after the run is found too.
Needs no torch.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

from seqtrack import run_dir
from seqtrack.checkpoints import side_files
from seqtrack.checkpoints.safetensors_io import Contents, DamagedFileError, read_checkpoint_file, utc_now
from seqtrack.checkpoints.store import Manifest, list_checkpoints, verify_checkpoint
from seqtrack.errors import UserError
from seqtrack.reports.consistency import copies, inconsistencies, wrong_start
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS

# The order in which differing components are named: causes before their consequences.
COMPONENT_ORDER = ("epoch", "step", "sample", "model", "optimizer", "scheduler", "scaler", "rng", "meters", "history")

# Keys of TRAIN that decide how often records of a kind are written. They may differ between a run and its resumption;
# then records of that kind cannot be compared, but checkpoints and the means of epochs can.
_INTERVAL_KEYS = {"interval": ("PRINT_INTERVAL",), "validation": ("VALIDATION_INTERVAL", "VALIDATION_SEQUENCES")}


class _Run:
    """A phase folder: the checkpoints of its epochs, and the unusable ones, which must not look like never saved."""

    def __init__(self, folder: Path, name: str) -> None:
        place = folder / run_dir.CHECKPOINTS
        if not place.is_dir():
            way = f"; `seqtrack train --phase {name[-1]}` trains it" if name in run_dir.PHASES else ""
            raise UserError(f"{folder} is not the folder of a run: it has no {place.name}/{way}", "verify.not_a_run")
        self.folder, self.name = folder, name
        self.epochs = {item.epoch: item for item in list_checkpoints(place, kinds=("epoch", "thin"))}
        self.unusable: list[tuple[int, str]] = []
        self.invalid: list[str] = []
        self.data: side_files.DatasetRecord | None = None
        for path in place.glob("*.json"):
            kind, epoch = run_dir.parse_checkpoint_name(path.name) or ("", 0)
            if kind == "ep" and epoch not in self.epochs:
                self.unusable.append((epoch, f"epoch {epoch}: the manifest {path.name} of {name} is unusable"))

    def read(self, name: str, kind: type[side_files.M]) -> side_files.M | None:
        """A file next to the checkpoints; what is wrong with it is added to `invalid`."""
        try:
            return side_files.read_side_file(self.folder / name, kind)
        except UserError as error:
            self.invalid += error.problems
            return None

    def facts(self) -> side_files.CertifiedRun:
        self.data = self.read(run_dir.DATASET_FILE, side_files.DatasetRecord)
        run = self.read(run_dir.RUN_FILE, side_files.RunRecord)
        environment = self.read(run_dir.ENVIRONMENT_FILE, side_files.EnvironmentRecord)
        return side_files.CertifiedRun(folder=self.name, run=run, environment=environment)

    def log(self, skipped: Collection[str]) -> dict[int, list[side_files.Record]]:
        """The records of `metrics.jsonl` by epoch, without some kinds."""
        metrics = side_files.read_metrics(run_dir.metrics_path(self.folder))
        self.invalid += metrics.problems
        by_epoch: dict[int, list[side_files.Record]] = {epoch: [] for epoch in self.epochs}
        for record in metrics.records:
            if record.type not in skipped and record.epoch in by_epoch:
                by_epoch[record.epoch].append(record)
        return by_epoch


def compare_runs(first: Path, second: Path) -> side_files.Certificate:
    """Compare two phase folders epoch by epoch, for the epochs that both have.

    Raises:
        UserError: a folder is missing, or the runs have no epoch in common.
    """
    if first.resolve() == second.resolve():
        raise UserError(f"{first} and {second} are one folder: a run cannot prove itself", "verify.one_folder")
    runs = [_Run(*run) for run in zip((first, second), distinguishing_names(first, second), strict=True)]
    ours, theirs = (run.epochs for run in runs)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        found = " and ".join(str(sorted(run.epochs) or "none") for run in runs)
        raise UserError(f"{first} and {second} have no epoch in common: they have {found}", "verify.no_common_epoch")
    settings = [[(run[epoch].config or {}).get("TRAIN", {}) for epoch in common] for run in (ours, theirs)]
    differing = {key for one, other in zip(*settings, strict=True) for key in one if one[key] != other.get(key)}
    skipped = [kind for kind, keys in _INTERVAL_KEYS.items() if differing.intersection(keys)]
    facts, logs = [run.facts() for run in runs], [run.log(skipped) for run in runs]
    epochs = [_compare_epoch([ours[epoch], theirs[epoch]], [log[epoch] for log in logs]) for epoch in common]
    remarks = [
        f"only {run.name} has a checkpoint of epochs {', '.join(map(str, only))}: not compared"
        for run in runs
        if (only := sorted(run.epochs.keys() - common))
    ]
    remarks += [
        f"{kind} records are not compared: the runs differ in TRAIN.{' and '.join(_INTERVAL_KEYS[kind])}"
        for kind in skipped
    ]
    invalid = [*runs[0].invalid, *runs[1].invalid]
    invalid += [text for folder in (first, second) for text in inconsistencies(folder) if text not in invalid]
    data = [run.data for run in runs]
    if data[0] and data[1] and data[0].digest == data[1].digest and data[0].sources != data[1].sources:
        invalid.append(f"{run_dir.DATASET_FILE}: the digest of both runs is {data[0].digest}, but their sources differ")
    invalid += [] if invalid else [*copies(first, second), *wrong_start(first, second)]
    found_at = [(one.epoch, f"epoch {one.epoch}: {one.differences[0]}") for one in epochs if one.differences]
    differences = [text for _, text in sorted([*found_at, *runs[0].unusable, *runs[1].unusable])] + invalid
    if max(ours) != max(theirs):
        differences.append(" and ".join(f"{run.name} ends at epoch {max(run.epochs)}" for run in runs))
    return side_files.Certificate(
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


def _compare_epoch(pair: Sequence[Manifest], logs: Sequence[Sequence[side_files.Record]]) -> side_files.CertifiedEpoch:
    (first, damage), (second, other_damage) = map(_check, pair)
    differences = []
    if pair[0].init_sha256 != pair[1].init_sha256:
        differences.append("the weights that the runs began with (init_sha256)")
    if pair[0].data_digest != pair[1].data_digest:
        differences.append("the data (data_digest; see dataset.json)")
    if first and second and first.sha256 != second.sha256:
        differences += _different_components(first, second)
    differences += damage + other_damage
    step = _first_different_step(*logs)
    if step is not None:
        differences.append(f"log numbers from step {step}")
    return side_files.CertifiedEpoch(
        epoch=pair[0].epoch,
        same=not differences,
        differences=differences,
        sha256=[contents.sha256 if contents else "unreadable" for contents in (first, second)],
        weights_sha256=[manifest.weights_sha256 for manifest in pair],
        loss=[manifest.loss for manifest in pair],
        iou=[manifest.iou for manifest in pair],
    )


def _check(manifest: Manifest) -> tuple[Contents | None, list[str]]:
    """A checkpoint file's digests as they are, None if it cannot be read; and in what it is not as it was written.
    An epoch without a file has the digests that its manifest keeps."""
    if manifest.kind == "thin":
        return Contents(manifest.sha256, {}, {}, manifest.parts, {}), []
    try:
        return verify_checkpoint(manifest), []
    except DamagedFileError as error:
        try:
            return read_checkpoint_file(manifest.path), [str(error)]
        except (DamagedFileError, OSError):
            return None, [str(error)]


def _different_components(first: Contents, second: Contents) -> list[str]:
    """The differing state components, each with its first differing tensor."""
    both = {*first.rows, *second.rows} if first.rows and second.rows else set()
    tensors = sorted(name for name in both if first.rows.get(name) != second.rows.get(name))
    different = []
    for name in [*COMPONENT_ORDER, *sorted({*first.parts, *second.parts} - {*COMPONENT_ORDER})]:
        if first.parts.get(name) != second.parts.get(name):
            inside = next((tensor for tensor in tensors if tensor.startswith(f"{name}/")), None)
            different.append(f"{name} ({inside.removeprefix(f'{name}/')})" if inside else name)
    return different or ["bytes of the file"]


def _first_different_step(ours: Sequence[side_files.Record], theirs: Sequence[side_files.Record]) -> int | None:
    outside = {"phase", *WALL_CLOCK_FIELDS}
    for mine, other in zip(ours, theirs, strict=False):
        if mine.model_dump(exclude=outside) != other.model_dump(exclude=outside):
            return min(mine.step, other.step)
    shorter, longer = sorted((ours, theirs), key=len)
    return longer[len(shorter)].step if len(shorter) < len(longer) else None


def check_run(folder: Path) -> list[str]:
    """What is wrong with one run by itself: damaged checkpoints, and contradictions between its files."""
    run = _Run(folder, folder.name)
    damaged = [f"epoch {one.epoch}: {text}" for one in run.epochs.values() for text in _check(one)[1]]
    return damaged + inconsistencies(folder)

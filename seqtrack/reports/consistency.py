"""Hold everything that a run recorded against everything else that it recorded. Needs no torch, and reads of the
checkpoint files only their heads.

What agrees may still be invented as a whole; `seqtrack audit` recomputes it.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.checkpoints.safetensors_io import read_values
from seqtrack.checkpoints.side_files import (
    DatasetRecord,
    EnvironmentRecord,
    EpochRecord,
    Fingerprint,
    IntervalRecord,
    Manifest,
    Metrics,
    RunRecord,
    read_metrics,
    read_side_file,
)
from seqtrack.checkpoints.store import read_epochs
from seqtrack.config.loader import compare_configs, config_digest, config_from_text, load_config
from seqtrack.config.schema import Config
from seqtrack.errors import UserError
from seqtrack.parsing import short_repr
from seqtrack.reports.run_log import device_name, log_contradictions
from seqtrack.run_dir import (
    CHECKPOINTS,
    CONFIG_FILE,
    DATASET_FILE,
    ENVIRONMENT_FILE,
    FETCHED,
    PHASES,
    RUN_FILE,
    epoch_name,
    metrics_path,
    phase_name,
    step_name,
)
from seqtrack.runtime.guarantee import guarantee
from seqtrack.runtime.metrics_log import WALL_CLOCK_FIELDS

_HISTORY_FIELDS = ("loss", "iou", "samples", "steps", "lr", "grad_norm", "skipped_steps", "checksum")
_SOURCES = (*PHASES, FETCHED)  # the folders that a run may start from
_TOLERANCE = 1e-9  # relative, of a mean that is computed again from the means of its parts


def inconsistencies(folder: Path) -> list[str]:
    """Every contradiction between the files of a run, each with file, field and both values; missing is one too."""
    try:
        run = read_run(folder)
        if run is None or not run.starts:
            return [f"{folder / RUN_FILE}: {'no such file' if run is None else 'starts is empty'}"]
        manifests = read_epochs(folder / CHECKPOINTS)
        if not manifests:
            return [f"{folder / CHECKPOINTS}: no checkpoint of a finished epoch"]
        config = load_config(str(folder / CONFIG_FILE))
        data = read_side_file(folder / DATASET_FILE, DatasetRecord)
        machine = read_side_file(folder / ENVIRONMENT_FILE, EnvironmentRecord)
        configs = {
            epoch: config_from_text(json.dumps(one.config), str(one.manifest_path)) for epoch, one in manifests.items()
        }
        metrics = read_metrics(metrics_path(folder))
        return [
            *_run_files(folder, run, config, data, machine),
            *(text for epoch, one in manifests.items() for text in _manifest(one, configs[epoch], run)),
            *_starts(folder, run, manifests, metrics),
            *_written(folder, run, config, machine, manifests, configs),
            *_chain(folder, run, config, manifests, configs),
            *_places(folder, run, metrics, manifests, configs),
            *_records(folder, run, metrics, manifests),
            *log_contradictions(folder, run, config, data, machine, manifests, metrics.records),
        ]
    except UserError as error:  # a file that cannot be read contradicts all others
        return [str(problem) for problem in error.problems]


def copies(first: Path, second: Path) -> list[str]:
    """The evidence that one of two runs is not a run but a copy of the other."""
    ours, theirs = (read_epochs(folder / CHECKPOINTS) for folder in (first, second))
    found = []
    for epoch in sorted({*ours} & {*theirs}):
        one, other = ours[epoch], theirs[epoch]
        if one.path.exists() and other.path.exists() and one.path.samefile(other.path):
            found.append(f"epoch {epoch}: {one.path} and {other.path} are one file")
    clocks = [
        {
            (one.type, one.step): [getattr(one, name, None) for name in sorted(WALL_CLOCK_FIELDS)]
            for one in read_metrics(metrics_path(folder)).records
            if not isinstance(one, EpochRecord) or one.epoch in ours
        }
        for folder in (first, second)
    ]
    common = {*clocks[0]} & {*clocks[1]}
    if common and all(clocks[0][key] == clocks[1][key] for key in common):
        found.append(f"the times of all {len(common)} common records are equal to the last digit")
    runs = [read_run(folder) for folder in (first, second)]
    if runs[0] and runs[1] and runs[0].started == runs[1].started and runs[0].starts == runs[1].starts:
        found.append(f"{RUN_FILE}: both runs started at {runs[0].started}, from the same step")
    return found


def wrong_start(first: Path, second: Path) -> list[str]:
    """What is wrong with the resumption of the second run from the first, as they recorded it."""
    run, ours = read_run(second), read_epochs(first / CHECKPOINTS)
    if run is None or not run.starts or run.starts[0].source is None:
        return []
    start, where = run.starts[0], second / RUN_FILE
    parent, begun = ours.get(start.epoch), read_epochs(second / CHECKPOINTS).get(start.epoch + 1)
    if str(start.source).split("/")[0] != first.name or parent is None or begun is None:
        return []
    if begun.parent_sha256 != parent.sha256:
        text = f"but {RUN_FILE} has the start {start.source}, whose sha256 is {parent.sha256}"
        return [f"{begun.manifest_path}: parent_sha256 is {begun.parent_sha256}, {text}"]
    found = [*_differs(where, "step of start 1", start.step, parent.manifest_path, parent.step)]
    # Else it may be an equal checkpoint of another machine.
    if first.resolve().parent == second.resolve().parent and parent.created[:19] <= run.started[:19]:
        held, expected = (start.guarantee, start.differences), guarantee(start.fingerprint, parent.fingerprint)
        found += _differs(where, "guarantee of start 1", held, parent.manifest_path, expected)
    return found


def _differs(where: object, field: str, found: object, there: object, expected: object) -> Iterator[str]:
    if found != expected:
        yield f"{where}: {field} is {short_repr(found, 80)}, but {short_repr(expected, 80)} in {there}"


def _tables_differ(
    where: object, field: str, found: Mapping[str, object], there: object, expected: Mapping[str, object]
) -> Iterator[str]:
    for name in sorted({*found, *expected}):
        yield from _differs(where, f"{field}.{name}", found.get(name), there, expected.get(name))


def _run_files(
    folder: Path, run: RunRecord, config: Config, data: DatasetRecord | None, machine: EnvironmentRecord | None
) -> Iterator[str]:
    """config.yaml, dataset.json and environment.json against run.json."""
    yield from _differs(folder / CONFIG_FILE, "its digest", config_digest(config), RUN_FILE, run.config_digest)
    yield from _differs(folder / CONFIG_FILE, "TRAIN.EPOCH", config.TRAIN.EPOCH, RUN_FILE, run.epochs)
    if folder.name in PHASES:
        yield from _differs(folder / RUN_FILE, "phase", run.phase, "its folder", PHASES.index(folder.name) + 1)
    for name, record in ((DATASET_FILE, data), (ENVIRONMENT_FILE, machine)):
        if record is None:
            yield f"{folder / name}: no such file"
    if data is not None:
        yield from _differs(folder / DATASET_FILE, "digest", data.digest, RUN_FILE, run.data_digest)
        yield from _data(folder / DATASET_FILE, data)
    if machine is not None:
        expected = run.starts[-1].fingerprint
        yield from _differs(folder / ENVIRONMENT_FILE, "fingerprint", machine.fingerprint, RUN_FILE, expected)
        torch = str(expected.get("torch")).partition("+")[0]  # without the build, which only torch itself tells
        yield from _differs(folder / ENVIRONMENT_FILE, "torch", machine.versions.get("torch"), RUN_FILE, torch)
        if "cpu" in expected:  # else it computed on a GPU
            yield from _differs(folder / ENVIRONMENT_FILE, "cpu", machine.cpu, RUN_FILE, expected["cpu"])


def _data(path: Path, data: DatasetRecord) -> Iterator[str]:
    """dataset.json against itself."""
    digest = hashlib.sha256("".join(one.digest for one in data.sources).encode()).hexdigest()
    yield from _differs(path, "digest", data.digest, "the digests of its sources", digest)
    for one in data.sources:
        for name in ("sequences", "frames"):
            total = sum(getattr(count, name) for count in one.classes.values())
            yield from _differs(path, f"{name} of {one.name}", getattr(one, name), "its classes", total)
        if one.names:  # which of still images are not listed
            yield from _differs(path, f"names of {one.name}", len(one.names), "its sequences", one.sequences)
        for name, count in one.classes.items():
            if max(count.visible, count.absent, count.missing) > count.frames:
                yield f"{path}: class {name} of {one.name} has more visible, absent or missing frames than frames"


def _manifest(manifest: Manifest, config: Config, run: RunRecord) -> Iterator[str]:
    """One manifest against the checkpoint's head and run.json."""
    where = manifest.manifest_path
    if manifest.path.exists():  # of a published run only the manifests are here
        yield from _differs(where, "kind", manifest.kind, "what is next to it", "epoch")
    yield from _differs(where, "phase", manifest.phase, RUN_FILE, run.phase)
    yield from _differs(where, "data_digest", manifest.data_digest, RUN_FILE, run.data_digest)
    yield from _differs(where, "the digest of config", config_digest(config), "config_digest", manifest.config_digest)
    if not any(start.config_changes for start in run.starts):
        yield from _differs(where, "config_digest", manifest.config_digest, RUN_FILE, run.config_digest)
    if manifest.fingerprint not in [start.fingerprint for start in run.starts]:
        yield f"{where}: fingerprint is that of no start in {RUN_FILE}"
    if manifest.device is not None and (device := device_name(manifest.fingerprint)) is not None:
        yield from _differs(where, "device", manifest.device, "fingerprint", device)


def _starts(folder: Path, run: RunRecord, manifests: Mapping[int, Manifest], metrics: Metrics) -> Iterator[str]:
    """run.json against itself and the steps of the epochs: the checkpoint that each start names, and what follows."""
    where, ends = folder / RUN_FILE, {0: 0}
    for record in metrics.of(EpochRecord):
        ends |= {record.epoch - 1: record.step - record.steps, record.epoch: record.step}
    ends |= {epoch: one.step for epoch, one in manifests.items()}
    named = {start.source.partition("/")[2] for start in run.starts if start.source is not None}
    if run.resume_epoch is None:
        yield from _differs(where, "source of the first start", run.starts[0].source, "resume_epoch", None)
    elif epoch_name(run.resume_epoch) not in named:
        yield f"{where}: resume_epoch is {run.resume_epoch}, but no start has this checkpoint as its source"
    for number, start in enumerate(run.starts):
        name, end = f"of start {number + 1}", ends.get(start.epoch)
        if start.source is None:
            yield from _differs(where, f"step and epoch {name}", (start.step, start.epoch), "its source", (0, 0))
        elif start.source in (f"{place}/{epoch_name(start.epoch)}" for place in _SOURCES):
            expected = start.step if end is None else end
            yield from _differs(where, f"step {name}", start.step, f"epoch {start.epoch}", expected)
        elif start.source not in (f"{place}/{step_name(start.step)}" for place in _SOURCES):
            yield f"{where}: source {name} is {short_repr(start.source, 80)}, which is not the checkpoint of its step"
        elif not ends.get(start.epoch - 1, 0) < start.step < (end or math.inf):
            yield f"{where}: step {name} is {start.step}, which is not within epoch {start.epoch}"
        if "world_size" in start.fingerprint and start.processes is not None:
            world = start.fingerprint["world_size"]
            yield from _differs(where, f"processes {name}", start.processes, "its fingerprint", world)
        if (theirs := _fingerprint_of_source(run, number)) is not None:
            held, wanted = (start.guarantee, start.differences), guarantee(start.fingerprint, theirs)
            yield from _differs(where, f"guarantee {name}", held, "the fingerprints", wanted)


def _fingerprint_of_source(run: RunRecord, number: int) -> Fingerprint | None:
    """With which fingerprint the checkpoint was trained that a start names; None if another run wrote it."""
    start, before = run.starts[number], run.starts[:number]
    if start.source is None:
        return start.fingerprint
    if not start.source.startswith(f"{phase_name(run.phase)}/"):
        return None
    return next((one.fingerprint for one in reversed(before) if one.step < start.step), None)


def _by_start(run: RunRecord, manifests: Mapping[int, Manifest]) -> list[list[int]]:
    """Of each start the epochs whose manifests it wrote, in order: what follows a later start was replaced by it."""
    ends = [
        min((one.step for one in run.starts[number:]), default=math.inf) for number in range(1, len(run.starts) + 1)
    ]
    return [
        [epoch for epoch, one in sorted(manifests.items()) if start.step < one.step <= end]
        for start, end in zip(run.starts, ends, strict=True)
    ]


def _written(
    folder: Path,
    run: RunRecord,
    config: Config,
    machine: EnvironmentRecord | None,
    manifests: Mapping[int, Manifest],
    configs: Mapping[int, Config],
) -> Iterator[str]:
    """The manifests that one start wrote agree with each other, and those of the last start with what it wrote last."""
    for start, written in zip(run.starts, _by_start(run, manifests), strict=True):
        for epoch in written:
            where, last = manifests[epoch].manifest_path, manifests[written[-1]]
            there = last.manifest_path.name
            yield from _tables_differ(where, "fingerprint", manifests[epoch].fingerprint, RUN_FILE, start.fingerprint)
            yield from _tables_differ(where, "versions", manifests[epoch].versions, there, last.versions)
            for one in compare_configs(configs[epoch], configs[written[-1]]):
                yield from _differs(where, one.key, one.a, there, one.b)
    if written:  # by the last start
        there = manifests[written[-1]].manifest_path.name
        for one in compare_configs(config, configs[written[-1]]):
            yield from _differs(folder / CONFIG_FILE, one.key, one.a, there, one.b)
        if machine is not None:
            versions = manifests[written[-1]].versions
            yield from _tables_differ(folder / ENVIRONMENT_FILE, "versions", machine.versions, there, versions)


def _chain(
    folder: Path, run: RunRecord, config: Config, manifests: Mapping[int, Manifest], configs: Mapping[int, Config]
) -> Iterator[str]:
    """Every epoch from the start to the end has a checkpoint, trained from the one before."""
    first, last = run.starts[0].epoch + 1, max(manifests)
    if run.state == "complete":
        yield from _differs(folder / CHECKPOINTS, "the last epoch", last, RUN_FILE, run.epochs)
    wanted = range(max(first, _last_deleted(run, config, manifests, configs) + 1), last + 1)
    if missing := [epoch for epoch in wanted if epoch not in manifests]:
        yield f"{folder / CHECKPOINTS}: no checkpoint of epochs {', '.join(map(str, missing))}"
    for epoch, manifest in sorted(manifests.items()):
        if epoch == 1:
            yield from _differs(manifest.manifest_path, "parent_sha256", manifest.parent_sha256, "a first epoch", None)
        elif (before := manifests.get(epoch - 1)) is not None:
            there = before.manifest_path.name
            yield from _differs(manifest.manifest_path, "parent_sha256", manifest.parent_sha256, there, before.sha256)
            yield from _differs(manifest.manifest_path, "init_sha256", manifest.init_sha256, there, before.init_sha256)


def _last_deleted(
    run: RunRecord, config: Config, manifests: Mapping[int, Manifest], configs: Mapping[int, Config]
) -> int:
    """The last epoch whose checkpoint TRAIN.KEEP_CHECKPOINTS, as it was at the time, may have deleted."""
    found = [0]
    for start, after, written in zip(run.starts, [*run.starts[1:], None], _by_start(run, manifests), strict=True):
        keeps = [(epoch, configs[epoch].TRAIN.KEEP_CHECKPOINTS) for epoch in written]
        if after is None:
            found += [epoch - keep for epoch, keep in keeps or [(start.epoch, config.TRAIN.KEEP_CHECKPOINTS)] if keep]
        # Of a start that wrote more than is left, only steps or what the next start replaced, nothing more is known.
        elif any(keep for _, keep in keeps) or (not keeps and after.step != start.step):
            found.append(after.epoch - 1)
    return max(found)


def _places(
    folder: Path, run: RunRecord, metrics: Metrics, manifests: Mapping[int, Manifest], configs: Mapping[int, Config]
) -> Iterator[str]:
    """Each record belongs to this run and one of its epochs; of an epoch and of its validation there is one."""
    path, last = metrics_path(folder), max(manifests) + (run.state != "complete")  # one more may have begun
    first, seen = run.starts[0].epoch + 1, set[tuple[str, int]]()
    resumed = {start.step for start in run.starts}  # an epoch without scores is validated by the start that follows it
    for one in metrics.records:
        where = f"{path}: the record {one.type} at step {one.step}"
        yield from _differs(where, "phase", one.phase, RUN_FILE, run.phase)
        if not first <= one.epoch <= last:
            yield f"{where} is of epoch {one.epoch}, but the run trained {first} to {last}"
        interval = configs[one.epoch].TRAIN.VALIDATION_INTERVAL if one.epoch in configs else 1
        if one.type == "validation" and one.step not in resumed and (not interval or one.epoch % interval):
            yield f"{where} is of an epoch whose TRAIN.VALIDATION_INTERVAL was {interval}"
        if one.type != "interval" and (one.type, one.epoch) in seen:
            yield f"{where} is the second of epoch {one.epoch}"
        seen.add((one.type, one.epoch))


def _records(folder: Path, run: RunRecord, metrics: Metrics, manifests: Mapping[int, Manifest]) -> Iterator[str]:
    """metrics.jsonl against the histories in the checkpoints and itself."""
    path, first = metrics_path(folder), run.starts[0].epoch + 1
    yield from map(str, metrics.problems)
    intervals: dict[int, list[IntervalRecord]] = defaultdict(list)
    for one in metrics.of(IntervalRecord):
        intervals[one.epoch].append(one)
    epochs = {one.epoch: one for one in metrics.of(EpochRecord)}
    states = {epoch: read_values(one.path) for epoch, one in manifests.items() if one.path.exists()}
    for epoch, values in states.items():
        manifest = manifests[epoch]
        there: dict[str, object] = {name: values.get(name) for name in ("epoch", "step", "sample")}
        there |= {"init_sha256": None, **values.get("lineage", {"lineage": None})}
        there |= {name: (values.get("history") or [{}])[-1].get(name) for name in ("loss", "iou")}
        for name, value in there.items():
            yield from _differs(manifest.manifest_path, name, getattr(manifest, name, "none"), manifest.file, value)
    histories = {epoch: values.get("history", []) for epoch, values in states.items()}
    longest: list[dict[str, object]] = max(histories.values(), key=len, default=[])
    for epoch, history in sorted(histories.items()):
        yield from _differs(manifests[epoch].path, "epochs in its history", len(history), "its name", epoch)
        if history != longest[: len(history)]:
            yield f"{manifests[epoch].path}: its history differs from that of the last checkpoint"
    for epoch in range(first, max(manifests) + 1):
        record = epochs.get(epoch)
        if record is None:
            yield f"{path}: no record of epoch {epoch}"
            continue
        if epoch <= len(longest):
            for name in _HISTORY_FIELDS:
                value = longest[epoch - 1].get(name)
                yield from _differs(path, f"{name} of epoch {epoch}", getattr(record, name), "the checkpoints", value)
        if epoch in manifests:
            yield from _differs(path, f"step of epoch {epoch}", record.step, "its manifest", manifests[epoch].step)
        yield from _intervals(path, record, intervals[epoch])


def _intervals(path: Path, epoch: EpochRecord, intervals: list[IntervalRecord]) -> Iterator[str]:
    """The intervals of an epoch add up to it."""
    where = f"of epoch {epoch.epoch}"
    samples = sum(one.interval_samples for one in intervals)
    yield from _differs(path, f"samples of the intervals {where}", samples, "its record", epoch.samples)
    for name in ("loss", "iou"):
        total = 0.0
        for one in (*intervals, epoch):
            total += getattr(one, f"interval_{name}", 0.0) * getattr(one, "interval_samples", 0)
            mean, recorded = total / max(1, getattr(one, "sample", samples)), getattr(one, name)
            if abs(mean - recorded) > _TOLERANCE * max(abs(mean), abs(recorded)):
                yield f"{path}: {name} at step {one.step} is {recorded!r}, but the mean of the intervals {mean!r}"
                break
    steps = [one.step for one in intervals]
    if steps != sorted(set(steps)) or (steps and not epoch.step - epoch.steps < steps[0] <= steps[-1] == epoch.step):
        yield f"{path}: the steps of the intervals {where} are not those of the epoch"

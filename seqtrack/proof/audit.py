"""Audit a run: choose parts of it, train them again, and conclude.

The auditor's nonce chooses the parts, so that the run's owner cannot know them in advance. Confirmed: everything that
was recomputed has the recorded bits. Refuted: something differs although machine and libraries guarantee equal bits.
Undecided: something differs, and so does the machine.
"""

import contextlib
import hashlib
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.checkpoints.safetensors_io import sha256_file, utc_now
from seqtrack.checkpoints.side_files import (
    AuditedSegment,
    AuditRecord,
    AuditVerdict,
    EnvironmentRecord,
    EpochRecord,
    Fingerprint,
    IntervalRecord,
    Manifest,
    RunRecord,
    read_metrics,
    read_side_file,
)
from seqtrack.checkpoints.store import manifest_of, read_epochs
from seqtrack.config.loader import config_digest, config_from_text
from seqtrack.config.schema import Config
from seqtrack.data.sources import describe
from seqtrack.errors import UserError
from seqtrack.proof.replay import Replay, Replayed, Segment, TrainingRecord
from seqtrack.run_dir import CHECKPOINTS, ENVIRONMENT_FILE, metrics_path
from seqtrack.runtime.distributed import join
from seqtrack.runtime.environment import lock_digest, source_commit
from seqtrack.runtime.guarantee import guarantee
from seqtrack.training import build

# Of the default audit: random parts, and steps of each. In a short epoch the second record shows as much.
SEGMENTS, STEPS, SHARE_OF_EPOCH = 3, 25, 0.02


@dataclass(frozen=True)
class RunEvidence:
    """What a run recorded, and how to get at its checkpoints.

    Args:
        manifests: of every epoch, with a checkpoint file or without.
        fetch: the manifest of an epoch's checkpoint whose file is here, or None where the run keeps none.
    """

    folder: Path
    run: RunRecord
    manifests: Mapping[int, Manifest]
    recorded: Sequence[TrainingRecord]
    environment: EnvironmentRecord | None
    fetch: Callable[[int], Manifest | None]

    @property
    def first_epoch(self) -> int:
        """The first epoch that this run trained."""
        return self.run.starts[0].epoch + 1

    @property
    def last_epoch(self) -> int:
        return max(self.manifests)

    @property
    def config(self) -> Config:
        """The configuration of the last checkpoint; of the epochs before it, it may differ in the schedule's end."""
        manifest = self.manifests[self.last_epoch]
        config = config_from_text(json.dumps(manifest.config), str(manifest.manifest_path))
        if config_digest(config) != manifest.config_digest:
            raise UserError(f"{manifest.manifest_path}: config has another digest than config_digest", "audit.config")
        return config


def read_evidence(folder: Path, fetch: Callable[[int], Manifest | None] | None = None) -> RunEvidence:
    """The evidence in a run's folder.

    Args:
        fetch: gets an epoch's checkpoint that is not in the folder.

    Raises:
        UserError: it is no run's folder, or a file of it is damaged.
    """
    run = read_run(folder)
    if run is None or not run.starts:
        raise UserError(f"{folder} holds no run: run.json is missing or has no start", "audit.no_run")
    if not (manifests := read_epochs(folder / CHECKPOINTS)):
        raise UserError(f"{folder} has no checkpoint of a finished epoch", "audit.no_epoch")
    metrics = read_metrics(metrics_path(folder))
    if metrics.problems:
        raise UserError(metrics.problems)

    def here(epoch: int) -> Manifest | None:
        manifest = manifests.get(epoch)
        if manifest is not None and (manifest.path.is_file() or manifest.kind == "thin"):
            return manifest if manifest.kind == "epoch" else None
        if manifest is None and run.starts[0].source and epoch == run.starts[0].epoch:
            other, _, name = run.starts[0].source.partition("/")  # the run that it resumed from
            if (source := folder.parent / other / CHECKPOINTS / name).is_file():
                return manifest_of(source)
        return fetch(epoch) if fetch is not None else None

    recorded = [one for one in metrics.records if isinstance(one, IntervalRecord | EpochRecord)]
    environment = read_side_file(folder / ENVIRONMENT_FILE, EnvironmentRecord)
    return RunEvidence(folder, run, manifests, recorded, environment, here)


def choose_segments(
    evidence: RunEvidence, *, nonce: str, segments: int | None, steps: int | None, epochs: Sequence[int] | None
) -> list[Segment]:
    """The parts of a run to recompute, in the order of epochs.

    Args:
        nonce: chooses the random parts, together with the last checkpoint's digest.
        segments: only this many random parts; None for the default: the first epoch that the run trained, its last,
            and SEGMENTS random parts of the others.
        steps: of a random part; None for STEPS, or in short epochs for SHARE_OF_EPOCH and at least two records.
        epochs: only these epochs, whole.

    Raises:
        UserError: an epoch that the run did not train, or one that no checkpoint precedes.
    """
    first, last = evidence.first_epoch, evidence.last_epoch
    if first > last:
        raise UserError(f"{evidence.folder} resumed from epoch {first - 1} and trained none", "audit.no_epoch")
    whole = list(epochs) if epochs is not None else [] if segments is not None else sorted({first, last})
    if wrong := [epoch for epoch in whole if not first <= epoch <= last]:
        raise UserError(f"{evidence.folder} trained epochs {first} to {last}, not {wrong}", "audit.no_such_epoch")
    parts: list[int] = []
    if epochs is None:
        others = [epoch for epoch in range(first, last + 1) if epoch not in whole]
        seed = hashlib.sha256(f"{nonce}\n{evidence.manifests[last].sha256}".encode()).digest()
        wanted = SEGMENTS if segments is None else segments
        parts = random.Random(seed).sample(others, min(wanted, len(others)))
    chosen: list[tuple[int, int | None]] = [(epoch, None) for epoch in whole]
    chosen += [(epoch, steps or _steps_of_part(evidence.recorded, epoch)) for epoch in parts]
    return [Segment(epoch, _start(evidence, epoch), part) for epoch, part in sorted(chosen, key=lambda one: one[0])]


def _steps_of_part(recorded: Sequence[TrainingRecord], epoch: int) -> int:
    """How many steps of an epoch to recompute by default."""
    per_epoch = max((one.steps for one in recorded if isinstance(one, EpochRecord)), default=0)
    intervals = sorted(one.step for one in recorded if isinstance(one, IntervalRecord) and one.epoch == epoch)
    # The second record tells what the first step did.
    two_records = (intervals[:2] or [epoch * per_epoch])[-1] - (epoch - 1) * per_epoch
    return max(two_records, min(STEPS, int(SHARE_OF_EPOCH * per_epoch)))


def segment_of(evidence: RunEvidence, epoch: int, *, from_start: bool = False) -> Segment:
    """A whole epoch from the nearest checkpoint before it, or everything from the run's start to its end."""
    return Segment(epoch, _start(evidence, evidence.first_epoch if from_start else epoch))


def code_differences(evidence: RunEvidence) -> list[str]:
    """In what this code and its packages differ from those that the run was trained with."""
    there = evidence.environment
    if there is None:
        return ["environment.json is missing"]
    pairs = (("commit", there.commit, source_commit()), ("lock sha256", there.lock_sha256[:16], lock_digest()[:16]))
    return [f"{name}: {theirs} there, {ours} here" for name, theirs, ours in pairs if theirs != ours]


def _start(evidence: RunEvidence, epoch: int) -> Manifest | None:
    """The nearest checkpoint before an epoch; None for the untrained state."""
    for before in range(epoch - 1, 0, -1):
        if (manifest := evidence.fetch(before)) is not None:
            child = evidence.manifests.get(before + 1)
            if child is not None and child.parent_sha256 != manifest.sha256:
                text = f"parent_sha256 is {child.parent_sha256}, but {manifest.path} has sha256 {manifest.sha256}"
                raise UserError(f"{child.manifest_path}: {text}", "audit.other_parent")
            return manifest
    if evidence.first_epoch > 1:
        text = f"no checkpoint before epoch {epoch}, and the run resumed from epoch {evidence.first_epoch - 1}"
        raise UserError(f"{evidence.folder} has {text}: give the run it resumed from too", "audit.no_start")
    return None


def estimate_s(evidence: RunEvidence, segments: Sequence[Segment]) -> float:
    """Seconds that the segments took when the run was trained."""
    seconds = {one.epoch: (one.time_s, one.steps) for one in evidence.recorded if isinstance(one, EpochRecord)}
    total = 0.0
    for one in segments:
        first = one.start.epoch + 1 if one.start else 1
        for epoch in range(first, one.epoch + 1):
            time_s, steps = seconds.get(epoch, (0.0, 1))
            total += time_s if epoch < one.epoch or one.steps is None else time_s * min(1.0, one.steps / steps)
    return total


def missed_chance(epochs: int, drawn: int, forged: int) -> float:
    """The chance that none of `forged` of `epochs` epochs is among `drawn` that are drawn at random."""
    return math.comb(epochs - forged, drawn) / math.comb(epochs, drawn) if drawn else 1.0


@contextlib.contextmanager
def open_replay(evidence: RunEvidence, data_dir: Path, device: str) -> Iterator[tuple[Replay, list[str]]]:
    """What segments of a run are trained with on this machine, and in what the machine differs from the run's.

    Raises:
        UserError: other data than the run's.
    """
    config, last = evidence.config, evidence.manifests[evidence.last_epoch]
    distributed = join(device)
    with contextlib.ExitStack() as open_:
        build.set_kernels(config, distributed)
        if isinstance(threads := last.fingerprint.get("threads"), int):
            torch.set_num_threads(threads)  # the order of sums depends on it
        sources = build.open_sources(config, data_dir)
        if (digest := describe(sources).digest) != last.data_digest:
            text = f"the data in {data_dir} have digest {digest[:16]}, the run's had {str(last.data_digest)[:16]}"
            raise UserError(f"{text}: an audit needs the same sequences, annotations and frames", "audit.other_data")
        loader = open_.enter_context(contextlib.closing(build.build_loader(config, sources, distributed)))
        loader.start_workers()
        _, differences = guarantee(build.run_fingerprint(config, distributed), last.fingerprint)
        yield (
            Replay(
                config,
                evidence.run.phase,
                loader,
                distributed,
                evidence.recorded,
                evidence.manifests,
                stops_at_difference=not differences,
            ),
            differences,
        )


def audit(
    evidence: RunEvidence,
    segments: Sequence[Segment],
    *,
    data_dir: Path,
    device: str,
    nonce: str,
    on_segment: Callable[[Replayed], None] = lambda replayed: None,
) -> AuditRecord | None:
    """Recompute the segments on this machine; None when a stop was requested, and on ranks other than 0.

    Raises:
        UserError: other data than the run's, or a checkpoint that cannot be used.
    """
    last, began = evidence.manifests[evidence.last_epoch], time.monotonic()
    with open_replay(evidence, data_dir, device) as (replay, differences):
        audited = []
        for segment in segments:
            result = replay.run(segment)
            if result.stopped:
                return None
            audited.append(_audited(evidence, result, differences))
            if replay.distributed.is_main:
                on_segment(result)
        if not replay.distributed.is_main:
            return None
        verdicts = {one.verdict for one in audited}
        verdict: AuditVerdict = (
            "refuted" if "refuted" in verdicts else "confirmed" if verdicts == {"confirmed"} else "undecided"
        )
        return AuditRecord(
            verdict=verdict,
            nonce=nonce,
            phase=evidence.run.phase,
            first_epoch=evidence.first_epoch,
            last_epoch=evidence.last_epoch,
            config_digest=evidence.run.config_digest,
            data_digest=evidence.run.data_digest,
            last_sha256=last.sha256,
            metrics_sha256=sha256_file(metrics_path(evidence.folder)),
            fingerprint=build.run_fingerprint(replay.config, replay.distributed),
            machine_differences=differences,
            segments=audited,
            steps=sum(one.steps for one in audited),
            steps_of_run=(evidence.last_epoch - evidence.first_epoch + 1) * replay.loader.steps_per_epoch,
            seconds=round(time.monotonic() - began, 3),
            created=utc_now(),
        )


def _audited(evidence: RunEvidence, result: Replayed, machine_differences: Sequence[str]) -> AuditedSegment:
    segment, found = result.segment, result.mismatch
    reasons = list(machine_differences) or _other_machines(evidence, segment)
    is_compared = bool(result.records or result.states)  # a few steps may have no record
    return AuditedSegment(
        epoch=segment.epoch,
        start_epoch=segment.start.epoch if segment.start else 0,
        start_sha256=segment.start.sha256 if segment.start else None,
        steps=result.steps,
        records=result.records,
        states=result.states,
        verdict="refuted" if found and not reasons else "undecided" if found or not is_compared else "confirmed",
        difference=found,
        largest_difference=result.largest_difference,
    )


def _other_machines(evidence: RunEvidence, segment: Segment) -> list[str]:
    """The reasons why the run itself did not train these epochs in one piece on one kind of machine."""
    prints: list[Fingerprint] = [evidence.manifests[evidence.last_epoch].fingerprint]
    first = segment.start.epoch + 1 if segment.start else 1
    prints += [
        evidence.manifests[one].fingerprint for one in range(first, segment.epoch + 1) if one in evidence.manifests
    ]
    prints += [one.fingerprint for one in evidence.run.starts if first <= one.epoch <= segment.epoch]
    return [text for one in prints[1:] for text in guarantee(prints[0], one)[1]]

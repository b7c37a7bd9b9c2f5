"""Make the subjects of an evaluation: checkpoints of a run, baselines, other trackers' files.

Knows checkpoints, models and result files; knows no command line and writes nothing.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from seqtrack.checkpoints.start import unusable_checkpoints
from seqtrack.checkpoints.store import Manifest, list_checkpoints, manifest_of
from seqtrack.data.sequence import Sequence as VideoSequence
from seqtrack.errors import UserError
from seqtrack.evaluation.annotations import Annotation, from_sequences
from seqtrack.evaluation.metrics import TOOLKIT, Convention, score
from seqtrack.evaluation.results import ResultSet
from seqtrack.evaluation.run import CONCURRENT, score_tracks, still_boxes, track_sequences
from seqtrack.evaluation.subjects import Subject
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.tracking.settings import TrackerSettings

logger = logging.getLogger(__name__)


def select_checkpoints(run: Path, wanted: Sequence[str]) -> list[Manifest]:
    """The checkpoints of a run that are asked for, each once, by epoch.

    Args:
        run: a folder `phase_N`.
        wanted: words such as "all", "last", "3", "2-5", or paths of checkpoints from anywhere.

    Raises:
        UserError: a word that is none of these, an epoch that is not there (with those that are).
    """
    folder = run / "checkpoints"
    there = {manifest.epoch: manifest for manifest in list_checkpoints(folder, kinds=("epoch",))}
    epochs = ", ".join(map(str, sorted(there))) or "none"
    chosen: dict[Path, Manifest] = {}
    problems: list[str] = []
    for word in wanted:
        found: list[Manifest] = []
        if word in ("all", "last"):
            found = [there[epoch] for epoch in sorted(there)][-1 if word == "last" else 0 :]
            if not found:
                problems.append(f"{folder} holds no epoch's checkpoint; train first, or name a checkpoint file")
                problems += unusable_checkpoints(folder).values()
        elif word.replace("-", "", 1).isdigit() and word[0] != "-":
            first, _, last = word.partition("-")
            for epoch in range(int(first), int(last or first) + 1):
                if epoch in there:
                    found.append(there[epoch])
                else:
                    problems.append(f"{folder} holds no checkpoint of epoch {epoch}; there are: {epochs}")
        elif "/" in word or word.endswith((".safetensors", ".json")) or Path(word).is_file():
            try:
                found = [manifest_of(Path(word))]
            except UserError as error:
                problems += error.problems
        else:
            problems.append(f"--checkpoint {word}: expected all, last, an epoch such as 3, a range 2-5, or a file")
        chosen |= {manifest.path: manifest for manifest in found}
    if problems:
        raise UserError(problems)
    return sorted(chosen.values(), key=lambda manifest: manifest.epoch)


def checkpoint_name(manifest: Manifest, others: Iterable[Manifest]) -> str:
    """ "epoch 3", or the file's name where that says more or two would be called the same."""
    twins = [one for one in others if one.epoch == manifest.epoch]
    return f"epoch {manifest.epoch}" if manifest.kind == "epoch" and len(twins) < 2 else manifest.path.stem


def model_subject(
    name: str,
    kind: str,
    model: SeqTrack,
    sequences: Sequence[VideoSequence],
    settings: TrackerSettings,
    *,
    epoch: int | None = None,
    source: dict[str, object],
    convention: Convention = TOOLKIT,
    concurrent: int = CONCURRENT,
    on_frames: Callable[[int], object] | None = None,
) -> Subject:
    """Track every sequence with a model and score it; arguments as `track_sequences` and `score_tracks`."""
    tracks = track_sequences(model, sequences, settings, concurrent=concurrent, on_frames=on_frames)
    scores = score_tracks(tracks, from_sequences(sequences), convention=convention)
    return Subject(name, kind, epoch, source, scores, tracks)


def checkpoint_source(manifest: Manifest) -> dict[str, object]:
    """What identifies a checkpoint in an evaluation's records."""
    return {
        "file": manifest.file,
        "sha256": manifest.sha256,
        "weights_sha256": manifest.weights_sha256,
        "config_digest": manifest.config_digest,
    }


def untrained_model(spec: ModelSpec, *, seed: int, device: torch.device) -> SeqTrack:
    """The model as it is before its first step, without pretrained weights."""
    return build_model(spec, seed=seed).to(device).eval()


def still_subject(annotations: Sequence[Annotation], *, convention: Convention = TOOLKIT) -> Subject:
    """The box that stands still."""
    tracks = {one.name: still_boxes(one) for one in annotations}
    return Subject("still box", "still", None, {}, score_tracks(tracks, annotations, convention=convention), tracks)


def result_subjects(
    sets: Iterable[ResultSet], annotations: Sequence[Annotation], *, convention: Convention = TOOLKIT
) -> list[Subject]:
    """Other trackers' boxes, scored. Names that two of them share are told apart by their folders."""
    found = list(sets)
    names = [one.name for one in found]
    subjects = []
    for one in found:
        name = one.name if names.count(one.name) == 1 else f"{one.source.parent.name}/{one.name}"
        scores = {
            each.name: score(one.boxes[each.name], each.boxes_xywh, each.visible, convention=convention)
            for each in annotations
        }
        subjects.append(Subject(name, "results", None, {"results": one.source.name}, scores, None, one.notes))
    return subjects

"""Make the subjects of an evaluation: checkpoints of a run, baselines, other trackers' files.

Knows manifests and result files; knows no command line and writes nothing. Models are `run.py`'s affair: other
trackers are scored without torch.
"""

import itertools
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from seqtrack.checkpoints.resume_point import unusable_checkpoints
from seqtrack.checkpoints.store import Manifest, list_checkpoints, manifest_of
from seqtrack.errors import UserError
from seqtrack.evaluation.annotations import Annotation
from seqtrack.evaluation.metrics import TOOLKIT, Convention, Scores, score
from seqtrack.evaluation.results import ResultSet
from seqtrack.evaluation.tracker_results import TrackerResult, Tracks
from seqtrack.run_dir import CHECKPOINTS

logger = logging.getLogger(__name__)


def select_checkpoints(run: Path, wanted: Sequence[str]) -> list[Manifest]:
    """The checkpoints of a run that are asked for, each once, by epoch.

    Args:
        run: a folder `phase_N`.
        wanted: words such as "all", "last", "3", "2-5", or paths of checkpoints from anywhere.

    Raises:
        UserError: a word that is none of these, an epoch that is not there (with those that are).
    """
    folder = run / CHECKPOINTS
    there = {manifest.epoch: manifest for manifest in list_checkpoints(folder, kinds=("epoch",))}
    epochs = ", ".join(map(str, sorted(there))) or "none"
    chosen: dict[Path, Manifest] = {}
    problems: list[str] = []
    for token in wanted:
        found: list[Manifest] = []
        if token in ("all", "last"):
            found = [there[epoch] for epoch in sorted(there)][-1 if token == "last" else 0 :]
            if not found:
                problems.append(f"{folder} holds no epoch's checkpoint; train first, or name a checkpoint file")
                problems += unusable_checkpoints(folder).values()
        elif token.replace("-", "", 1).isdigit() and token[0] != "-":
            first, _, last = token.partition("-")
            begin, end = int(first), int(last or first)
            found = [there[epoch] for epoch in sorted(there) if begin <= epoch <= end]
            if len(found) != end - begin + 1:  # not by listing the range: it may be as long as a typing error
                missing = next(epoch for epoch in itertools.count(begin) if epoch not in there)
                problems.append(f"{folder} holds no checkpoint of epoch {missing}; there are: {epochs}")
        elif "/" in token or token.endswith((".safetensors", ".json")) or Path(token).is_file():
            try:
                found = [manifest_of(Path(token))]
            except UserError as error:
                problems += error.problems
        else:
            problems.append(f"--checkpoint {token}: expected all, last, an epoch such as 3, a range 2-5, or a file")
        chosen |= {manifest.path: manifest for manifest in found}
    if problems:
        raise UserError(problems)
    return sorted(chosen.values(), key=lambda manifest: manifest.epoch)


def checkpoint_name(manifest: Manifest, others: Iterable[Manifest]) -> str:
    """ "epoch 3", or the file's name where that says more or two would be called the same."""
    twins = [one for one in others if one.epoch == manifest.epoch]
    return f"epoch {manifest.epoch}" if manifest.kind == "epoch" and len(twins) < 2 else manifest.path.stem


def checkpoint_source(manifest: Manifest) -> dict[str, object]:
    """What identifies a checkpoint in an evaluation's records."""
    return {
        "file": manifest.file,
        "sha256": manifest.sha256,
        "weights_sha256": manifest.weights_sha256,
        "config_digest": manifest.config_digest,
    }


def static_boxes(annotation: Annotation) -> Tracks:
    """The tracker that does nothing: the first box in every frame. What a trained model has to beat."""
    return Tracks(np.repeat(annotation.boxes_xywh[:1], annotation.num_frames, axis=0), 0.0)


def score_tracks(
    tracks: dict[str, Tracks], annotations: Iterable[Annotation], *, convention: Convention = TOOLKIT
) -> dict[str, Scores]:
    """Scores by sequence, in the annotations' order."""
    return {
        one.name: score(tracks[one.name].boxes_xywh, one.boxes_xywh, one.visible, convention=convention)
        for one in annotations
    }


def static_box_result(annotations: Sequence[Annotation], *, convention: Convention = TOOLKIT) -> TrackerResult:
    """The box that is still."""
    tracks = {one.name: static_boxes(one) for one in annotations}
    return TrackerResult(
        "static box", "still", None, {}, score_tracks(tracks, annotations, convention=convention), tracks
    )


def results_from_files(
    sets: Iterable[ResultSet], annotations: Sequence[Annotation], *, convention: Convention = TOOLKIT
) -> list[TrackerResult]:
    """Other trackers' boxes, scored. Names that two of them share are told apart by their folders."""
    found = list(sets)
    names = [one.name for one in found]
    results = []
    for one in found:
        name = one.name if names.count(one.name) == 1 else f"{one.source.parent.name}/{one.name}"
        scores = {
            each.name: score(one.boxes[each.name], each.boxes_xywh, each.visible, convention=convention)
            for each in annotations
        }
        results.append(TrackerResult(name, "results", None, {"results": one.source.name}, scores, None, one.notes))
    return results

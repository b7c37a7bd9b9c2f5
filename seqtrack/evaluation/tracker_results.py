"""Who is evaluated, and the whole of what came out: epochs of a run, baselines, other trackers, side by side.

Knows how one entry of a table is made of scores and times; knows no file format and no tracker, so that reading an
evaluation again needs no torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from seqtrack.evaluation.annotations import Annotation
from seqtrack.evaluation.metrics import Array, Scores, mean_scores

KINDS = ("checkpoint", "untrained", "still", "results")


@dataclass(frozen=True)
class Tracks:
    """What a tracker did with one sequence.

    Attributes:
        boxes_xywh: (N, 4) pixels; the first is the annotation it was given.
        seconds: time of the tracker for the N - 1 frames after the first; reading frames and cutting search regions
            out of them happens next to it and is left out. Of a step that followed several sequences at once, each
            frame has an equal share. 0 where nothing was measured.
    """

    boxes_xywh: Array
    seconds: float

    @property
    def fps(self) -> float | None:
        """TrackResult frames a second, None where nothing was measured."""
        return (len(self.boxes_xywh) - 1) / self.seconds if self.seconds > 0 and len(self.boxes_xywh) > 1 else None


@dataclass(frozen=True)
class TrackerResult:
    """One tracker with its boxes scored.

    Attributes:
        name: as tables show it, such as "epoch 3" or "SiamRPN++".
        kind: one of `KINDS`.
        epoch: of a checkpoint, else None.
        source: where it comes from (file, digests, settings), JSON-able.
        scores: by sequence.
        tracks: boxes and times by sequence; None for other trackers' files.
        notes: what was remarked while reading.
    """

    name: str
    kind: str
    epoch: int | None
    source: dict[str, Any]
    scores: dict[str, Scores]
    tracks: dict[str, Tracks] | None
    notes: tuple[str, ...] = ()

    def timing(self, names: Iterable[str]) -> dict[str, float | None]:
        """`fps` and `ms_a_frame` over these sequences, None where no time was taken."""
        tracks = [self.tracks[name] for name in names] if self.tracks is not None else []
        seconds = sum(one.seconds for one in tracks)
        frames = sum(len(one.boxes_xywh) - 1 for one in tracks)
        if seconds <= 0 or frames <= 0:
            return {"fps": None, "ms_a_frame": None}
        return {"fps": frames / seconds, "ms_a_frame": 1000 * seconds / frames}

    def mean(self, names: Iterable[str]) -> Scores:
        return mean_scores([self.scores[name] for name in names])


@dataclass(frozen=True)
class Evaluation:
    """Every subject over the same sequences, and under what conditions.

    Attributes:
        annotations: what was tracked, in the order of tables.
        subjects: in the order of tables.
        conditions: data set, split, device, precision and the like, JSON-able.
    """

    annotations: Sequence[Annotation]
    results: Sequence[TrackerResult]
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.annotations]

    @property
    def classes(self) -> dict[str, list[str]]:
        """Names of sequences by class, classes in the order they come."""
        found: dict[str, list[str]] = {}
        for one in self.annotations:
            found.setdefault(one.class_name, []).append(one.name)
        return found

    def metrics(self, result: TrackerResult, names: Iterable[str]) -> dict[str, float | None]:
        """All figures of a subject over some of the sequences, percent, with `fps` and `ms_a_frame`."""
        chosen = list(names)
        return {**result.mean(chosen).metrics(), **result.timing(chosen)}

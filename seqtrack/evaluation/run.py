"""Run a model over whole sequences, many at a time, and score its boxes.

Knows no checkpoint file, configuration or table. Validation inside a training run is here too: it leaves the model, its
mode and every random state unchanged.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from seqtrack.data import Image
from seqtrack.data.decode import read_image
from seqtrack.data.sequence import Sequence as VideoSequence
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.metrics import METRICS, Array
from seqtrack.evaluation.results import Tracks, score_tracker
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tracking.tracker import BatchTracker, TrackedModel, TrackerSettings, TrackState

CONCURRENT = 16  # sequences tracked at once; a small model's time is mostly call overhead, which a batch shares


class _StoppedError(Exception):
    """Validation was asked to stop."""


@dataclass
class _Running:
    """A sequence being tracked: its state, its boxes so far, and its next frame, None after the last."""

    sequence: VideoSequence
    state: TrackState
    boxes: list[Array]
    times_s: list[float]
    next: "Future[Image] | None" = None

    def read_ahead(self, index: int, pool: ThreadPoolExecutor) -> None:
        there = index < self.sequence.num_frames
        self.next = pool.submit(read_frame, self.sequence.frame_path(index)) if there else None


def read_frame(path: Path) -> Image:
    """(H, W, 3) RGB of a frame file; errors as `read_image`."""
    return np.asarray(cv2.cvtColor(read_image(path), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def track_sequences(
    model: TrackedModel,
    sequences: Sequence[VideoSequence],
    settings: TrackerSettings,
    *,
    concurrent: int = CONCURRENT,
    on_frames: Callable[[int], object] = lambda frames: None,
) -> dict[str, Tracks]:
    """Track every sequence's object from its first annotated box.

    Args:
        model: in eval mode, on its device.
        concurrent: maximum number of sequences in one batch, at least 1. Boxes depend on it only in the last digits.
        on_frames: called with the number of frames after each step, for a progress bar.

    Raises:
        UserError: a frame cannot be read, or a first box cannot be tracked.
    """
    tracker = BatchTracker(model, settings)
    waiting, batch, done = deque(sequences), list[_Running](), dict[str, Tracks]()
    with ThreadPoolExecutor() as pool:
        while waiting or batch:
            while waiting and len(batch) < concurrent:
                sequence = waiting.popleft()
                first = np.array(sequence.boxes_xywh[0], dtype=np.float64)
                try:
                    image, begun = read_frame(sequence.frame_path(0)), time.perf_counter()
                    state = tracker.start(image, first.tolist())
                except UserError as error:
                    problems = [Problem(f"sequence {sequence.name}: {one}", one.code) for one in error.problems]
                    raise UserError(problems) from error
                batch.append(_Running(sequence, state, [first], [time.perf_counter() - begun]))
                batch[-1].read_ahead(1, pool)
            if active := [one for one in batch if one.next]:
                _step(tracker, active, pool)
            on_frames(len(active))
            ended = [one for one in batch if not one.next]
            done |= {one.sequence.name: Tracks(np.stack(one.boxes), one.times_s) for one in ended}
            batch = [one for one in batch if one.next]
    return {sequence.name: done[sequence.name] for sequence in sequences}


def _step(tracker: BatchTracker, batch: Sequence[_Running], pool: ThreadPoolExecutor) -> None:
    """Track a frame of each sequence while the next ones are read."""
    images = [one.next.result() for one in batch if one.next is not None]
    for one in batch:
        one.read_ahead(len(one.boxes) + 1, pool)
    begun = time.perf_counter()
    tracked = tracker.track([one.state for one in batch], images)
    seconds = (time.perf_counter() - begun) / len(batch)
    for one, found in zip(batch, tracked, strict=True):
        one.boxes.append(found.box_xywh)
        one.times_s.append(seconds)


def refuse_leak(held_out: Iterable[VideoSequence], trained_on: Iterable[VideoSequence]) -> None:
    """Refuse held-out sequences that are trained on, by the folder of their frames after resolving links.

    Raises:
        UserError: with the names of the sequences that are in both sets.
    """
    training = {sequence.frame_path(0).resolve().parent for sequence in trained_on}
    leaked = [sequence.name for sequence in held_out if sequence.frame_path(0).resolve().parent in training]
    if leaked:
        raise UserError(
            f"{len(leaked)} sequences are both trained on and held out: {', '.join(leaked[:10])}; a model must not be "
            "evaluated on its training data, so correct the lists of the split",
            "evaluation.leak",
        )


def validate(
    model: SeqTrack,
    sequences: Sequence[VideoSequence],
    settings: TrackerSettings,
    *,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Score a model that is being trained on held-out sequences.

    The model's mode is restored, and no random state is read or changed: runs with and without validation end in the
    same bits.

    Returns:
        the metrics in percent; sequences, frames; fps, the only one that depends on a clock. None when `stopped`, which
        is called after every frame, returned True.

    Raises:
        UserError: a sequence cannot be read.
    """

    def check_stop(_frames: int) -> None:
        if stopped():
            raise _StoppedError

    modes = {module: module.training for module in model.modules()}
    try:
        tracks = track_sequences(model.eval(), sequences, settings, on_frames=check_stop)
    except _StoppedError:
        return None
    finally:
        for module, mode in modes.items():
            module.training = mode
    mean = score_tracker("validation", "checkpoint", tracks, sequences).record.mean
    counts = {"sequences": len(sequences), "frames": sum(sequence.num_frames for sequence in sequences)}
    return {name: mean[name] or 0.0 for name in (*METRICS, "fps")} | counts

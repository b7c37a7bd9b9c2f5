"""Run a model over whole sequences, many at a time, and score what it found.

Knows trackers, sequences of a data source and the protocol; knows no checkpoint file, no configuration and no table.
Validation inside a training run is here too: it leaves the model, its mode and every random state as they were.
"""

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from seqtrack.data.decode import read_image
from seqtrack.data.sequence import Sequence as VideoSequence
from seqtrack.errors import Problem, UserError
from seqtrack.evaluation.annotations import from_sequences
from seqtrack.evaluation.gather import score_tracks
from seqtrack.evaluation.metrics import TOOLKIT, Array, Convention, mean_scores
from seqtrack.evaluation.tracker_results import TrackerResult, Tracks
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.tracking.settings import TrackerSettings
from seqtrack.tracking.tracker import BatchTracker, Image, SearchCrop, TrackState

logger = logging.getLogger(__name__)

CONCURRENT = 16  # sequences followed at once; a small model's time is mostly calls, which a batch shares


class _StoppedError(Exception):
    """Validation was told to stop."""


@dataclass
class _Follower:
    """A sequence on its way: its state, its boxes so far, and its next frame and search region, which readers make."""

    sequence: VideoSequence
    state: TrackState
    boxes: list[Array]
    image: "Future[Image] | None" = None
    crop: "Future[SearchCrop] | None" = None
    seconds: float = 0.0


def read_frame(path: Path) -> Image:
    """(H, W, 3) uint8 RGB of a frame file.

    Raises:
        UserError: unreadable, no JPEG, or cut off.
    """
    return np.asarray(cv2.cvtColor(read_image(path), cv2.COLOR_BGR2RGB), dtype=np.uint8)


def track_sequences(
    model: SeqTrack,
    sequences: Sequence[VideoSequence],
    settings: TrackerSettings,
    *,
    concurrent: int = CONCURRENT,
    readers: int | None = None,
    batches: int | None = None,
    on_frames: Callable[[int], object] | None = None,
) -> dict[str, Tracks]:
    """Follow every sequence's object from its first annotated box.

    Args:
        model: in eval mode, on its device.
        concurrent: most sequences in one batch. Boxes depend on it only in the last digits of floating point.
        readers: threads that read frames and cut search regions; None for one per core. Boxes do not depend on it.
        batches: how many batches take turns; None for 2 on a GPU and 1 on a CPU. While a GPU computes one, the
            readers prepare the other; a CPU would only share its cores among smaller batches.
        on_frames: told the number of frames after each step, for a progress bar.

    Raises:
        UserError: a frame cannot be read, or a first box cannot be followed.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent is {concurrent}; at least one sequence is followed at a time")
    tracker = BatchTracker(model, settings)
    batches = batches or (1 if tracker.device.type == "cpu" else 2)
    size = min(concurrent, math.ceil(len(sequences) / batches))
    waiting = deque(sequences)
    turns: list[list[_Follower]] = [[] for _ in range(batches)]
    done: dict[str, Tracks] = {}
    with ThreadPoolExecutor(readers or os.cpu_count()) as pool:
        while waiting or any(turns):
            for batch in turns:
                while waiting and len(batch) < size:
                    batch.append(_begin(tracker, waiting.popleft(), pool))
                running = [one for one in batch if one.crop is not None]
                if running:
                    _step(tracker, running, pool)
                if on_frames is not None:
                    on_frames(len(running))
                done |= {one.sequence.name: Tracks(np.stack(one.boxes), one.seconds) for one in batch if not one.crop}
                batch[:] = [one for one in batch if one.crop]
    return {sequence.name: done[sequence.name] for sequence in sequences}


def _begin(tracker: BatchTracker, sequence: VideoSequence, pool: ThreadPoolExecutor) -> _Follower:
    first = np.asarray(sequence.boxes_xywh[0], dtype=np.float64)
    try:
        (state,) = tracker.start([read_frame(sequence.frame_path(0))], [first.tolist()])
    except UserError as error:
        raise UserError([Problem(f"sequence {sequence.name}: {one}", one.code) for one in error.problems]) from error
    follower = _Follower(sequence, state, [first])
    _read(follower, 1, pool)
    _cut(tracker, follower, pool)
    return follower


def _read(follower: _Follower, index: int, pool: ThreadPoolExecutor) -> None:
    """Have a frame read, which can begin before the box in the frame before it is known."""
    there = index < follower.sequence.num_frames
    follower.image = pool.submit(read_frame, follower.sequence.frame_path(index)) if there else None


def _cut(tracker: BatchTracker, follower: _Follower, pool: ThreadPoolExecutor) -> None:
    """Have the search region around the newest box cut out of the next frame."""
    box, image = follower.state.box_xywh, follower.image
    # Waiting inside a reader cannot block them all: the pool starts in order, and the frame was asked for before.
    follower.crop = pool.submit(lambda: tracker.crop(box, image.result())) if image is not None else None


def _step(tracker: BatchTracker, running: Sequence[_Follower], pool: ThreadPoolExecutor) -> None:
    crops = [one.crop.result() for one in running if one.crop is not None]
    images = [one.image.result() for one in running if one.image is not None]
    for one in running:
        _read(one, len(one.boxes) + 1, pool)
    begun = time.perf_counter()
    tracked = tracker.track([one.state for one in running], images, crops)
    seconds = (time.perf_counter() - begun) / len(running)
    for one, found in zip(running, tracked, strict=True):
        one.boxes.append(found.box_xywh)
        one.seconds += seconds
        _cut(tracker, one, pool)


def model_result(
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
) -> TrackerResult:
    """Track every sequence with a model and score it; arguments as `track_sequences` and `score_tracks`."""
    tracks = track_sequences(model, sequences, settings, concurrent=concurrent, on_frames=on_frames)
    scores = score_tracks(tracks, from_sequences(sequences), convention=convention)
    return TrackerResult(name, kind, epoch, source, scores, tracks)


def untrained_model(spec: ModelSpec, *, seed: int, device: torch.device) -> SeqTrack:
    """The model as it is before its first step, without pretrained weights."""
    return build_model(spec, seed=seed).to(device).eval()


def refuse_leak(held_out: Iterable[VideoSequence], trained_on: Iterable[VideoSequence]) -> None:
    """Refuse to judge a model by what it was trained on.

    Sequences are the same if their frames are the same folder, whatever links or names lead there.

    Raises:
        UserError: the sequences that are on both sides.
    """
    training = {sequence.frame_path(0).resolve().parent for sequence in trained_on}
    leaked = [sequence.name for sequence in held_out if sequence.frame_path(0).resolve().parent in training]
    if leaked:
        shown = ", ".join(leaked[:10]) + (f" and {len(leaked) - 10} more" if len(leaked) > 10 else "")
        raise UserError(
            f"{len(leaked)} sequences are trained on and held out at once: {shown}; a model must not be judged by what "
            "it was trained on, so correct the lists of the split"
        )


def validate(
    model: SeqTrack,
    sequences: Sequence[VideoSequence],
    settings: TrackerSettings,
    *,
    trained_on: Iterable[VideoSequence],
    concurrent: int = CONCURRENT,
    stopped: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Score a model that is being trained on held-out sequences.

    The model comes back in the mode it came in, and no random state is read or moved: a run with validation and a run
    without it end in the same bits.

    Returns:
        auc, op50, op75, p20, p_norm, mean_iou in percent; sequences, frames; fps, the only one that a clock decides.
        None when `stopped`, which is asked after every frame, said so.

    Raises:
        UserError: a sequence was trained on, or cannot be read.
    """
    refuse_leak(sequences, trained_on)

    def look(_frames: int) -> None:
        if stopped():
            raise _StoppedError

    try:
        with _eval_mode(model):
            tracks = track_sequences(model, sequences, settings, concurrent=concurrent, on_frames=look)
    except _StoppedError:
        return None
    mean = mean_scores(list(score_tracks(tracks, from_sequences(sequences)).values()))
    seconds = sum(one.seconds for one in tracks.values())
    frames = sum(len(one.boxes_xywh) - 1 for one in tracks.values())
    return {
        **mean.metrics(),
        "sequences": len(sequences),
        "frames": mean.frames,
        "fps": frames / seconds if seconds > 0 else 0.0,
    }


@contextlib.contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the block, and each as it was after it."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode

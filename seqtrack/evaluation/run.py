"""Run a model over whole sequences, many at a time, and score what it found.

Knows trackers, sequences of a data source and the protocol; knows no checkpoint file, no configuration and no table.
Validation inside a training run is here too: it leaves the model, its mode and every random state as they were.
"""

import contextlib
import logging
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
from seqtrack.errors import UserError
from seqtrack.evaluation.annotations import from_sequences
from seqtrack.evaluation.gather import score_tracks
from seqtrack.evaluation.metrics import TOOLKIT, Array, Convention, mean_scores
from seqtrack.evaluation.subjects import Subject, Tracks
from seqtrack.model.build import build_model
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.tracking.settings import TrackerSettings
from seqtrack.tracking.tracker import BatchTracker, Image, TrackState

logger = logging.getLogger(__name__)

CONCURRENT = 16  # sequences followed at once; a small model's time is mostly calls, which a batch shares
_READERS = 2


class _StoppedError(Exception):
    """Validation was told to stop."""


@dataclass
class _Follower:
    """A sequence on its way: its state, the frame that is being read, and the boxes so far."""

    sequence: VideoSequence
    state: TrackState
    boxes: list[Array]
    pending: "Future[Image] | None"
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
    on_frames: Callable[[int], object] | None = None,
) -> dict[str, Tracks]:
    """Follow every sequence's object from its first annotated box.

    Args:
        model: in eval mode, on its device.
        concurrent: sequences in one batch. Boxes depend on it only in the last digits of floating point.
        on_frames: told the number of frames after each step, for a progress bar.

    Raises:
        UserError: a frame cannot be read, or a first box cannot be followed.
    """
    if concurrent < 1:
        raise ValueError(f"concurrent is {concurrent}; at least one sequence is followed at a time")
    tracker = BatchTracker(model, settings)
    waiting = deque(sequences)
    active: list[_Follower] = []
    done: dict[str, Tracks] = {}
    with ThreadPoolExecutor(_READERS) as readers:
        while waiting or active:
            while waiting and len(active) < concurrent:
                active.append(_begin(tracker, waiting.popleft(), readers))
            running = [one for one in active if one.pending is not None]
            if running:
                _step(tracker, running, readers)
            if on_frames is not None:
                on_frames(len(running))
            for one in [one for one in active if one.pending is None]:
                active.remove(one)
                done[one.sequence.name] = Tracks(np.stack(one.boxes), one.seconds)
    return {sequence.name: done[sequence.name] for sequence in sequences}


def _begin(tracker: BatchTracker, sequence: VideoSequence, readers: ThreadPoolExecutor) -> _Follower:
    first = np.asarray(sequence.boxes_xywh[0], dtype=np.float64)
    try:
        (state,) = tracker.start([read_frame(sequence.frame_path(0))], [first.tolist()])
    except UserError as error:
        raise UserError([f"sequence {sequence.name}: {problem}" for problem in error.problems]) from error
    follower = _Follower(sequence, state, [first], None)
    _read_next(follower, readers)
    return follower


def _read_next(follower: _Follower, readers: ThreadPoolExecutor) -> None:
    """Have the next frame read while the model works on this one."""
    index = len(follower.boxes)
    more = index < follower.sequence.num_frames
    follower.pending = readers.submit(read_frame, follower.sequence.frame_path(index)) if more else None


def _step(tracker: BatchTracker, running: Sequence[_Follower], readers: ThreadPoolExecutor) -> None:
    images = [one.pending.result() for one in running if one.pending is not None]
    begun = time.perf_counter()
    tracked = tracker.track([one.state for one in running], images)
    seconds = (time.perf_counter() - begun) / len(running)
    for one, found in zip(running, tracked, strict=True):
        one.boxes.append(found.box_xywh)
        one.seconds += seconds
        _read_next(one, readers)


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
        **mean.figures(),
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

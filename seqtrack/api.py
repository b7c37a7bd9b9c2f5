"""The Python interface: `from seqtrack import Tracker`. Its boxes are those of `seqtrack track`."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from seqtrack.checkpoints.store import manifest_of
from seqtrack.config.environment import read_environment
from seqtrack.data import Image
from seqtrack.device import choose_device
from seqtrack.errors import UserError
from seqtrack.places import find_checkpoint
from seqtrack.tracking.load import check_precision, load_model, tracker_settings
from seqtrack.tracking.tracker import BatchTracker, TrackState

Box = tuple[float, float, float, float]


class Tracker:
    """Tracks one object through one video at a time: `load`, then `start` on the first frame, `track` on each later.

    Attributes:
        score: from 0 to 40, how certain the model was of the last box; None before `track`.
    """

    def __init__(self, tracker: BatchTracker) -> None:
        self.score: float | None = None
        self._tracker = tracker
        self._state: TrackState | None = None

    @classmethod
    def load(cls, checkpoint: str | Path, *, device: str | None = None, precision: str = "fp32") -> "Tracker":
        """A tracker with a checkpoint's weights and settings.

        Args:
            checkpoint: "nano", which comes with this program, a .safetensors file with its .json next to it, or
                `hf://owner/name/PATH.safetensors`, which is downloaded into the cache folder once, with the token of
                HF_TOKEN_PATH or HF_TOKEN.
            device: "auto", "cuda" or "cpu"; None takes DEVICE, else "auto".
            precision: of the encoder: "fp32", "tf32", "bf16" or "fp16".

        Raises:
            UserError: no such checkpoint, a damaged one, no such device, or a precision that it lacks.
        """
        manifest = manifest_of(find_checkpoint(str(checkpoint)))
        chosen = choose_device(device or read_environment(os.environ).device)
        check_precision(precision, chosen)
        model, config = load_model(manifest, chosen)
        return cls(BatchTracker(model, tracker_settings(config, dataset=None, precision=precision)))

    def start(self, image: Image, box: Sequence[float]) -> None:
        """Begin with the object in `box`, (x, y, w, h) in pixels from the top left, of an (H, W, 3) RGB uint8 image.

        Raises:
            UserError: another form of image, a box that is not four finite numbers, without area, or centred outside.
        """
        self._state, self.score = self._tracker.start(_checked(image), box), None

    def track(self, image: Image) -> Box:
        """The object's box (x, y, w, h) in the next frame, in pixels.

        Raises:
            UserError: another form of image, or `start` was not called.
            RunError: the model's probabilities are not finite.
        """
        if self._state is None:
            raise UserError("call start(image, box) with the first frame before track(image)", "track.not_started")
        (found,) = self._tracker.track([self._state], [_checked(image)])
        self.score = found.score
        x, y, w, h = found.box_xywh.tolist()
        return x, y, w, h


def _checked(image: Image) -> Image:
    array = np.asarray(image)
    if array is not image or array.dtype != np.uint8 or array.shape[2:] != (3,) or not array.size:
        found = f"{type(image).__name__} of shape {array.shape} and type {array.dtype}"
        raise UserError(f"image: found {found}; expected a NumPy array (H, W, 3) of uint8, RGB", "track.image")
    return image

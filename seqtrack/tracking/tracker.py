"""The SeqTrack tracker: one box in the first frame, a box and a score for every later frame.

Knows no video, file or annotation. The state of each tracked object is a separate value, so that one model tracks many
videos at once, one batch per step.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqtrack.boxes import clip_to_image, search_to_image
from seqtrack.data import Image
from seqtrack.data.crop import crop_frame
from seqtrack.device import DTYPES
from seqtrack.errors import RunError, UserError
from seqtrack.model.images import normalise
from seqtrack.model.seqtrack import SeqTrack
from seqtrack.tokens import hann_window, tokens_to_boxes
from seqtrack.tracking.settings import TrackerSettings

MARGIN_PX = 10  # at least this much of every box lies inside the image, and no side is shorter
SCORE_SCALE = 10.0  # the score is 10 times the sum of four probabilities: 0 to 40


@dataclass(frozen=True)
class TrackResult:
    """Result for one frame.

    Attributes:
        box_xywh: (4,) float64 pixels, clipped so that at least 10 px lie inside the image.
        score: 0 to 40; ten times the sum of the tokens' probabilities, the centre's multiplied by the window.
        tokens, confidences: (4,) the tokens and their (windowed) probabilities.
        template_updated: a new template was taken from this frame.
    """

    box_xywh: NDArray[np.float64]
    score: float
    tokens: tuple[int, ...]
    confidences: tuple[float, ...]
    template_updated: bool


@dataclass
class TrackState:
    """Tracking state of one object.

    Attributes:
        box_xywh: (4,) float64 pixels in the last frame.
        templates: (T, 3, S, S) normalised, on the model's device; the first is the first frame's and stays.
        frame: number of frames tracked so far; the first frame is 0.
    """

    box_xywh: NDArray[np.float64]
    templates: Tensor
    frame: int = 0


# The search region of one frame, (3, S, S) RGB, and the number of its pixels per frame pixel.
SearchCrop = tuple[Image, float]


class BatchTracker:
    """One model tracking any number of objects, each in its own video.

    Args:
        model: in eval mode; it stays on its device. With precision "bf16" or "fp16" a copy of it is used.
        settings: crop factors, window, template updates.

    Raises:
        ValueError: the model is in training mode, where dropout would make the boxes random.
    """

    def __init__(self, model: SeqTrack, settings: TrackerSettings) -> None:
        if model.training:
            raise ValueError("a tracker needs a model in eval mode; call model.eval() first")
        self.settings = settings
        self.spec = model.spec
        self.device = next(model.parameters()).device
        self._dtype = DTYPES.get(settings.precision)
        self._model = model if self._dtype is None else _with_16_bit_encoder(model, self._dtype)
        self._window = hann_window(model.spec.bins).to(self.device) if settings.window else None

    def start(self, images: Sequence[Image], boxes_xywh: Sequence[Sequence[float]]) -> list[TrackState]:
        """Initial states from the first frames.

        Args:
            images: (H, W, 3) RGB each.
            boxes_xywh: the objects' boxes in pixels.

        Raises:
            UserError: a box is not four finite numbers, has no area, or has its centre outside its image.
        """
        states = []
        for image, box in zip(images, boxes_xywh, strict=True):
            start = np.asarray(box, dtype=np.float64)
            _check_start_box(start, image)
            template = self._template(image, start)
            states.append(TrackState(start, template.repeat(self.spec.num_templates, 1, 1, 1)))
        return states

    def crop(self, box_xywh: NDArray[np.float64], image: Image) -> SearchCrop:
        """Crop the search region around the last box from the next frame. Thread-safe."""
        crop, factor = crop_frame(image, box_xywh, factor=self.settings.search_factor, size=self.spec.search_size)
        return np.ascontiguousarray(crop.transpose(2, 0, 1)), factor

    @torch.no_grad()
    def track(
        self, states: Sequence[TrackState], images: Sequence[Image], crops: Sequence[SearchCrop] | None = None
    ) -> list[TrackResult]:
        """Find each object in its video's next frame and update its state in place.

        Args:
            states: from `start`.
            images: (H, W, 3) RGB each, of the same video as the state.
            crops: results of `crop` for the states' boxes and the images, if computed before.

        Raises:
            RunError: the model's probabilities are not finite.
        """
        if crops is None:
            crops = [self.crop(state.box_xywh, image) for state, image in zip(states, images, strict=True)]
        search = self._input([pixels for pixels, _ in crops])
        tokens, confidences = self._generate(torch.stack([state.templates for state in states]), search)
        boxes = search_to_image(
            tokens_to_boxes(tokens, self.spec.bins, self.spec.seq_format),
            torch.from_numpy(np.stack([state.box_xywh for state in states])),
            resize_factor=torch.tensor([factor for _, factor in crops], dtype=torch.float64),
            search_size_px=self.spec.search_size,
        )
        found = zip(states, images, boxes, tokens.tolist(), confidences.tolist(), strict=True)
        return [self._update_state(*one) for one in found]

    def update_template(self, state: TrackState, image: Image) -> None:
        """Add a template from `image`; the first frame's template stays, the oldest other one is dropped."""
        newest = self._template(image, state.box_xywh)
        state.templates = torch.cat((state.templates[:1], state.templates[2:], newest))

    def _update_state(
        self, state: TrackState, image: Image, box: Tensor, tokens: list[int], confidences: list[float]
    ) -> TrackResult:
        height, width = image.shape[:2]
        state.box_xywh = clip_to_image(box, height_px=height, width_px=width, margin_px=MARGIN_PX).numpy()
        state.frame += 1
        score = SCORE_SCALE * sum(confidences)
        if not math.isfinite(score):
            text = f"the model's probabilities in frame {state.frame} are not finite, in {self.settings.precision}"
            raise RunError(text, code="tracking.not_finite")
        due = self.spec.num_templates > 1 and state.frame % self.settings.update_interval == 0
        updated = due and score > self.settings.update_threshold
        if updated:
            self.update_template(state, image)
        return TrackResult(state.box_xywh.copy(), score, tuple(tokens), tuple(confidences), updated)

    def _generate(self, templates: Tensor, search: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and probabilities (B, 4), on the CPU."""
        with (
            _tf32(self.settings.precision == "tf32"),
            torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None),
        ):
            memory = self._model.encode(templates, search)
        generated = self._model.generate(memory.float(), self._window)
        return generated.tokens.cpu(), generated.confidences.cpu()

    def _template(self, image: Image, box_xywh: NDArray[np.float64]) -> Tensor:
        crop, _ = crop_frame(image, box_xywh, factor=self.settings.template_factor, size=self.spec.template_size)
        return self._input([crop.transpose(2, 0, 1)])

    def _input(self, crops: Sequence[Image]) -> Tensor:
        """(B, 3, S, S) normalised on the device, from (3, S, S) crops."""
        pixels = torch.from_numpy(np.stack(crops))
        return normalise(pixels.to(self.device), mean=self.settings.mean, std=self.settings.std)


def _check_start_box(box_xywh: NDArray[np.float64], image: Image) -> None:
    height_px, width_px = image.shape[:2]
    shown = ",".join(f"{value:g}" for value in box_xywh.tolist())
    if box_xywh.shape != (4,) or not np.isfinite(box_xywh).all() or min(box_xywh[2:]) <= 0:
        text = f"the first box is {shown}; expected four finite numbers x,y,w,h, width and height above 0"
        raise UserError(text, code="track.box")
    x, y = box_xywh[:2] + box_xywh[2:] / 2
    if not (0 <= x <= width_px and 0 <= y <= height_px):
        text = f"the first box {shown} (x,y,w,h) has its centre outside the image of {width_px}x{height_px} pixels"
        raise UserError(text, code="track.box")


def _with_16_bit_encoder(model: SeqTrack, dtype: torch.dtype) -> SeqTrack:
    """A copy whose encoder keeps the weights of its matrix products in a 16-bit type.

    Autocast would convert them again for every frame. Norms, positions and the residual stream stay in float32, and so
    does the decoder, whose argmax over thousands of tokens is the part that rounding can flip.
    """
    converted = copy.deepcopy(model)
    for module in converted.encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.to(dtype)
    return converted


@contextlib.contextmanager
def _tf32(enabled: bool) -> Iterator[None]:
    """Allow TF32 for float32 products inside the block or not; restored for the training run that validates."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn  # they have different defaults
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before

"""The SeqTrack tracker: one box in the first frame, a box and a score for every later frame.

Knows no video, file, annotation or configuration. The state of each tracked object is a separate value, so that one
model tracks many videos at once, one batch per step.
"""

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqtrack.boxes import clip_to_image, search_to_image
from seqtrack.config.schema import IMAGENET_MEAN, IMAGENET_STD
from seqtrack.data import Image
from seqtrack.data.crop import crop_frame
from seqtrack.device import DTYPES
from seqtrack.errors import RunError, UserError
from seqtrack.model.images import normalise
from seqtrack.model.seqtrack import Generated, SeqTrack
from seqtrack.model.spec import ModelSpec
from seqtrack.parsing import short_repr
from seqtrack.tokens import hann_window, tokens_to_boxes

MARGIN_PX = 10  # at least this much of every box lies inside the image, and no side is shorter
_LARGEST_BOX = 4  # sides of the image
SCORE_SCALE = 10.0  # the score is 10 times the sum of four probabilities: 0 to 40


@dataclass(frozen=True)
class TrackerSettings:
    """Everything a tracker needs besides the model.

    Attributes:
        search_factor, template_factor: side of the crop as a multiple of sqrt(w * h) of the box.
        window: multiply the probabilities of the centre tokens by a Hann window, which favours boxes near the middle.
        update_interval: frames between two possible template updates.
        update_threshold: score, from 0 to 40, above which the template is updated.
        mean, std: of red, green and blue in [0, 1], as in training.
        center_rate, size_rate: the part of the way from the last box to the found one that a box goes, in (0, 1], for
            its centre, and in [0, 1], for the logarithms of its sides: a small model's boxes are noisy.
        precision: of the encoder's matrix products, fp32, tf32, bf16 or fp16; everything else is float32 always.
    """

    search_factor: float = 4.0
    template_factor: float = 4.0
    window: bool = True
    update_interval: int = 9999
    update_threshold: float = 0.6
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    precision: str = "fp32"
    center_rate: float = 1.0
    size_rate: float = 1.0


@dataclass(frozen=True)
class TrackResult:
    """Result for one frame.

    Attributes:
        box_xywh: (4,) float64 pixels, clipped so that at least 10 px lie inside the image.
        score: 0 to 40; ten times the sum of the tokens' probabilities, the centre's multiplied by the window.
        tokens, confidences: the four tokens and their (windowed) probabilities.
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


class TrackedModel(Protocol):
    """What a tracker needs of a model: a `SeqTrack`, or one that was exported; the memory is passed on only."""

    spec: ModelSpec

    def encode(self, templates: Tensor, search: Tensor) -> Tensor: ...
    def generate(self, memory: Tensor, window: Tensor | None) -> Generated: ...


class BatchTracker:
    """One model tracking any number of objects, each in its own video.

    Args:
        model: in eval mode, on its device; one that is no `SeqTrack` runs on the CPU, in fp32. With precision "bf16"
            or "fp16" a copy of it is used, whose encoder keeps the weights of its matrix products in that type:
            autocast would convert them for every frame. Norms, positions, the residual stream and the decoder, whose
            argmax rounding can flip, stay in float32.

    Raises:
        ValueError: the model is in training mode, where dropout would make the boxes random.
    """

    def __init__(self, model: TrackedModel, settings: TrackerSettings) -> None:
        self.settings = settings
        self.spec = model.spec
        self.device = torch.device("cpu")
        self._dtype = DTYPES.get(settings.precision)
        if isinstance(model, SeqTrack):
            if model.training:
                raise ValueError("a tracker needs a model in eval mode; call model.eval() first")
            self.device = next(model.parameters()).device
            model = copy.deepcopy(model) if self._dtype else model
            for module in model.encoder.modules() if self._dtype else ():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.to(self._dtype)
        self._model = model
        self._window = hann_window(model.spec.bins).to(self.device) if settings.window else None

    def start(self, image: Image, box_xywh: Sequence[float]) -> TrackState:
        """The initial state from the first frame, (H, W, 3) RGB, and the object's box in it, pixels.

        Raises:
            UserError: the box is not four finite numbers, has no area, is several times as large as the image, or has
                its centre outside the image.
        """
        size = np.array([image.shape[1], image.shape[0]])
        try:
            box = np.array(box_xywh, dtype=np.float64)
        except (TypeError, ValueError):  # no numbers
            box = np.zeros(0)
        good = box.shape == (4,) and np.isfinite(box).all() and (box[2:] > 0).all()
        # Of a larger box the search region would fill the memory, and the area of a smaller one is 0.
        good = good and (box[2:] <= _LARGEST_BOX * size.max()).all() and box[2:].prod() > 0
        if not good or (abs(box[:2] + box[2:] / 2 - size / 2) > size / 2).any():
            shown = ",".join(f"{value:g}" for value in box.tolist()) if box.shape == (4,) else short_repr(box_xywh)
            text = f"the first box is {shown}; expected x,y,w,h with width and height above 0 and the centre inside the"
            raise UserError(
                f"{text} image of {size[0]}x{size[1]} pixels, at most {_LARGEST_BOX} times as large", "track.box"
            )
        return TrackState(box, self._template(image, box).repeat(self.spec.num_templates, 1, 1, 1))

    @torch.no_grad()
    def track(self, states: Sequence[TrackState], images: Sequence[Image]) -> list[TrackResult]:
        """Find each object in its video's next frame and update its state in place.

        Args:
            states: from `start`.
            images: (H, W, 3) RGB each, of the same video as the state.

        Raises:
            RunError: the model's probabilities are not finite.
        """
        crops, factors = zip(*map(self._crop_search, images, states), strict=True)
        with (
            _tf32(self.settings.precision == "tf32"),
            torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None),
        ):
            memory = self._model.encode(torch.stack([state.templates for state in states]), self._input(crops))
        generated = self._model.generate(memory.float(), self._window)
        tokens, confidences = generated.tokens.cpu(), generated.confidences.cpu()
        boxes = search_to_image(
            tokens_to_boxes(tokens, self.spec.bins, self.spec.seq_format),
            torch.from_numpy(np.stack([state.box_xywh for state in states])),
            resize_factor=torch.tensor(factors, dtype=torch.float64),
            search_size_px=self.spec.search_size,
        )
        results = []
        for index, (state, image) in enumerate(zip(states, images, strict=True)):
            height, width = image.shape[:2]
            followed = self._follow(torch.from_numpy(state.box_xywh), boxes[index])
            box = clip_to_image(followed, height_px=height, width_px=width, margin_px=MARGIN_PX).numpy()
            state.box_xywh, state.frame = box, state.frame + 1
            found = tuple(confidences[index].tolist())
            score = SCORE_SCALE * sum(found)
            if not math.isfinite(score):
                text = f"the model's probabilities in frame {state.frame} are not finite, in {self.settings.precision}"
                raise RunError(text, "tracking.not_finite")
            due = self.spec.num_templates > 1 and state.frame % self.settings.update_interval == 0
            if updated := due and score > self.settings.update_threshold:
                self.update_template(state, image)
            results.append(TrackResult(box.copy(), score, tuple(tokens[index].tolist()), found, updated))
        return results

    def _follow(self, last_xywh: Tensor, found_xywh: Tensor) -> Tensor:
        """The box, (4,), between the last one and the found one that the rates tell."""
        center_rate, size_rate = self.settings.center_rate, self.settings.size_rate
        if center_rate == size_rate == 1:
            return found_xywh
        size = last_xywh[2:] * (found_xywh[2:] / last_xywh[2:]) ** size_rate
        last, found = (box[:2] + box[2:] / 2 for box in (last_xywh, found_xywh))
        return torch.cat((last + center_rate * (found - last) - size / 2, size))

    def update_template(self, state: TrackState, image: Image) -> None:
        """Add a template from `image`; the first frame's template stays, the oldest other one is dropped."""
        newest = self._template(image, state.box_xywh)
        state.templates = torch.cat((state.templates[:1], state.templates[2:], newest))

    def _crop_search(self, image: Image, state: TrackState) -> tuple[Image, float]:
        """The search region around the last box, (S, S, 3), and the number of its pixels per pixel of the image."""
        return crop_frame(image, state.box_xywh, factor=self.settings.search_factor, size=self.spec.search_size)

    def _template(self, image: Image, box_xywh: NDArray[np.float64]) -> Tensor:
        factor, size = self.settings.template_factor, self.spec.template_size
        return self._input([crop_frame(image, box_xywh, factor=factor, size=size)[0]])

    def _input(self, crops: Sequence[Image]) -> Tensor:
        """(B, 3, S, S) normalised on the device, from (S, S, 3) crops."""
        pixels = torch.from_numpy(np.ascontiguousarray(np.stack(crops).transpose(0, 3, 1, 2)))
        return normalise(pixels.to(self.device), mean=self.settings.mean, std=self.settings.std)


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

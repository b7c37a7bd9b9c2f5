"""One training sample: templates, a search region and its box, as a pure function of (seed, epoch, index).

Knows how frames are drawn, read, cropped and augmented, but no batches, workers or ranks: they change who computes a
sample, never its content. Frames are cropped first; flipping and greyscale are applied to the crop and give exactly the
pixels that they would give on the whole frame.
"""

import functools
import logging
from collections.abc import Iterator
from collections.abc import Sequence as ListOf
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data import Image, crop
from seqtrack.data.crop import AUTHORS_SEARCH_JITTER, NO_JITTER, Jitter
from seqtrack.data.decode import FrameFile, check_frames
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import Source
from seqtrack.errors import UserError, as_typed
from seqtrack.seeding import sample_generator

_log = logging.getLogger(__name__)

Mode = Literal["order", "causal"]
_GAP_STEP = 5
_CHECKSUM_STREAM = 0xC8EC
_SHORTEST_SEQUENCE = 20  # frames


@dataclass(frozen=True)
class SampleSpec:
    """What a sample is made of. Sizes in pixels; factors are multiples of the square root of the box's area.

    Attributes:
        interval: the largest number of frames between those of a sample, as the mode defines it.
    """

    template_size: int
    search_size: int
    num_templates: int = 2
    template_factor: float = 4.0
    search_factor: float = 4.0
    template_jitter: Jitter = NO_JITTER
    search_jitter: Jitter = AUTHORS_SEARCH_JITTER
    interval: int = 400
    mode: Mode = "order"


@dataclass(frozen=True)
class Sample:
    """One sample: `templates` (T, 3, S, S) and `search` (3, S, S) uint8 RGB, `box` (4,) float32 cx, cy, w, h in
    fractions of the search crop and not yet clipped, brightness factors, and where the frames came from."""

    templates: Image
    search: Image
    template_brightness: NDArray[np.float32]
    search_brightness: np.float32
    box: NDArray[np.float32]
    source: str
    sequence: str
    frames: tuple[int, ...]

    @property
    def checksum(self) -> int:
        """64 bits of what the model gets: the sum of all 8-byte words, each times an odd number that its place decides,
        modulo 2**64. A tenth of a cryptographic digest's time; it tells other samples, and keeps no forger away."""
        numbers = np.array([*self.template_brightness, self.search_brightness, *self.box], "<f8")
        total = first = 0
        for part in (self.templates, self.search, numbers):
            data = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            words, rest = data[: data.size // 8 * 8].view("<u8"), data[data.size // 8 * 8 :].astype(np.uint64)
            for one in (words, rest):
                total += int(np.dot(one, _odd_numbers(first + one.size)[first:]))
                first += one.size
        return total % 2**64


@functools.lru_cache(maxsize=4)
def _odd_numbers(count: int) -> NDArray[np.uint64]:
    return np.random.PCG64(_CHECKSUM_STREAM).random_raw(count) | np.uint64(1)


class TrackingDataset:
    """Draws samples from sources.

    Args:
        sources: opened data sets.
        ratios: how often each is drawn from, in any unit; not negative, and not all 0.
        verify_up_to: check the header and the end of every frame file that may be drawn, if there are not more than
            this many, so that an unusable file is found before training: half a minute; minutes for all of LaSOT.

    Raises:
        UserError: a source has no sequence that can be sampled, or frame files are empty, truncated or no usable JPEGs.
    """

    def __init__(
        self,
        sources: ListOf[Source],
        ratios: ListOf[float],
        spec: SampleSpec,
        *,
        seed: int,
        verify_up_to: int = 500_000,
    ) -> None:
        self.spec, self.seed, self.sources = spec, seed, list(sources)
        self._limits = np.cumsum(np.asarray(ratios, dtype=np.float64) / float(sum(ratios)))
        # Of each source: the sequences that are sampled, and the numbers of their visible frames, for videos.
        self._sequences: list[ListOf[Sequence]] = []
        self._visible: list[list[NDArray[np.int64]]] = []
        for source in sources:
            kept, visible = _usable(source, 2 * (spec.num_templates + 1) + 1)
            self._sequences.append(kept)
            self._visible.append(visible)
        count = sum(
            len(one) if source.is_images else sum(map(len, visible))
            for source, one, visible in zip(sources, self._sequences, self._visible, strict=True)
        )
        is_checked = count <= verify_up_to
        if is_checked and (problems := check_frames(self._frame_paths())):
            raise UserError(problems)
        hint = as_typed("a damaged frame ends the run when it is drawn: `seqtrack data check --decode` finds it before")
        _log.info("headers of %d frame files are %s; %s", count, "valid" if is_checked else "not checked", hint)

    def _frame_paths(self) -> Iterator[Path]:
        """Every frame that may be drawn."""
        for sequences, visible in zip(self._sequences, self._visible, strict=True):
            for place, one in enumerate(sequences):
                yield from (one.frame_path(int(index)) for index in (visible[place] if visible else (0,)))

    def automatic_epoch(self) -> int:
        """Samples of an epoch that uses as many frames as the sampled sequences have: `SAMPLE_PER_EPOCH: auto`."""
        num_frames = sum(one.num_frames for kept in self._sequences for one in kept)
        return max(1, num_frames // (self.spec.num_templates + 1))

    def choose(self, generator: np.random.Generator) -> tuple[Source, Sequence, NDArray[np.int64]]:
        """Draw source, sequence and frames (numbers from 0, templates first)."""
        spec = self.spec
        which = min(int(np.searchsorted(self._limits, generator.random(), side="right")), len(self._limits) - 1)
        place = int(generator.integers(len(self._sequences[which])))
        sequence, source = self._sequences[which][place], self.sources[which]
        if source.is_images:  # every crop is of the one image, whatever the mode
            return source, sequence, np.zeros(spec.num_templates + 1, dtype=np.int64)
        visible = self._visible[which][place]
        frames = draw_frames(generator, visible, mode=spec.mode, num_templates=spec.num_templates, gap=spec.interval)
        return source, sequence, frames

    def sample(self, epoch: int, index: int) -> Sample:
        """The sample with this index in this epoch.

        Raises:
            UserError: a frame file cannot be read; it names the file.
        """
        generator = sample_generator(self.seed, epoch, index)
        source, sequence, frames = self.choose(generator)
        grey, mirrored = (generator.random(2) < (crop.GREY_PROBABILITY, crop.FLIP_PROBABILITY)).tolist()
        spec = self.spec
        of_search = spec.search_jitter, spec.search_factor, spec.search_size
        of_template = spec.template_jitter, spec.template_factor, spec.template_size
        images, brightness, targets = [], [], []
        for place, frame in enumerate(frames.tolist()):
            jitter, factor, size = of_search if place == spec.num_templates else of_template
            normal, uniform = generator.standard_normal(2), generator.random(2)
            light = np.float32(generator.uniform(1 - crop.BRIGHTNESS_JITTER, 1 + crop.BRIGHTNESS_JITTER))
            flipped = generator.random() < crop.FLIP_PROBABILITY
            file, box = FrameFile(sequence.frame_path(frame)), sequence.boxes_xywh[frame]
            if mirrored:
                box = crop.mirror_box(box, file.width)
            around = crop.jitter_box(box, jitter, normal=normal, uniform=uniform)
            window = crop.crop_window(around, factor)
            left, top, right, bottom = crop.covered(window, file.width, file.height)
            if mirrored:  # the window is in the frame's mirror image
                left, right = file.width - right, file.width - left
            pixels, x, y = file.region(left, top, right, bottom)
            if mirrored and pixels.size:
                pixels, x = crop.mirror(pixels), file.width - (x + pixels.shape[1])
            square = crop.cut(pixels, window, place=(x, y), frame_size=(file.width, file.height))
            image = crop.resize(crop.to_grey(square) if grey else square, size)
            targets.append(crop.box_in_crop(box, around, resize_factor=size / window.side, size=size))
            if flipped:
                image = crop.mirror(image)
                targets[-1][0] = 1 - targets[-1][0]
            planes = np.empty((3, size, size), dtype=np.uint8)
            cv2.split(image, [planes[2], planes[1], planes[0]])  # six times as fast as a transposed copy
            images.append(planes)
            brightness.append(light)
        lights, box_in_crop = np.array(brightness[:-1], dtype=np.float32), targets[-1].astype(np.float32)
        origin = source.name, sequence.name, tuple(frames.tolist())
        return Sample(np.stack(images[:-1]), images[-1], lights, brightness[-1], box_in_crop, *origin)


def _usable(source: Source, needed: int) -> tuple[ListOf[Sequence], list[NDArray[np.int64]]]:
    """The sequences that can be sampled, and the numbers of their visible frames; of images all, without numbers.

    Raises:
        UserError: there are none.
    """
    if source.is_images:
        return source.sequences, []
    kept, frames = list[Sequence](), list[NDArray[np.int64]]()
    for one in source.sequences:
        visible = np.flatnonzero(one.visible)
        if one.num_frames >= _SHORTEST_SEQUENCE and len(visible) >= needed:
            kept.append(one)
            frames.append(visible)
        else:
            reason = f"{one.num_frames} frames, {len(visible)} visible; {_SHORTEST_SEQUENCE} and {needed} are needed"
            _log.warning("%s: sequence %s is left out: %s", source.name, one.name, reason)
    if not kept:
        text = f"{source.name}: none of its {len(source.sequences)} sequences can be sampled"
        raise UserError(text, "data.no_usable_sequence")
    return kept, frames


def draw_frames(
    generator: np.random.Generator, visible: NDArray[np.int64], *, mode: Mode, num_templates: int, gap: int
) -> NDArray[np.int64]:
    """Frame numbers of one sample, by the authors' sampling modes. The number of random numbers is fixed.

    Mode `order`: frames from a window around a base frame, ascending or descending in time with equal probability. The
    base frame itself need not be among them, frames may repeat, and they spread over up to 2 * gap - 1.

    Mode `causal`: a base template, further templates up to a gap before it, the search frame up to a gap after it. The
    authors retry with a gap that grows by five until a frame is in reach; the growth is computed here instead.

    Args:
        visible: ascending numbers, from 0, of the frames that may be drawn.
        gap: the largest interval, in frames, as the mode defines it.

    Returns:
        (num_templates + 1,) int64: templates, then the search frame.
    """

    def pick(low: int, high: int, count: int) -> NDArray[np.int64]:
        """`count` of the visible frames in [low, high), with replacement; at least one must exist."""
        start, stop = np.searchsorted(visible, (low, high))
        return visible[generator.integers(start, stop, size=count)]

    def grown(gap: int, distance: int) -> int:
        return gap + _GAP_STEP * -(-max(0, distance - gap) // _GAP_STEP)

    if mode == "order":
        base = int(visible[generator.integers(len(visible))])
        drawn = np.sort(pick(base - gap, base + gap, num_templates + 1))
        return drawn if generator.random() < 0.5 else drawn[::-1]
    place = int(generator.integers(1 if num_templates > 1 else 0, len(visible) - 1))
    base = int(visible[place])
    gap = grown(gap, int(visible[place + 1]) - base)
    templates = np.array([base])
    if num_templates > 1:
        gap = grown(gap, base - int(visible[place - 1]))
        templates = np.concatenate((templates, pick(base - gap, base, num_templates - 1)))
    return np.concatenate((templates, pick(base + 1, base + gap + 1, 1)))

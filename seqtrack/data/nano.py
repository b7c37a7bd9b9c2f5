"""The nano data set: synthetic video with photographic variety, for a tracker that shall work on real video.

Objects are shapes cut from freely licensed pictures (`pictures/LICENCES.md`), recoloured and composed of up to three
pieces; they move, turn, bend and cover one another before a picture that a moving camera sees. Each scene is the video
of up to three sequences, one per object: only the template tells which is meant.
"""

import functools
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data import Image
from seqtrack.data.drawn import DrawnSet, encode, write_sequence

SEED = 2024
_STREAM = 0x0A0
_WIDTH, _HEIGHT = 320, 240
_TARGETS, _PATCH, _FEWEST_VISIBLE = 3, 96, 10
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """Size of the data set: scenes and frames per scene, by split."""

    train_scenes: int = 1000
    train_frames: int = 20
    test_scenes: int = 8
    test_frames: int = 80


def nano_set(plan: Plan = Plan()) -> DrawnSet:
    """The nano data set of this size."""
    return DrawnSet(
        "nano", version=1, seed=SEED, plan=vars(plan), draw=functools.partial(_draw_split, plan), megabytes=275
    )


def _draw_split(plan: Plan, folder: Path, split: str) -> list[str]:
    is_test = split == "test"
    count, frames = (plan.test_scenes, plan.test_frames) if is_test else (plan.train_scenes, plan.train_frames)
    pictures = _pictures()
    names: list[str] = []
    for scene in range(count):
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_STREAM, SEED, is_test, scene])))
        images, tracks = _Scene(generator, pictures, frames).render()
        first: Path | None = None
        for boxes, shown in tracks:
            # Test numbers start at 10,001: a longer training set moves none.
            number = len(names) + (10_001 if is_test else 1)
            place = folder / "object" / f"object-{number}"
            away = boxes[:, 2:].min(axis=1) < 6
            hidden = (shown < 0.35) & ~away
            if (~away & ~hidden).sum() < _FEWEST_VISIBLE or away[0] or hidden[0]:
                continue
            boxes[away] = 0
            write_sequence(place, first or images, boxes, hidden, away, "an object cut from a picture")
            first, names = first or place, [*names, place.name]
    return names


def _pictures() -> list[Image]:
    folder = resources.files("seqtrack.data") / "pictures"
    paths = sorted((one for one in folder.iterdir() if one.name.endswith(".jpg")), key=lambda one: one.name)
    return [np.asarray(cv2.imdecode(np.frombuffer(one.read_bytes(), np.uint8), cv2.IMREAD_COLOR)) for one in paths]


def _wave(g: np.random.Generator, frames: int, low: float, high: float) -> Floats:
    """(frames,) a smooth curve between two values."""
    time = np.arange(frames) / 20
    slow, fast = (np.sin(2 * np.pi * (time * g.uniform(*span) + g.random())) for span in ((0.2, 1.0), (1.0, 2.5)))
    return (low + high) / 2 + (high - low) / 2 * (0.8 * slow + 0.2 * fast)


def _affine(
    scale_x: float, scale_y: float, angle: float, centre: tuple[float, float], middle: tuple[float, float]
) -> Floats:
    """(2, 3): scale, then turn by `angle` in radians around `middle`, which comes to lie at `centre`."""
    cos, sin = np.cos(angle), np.sin(angle)
    linear = np.array([[cos * scale_x, -sin * scale_y], [sin * scale_x, cos * scale_y]])
    # Rounded: the last digit of another libm's sine must not move anything.
    return np.round(np.column_stack((linear, np.array(centre) - linear @ np.array(middle))), 4)


class _Object:
    """One object: its pixels, shape and motion in the camera's plane, (frames,) each."""

    def __init__(self, g: np.random.Generator, pictures: list[Image], frames: int, twin: "_Object | None") -> None:
        kind = g.random()
        log_aspect = g.normal(-0.85, 0.25) if kind < 0.4 else g.normal(0.55, 0.3) if kind < 0.7 else g.normal(0, 0.4)
        area, aspect = np.exp(g.uniform(np.log(17), np.log(75))), np.exp(np.clip(log_aspect, -1.4, 1.4))
        self.size = np.array([area * aspect**0.5, area * aspect**-0.5]) / _PATCH
        self.texture, self.mask = _texture(g, pictures), _mask(g)
        if twin is not None:  # a distractor: the same shape and size, other or recoloured pixels
            self.size, self.mask = twin.size, twin.mask
            if g.random() < 0.5:
                self.texture = _recoloured(g, twin.texture)
        contours = cv2.findContours((self.mask > 127).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
        self.outline = np.concatenate(contours)[:, 0].astype(np.float64)
        x, y = (sorted(g.uniform(0.02, 0.98, 2) * side) for side in (_WIDTH, _HEIGHT))
        self.x, self.y = _wave(g, frames, *x), _wave(g, frames, *y)
        zoom, turned = (
            np.exp(_wave(g, frames, -1, 1) * g.uniform(0, 0.35)),
            _wave(g, frames, -1, 1) * g.uniform(0, 0.25),
        )
        self.scale = self.size * zoom[:, None] * np.exp(np.stack((turned, -turned), axis=1) * 0.6)
        self.angle = _wave(g, frames, -1, 1) * (g.uniform(0, 1.2) if g.random() < 0.3 else g.uniform(0, 0.25))
        self.bend, self.slide = _wave(g, frames, -1, 1) * g.uniform(0, 0.35), _wave(g, frames, 0, 30) * g.random()
        self.light = 1 + _wave(g, frames, -1, 1) * g.uniform(0, 0.3)

    def patch(self, t: int) -> tuple[Image, Image, Floats]:
        """Pixels, mask and outline at this time: the texture slides beneath the mask, whose lower half is bent."""
        at = round(float(self.slide[t]))
        texture = cv2.convertScaleAbs(self.texture[:, at : at + _PATCH], alpha=float(self.light[t]))
        shift = np.maximum(np.arange(_PATCH) - _PATCH / 2, 0) * self.bend[t]
        columns = np.clip(np.arange(_PATCH)[None] - np.round(shift)[:, None].astype(np.int64), 0, _PATCH - 1)
        rows = np.arange(_PATCH)[:, None]
        inside = (np.arange(_PATCH)[None] - np.round(shift)[:, None] >= 0).astype(np.uint8)
        outline = self.outline.copy()
        outline[:, 0] = np.clip(outline[:, 0] + np.round(shift)[outline[:, 1].astype(np.int64)], 0, _PATCH - 1)
        return texture[rows, columns], self.mask[rows, columns] * inside, outline


def _texture(g: np.random.Generator, pictures: list[Image]) -> Image:
    """(P, P + 30, 3): one to three pieces of pictures, above or next to one another, each recoloured."""
    wide, pieces = _PATCH + 30, int(g.choice([1, 2, 3], p=[0.4, 0.35, 0.25]))
    canvas = np.empty((_PATCH, wide, 3), np.uint8)
    across = g.random() < 0.3
    cuts = np.sort(g.uniform(0.2, 0.8, pieces - 1) * (wide if across else _PATCH)).astype(int)
    for low, high in zip((0, *cuts), (*cuts, wide), strict=True):
        picture = pictures[int(g.integers(len(pictures)))]
        zoom = np.exp(g.uniform(np.log(0.35), np.log(2.0)))
        place = (g.uniform(0, picture.shape[1]), g.uniform(0, picture.shape[0]))
        matrix = _affine(zoom, zoom, g.uniform(-3.2, 3.2), (wide / 2, _PATCH / 2), place)
        piece = _recoloured(g, _warp(picture, matrix, (wide, _PATCH)))
        if across:
            canvas[:, low:high] = piece[:, low:high]
        else:
            canvas[low:high] = piece[low:high]
    return canvas


def _warp(image: Image, matrix: Floats, size: tuple[int, int], border: int = cv2.BORDER_REFLECT_101) -> Image:
    return np.asarray(cv2.warpAffine(image, matrix, size, borderMode=border), dtype=np.uint8)


def _recoloured(g: np.random.Generator, image: Image) -> Image:
    """Each channel with its own gain and offset, now and then exchanged or inverted."""
    strength = 1.0 if g.random() < 0.5 else 0.35
    gain = np.exp(strength * (g.uniform(-0.6, 0.35) + g.uniform(-0.25, 0.25, 3)))
    offset = strength * (g.uniform(-50, 50) + g.uniform(-35, 35, 3))
    order = g.permutation(3) if g.random() < 0.4 * strength else np.arange(3)
    image = 255 - image if g.random() < 0.15 * strength else image
    recoloured: Image = np.clip(image[..., order] * gain + offset, 0, 255).astype(np.uint8)
    return recoloured


def _mask(g: np.random.Generator) -> Image:
    """(P, P) uint8: a rectangle, an ellipse, a polygon or a blob that touches all four sides."""
    mask, kind = np.zeros((_PATCH, _PATCH), np.uint8), g.random()
    middle, last = _PATCH // 2, _PATCH - 1
    if kind < 0.15:
        mask[:] = 255
    elif kind < 0.3:
        cv2.ellipse(mask, (middle, middle), (middle - 1, middle - 1), 0, 0, 360, (255,), -1)
    else:
        corners = int(g.integers(4, 9)) if kind < 0.55 else 40
        angles = 2 * np.pi * (np.arange(corners) + (g.uniform(-0.3, 0.3, corners) if corners < 40 else 0)) / corners
        waves = [g.uniform(0, 0.45 / k) * np.sin(k * angles + g.uniform(0, 6.3)) for k in range(2, 7)]
        radius = 1 + (g.uniform(-0.4, 0.4, corners) if corners < 40 else np.sum(waves, axis=0))
        points = radius[:, None] * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        points = (points - points.min(axis=0)) / np.ptp(points, axis=0) * last
        cv2.fillPoly(mask, [np.round(points).astype(np.int32)], (255,))
    return mask


class _Scene:
    """A scene, ready to be rendered: background, camera, objects and the quality of the video."""

    def __init__(self, g: np.random.Generator, pictures: list[Image], frames: int) -> None:
        self.g, self.frames = g, frames
        self.picture = pictures[int(g.integers(len(pictures)))]
        if g.random() < 0.5:
            self.picture = _recoloured(g, self.picture)
        # From an almost plain background with one object to a busy one: what is learned on the first helps on the last.
        plain = g.random() < 0.7
        contrast, soften = (g.uniform(0.05, 1), int(g.integers(1, 12))) if plain else (1.0, 1)
        mean = self.picture.mean(axis=(0, 1))
        calm = cv2.blur(self.picture, (soften, soften))
        self.picture = np.clip(mean + contrast * (calm - mean), 0, 255).astype(np.uint8)
        self.objects: list[_Object] = []
        for index in range(int(g.integers(1, 4)) if plain else int(g.integers(3, 6))):
            twin = self.objects[0] if index == 1 and g.random() < 0.4 else None
            self.objects.append(_Object(g, pictures, frames, twin))
        height, width = self.picture.shape[:2]
        self.zoom = max(_WIDTH / width, _HEIGHT / height) * np.exp(g.uniform(0, 0.8) + _wave(g, frames, -0.15, 0.15))
        self.look = np.stack([_wave(g, frames, side * 0.3, side * 0.7) for side in (width, height)], axis=1)
        self.look = self.look.mean(axis=0) + (self.look - self.look.mean(axis=0)) * g.uniform(0, 0.7)
        self.turn = _wave(g, frames, -1, 1) * g.uniform(0, 0.12)
        self.light = 1 + _wave(g, frames, -1, 1) * g.uniform(0, 0.2)
        noise = g.integers(-128, 128, (_HEIGHT + 32, _WIDTH + 32, 1 if g.random() < 0.5 else 3))
        self.noise = (noise * (g.uniform(0, 0.12) if g.random() < 0.5 else 0)).astype(np.int16)
        self.blur = (int(g.integers(1, 6)), int(g.integers(1, 4))) if g.random() < 0.3 else None
        self.coarse = g.random() < 0.25
        self.grey = g.random() < 0.12
        self.soft = g.random() < 0.7
        self.quality = int(g.integers(60, 91))

    def render(self) -> tuple[list[bytes], list[tuple[NDArray[np.int64], Floats]]]:
        """The JPEGs, and of each target the boxes (frames, 4) inside the frame and the part that is not covered."""
        targets = min(_TARGETS, len(self.objects))
        boxes, shown = np.zeros((targets, self.frames, 4), np.int64), np.zeros((targets, self.frames))
        images = []
        for t in range(self.frames):
            zoom = float(self.zoom[t])
            camera = _affine(zoom, zoom, float(self.turn[t]), (_WIDTH / 2, _HEIGHT / 2), tuple(self.look[t]))
            frame = _warp(self.picture, camera, (_WIDTH, _HEIGHT))
            owner = np.full((_HEIGHT, _WIDTH), -1, np.int8)
            areas = [self._paint(frame, owner, index, t, boxes) for index in range(len(self.objects))]
            for index in range(targets):
                shown[index, t] = (owner == index).sum() / max(1, areas[index])
            images.append(encode(self._filmed(frame, t), self.quality))
        return images, list(zip(boxes, shown, strict=True))

    def _paint(self, frame: Image, owner: NDArray[np.int8], index: int, t: int, boxes: NDArray[np.int64]) -> int:
        """Paint an object, and note its box; the number of its pixels in the frame."""
        one = self.objects[index]
        texture, mask, outline = one.patch(t)
        (across, down), at = one.scale[t].tolist(), (float(one.x[t]), float(one.y[t]))
        matrix = _affine(across, down, float(one.angle[t]), at, (_PATCH / 2, _PATCH / 2))
        points = outline @ matrix[:, :2].T + matrix[:, 2]
        low = np.clip(np.floor(points.min(axis=0)), 0, (_WIDTH, _HEIGHT)).astype(np.int64)
        high = np.clip(np.ceil(points.max(axis=0)) + 1, 0, (_WIDTH, _HEIGHT)).astype(np.int64)
        w, h = (high - low).tolist()
        if min(w, h) < 1:
            return 0
        if index < len(boxes):
            boxes[index, t] = (*low, w, h)
        matrix[:, 2] -= low
        # Shrinking by more than two without smoothing would alias.
        small = max(1, round(0.5 / float(one.scale[t].min())))
        texture = np.asarray(cv2.blur(texture, (small, small)), np.uint8) if small > 1 else texture
        pixels = _warp(texture, matrix, (w, h), cv2.BORDER_REPLICATE)
        alpha = _warp(mask, matrix, (w, h), cv2.BORDER_CONSTANT)
        soft = cv2.blur(alpha, (3, 3)) if self.soft else alpha
        part = np.s_[low[1] : low[1] + h, low[0] : low[0] + w]
        weight = soft[..., None].astype(np.int32)
        frame[part] = ((pixels * weight + frame[part] * (255 - weight) + 127) // 255).astype(np.uint8)
        owner[part][alpha > 127] = index
        return int((alpha > 127).sum())

    def _filmed(self, frame: Image, t: int) -> Image:
        """What the camera makes of it: light, blur, coarse pixels, grey, noise."""
        seen = cv2.convertScaleAbs(frame, alpha=float(self.light[t]))
        if self.blur:
            seen = cv2.blur(seen, self.blur)
        if self.coarse:
            seen = cv2.resize(cv2.resize(seen, None, fx=0.5, fy=0.5), (_WIDTH, _HEIGHT))
        if self.grey:
            seen = cv2.cvtColor(cv2.cvtColor(seen, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        if self.noise.any():
            x, y = self.g.integers(0, 32, 2).tolist()
            seen = np.clip(seen + self.noise[y : y + _HEIGHT, x : x + _WIDTH], 0, 255)
        return seen.astype(np.uint8)

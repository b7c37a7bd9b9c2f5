"""Data pipeline: samples per second per core, and the time of each stage, at B256 (two templates, one search region).

Frames are 1280x720, drawn here at two file sizes: 225 KB at quality 90, which the authors' loader was measured on, and
65 KB, LaSOT's average; with --data also the 1280x720 sequences of a folder of real video. Boxes are distributed as
LaSOT's. All numbers are for one process and in CPU time, so that a busy machine does not matter. The plain pipeline, to
compare, works in the authors' order (decode, mirror and grey the whole frame, then crop).
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from seqtrack.data import crop
from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.decode import FrameFile
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import Source, open_source
from seqtrack.seeding import sample_generator

_WIDTH, _HEIGHT = 1280, 720
_SPEC = SampleSpec(template_size=256, search_size=256, num_templates=2)
# The root of a box's area in LaSOT's training split: a log-normal with the split's quartiles (60, 130, 248 px).
_LOG_MEDIAN_PX, _LOG_SPREAD = np.log(130.0), 1.05
_QUALITY = {225: 90, 65: 60}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=300, help="samples per measurement (default: 300)")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions, of which the best counts (default: 3)")
    parser.add_argument("--data", type=Path, help="folder of real video, such as lasot_mini")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every kind of frame; the headline numbers are those of 225 KB."""
    cv2.setNumThreads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kilobytes in _QUALITY:
            source = _drawn(Path(folder) / str(kilobytes), kilobytes)
            results[f"{kilobytes}_kb"] = _measure(source, args.samples, args.repeats)
        if args.data is not None:
            clips = open_source("lasot", args.data, classes=(), split="train").sequences
            large = [clip for clip in clips if FrameFile(clip.frame_path(0)).width == _WIDTH]
            results["real_1280x720"] = _measure(Source("real", large, "train", False), args.samples, args.repeats)
    head = results["225_kb"]
    return {
        "samples_per_s_per_core": head["samples_per_s_per_core"],
        "stages_ms": head["stages_ms"],
        "samples_per_s_of_16_workers": round(16 * head["samples_per_s_per_core"]),
        "cores": os.cpu_count(),
        "opencv": cv2.__version__,
        **results,
    }


def _drawn(folder: Path, kilobytes: int) -> Source:
    """One sequence of 1280x720 frames near this file size, with boxes like LaSOT's."""
    (folder / "img").mkdir(parents=True)
    rng = np.random.default_rng(kilobytes)
    n = 2000
    frames = [_frame_of(rng, kilobytes * 1000, _QUALITY[kilobytes]) for _ in range(10)]
    for number, data in enumerate(frames, 1):
        (folder / "img" / f"{number:08d}.jpg").write_bytes(data)
    for number in range(len(frames) + 1, n + 1):
        (folder / "img" / f"{number:08d}.jpg").symlink_to(f"{(number - 1) % len(frames) + 1:08d}.jpg")
    side = np.clip(np.exp(rng.normal(_LOG_MEDIAN_PX, _LOG_SPREAD, n)), 8, 700)
    ratio = np.exp(rng.normal(0, 0.4, n))
    w, h = np.minimum(side * ratio, _WIDTH - 1), np.minimum(side / ratio, _HEIGHT - 1)
    boxes = np.stack((rng.random(n) * (_WIDTH - w), rng.random(n) * (_HEIGHT - h), w, h), axis=1).round()
    clip = Sequence("drawn-1", "drawn", boxes, np.zeros(n, dtype=np.bool_), folder / "img", np.ones(n, dtype=np.int64))
    return Source(f"drawn, {statistics.mean(map(len, frames)) / 1000:.0f} KB", [clip], "train", True)


def _frame_of(rng: np.random.Generator, target_bytes: int, quality: int) -> bytes:
    """A frame with edges and as much noise as the file size needs."""
    cells = rng.integers(0, 256, (_HEIGHT // 40, _WIDTH // 40, 3), dtype=np.uint8)
    smooth = cv2.resize(cells, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    grain = cv2.GaussianBlur(rng.standard_normal((_HEIGHT, _WIDTH, 3)).astype(np.float32), (0, 0), 0.8)
    low, high, data = 0.0, 120.0, b""
    for _ in range(12):
        strength = (low + high) / 2
        image = np.clip(smooth + strength * grain, 0, 255).astype(np.uint8)
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        low, high = (strength, high) if len(data) < target_bytes else (low, strength)
    return data


def _best_ms(work: Callable[[int], object], samples: int, repeats: int) -> float:
    """Processor time of one call, the best of several rounds."""
    rounds = []
    for _ in range(repeats):
        started = time.process_time()
        for index in range(samples):
            work(index)
        rounds.append(time.process_time() - started)
    return min(rounds) / samples * 1000


def _measure(source: Source, samples: int, repeats: int) -> dict[str, Any]:
    dataset = TrackingDataset([source], [1.0], _SPEC, seed=1)
    dataset.sample(0, 0)
    ours = _best_ms(lambda index: dataset.sample(0, index), samples, repeats)
    plain = _best_ms(lambda index: _plain_sample(dataset, index), samples, repeats)
    paths = [clip.frame_path(i) for clip in source.sequences for i in range(min(10, clip.num_frames))]
    return {
        "source": source.name,
        "mean_file_kb": round(statistics.mean(path.stat().st_size for path in paths) / 1000, 1),
        "samples_per_s_per_core": round(1000 / ours, 1),
        "plain_samples_per_s_per_core": round(1000 / plain, 1),
        "stages_ms": {**_stages(dataset, samples), "sample": round(ours, 3)},
        "whole_decode_ms": round(_best_ms(lambda i: FrameFile(paths[i % len(paths)]).whole(), samples, repeats), 3),
    }


def _stages(dataset: TrackingDataset, samples: int) -> dict[str, float]:
    """Milliseconds per sample in each stage, measured one after the other."""
    spent = dict.fromkeys(("draw", "read", "decode", "cut", "grey_and_mirror", "resize", "planes", "checksum"), 0.0)

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        result = work()
        spent[name] += time.process_time() - started
        return result

    for index in range(samples):
        generator = sample_generator(1, 0, index)
        _, clip, frames = timed("draw", lambda g=generator: dataset.choose(g))
        mirrored, grey = generator.random() < 0.5, generator.random() < 0.05
        for place, number in enumerate(frames):
            box = clip.boxes_xywh[number]
            jitter = _SPEC.search_jitter if place == 2 else _SPEC.template_jitter
            around = crop.jitter_box(box, jitter, normal=generator.standard_normal(2), uniform=generator.random(2))
            window = crop.crop_window(around, 4.0)
            path = clip.frame_path(int(number))
            file = timed("read", lambda p=path: FrameFile(p))
            region = crop.covered(window, file.width, file.height)
            pixels, x, y = timed("decode", lambda f=file, r=region: f.region(*r))
            if mirrored:
                pixels = timed("grey_and_mirror", lambda p=pixels: crop.mirror(p))
            where = {"place": (x, y), "frame_size": (file.width, file.height)}
            square = timed("cut", lambda p=pixels, w=window, k=where: crop.cut(p, w, **k))
            if grey:
                square = timed("grey_and_mirror", lambda s=square: crop.to_grey(s))
            image = timed("resize", lambda s=square: crop.resize(s, 256))
            timed("planes", lambda i=image: [np.empty((3, 256, 256), np.uint8), cv2.split(i)])
        sample = dataset.sample(0, index)
        timed("checksum", lambda s=sample: s.checksum)
    return {name: round(1000 * seconds / samples, 3) for name, seconds in spent.items()}


def _plain_sample(dataset: TrackingDataset, index: int) -> list[np.ndarray]:
    """The authors' order of work on the same frames: everything on the whole frame, the crop last, floats made here."""
    generator = sample_generator(1, 0, index)
    _, clip, frames = dataset.choose(generator)
    mirrored, grey = generator.random() < 0.5, generator.random() < 0.05
    images = []
    for place, number in enumerate(frames):
        frame = cv2.cvtColor(cv2.imread(str(clip.frame_path(int(number)))), cv2.COLOR_BGR2RGB)
        mask = np.zeros(frame.shape[:2], dtype=np.float32)
        if grey:
            frame = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if mirrored:
            frame, mask = np.fliplr(frame).copy(), np.fliplr(mask).copy()
        jitter = _SPEC.search_jitter if place == 2 else _SPEC.template_jitter
        box = clip.boxes_xywh[number]
        around = crop.jitter_box(box, jitter, normal=generator.standard_normal(2), uniform=generator.random(2))
        image, _ = crop.crop_frame(np.asarray(frame, dtype=np.uint8), around, factor=4.0, size=256)
        plane, _ = crop.crop_frame(mask[..., None].astype(np.uint8), around, factor=4.0, size=256)
        images += [image.transpose(2, 0, 1).astype(np.float32) / 255, plane]
    return images

#!/usr/bin/env python3
"""Track an object with a model of `seqtrack export --onnx`: python onnx_tracker.py FOLDER VIDEO X,Y,W,H [BOXES.txt]

Needs numpy, opencv-python and onnxruntime only, and this one file: copy it. VIDEO may be a folder of images. The
arithmetic is that of `seqtrack track`: the same crops, tokens and boxes.
"""

import json
import math
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

MARGIN_PX = 10  # at least this much of a box lies inside the image, and no side is shorter
IMAGE = re.compile(r"[^.].*\.(jpe?g|png|bmp|tiff?|webp)", re.IGNORECASE)  # no hidden file


def crop(image, box, factor, size):
    """A square around a box (x, y, w, h), `factor` times as large, black outside of the image, resized to `size`:
    (size, size, 3), and its pixels per pixel of the image."""
    x, y, w, h = (float(value) for value in box)
    side = math.ceil(math.sqrt(w * h) * factor)
    left, top = round(x + 0.5 * w - side * 0.5), round(y + 0.5 * h - side * 0.5)
    height, width = image.shape[:2]
    # A crop that reaches the last column or row loses it, as in the training of the published checkpoints.
    right = max(left, 0, width - 1 if left + side >= width else left + side)
    bottom = max(top, 0, height - 1 if top + side >= height else top + side)
    x0, y0 = max(left, 0), max(top, 0)
    square = np.zeros((side, side, 3), np.uint8)
    inside = image[y0:bottom, x0:right]
    if inside.size:
        square[y0 - top : bottom - top, x0 - left : right - left] = inside
    return cv2.resize(square, (size, size), interpolation=cv2.INTER_LINEAR), size / side


class Tracker:
    """One object in one video: `start` with its box in the first frame, `track` for each later one."""

    def __init__(self, folder, threads=0):
        config = json.loads(Path(folder, "model.json").read_text())["config"]
        self.data, self.test = config["DATA"], config["TEST"]
        self.bins, self.order = config["MODEL"]["BINS"], self.data["SEQ_FORMAT"]
        self.num_templates = self.data["TEMPLATE"]["NUMBER"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: one per core
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(str(Path(folder, name)), options, providers=["CPUExecutionProvider"])
            for name in ("encoder.onnx", "decoder.onnx")
        )
        # The window favours small motion. It multiplies the probabilities of the box's centre.
        steps = np.arange(self.bins) / (self.bins - 1)
        self.window = 0.5 - 0.5 * np.cos(2 * np.pi * steps) if self.test["WINDOW"] else np.ones(self.bins)
        self.centre = {"xywh": (0, 1), "whxy": (2, 3), "corner": ()}[self.order]

    def _input(self, image, box, factor, size):
        """(3, size, size) normalised, and the resize factor."""
        pixels, scale = crop(image, box, factor, size)
        mean, std = np.float32(self.data["MEAN"]), np.float32(self.data["STD"])
        return ((pixels.astype(np.float32) / 255 - mean) / std).transpose(2, 0, 1), scale

    def _template(self, image):
        return self._input(image, self.box, self.test["TEMPLATE_FACTOR"], self.data["TEMPLATE"]["SIZE"])[0]

    def start(self, image, box):
        """The first frame, (H, W, 3) RGB, and the object's box in it: x, y, w, h in pixels."""
        self.box, self.frame = np.array(box, np.float64), 0
        self.templates = [self._template(image)] * self.num_templates

    def _generate(self, memory):
        """The four tokens of the box, one at a time, and the sum of their probabilities."""
        layers, hidden = memory.shape[1], memory.shape[4]
        cache, token, tokens, total = np.zeros((1, layers, 2, 0, hidden), np.float32), self.bins + 1, [], 0.0
        for position in range(4):
            feed = {"tokens": np.array([[token]], np.int64), "memory": memory, "cache": cache}
            logits, cache = self.decoder.run(None, feed)
            scores = np.exp(logits[0] - logits[0].max())
            scores = (scores / scores.sum())[: self.bins]  # without the last two: END and START
            scores = scores * self.window if position in self.centre else scores
            token = int(scores.argmax())
            tokens.append(token)
            total += float(scores[token])
        return np.array(tokens, np.float64), total

    def track(self, image):
        """The object's box in the next frame, (4,) x, y, w, h in pixels, and a score from 0 to 40."""
        size = self.data["SEARCH"]["SIZE"]
        search, scale = self._input(image, self.box, self.test["SEARCH_FACTOR"], size)
        (memory,) = self.encoder.run(None, {"templates": np.stack(self.templates)[None], "search": search[None]})
        tokens, total = self._generate(memory)
        values = tokens / (self.bins - 1)
        if self.order == "corner":
            low, high = values[:2], values[2:]
            values = np.concatenate(((low + high) / 2, high - low))
        elif self.order == "whxy":
            values = np.roll(values, 2)
        side = size / scale  # of the search region, in pixels of the image
        previous = self.box[:2] + 0.5 * self.box[2:]
        extent = values[2:] * side
        corner = values[:2] * side + previous - 0.5 * side - 0.5 * extent
        center_rate, size_rate = self.test["CENTER_RATE"], self.test["SIZE_RATE"]
        if (center_rate, size_rate) != (1, 1):  # go a part of the way only: a small model's boxes are noisy
            center = previous + center_rate * (corner + extent / 2 - previous)
            ratios = (extent / self.box[2:]).tolist()  # floats, because NumPy's power has another last bit than torch's
            extent = self.box[2:] * [ratio**size_rate for ratio in ratios]
            corner = center - extent / 2
        limit = np.array([image.shape[1], image.shape[0]], np.float64)
        low = np.minimum(np.maximum(corner, 0), limit - MARGIN_PX)
        high = np.minimum(np.maximum(corner + extent, MARGIN_PX), limit)
        self.box, self.frame = np.concatenate((low, np.maximum(high - low, MARGIN_PX))), self.frame + 1
        score = 10 * total
        interval, threshold = self.test["UPDATE_INTERVALS"]["DEFAULT"], self.test["UPDATE_THRESHOLD"]["DEFAULT"]
        if self.num_templates > 1 and self.frame % interval == 0 and score > threshold:
            self.templates = [self.templates[0], *self.templates[2:], self._template(image)]
        return self.box, score


def frames(place):
    """(H, W, 3) RGB frames of a video file, or of a folder's images, frame2.jpg before frame10.jpg."""
    folder = Path(place, "img") if Path(place, "img").is_dir() else Path(place)
    if folder.is_dir():
        names = [path.name for path in folder.iterdir() if IMAGE.fullmatch(path.name)]
        names = [name for name in names if re.fullmatch(r"[0-9]{8}\.jpg", name)] or names
        names.sort(key=lambda name: [(int(n or -1), text) for text, n in re.findall("([^0-9]+)|([0-9]+)", name)])
        images = (cv2.imread(str(folder / name)) for name in names)
    else:
        capture = cv2.VideoCapture(str(folder.absolute()), cv2.CAP_FFMPEG)
        capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # off in some versions of OpenCV, on in others
        images = (image for _, image in iter(capture.read, (False, None)))
    yield from (cv2.cvtColor(image, cv2.COLOR_BGR2RGB) for image in images)


def main(folder, place, box, output=None):
    tracker, lines = Tracker(folder), []
    for number, image in enumerate(frames(place)):
        if number == 0:
            tracker.start(image, [float(value) for value in box.split(",")])
        else:
            tracker.track(image)
        lines.append(",".join(f"{value:.4f}" for value in tracker.box))
    Path(output).write_text("\n".join([*lines, ""])) if output else print(*lines, sep="\n")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    main(*sys.argv[1:])

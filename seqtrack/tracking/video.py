"""Frames in and an annotated video out: files, folders of images, cameras. Knows nothing of models.

A video is decoded in software with its rotation applied, as players do.
"""

import contextlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from seqtrack.data import Image
from seqtrack.data.decode import list_video_frames, read_image
from seqtrack.errors import UserError

logger = logging.getLogger(__name__)

DEFAULT_FPS = 30.0  # of a folder of images, and of a source that states an impossible rate
FPS_RANGE = (0.01, 1000.0)
# Browsers play VP9; Motion JPEG is large and a hundred times as fast to write.
CODECS = {".mp4": "vp09", ".avi": "MJPG"}
COLOUR_RGB, _SHADE_RGB = (255, 196, 0), (20, 20, 20)


@dataclass(frozen=True)
class FrameSource:
    """A source of frames.

    Attributes:
        kind, place: "video" and a file, "folder" and a folder, or "camera" and its number.
        paths: the images of a folder in order, else empty.
        count: frames according to the source's header, which may be wrong; None if unknown.
        fps: frames per second, as requested or else as the source states.
    """

    kind: str
    place: str
    paths: tuple[Path, ...]
    count: int | None
    fps: float

    @property
    def name(self) -> str:
        """Base name of the output."""
        if self.kind == "camera":
            return f"camera_{self.place}"
        path = Path(self.place).resolve()
        return path.parent.name if path.name == "img" else path.stem  # LaSOT's person-1/img is person-1

    def frames(self) -> Iterator[Image]:
        """(H, W, 3) RGB frames, all of one size.

        Raises:
            UserError: an image or the camera cannot be read, or a frame has another size than the first.
        """
        first: tuple[int, ...] | None = None
        for name, frame in self._read():
            first = first or frame.shape
            if frame.shape != first:
                text = f"{name}: {frame.shape[1]}x{frame.shape[0]} pixels, expected the first frame's"
                raise UserError(f"{text} {first[1]}x{first[0]}", "video.frame_size")
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _read(self) -> Iterator[tuple[str, Image]]:
        if self.kind == "folder":
            yield from ((str(path), read_image(path)) for path in self.paths)
            return
        capture, number = _capture(self.kind, self.place), 0
        while (read := capture.read())[0]:
            number += 1
            yield self.place, np.asarray(read[1], dtype=np.uint8)
        if self.kind == "camera":
            raise UserError(f"camera {self.place}: no more frames after {number}", "video.camera_ended")
        if number < (self.count or 0):
            logger.warning("%s: %d frames could be decoded, its header states %d", self.place, number, self.count)


def open_frames(place: str, *, fps: float | None = None) -> FrameSource:
    """Open a source of frames.

    Args:
        place: a video file; a folder of images (or of LaSOT's layout, with `img` in it); a camera's number or device.
            A file or folder whose name is a number takes precedence over the camera.
        fps: replaces the source's own rate.

    Raises:
        UserError: no such source, a folder without images, a video or camera that cannot be opened.
    """
    path, camera = Path(place), re.fullmatch(r"(?:/dev/video)?([0-9]{1,4})", place)
    if path.is_dir():
        paths = tuple(list_video_frames(path / "img" if (path / "img").is_dir() else path))
        return FrameSource("folder", place, paths, len(paths), fps or DEFAULT_FPS)
    if path.is_file():
        kind, code = "video", "video.not_a_video"
    elif camera:
        kind, code, place = "camera", "video.camera", camera[1]
    else:
        raise UserError(f"{place}: no such file or folder, and no camera's number, such as 0", "video.no_source")
    capture = _capture(kind, place)
    if not capture.read()[0]:
        # OpenCV and FFmpeg only print their reasons, and FFmpeg reads its log level once per process.
        call = f"int({place!r})" if kind == "camera" else f"{str(Path(place).absolute())!r}, cv2.CAP_FFMPEG"
        command = [sys.executable, "-c", f"import cv2; cv2.VideoCapture({call}).read()"]
        loud = {**os.environ, "OPENCV_FFMPEG_LOGLEVEL": "16", "OPENCV_LOG_LEVEL": "WARNING"}  # 16: errors
        done = subprocess.run(command, env=loud, capture_output=True, text=True, errors="replace")
        printed = " | ".join((done.stdout + done.stderr).splitlines()[:4])[:400] or "nothing"
        raise UserError(f"{place}: OpenCV reads no frame from this {kind}, and prints: {printed}", code)
    stated_fps, stated_count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    count = round(stated_count) if kind == "video" and 0 < stated_count < 1e8 else None
    rate = stated_fps if FPS_RANGE[0] <= stated_fps <= FPS_RANGE[1] else DEFAULT_FPS
    return FrameSource(kind, place, (), count, fps or rate)


def _capture(kind: str, place: str) -> cv2.VideoCapture:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # it prints to stdout, where our results go
    cv2.setLogLevel(0)
    if kind == "camera":
        return cv2.VideoCapture(int(place))
    software = [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_NONE]
    # Without a folder in front, FFmpeg takes what precedes a colon for a protocol.
    capture = cv2.VideoCapture(str(Path(place).absolute()), cv2.CAP_FFMPEG, software)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # off in some versions of OpenCV, on in others
    return capture


@contextlib.contextmanager
def video_writer(path: Path, *, fps: float, size: tuple[int, int]) -> Iterator[Callable[[Image], None]]:
    """A function that appends one (H, W, 3) RGB frame to a video, which appears under its name once the block has ended
    and every frame can be read back: OpenCV reports no failed write.

    Args:
        path: ends in one of `CODECS`.
        fps: frames per second, in `FPS_RANGE`; OpenCV rounds it to a thousandth.
        size: (width, height) in pixels; an odd size is cropped by one pixel at the right or bottom.

    Raises:
        UserError: the folder is not writable, OpenCV has no such encoder, or the file is incomplete.
    """
    width, height = size[0] // 2 * 2, size[1] // 2 * 2  # the chroma planes have half the size
    written = 0

    def write(image: Image) -> None:
        nonlocal written
        writer.write(cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR))
        written += 1

    try:
        with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=path.parent) as folder:
            temporary, codec = str(Path(folder, path.name)), cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()])
            writer = cv2.VideoWriter(temporary, cv2.CAP_FFMPEG, codec, fps, (width, height))
            if not writer.isOpened():
                text = f"{path}: OpenCV cannot encode a video of {width}x{height} pixels, {fps:g} frames per second"
                raise UserError(text, "video.codec")
            yield write
            writer.release()
            found = sum(1 for _ in iter(_capture("video", temporary).grab, False))  # its header may count missing ones
            if found != written:
                text = f"{path}: {written} frames were encoded, {found} can be read back; bytes free on its disk:"
                raise UserError(f"{text} {shutil.disk_usage(path.parent).free}", "video.incomplete_video")
            Path(temporary).replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})", "video.output") from error


def draw_box(image: Image, box_xywh: Sequence[float], caption: str) -> Image:
    """A copy of (H, W, 3) RGB with the box (pixels, clipped to the image) and the caption above or inside it."""
    canvas, font = image.copy(), cv2.FONT_HERSHEY_SIMPLEX
    height, width = canvas.shape[:2]
    scale = max(0.35, min(height, width) / 900)
    thickness = max(1, round(2 * scale))
    x, y, w, h = map(round, box_xywh)
    (text_width, text_height), _ = cv2.getTextSize(caption, font, scale, thickness)
    left, bottom = np.clip(x, 0, max(0, width - text_width)), np.clip(y - 4 * thickness, text_height, height)
    # Dark lines around the bright ones make them visible on any background.
    for colour, more in ((_SHADE_RGB, 2), (COLOUR_RGB, 0)):
        cv2.rectangle(canvas, (x, y), (x + w, y + h), colour, thickness + more)
        cv2.putText(canvas, caption, (int(left), int(bottom)), font, scale, colour, thickness + more, cv2.LINE_AA)
    return canvas

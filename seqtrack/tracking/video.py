"""Frames in and an annotated video out: files, folders of images, cameras. Knows nothing of models.

A video is decoded in software with its rotation applied, as players do. OpenCV reports failures without a reason, so
error messages contain what it and FFmpeg print; no cause is named that was not checked.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from seqtrack.data import Image
from seqtrack.data.decode import read_image
from seqtrack.data.frames import list_video_frames
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
        kind: "video", "folder" or "camera".
        place: a file, a folder, or a camera's number.
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
        return f"camera_{self.place}" if self.kind == "camera" else Path(self.place).resolve().stem or "frames"

    def frames(self) -> Iterator[Image]:
        """(H, W, 3) RGB frames, all of one size.

        Raises:
            UserError: an image or the camera cannot be read, or a frame has another size than the first.
        """
        size: tuple[int, ...] | None = None
        for number, (name, frame) in enumerate(self._read(), start=1):
            if size is not None and frame.shape != size:
                raise UserError(
                    f"{name}: frame {number} has {frame.shape[1]}x{frame.shape[0]} pixels, the first has "
                    f"{size[1]}x{size[0]}; all frames must have the same size",
                    code="track.frame_size",
                )
            size = frame.shape
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)

    def _read(self) -> Iterator[tuple[str, Image]]:
        if self.kind == "folder":
            yield from ((str(path), read_image(path)) for path in self.paths)
            return
        capture, number = _capture(self.kind, self.place), 0
        try:
            while (read := capture.read())[0]:
                number += 1
                yield self.place, np.asarray(read[1], dtype=np.uint8)
        finally:
            capture.release()
        if self.kind == "camera":
            raise UserError(f"camera {self.place}: no more frames after {number}", code="track.camera_ended")
        if self.count is not None and number < self.count:
            text = "%s: no frame could be decoded after %d, although its header states %d"
            logger.warning(text, self.place, number, self.count)


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
        kind, what, code = "video", f"{place} ({path.stat().st_size} bytes)", "track.not_a_video"
    elif camera:
        kind, place, code, what = "camera", camera[1], "track.camera", f"camera {camera[1]}"
    else:
        text = f"{place}: no such file or folder, and not the number of a camera, such as 0"
        raise UserError(text, code="track.no_source")
    capture = _capture(kind, place)
    opened = capture.isOpened()
    decoded = opened and capture.read()[0]
    stated_fps, stated_count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    if not decoded:
        found = "opened it, but read no frame" if opened else "could not open it"
        call = "VideoCapture(int(place))" if kind == "camera" else "VideoCapture(place, cv2.CAP_FFMPEG)"
        reason = _opencv_output(f"cv2.{call}.read()", place)
        raise UserError(f"{what}: cannot be read as a {kind}: OpenCV {found}{reason}", code=code)
    count = round(stated_count) if kind == "video" and 0 < stated_count < 1e8 else None
    in_range = FPS_RANGE[0] <= stated_fps <= FPS_RANGE[1]
    return FrameSource(kind, place, (), count, fps or (stated_fps if in_range else DEFAULT_FPS))


def _opencv_output(call: str, place: str) -> str:
    """What OpenCV and FFmpeg print when a failed call is repeated: they give their reasons nowhere else.

    In a separate process, because they write to the file descriptor, and FFmpeg reads its log level only once.
    """
    loud = {**os.environ, "OPENCV_FFMPEG_LOGLEVEL": "16", "OPENCV_LOG_LEVEL": "WARNING"}  # 16: errors
    command = [sys.executable, "-c", f"import cv2, sys; place = sys.argv[1]; {call}", place]
    try:
        done = subprocess.run(command, env=loud, capture_output=True, text=True, errors="replace", timeout=60)
    except subprocess.TimeoutExpired:
        return "; no reason was printed within 60 s"
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return f"; its output: {' | '.join(lines[:4])[:400]}" if lines else "; it printed no reason"


def _capture(kind: str, place: str) -> cv2.VideoCapture:
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # it prints to stdout, where our results go
    cv2.setLogLevel(0)
    if kind == "camera":
        return cv2.VideoCapture(int(place))
    software = [cv2.CAP_PROP_HW_ACCELERATION, cv2.VIDEO_ACCELERATION_NONE]
    capture = cv2.VideoCapture(place, cv2.CAP_FFMPEG, software)
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)  # off in some versions of OpenCV, on in others
    return capture


class VideoWriter:
    """Writes frames to a video, which appears under its name once it is complete and can be read back.

    A context manager; leaving it with an error leaves no file.

    Args:
        path: ends in one of `CODECS`.
        fps: frames per second, in `FPS_RANGE`; OpenCV rounds it to a thousandth.
        size: (width, height) in pixels; an odd size is cropped by one pixel at the right or bottom.

    Raises:
        UserError: the path cannot be written, or the finished file cannot be read back.
    """

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int]) -> None:
        self.path, self.num_frames = path, 0
        self._size = (size[0] - size[0] % 2, size[1] - size[1] % 2)  # the chroma planes have half the size
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        if min(self._size) < 2:
            raise UserError(f"{path}: frames of {size[0]}x{size[1]} pixels are too small", code="track.frame_size")
        try:
            self._temporary.touch()
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})", code="track.output") from error
        wanted = cv2.VideoWriter.fourcc(*CODECS[path.suffix.lower()]), fps, self._size
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, *wanted)
        if not self._writer.isOpened():
            reason = _opencv_output(f"cv2.VideoWriter(place, cv2.CAP_FFMPEG, *{wanted})", str(self._temporary))
            self._temporary.unlink(missing_ok=True)
            text = f"{path}: OpenCV could not start a video of {size[0]}x{size[1]} pixels and {fps:g} frames per second"
            raise UserError(text + reason, code="track.codec")

    def write(self, image: Image) -> None:
        """Append one (H, W, 3) RGB frame."""
        width, height = self._size
        self._writer.write(cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR))
        self.num_frames += 1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._writer.release()
        try:
            if kind is None:
                self._check()
                self._temporary.replace(self.path)
        except OSError as problem:
            raise UserError(f"{self.path}: cannot be written ({problem})", code="track.output") from problem
        finally:
            self._temporary.unlink(missing_ok=True)

    def _check(self) -> None:
        """OpenCV reports no failed write."""
        capture = _capture("video", str(self._temporary))
        found = round(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() and capture.read()[0] else 0
        capture.release()
        if found != self.num_frames:
            raise UserError(
                f"{self.path}: {self.num_frames} frames were passed to OpenCV's FFmpeg, {found} can be read back; "
                f"{shutil.disk_usage(self.path.parent).free} bytes are free on its disk",
                code="track.incomplete_video",
            )


def draw_box(image: Image, box_xywh: Sequence[float], caption: str) -> Image:
    """A copy of (H, W, 3) RGB with the box (pixels, clipped to the image) and the caption above or inside it."""
    canvas = image.copy()
    height, width = canvas.shape[:2]
    scale = max(0.35, min(height, width) / 900)
    line, pad = max(1, round(2 * scale)), max(2, round(4 * scale))
    x, y, w, h = box_xywh
    corners = (round(x), round(y)), (round(x + w), round(y + h))
    # A dark line around the bright one makes the box visible on any background.
    cv2.rectangle(canvas, *corners, _SHADE_RGB, line + 2)
    cv2.rectangle(canvas, *corners, COLOUR_RGB, line)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, text_height), below = cv2.getTextSize(caption, font, scale, 1)
    box_width, box_height = text_width + 2 * pad, text_height + below + 2 * pad
    left = int(np.clip(round(x), 0, max(0, width - box_width)))
    top = int(np.clip(round(y) - line - 1 - box_height, 0, max(0, height - box_height)))
    cv2.rectangle(canvas, (left, top), (left + box_width, top + box_height), _SHADE_RGB, cv2.FILLED)
    place = left + pad, top + pad + text_height
    cv2.putText(canvas, caption, place, font, scale, COLOUR_RGB, 1, cv2.LINE_AA)
    return canvas

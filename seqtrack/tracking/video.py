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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from seqtrack.checkpoints.safetensors_io import sync_folder
from seqtrack.data import Image
from seqtrack.data.decode import read_image
from seqtrack.data.frames import list_video_frames
from seqtrack.errors import UserError

logger = logging.getLogger(__name__)

FOLDER_FPS = 30.0  # a folder of images has no frame rate
FPS_RANGE = (0.001, 1000.0)  # representable in an mp4's 16-bit time scale with four digits
# Browsers play VP9; Motion JPEG is large and a hundred times as fast to write.
CODECS = {".mp4": "vp09", ".avi": "MJPG"}
COLOUR_RGB, _SHADE_RGB = (255, 196, 0), (20, 20, 20)
_CAMERA = re.compile(r"(?:/dev/video)?([0-9]{1,4})")


@dataclass
class FrameSource:
    """A source of frames.

    Attributes:
        kind: "video", "folder" or "camera".
        place: a file, a folder, or a camera's number.
        paths: the images of a folder in order, else empty.
        count: frames according to the source's header, which may be wrong; None if unknown.
        fps: frames per second, as requested or else as the source states.
        num_read: frames read so far.
        span_ms: time between the first and the last of them by a video's own clock, else 0.
    """

    kind: str
    place: str
    paths: tuple[Path, ...]
    count: int | None
    fps: float
    num_read: int = 0
    span_ms: float = 0.0

    @property
    def name(self) -> str:
        """Base name of the output."""
        return f"camera_{self.place}" if self.kind == "camera" else Path(self.place).resolve().stem or "frames"

    @property
    def mean_fps(self) -> float:
        """Frames per second so far by the video's own clock if that differs from `fps` (variable frame rate)."""
        expected = 1000 * (self.num_read - 1) / self.fps
        steady = self.span_ms <= 0 or abs(expected - self.span_ms) <= 2 + 0.01 * self.span_ms  # clocks count in ms
        return self.fps if steady else 1000 * (self.num_read - 1) / self.span_ms

    def frames(self) -> Iterator[Image]:
        """(H, W, 3) RGB frames, all of one size.

        Raises:
            UserError: an image or the camera cannot be read, or a frame has another size than the first.
        """
        reader = _read_images(self.paths) if self.kind == "folder" else _read_capture(self)
        size: tuple[int, ...] | None = None
        for number, (name, frame) in enumerate(reader, start=1):
            if size is not None and frame.shape != size:
                raise UserError(
                    f"{name}: frame {number} has {frame.shape[1]}x{frame.shape[0]} pixels, the first has "
                    f"{size[1]}x{size[0]}; all frames must have the same size",
                    code="track.frame_size",
                )
            size = frame.shape
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def open_frames(place: str, *, fps: float | None = None) -> FrameSource:
    """Open a source of frames.

    Args:
        place: a video file; a folder of images (or of LaSOT's layout, with `img` in it); a camera's number or device.
            A file or folder whose name is a number takes precedence over the camera.
        fps: replaces the source's own rate.

    Raises:
        UserError: no such source, a folder without images, a video or camera that cannot be opened.
    """
    path = Path(place)
    if path.is_dir():
        folder = path / "img" if (path / "img").is_dir() else path
        paths = tuple(list_video_frames(folder))
        return FrameSource("folder", place, paths, len(paths), fps or FOLDER_FPS)
    if path.is_file():
        return _probe("video", place, fps)
    if camera := _CAMERA.fullmatch(place):
        return _probe("camera", camera[1], fps)
    raise UserError(
        f"{place}: no such file or folder, and not the number of a camera, such as 0",
        code="track.no_source",
    )


def _opencv_output(call: str, place: str) -> str:
    """What OpenCV and FFmpeg print when a failed call is repeated: they give their reasons nowhere else.

    In a separate process, because they write to the file descriptor, and FFmpeg reads its log level only once.

    Args:
        call: Python code that may use `cv2` and `place`.
    """
    loud = {**os.environ, "OPENCV_FFMPEG_LOGLEVEL": "16", "OPENCV_LOG_LEVEL": "WARNING"}  # 16: errors
    command = [sys.executable, "-c", f"import cv2, sys; place = sys.argv[1]; {call}", place]
    try:
        done = subprocess.run(
            command, env=loud, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60
        )
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


def _probe(kind: str, place: str, fps: float | None) -> FrameSource:
    capture = _capture(kind, place)
    opened = capture.isOpened()
    decoded = opened and capture.read()[0]
    stated_fps, stated_count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    capture.release()
    what = "opened it, but read no frame" if opened else "could not open it"
    if not decoded and kind == "camera":
        there = ", ".join(sorted(map(str, Path("/dev").glob("video*")))) or "none"
        reason = _opencv_output("cv2.VideoCapture(int(place)).read()", place)
        raise UserError(f"camera {place}: OpenCV {what} (devices /dev/video*: {there}){reason}", code="track.camera")
    if not decoded:
        size = Path(place).stat().st_size
        reason = _opencv_output("cv2.VideoCapture(place, cv2.CAP_FFMPEG).read()", place)
        raise UserError(
            f"{place}: cannot be read as a video: OpenCV's FFmpeg {what} ({size} bytes){reason}",
            code="track.not_a_video",
        )
    if not FPS_RANGE[0] <= stated_fps <= FPS_RANGE[1]:
        stated_fps = FOLDER_FPS
    count = round(stated_count) if kind == "video" and 0 < stated_count < 1e8 else None
    return FrameSource(kind, place, (), count, fps or stated_fps)


def _read_images(paths: tuple[Path, ...]) -> Iterator[tuple[str, Image]]:
    for path in paths:
        yield str(path), read_image(path)


def _read_capture(source: FrameSource) -> Iterator[tuple[str, Image]]:
    capture = _capture(source.kind, source.place)
    first_ms = 0.0
    source.num_read, source.span_ms = 0, 0.0
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            source.num_read += 1
            if source.kind == "video":
                now_ms = capture.get(cv2.CAP_PROP_POS_MSEC)
                first_ms = now_ms if source.num_read == 1 else first_ms
                source.span_ms = now_ms - first_ms
            yield source.place, np.asarray(frame, dtype=np.uint8)
    finally:
        capture.release()
    if source.kind == "camera":
        raise UserError(f"camera {source.place}: no more frames after {source.num_read}", code="track.camera_ended")
    if source.count is not None and source.num_read < source.count:
        logger.warning(
            "%s: no frame could be decoded after %d, although its header states %d",
            source.place, source.num_read, source.count,
        )  # fmt: skip


class VideoWriter:
    """Writes frames to a video, which appears under its name once it is complete and can be read back.

    A context manager; leaving it with an error leaves no file. One frame is encoded while the caller makes the next.

    Args:
        path: ends in one of `CODECS`.
        fps: frames per second. Of an mp4 it may be changed until the end: it is written last, as the nearest fraction
            whose numerator and denominator are at most 65535. OpenCV rounds an avi's to a thousandth.
        size: (width, height) in pixels; an odd size is cropped by one pixel at the right or bottom.

    Raises:
        UserError: the path cannot be written, or the finished file cannot be read back.
    """

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int]) -> None:
        self.path, self.fps = path, fps
        self.num_frames = 0
        self._size = (size[0] - size[0] % 2, size[1] - size[1] % 2)  # the chroma planes have half the size
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
        if min(self._size) < 2:
            raise UserError(
                f"{path}: frames of {size[0]}x{size[1]} pixels are too small for a video", code="track.frame_size"
            )
        try:
            self._temporary.touch()
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})", code="track.output") from error
        codec = CODECS[path.suffix.lower()]
        rate = fps if codec == "MJPG" else FOLDER_FPS
        wanted = cv2.VideoWriter.fourcc(*codec), rate, self._size
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, *wanted)
        if not self._writer.isOpened():
            reason = _opencv_output(f"cv2.VideoWriter(place, cv2.CAP_FFMPEG, *{wanted})", str(self._temporary))
            self._temporary.unlink(missing_ok=True)
            raise UserError(
                f"{path}: OpenCV's FFmpeg could not start a video of {self._size[0]}x{self._size[1]} pixels with codec "
                f"{codec} and {rate:g} frames per second{reason}",
                code="track.codec",
            )
        self._encoder = ThreadPoolExecutor(1)
        self._encoding: Future[None] | None = None

    def write(self, image: Image) -> None:
        """Append one (H, W, 3) RGB frame."""
        width, height = self._size
        frame = cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR)
        if self._encoding is not None:
            self._encoding.result()
        self._encoding = self._encoder.submit(self._writer.write, frame)
        self.num_frames += 1

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._encoder.shutdown()
        self._writer.release()
        try:
            if kind is None:
                self._finish()
        except OSError as problem:
            raise UserError(f"{self.path}: cannot be written ({problem})", code="track.output") from problem
        finally:
            self._temporary.unlink(missing_ok=True)

    def _finish(self) -> None:
        found = self._readable_frames()
        if found != self.num_frames:
            free = shutil.disk_usage(self.path.parent).free
            raise UserError(
                f"{self.path}: {self.num_frames} frames were passed to OpenCV's FFmpeg, {found} can be read back; "
                f"{free} bytes are free on its disk",
                code="track.incomplete_video",
            )
        if self._temporary.suffix.lower() == ".mp4":
            set_mp4_rate(self._temporary, nearest_rate(self.fps, self.num_frames))
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.replace(self.path)
        sync_folder(self.path.parent)

    def _readable_frames(self) -> int:
        """Frames in the finished file's index, 0 if it has none or the first frame cannot be decoded."""
        capture = _capture("video", str(self._temporary))
        there = capture.isOpened() and capture.read()[0]
        count = round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        capture.release()
        return count if there else 0


def nearest_rate(fps: float, num_frames: int = 1) -> Fraction:
    """The nearest fraction whose numerator and denominator fit into 16 bits, and the total duration into 32."""
    return Fraction(fps).limit_denominator(int(min(65535 / max(fps, 1.0), (2**32 - 1) / num_frames)))


def set_mp4_rate(path: Path, rate: Fraction) -> None:
    """Set the constant frame rate of an mp4 with one track.

    OpenCV takes the rate as a float, rounded to a thousandth, before the first frame; the index at the file's end holds
    it as a fraction.
    """
    with path.open("r+b") as file:
        size = path.stat().st_size
        at, kind = 0, b""
        while kind != b"moov":  # ISO/IEC 14496-12: boxes of length, kind, content; a length of 1 means 64 bits follow
            file.seek(at)
            head = file.read(16)
            length, kind = int.from_bytes(head[:4], "big"), head[4:8]
            length = int.from_bytes(head[8:16], "big") if length == 1 else length
            if length < 8 or at + length > size:
                raise OSError(f"{path}: the index of the mp4 was not found")
            start, at = at, at + length
        file.seek(start)
        index = bytearray(file.read(length))

        def put(name: bytes, **fields: int) -> None:
            box = index.index(name) + 4
            for offset, value in ((int(key[1:]), value) for key, value in fields.items()):
                index[box + offset : box + offset + 4] = value.to_bytes(4, "big")

        stts = index.index(b"stts") + 4
        entries = int.from_bytes(index[stts + 4 : stts + 8], "big")
        frames = sum(int.from_bytes(index[stts + 8 + 8 * i : stts + 12 + 8 * i], "big") for i in range(entries))
        duration = frames * rate.denominator
        for i in range(entries):
            index[stts + 12 + 8 * i : stts + 16 + 8 * i] = rate.denominator.to_bytes(4, "big")
        put(b"mvhd", _12=rate.numerator, _16=duration)
        put(b"mdhd", _12=rate.numerator, _16=duration)
        put(b"tkhd", _20=duration)
        if b"elst" in index:
            put(b"elst", _8=duration)
        file.seek(start)
        file.write(index)


def draw_box(image: Image, box_xywh: Sequence[float], caption: str) -> Image:
    """A copy of (H, W, 3) RGB with the box (pixels, clipped to the image) and the caption above or below it."""
    canvas = image.copy()
    height, width = canvas.shape[:2]
    scale = max(0.35, min(height, width) / 900)
    line = max(1, round(2 * scale))
    x0, y0 = round(box_xywh[0]), round(box_xywh[1])
    x1, y1 = round(box_xywh[0] + box_xywh[2]), round(box_xywh[1] + box_xywh[3])
    # A dark line around the bright one makes the box visible on any background.
    cv2.rectangle(canvas, (x0, y0), (x1, y1), _SHADE_RGB, line + 2)
    cv2.rectangle(canvas, (x0, y0), (x1, y1), COLOUR_RGB, line)
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, text_height), below = cv2.getTextSize(caption, font, scale, 1)
    pad = max(2, round(4 * scale))
    left = int(np.clip(x0, 0, max(0, width - text_width - 2 * pad)))
    bottom = y0 - line - 1
    if bottom - text_height - below - 2 * pad < 0:  # no space above: below the box, or inside at the image's border
        bottom = min(height - 1, y1 + line + 1 + text_height + below + 2 * pad)
    top = bottom - text_height - below - 2 * pad
    cv2.rectangle(canvas, (left, top), (left + text_width + 2 * pad, bottom), _SHADE_RGB, cv2.FILLED)
    cv2.putText(canvas, caption, (left + pad, bottom - below - pad), font, scale, COLOUR_RGB, 1, cv2.LINE_AA)
    return canvas


def ask_for_box(image: Image) -> tuple[float, ...] | None:
    """Let the user draw the box with the mouse; None without a display or with an OpenCV without windows.

    Raises:
        UserError: the window was closed without a box.
    """
    if not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    title = "Draw the object's box, then press Enter"
    try:
        box = cv2.selectROI(title, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), showCrosshair=True)
        cv2.destroyAllWindows()
    except cv2.error:
        return None  # the headless build of OpenCV in the lock file has no windows
    if box[2] <= 0 or box[3] <= 0:
        raise UserError("no box was drawn; draw one and press Enter, or give --box x,y,w,h", code="track.box")
    return tuple(float(value) for value in box)

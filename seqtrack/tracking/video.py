"""Frames in and an annotated video out: files, folders of images, cameras.

Knows OpenCV's readers and writers and their silences: a video that cannot be opened, a folder without images, a file
that breaks off, a codec that is missing are told in words. Knows nothing of models or boxes.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt

from seqtrack.checkpoints.files import sync_folder
from seqtrack.data.decode import read_image
from seqtrack.data.frames import list_video_frames
from seqtrack.errors import UserError

logger = logging.getLogger(__name__)

Image = npt.NDArray[np.uint8]
FOLDER_FPS = 30.0  # images in a folder do not say how fast they were taken


@dataclass(frozen=True)
class FrameSource:
    """Where frames come from.

    Attributes:
        kind: "video", "folder" or "camera".
        place: a file, a folder, or a camera's number.
        paths: the images of a folder in order, else empty.
        count: frames there are, None where nobody knows (a camera, some videos).
        fps: frames a second, as the source says or as was asked for.
    """

    kind: str
    place: str
    paths: tuple[Path, ...]
    count: int | None
    fps: float

    @property
    def name(self) -> str:
        """What the output is called after."""
        return f"camera_{self.place}" if self.kind == "camera" else Path(self.place).resolve().stem or "frames"

    def frames(self) -> Iterator[Image]:
        """(H, W, 3) uint8 RGB, one after another, all of one size.

        Raises:
            UserError: an image or the camera cannot be read, or a frame has another size than the first.
        """
        reader = _read_images(self.paths) if self.kind == "folder" else _read_capture(self)
        size: tuple[int, ...] | None = None
        for number, (told, frame) in enumerate(reader, start=1):
            if size is not None and frame.shape != size:
                raise UserError(
                    f"{told}: frame {number} has {frame.shape[1]}x{frame.shape[0]} pixels, the first has "
                    f"{size[1]}x{size[0]}; one video has one size"
                )
            size = frame.shape
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def open_frames(place: str, *, fps: float | None = None) -> FrameSource:
    """Find out what `place` is and whether it can be read.

    Args:
        place: a video file; a folder of images (or of LaSOT's layout, with `img` in it); a camera's number or device.
        fps: for folders, and for sources that do not say.

    Raises:
        UserError: nothing there, a folder without images, a video or camera that cannot be opened.
    """
    path = Path(place)
    if place.isdigit() or place.startswith("/dev/video"):
        return _probe("camera", place.removeprefix("/dev/video"), fps)
    if path.is_dir():
        folder = path / "img" if (path / "img").is_dir() else path
        paths = tuple(list_video_frames(folder))
        return FrameSource("folder", place, paths, len(paths), fps or FOLDER_FPS)
    if not path.is_file():
        raise UserError(f"{place}: no such video, folder or camera; a camera is given by its number, such as 0")
    return _probe("video", place, fps)


def _capture(source_kind: str, place: str) -> cv2.VideoCapture:
    # FFmpeg writes its own complaints to the terminal; ours say what to do.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.setLogLevel(0)
    return cv2.VideoCapture(int(place)) if source_kind == "camera" else cv2.VideoCapture(place)


def _probe(kind: str, place: str, fps: float | None) -> FrameSource:
    capture = _capture(kind, place)
    try:
        opened = capture.isOpened() and capture.read()[0]
        told_fps, told_count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    if not opened and kind == "camera":
        raise UserError(f"camera {place}: cannot be opened, or gives no picture; is it connected, and not in use?")
    if not opened:
        raise UserError(
            f"{place}: cannot be read as a video: no frame could be decoded ({Path(place).stat().st_size} bytes)"
        )
    if not 0 < told_fps < 1000:
        told_fps = FOLDER_FPS
    count = round(told_count) if kind == "video" and 0 < told_count < 1e8 else None
    return FrameSource(kind, place, (), count, fps or told_fps)


def _read_images(paths: tuple[Path, ...]) -> Iterator[tuple[str, Image]]:
    for path in paths:
        yield str(path), read_image(path)


def _read_capture(source: FrameSource) -> Iterator[tuple[str, Image]]:
    capture = _capture(source.kind, source.place)
    number = 0
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            number += 1
            yield source.place, np.asarray(frame, dtype=np.uint8)
    finally:
        capture.release()
    if source.kind == "camera":
        raise UserError(f"camera {source.place}: gave no more pictures after {number}")
    if source.count is not None and number < source.count:
        logger.warning(
            "%s: ends after %d frames, although it announces %d: the file is cut off or damaged",
            source.place, number, source.count,
        )  # fmt: skip


class Mp4Writer:
    """Writes frames to an mp4 that appears under its name when it is finished and can be read back.

    A context manager; leaving it with an error leaves nothing.

    Args:
        path: ends in .mp4; its folder exists.
        size: (width, height) in pixels; one pixel is left off at the right and bottom where it is odd.

    Raises:
        UserError: the codec is missing, the folder cannot be written, or the finished file cannot be read back.
    """

    def __init__(self, path: Path, *, fps: float, size: tuple[int, int]) -> None:
        self.path = path
        self.num_frames = 0
        self._size = (size[0] - size[0] % 2, size[1] - size[1] % 2)  # MPEG-4's colour planes have half the size
        self._temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp.mp4")
        if min(self._size) < 2:
            raise UserError(f"{path}: frames of {size[0]}x{size[1]} pixels are too small for a video")
        self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter.fourcc(*"mp4v"), fps, self._size)
        if not self._writer.isOpened():
            self._temporary.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot be written as mp4; is {path.parent} writable, and has its disk space?")

    def write(self, image: Image) -> None:
        """Append one (H, W, 3) uint8 RGB frame."""
        width, height = self._size
        self._writer.write(cv2.cvtColor(image[:height, :width], cv2.COLOR_RGB2BGR))
        self.num_frames += 1

    def __enter__(self) -> "Mp4Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.release()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        found = self._readable_frames()
        if found != self.num_frames:
            self._temporary.unlink(missing_ok=True)
            raise UserError(
                f"{self.path}: {self.num_frames} frames were written, {found} can be read back; is the disk full?"
            )
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        shutil.move(self._temporary, self.path)
        sync_folder(self.path.parent)

    def _readable_frames(self) -> int:
        """Frames the finished file announces, 0 if not even the first can be decoded."""
        capture = cv2.VideoCapture(str(self._temporary))
        try:
            if not capture.isOpened() or not capture.read()[0]:
                return 0
            return round(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        finally:
            capture.release()


def ask_for_box(image: Image) -> tuple[float, ...] | None:
    """Let the user draw the box with the mouse; None where there is no display or OpenCV has no windows.

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
        return None  # the headless build of OpenCV, which the lock names, has no windows
    if box[2] <= 0 or box[3] <= 0:
        raise UserError("no box was drawn; draw one and press Enter, or give --box x,y,w,h")
    return tuple(float(value) for value in box)

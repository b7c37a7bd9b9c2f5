"""Own videos into LaSOT's layout: one sequence per object, with frames, boxes, absence flags and the split's list.

A sequence begins at the object's first box and ends at its last one. A frame between them without a box is one where
the object is out of view. Knows no annotation format.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as ListOf
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.checkpoints.safetensors_io import write_atomic
from seqtrack.data import Image
from seqtrack.data.annotations import Boxes, class_of, read_names, sequence_order, write_boxes
from seqtrack.data.decode import JPEG_SUFFIXES, FrameFile, read_image
from seqtrack.data.foreign_boxes import Track
from seqtrack.data.lasot import LIST_FILES, find_layout
from seqtrack.data.sequence import LARGEST_COORDINATE, Sequence, read_sequence
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

_QUALITY = 95  # of frames that are not JPEG files already


def frames_of(paths: ListOf[Path], images_rgb: Iterable[Image]) -> Iterator[tuple[bytes, int, int]]:
    """(JPEG file, width, height) of each frame: files that are JPEG already stay as they are.

    Args:
        paths: image files; empty for a video, whose frames `images_rgb` (H, W, 3) are encoded.

    Raises:
        UserError: an image that cannot be read.
    """
    for path in paths:
        if path.suffix.lower() in JPEG_SUFFIXES:
            frame = FrameFile(path)
            frame.whole()  # refuse damage now
            yield path.read_bytes(), frame.width, frame.height
        else:
            yield _encode(read_image(path))
    if not paths:
        yield from (_encode(np.ascontiguousarray(image[..., ::-1])) for image in images_rgb)


def _encode(image_bgr: Image) -> tuple[bytes, int, int]:
    written, data = cv2.imencode(".jpg", image_bgr, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    assert written
    return data.tobytes(), image_bgr.shape[1], image_bgr.shape[0]


def import_tracks(
    data_dir: Path, tracks: list[Track], frames: Iterable[tuple[bytes, int, int]], *, split: str, fill_gaps: int = 0
) -> list[Sequence]:
    """Write a sequence per object below `data_dir/lasot` and add it to the split's list; each complete or not at all.

    Args:
        frames: as `frames_of` yields them, from the video's first.
        fill_gaps: frames without a box between two with one, up to so many in a row, get a box in between.

    Raises:
        UserError: a box outside its frame, fewer frames than the boxes need, a folder that cannot be written, or that
            holds classes of LaSOT, whose published split a list of ours would replace.
    """
    root = data_dir / "lasot"
    if root.is_dir() and any(root.iterdir()) and not any((root / name).exists() for name in LIST_FILES.values()):
        text = f"{root}: holds LaSOT's own classes, split as published; import into another --data-dir"
        raise UserError(text, "import.mixed")
    try:
        layout = find_layout(data_dir)
    except UserError:
        layout = None
    if layout is not None and layout.root != root:
        text = f"{layout.root}: holds sequences, which {root} would hide; import into another --data-dir"
        raise UserError(text, "import.mixed")
    names = _new_names([*layout.folders] if layout else [], tracks)
    temporary, moved = root / ".import.tmp", list[Path]()
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that died
        sizes = _write_frames(temporary, dict(zip(names, tracks, strict=True)), frames)
        problems: list[Problem] = []
        for name, track in zip(names, tracks, strict=True):
            boxes, absent = _rows(track, sizes, fill_gaps, problems)
            write_boxes(temporary / name / "groundtruth.txt", boxes)
            for file, flags in (("full_occlusion.txt", absent & False), ("out_of_view.txt", absent)):
                write_atomic(temporary / name / file, ",".join(str(int(flag)) for flag in flags).encode() + b"\n")
        if problems:
            raise UserError(problems[:20])
        for name in names:
            read_sequence(temporary / name, class_of(name))
        for name in names:
            (root / class_of(name)).mkdir(exist_ok=True)
            moved.append((temporary / name).rename(root / class_of(name) / name))
        for which, file in LIST_FILES.items():
            listed = read_names(root / file) if (root / file).exists() else []
            every = sorted({*listed, *(names if which == split else ())}, key=sequence_order)
            write_atomic(root / file, "".join(f"{name}\n" for name in every).encode())
    except OSError as error:
        for place in moved:
            shutil.rmtree(place, ignore_errors=True)
        raise UserError(f"{root}: cannot be written ({error.strerror or error})", "import.output") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return [read_sequence(root / class_of(name) / name, class_of(name)) for name in names]


def _new_names(existing: list[str], tracks: list[Track]) -> list[str]:
    """The next free numbers of each object's class."""
    names: list[str] = []
    for track in tracks:
        taken = [sequence_order(name) for name in (*existing, *names)]
        number = 1 + max((number for name, number in taken if name == track.class_name), default=0)
        names.append(f"{track.class_name}-{number}")
    return names


def _write_frames(
    folder: Path, tracks: dict[str, Track], frames: Iterable[tuple[bytes, int, int]]
) -> dict[int, tuple[int, int]]:
    """Write each object's frames from its first box to its last; (width, height) by frame index."""
    for name in tracks:
        (folder / name / "img").mkdir(parents=True)
    last, sizes = max(max(one.boxes) for one in tracks.values()), dict[int, tuple[int, int]]()
    for index, (data, width, height) in enumerate(frames):
        sizes[index], written = (width, height), None
        for name, track in tracks.items():
            first, end = _range(track)
            if first <= index <= end:
                path = folder / name / "img" / f"{index - first + 1:08d}.jpg"
                if written is None:
                    path.write_bytes(data)
                    written = path
                else:
                    shutil.copyfile(written, path)
        if index == last:
            break
    if last not in sizes:
        place = next(one.boxes[last].place for one in tracks.values() if last in one.boxes)
        text = f"{place}: the box of frame {last + 1}, but the video has {len(sizes)} frames"
        raise UserError(f"{text} (counted from 1; --first is the number of its first frame)", "import.frame")
    return sizes


def _range(track: Track) -> tuple[int, int]:
    """Index of the first and the last frame with a visible box."""
    seen = [index for index, box in track.boxes.items() if not box.is_absent]
    return min(seen), max(seen)


def _rows(
    track: Track, sizes: dict[int, tuple[int, int]], fill_gaps: int, problems: list[Problem]
) -> tuple[Boxes, NDArray[np.bool_]]:
    """(N, 4) boxes in pixels, zeros where the object is out of view, and (N,) whether it is."""
    first, last = _range(track)
    boxes, known = np.zeros((last - first + 1, 4)), [(-1, False)]
    absent = np.ones(len(boxes), dtype=np.bool_)
    for index, box in sorted(track.boxes.items()):
        if not first <= index <= last:
            continue
        (width, height), row = sizes[index], index - first
        x, y, w, h = (np.array(box.xywh) * ((width, height) * 2 if track.is_relative else 1)).tolist()
        if not box.is_absent and (x >= width or y >= height or x + w <= 0 or y + h <= 0):
            text = f"{box.place}: the box {x:g},{y:g},{w:g},{h:g} is outside of its frame of {width}x{height} pixels"
            problems.append(Problem(text, "import.box"))
        elif not box.is_absent and max(map(abs, (x, y, w, h))) > LARGEST_COORDINATE:
            text = f"{box.place}: found {max(map(abs, (x, y, w, h))):g}, expected at most {LARGEST_COORDINATE:g} pixels"
            problems.append(Problem(text, "import.box"))
        if box.frame_size is not None and box.frame_size != (width, height):
            stated = "x".join(map(str, box.frame_size))
            text = f"{box.place}: the annotation is of a frame of {stated} pixels, the frame has {width}x{height}"
            problems.append(Problem(f"{text} (also if it was rotated by its EXIF orientation)", "import.size"))
        if not box.is_absent:
            boxes[row], absent[row] = (x, y, w, h), False
            before, was_seen = known[-1]
            if was_seen and 1 < row - before <= fill_gaps + 1:
                shares = np.arange(1, row - before)[:, None] / (row - before)
                boxes[before + 1 : row] = boxes[before] + shares * (boxes[row] - boxes[before])
                absent[before + 1 : row] = False
        known.append((row, not box.is_absent))
    return boxes, absent

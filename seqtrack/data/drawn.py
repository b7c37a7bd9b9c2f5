"""Data sets that are drawn by code from a seed at first use: synthetic video in LaSOT's layout.

The folder appears complete or not at all, and is read back as any LaSOT folder. A set's module knows its pixels.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from seqtrack.data import Image
from seqtrack.data.annotations import class_of, read_names
from seqtrack.data.decode import scan_frames
from seqtrack.data.lasot import LIST_FILES, SPLITS, open_lasot
from seqtrack.data.sequence import Sequence
from seqtrack.errors import Problem, UserError

_log = logging.getLogger(__name__)

_TEXTS = ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt", "nlp.txt")
_NOTE = "These frames are synthetic, drawn from a seed: results on them show nothing about tracking in real video.\n"


@dataclass(frozen=True)
class DrawnSet:
    """One data set: its folder's name, what identifies its content, and how a split is drawn.

    Attributes:
        draw: (folder, split) to the names of the sequences that it wrote there.
        plan: sizes, for the marker.
    """

    name: str
    version: int
    seed: int
    plan: Mapping[str, int]
    draw: Callable[[Path, str], list[str]]
    megabytes: int

    @property
    def marker(self) -> str:
        """The file that tells a drawn folder, and whose digest covers every other file."""
        return f"{self.name}.json"

    def open(self, data_dir: Path, *, classes: tuple[str, ...], split: str) -> list[Sequence]:
        """Sequences of one split, drawn first if they do not exist; errors as `ensure`."""
        text = "DATASET=%s: SYNTHETIC video drawn by code; results on it show nothing about real video"
        _log.info(text, self.name)
        return open_lasot(self.ensure(data_dir), classes=classes, split=split)

    def ensure(self, data_dir: Path) -> Path:
        """The set's folder, drawn now if it is missing: complete or absent, also with concurrent processes.

        Raises:
            UserError: the folder cannot be written, or holds something else.
        """
        folder = data_dir / self.name
        try:
            if not folder.exists():
                data_dir.mkdir(parents=True, exist_ok=True)
                with (data_dir / f".{self.name}.lock").open("a") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if not folder.exists():
                        _log.info("drawing the %s data set (synthetic) into %s", self.name, folder)
                        temporary = data_dir / f".{self.name}.tmp"
                        shutil.rmtree(temporary, ignore_errors=True)  # left by a process that died: we hold the lock
                        self.draw_into(temporary)
                        temporary.rename(folder)
        except OSError as error:
            text = f"DATA_DIR: the {self.name} data set cannot be drawn into {folder.absolute()}: {error}"
            raise UserError(text, "data.demo_unwritable") from error
        try:
            found = json.loads((folder / self.marker).read_text("utf-8"))
            is_ours = {**found, "digest": ""} == self._record("")
        except (OSError, ValueError, TypeError):
            is_ours = False
        if not is_ours:
            hint = (
                f"{self.marker} with version {self.version}; move the folder away or delete it, and it is drawn again"
            )
            text = f"{folder.absolute()} is not the {self.name} data set of this version; expected {hint}"
            raise UserError(text, "data.demo_other")
        return folder

    def _record(self, digest: str) -> dict[str, object]:
        facts = {"version": self.version, "seed": self.seed, "plan": dict(self.plan)}
        return {"synthetic": True, **facts, "digest": digest}

    def draw_into(self, folder: Path) -> None:
        """Draw the data set into a new folder; the marker with a digest of all files comes last."""
        folder.mkdir()
        for split in SPLITS:
            names = self.draw(folder, split)
            (folder / LIST_FILES[split]).write_text("".join(f"{name}\n" for name in names), "utf-8")
        (folder / "README.txt").write_text(_NOTE, "utf-8")
        (folder / self.marker).write_text(json.dumps(self._record(_digest(folder)), indent=1), "utf-8")

    def check(self, folder: Path) -> list[Problem]:
        """Compare every file of a drawn folder with the digest in its marker; one problem if they differ."""
        try:
            if _digest(folder) == json.loads((folder / self.marker).read_text("utf-8"))["digest"]:
                return []
            reason = "a file was changed after it was drawn"
        except (UserError, OSError, ValueError, KeyError, TypeError) as error:
            reason = str(error)
        text = f"{folder}: the {self.name} data set is damaged ({reason}); delete the folder, and it is drawn again"
        return [Problem(text, "data.demo_damaged")]


def _digest(folder: Path) -> str:
    """Of every file of every sequence, in the order of the lists."""
    digest = hashlib.sha256()
    for name in (name for split in SPLITS for name in read_names(folder / LIST_FILES[split])):
        place = folder / class_of(name) / name
        for path in (*scan_frames(place / "img").paths, *(place / text for text in _TEXTS)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def encode(frame_bgr: Image, quality: int) -> bytes:
    """A JPEG of this quality, from 0 to 100."""
    done, data = cv2.imencode(".jpg", frame_bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return data.tobytes()


def write_sequence(
    folder: Path,
    frames: list[bytes] | Path,
    boxes_xywh: NDArray[np.int64],
    occluded: NDArray[np.bool_],
    away: NDArray[np.bool_],
    sentence: str,
) -> None:
    """Write one sequence; `frames` are JPEGs, or the folder of a sequence with the same ones, which are linked."""
    (folder / "img").mkdir(parents=True)
    for index in range(len(boxes_xywh)):
        path = folder / "img" / f"{index + 1:08d}.jpg"
        if isinstance(frames, Path):
            os.link(frames / "img" / path.name, path)
        else:
            path.write_bytes(frames[index])
    texts = (
        "".join(",".join(map(str, row)) + "\n" for row in boxes_xywh),
        *(",".join(str(int(flag)) for flag in flags) for flags in (occluded, away)),
        sentence,
    )
    for name, text in zip(_TEXTS, texts, strict=True):
        (folder / name).write_text(text, "utf-8")

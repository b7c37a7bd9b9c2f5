"""The demo data set is drawn completely or not at all, to the same bytes each time, and is marked as synthetic."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest

from data.makers import tree
from seqtrack.data import demo
from seqtrack.data.check import check_layout
from seqtrack.data.demo import Plan, check_demo, draw_demo, ensure_demo, open_demo
from seqtrack.data.lasot import find_layout
from seqtrack.data.sources import describe, open_source
from seqtrack.errors import UserError

SMALL = Plan(train_sequences=1, train_frames=30, test_sequences=1, test_frames=40)

# Another version of OpenCV or NumPy that draws other bytes must be noticed, because results on the demo would no longer
# be comparable. Then VERSION is increased and this digest replaced.
DIGEST = "dc1632ecad3ec7435653193bbe327a91b7313fa26629cebe6f16c5d170ce620d"


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The full data set, drawn once for this file."""
    folder = tmp_path_factory.mktemp("demo")
    ensure_demo(folder)
    return folder


def test_it_has_two_classes_with_40_training_and_12_test_sequences(data_dir: Path) -> None:
    train, test = (open_source("demo", data_dir, classes=(), split=split) for split in ("train", "test"))
    assert train.synthetic and train.name == "DEMO"
    assert {sequence.class_name for sequence in train.sequences} == {"disk", "tile"}
    assert [s.num_frames for s in train.sequences] == [50] * 40 and [s.num_frames for s in test.sequences] == [100] * 12
    assert not {s.name for s in train.sequences} & {s.name for s in test.sequences}


def test_it_is_the_published_drawing_and_passes_every_check(data_dir: Path) -> None:
    assert json.loads((data_dir / "demo" / "demo.json").read_text())["digest"] == DIGEST
    assert check_demo(data_dir / "demo") == []
    assert sum(len(data) for data in tree(data_dir / "demo").values()) < 64e6
    report = check_layout(find_layout(data_dir / "demo"), decode=True)
    assert report.problems == [] and report.decoded == 3200


def test_every_sequence_changes_scale_and_has_one_occlusion_and_one_absence(data_dir: Path) -> None:
    for split in ("train", "test"):
        for sequence in open_demo(data_dir, classes=(), split=split):
            there = sequence.boxes_xywh[:, 2] > 0
            side = np.sqrt(sequence.boxes_xywh[there, 2:].prod(axis=1))
            assert side.max() / side.min() > 1.15
            outside = sequence.absent & ~there
            occluded = sequence.absent & there
            for flags in (outside, occluded):
                frames = np.flatnonzero(flags)
                assert len(frames) == 4 and frames[-1] - frames[0] == 3
            assert sequence.visible[0], "a tracker is started on the first frame"
            centres = sequence.boxes_xywh[sequence.visible][:, :2]
            moved = np.abs(np.diff(centres, axis=0)).max() / side.min()
            assert moved < 2.5, "it reappears within reach of a search region"


def test_the_boxes_lie_on_the_objects(data_dir: Path) -> None:
    """Objects have saturated colours, backgrounds do not."""
    checked = 0
    for sequence in open_demo(data_dir, classes=(), split="test"):
        for index in (0, 99):
            if not sequence.visible[index]:
                continue
            image = cv2.imread(str(sequence.frame_path(index)))
            assert image is not None and image.shape == (240, 320, 3)
            saturation = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)[..., 1].astype(float)
            x, y, w, h = sequence.boxes_xywh[index].astype(int)
            inner = saturation[y + h // 4 : y + 3 * h // 4, x + w // 4 : x + 3 * w // 4].mean()
            ring = saturation[max(0, y - 12) : y + h + 12, max(0, x - 12) : x + w + 12].copy()
            ring[min(12, y) : min(12, y) + h, min(12, x) : min(12, x) + w] = np.nan
            assert inner > 130 and np.nanmean(ring) < inner - 40
            checked += 1
    assert checked >= 20


def test_it_is_marked_as_synthetic(data_dir: Path) -> None:
    source = open_source("demo", data_dir, classes=(), split="train")
    assert json.loads((data_dir / "demo" / "demo.json").read_text())["synthetic"] is True
    assert describe([source])["sources"][0]["synthetic"] is True
    for name in ("README.txt", "disk/disk-1/nlp.txt"):
        assert "synthetic" in (data_dir / "demo" / name).read_text()


_DRAW = """
    import sys
    from pathlib import Path
    import cv2
    cv2.setNumThreads(int(sys.argv[2]))
    from seqtrack.data.demo import Plan, ensure_demo
    ensure_demo(Path(sys.argv[1]), plan=Plan(1, 30, 1, 40))
"""


def _draw(folder: Path, threads: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTHONHASHSEED": threads, "OMP_NUM_THREADS": "3"}
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(_DRAW), str(folder), threads], env=environment)


def test_concurrent_processes_with_other_threads_draw_one_data_set_of_the_same_bytes(tmp_path: Path) -> None:
    children = [_draw(tmp_path / "there", threads) for threads in ("0", "1", "4")]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [".demo.lock", "demo"]
    draw_demo(tmp_path / "here", plan=SMALL)
    assert tree(tmp_path / "there" / "demo") == tree(tmp_path / "here")


def test_another_seed_draws_other_images(tmp_path: Path) -> None:
    draw_demo(tmp_path / "a", plan=SMALL)
    draw_demo(tmp_path / "b", plan=SMALL, seed=1)
    one, other = tree(tmp_path / "a"), tree(tmp_path / "b")
    assert not any(one[name] == other[name] for name in one if name.endswith(".jpg"))


def test_it_is_drawn_once_after_removing_what_a_killed_process_left(tmp_path: Path) -> None:
    left = tmp_path / ".demo-12345.tmp"
    (left / "disk" / "disk-1" / "img").mkdir(parents=True)
    folder = ensure_demo(tmp_path, plan=SMALL)
    before = folder.stat().st_ino
    assert not left.exists() and check_demo(folder) == []
    assert ensure_demo(tmp_path, plan=SMALL) == folder and folder.stat().st_ino == before


def _refused(data_dir: Path) -> str:
    with pytest.raises(UserError) as caught:
        ensure_demo(data_dir, plan=SMALL)
    return caught.value.code


def test_anything_else_in_its_place_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a" / "demo").mkdir(parents=True)
    (tmp_path / "a" / "demo" / "mine.txt").write_text("precious")
    assert _refused(tmp_path / "a") == "data.demo_other"
    assert tree(tmp_path / "a" / "demo") == {"mine.txt": b"precious"}
    folder = ensure_demo(tmp_path / "b", plan=SMALL)
    marker = json.loads((folder / demo.MARKER).read_text())
    (folder / demo.MARKER).write_text(json.dumps({**marker, "version": 0}))
    assert _refused(tmp_path / "b") == "data.demo_other"
    (tmp_path / "file").write_text("")
    assert _refused(tmp_path / "file" / "data") == "data.demo_unwritable"


def test_a_changed_byte_is_found_by_the_check(tmp_path: Path) -> None:
    folder = ensure_demo(tmp_path, plan=SMALL)
    path = folder / "disk" / "disk-1" / "img" / "00000007.jpg"
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(bytes(data))
    assert len(check_demo(folder)) == 1
    path.unlink()
    assert len(check_demo(folder)) == 1

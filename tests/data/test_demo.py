"""The demo data set is drawn completely or not at all, to the same bytes each time, and is marked as synthetic."""

import json
import os
import subprocess
import sys
from pathlib import Path

from data.makers import refused, tree
from seqtrack.data.check import check_layout
from seqtrack.data.demo import Plan, demo_set
from seqtrack.data.lasot import find_layout
from seqtrack.data.sources import describe, open_source

SMALL = demo_set(Plan(train_sequences=1, train_frames=30, test_sequences=1, test_frames=40))

# Another version of OpenCV or NumPy that draws other bytes must be noticed, because results on the demo would no longer
# be comparable. Then `version` of `demo_set` is increased and this digest replaced.
DIGEST = "dc1632ecad3ec7435653193bbe327a91b7313fa26629cebe6f16c5d170ce620d"


def test_it_is_the_published_drawing_and_passes_every_check(demo_data: Path) -> None:
    splits = [open_source("demo", demo_data, classes=(), split=split) for split in ("train", "test")]
    marker = json.loads((demo_data / "demo" / "demo.json").read_text())
    assert (marker["digest"], marker["synthetic"]) == (DIGEST, True) and describe(splits).sources[0].synthetic
    for name in ("README.txt", "disk/disk-1/nlp.txt"):
        assert "synthetic" in (demo_data / "demo" / name).read_text()
    assert SMALL.check(demo_data / "demo") == []
    report = check_layout(find_layout(demo_data / "demo"), decode=True)
    assert report.problems == [] and report.decoded == 3200
    assert [[s.num_frames for s in split.sequences] for split in splits] == [[50] * 40, [100] * 12]


_DRAW = """
import sys; from pathlib import Path; import cv2; cv2.setNumThreads(int(sys.argv[2]))
from seqtrack.data.demo import Plan, demo_set; demo_set(Plan(1, 30, 1, 40)).ensure(Path(sys.argv[1]))
"""


def test_concurrent_processes_draw_one_data_set_of_the_same_bytes_after_a_killed_one(tmp_path: Path) -> None:
    (tmp_path / "there" / ".demo.tmp" / "disk" / "disk-1" / "img").mkdir(parents=True)
    command = [sys.executable, "-c", _DRAW, str(tmp_path / "there")]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "3"}
    children = [subprocess.Popen([*command, threads], env=environment) for threads in ("0", "4")]
    assert [child.wait(60) for child in children] == [0, 0]
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == [".demo.lock", "demo"]
    SMALL.draw_into(tmp_path / "here")
    assert tree(tmp_path / "there" / "demo") == tree(tmp_path / "here")
    assert SMALL.ensure(tmp_path / "there") == tmp_path / "there" / "demo", "accepted as it is"


def test_a_changed_folder_is_found_and_anything_else_in_its_place_is_left_alone(tmp_path: Path) -> None:
    folder = SMALL.ensure(tmp_path)
    path = folder / "disk" / "disk-1" / "img" / "00000007.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    assert len(SMALL.check(folder)) == 1
    path.unlink()
    assert len(SMALL.check(folder)) == 1
    marker = json.loads((folder / SMALL.marker).read_text())
    for content in (json.dumps({**marker, "version": 0}), "[]", "precious"):
        (folder / SMALL.marker).write_text(content)
        before = tree(folder)
        assert refused(SMALL.ensure, tmp_path)[0].code == "data.demo_other" and tree(folder) == before
    (tmp_path / "file").write_text("")
    assert refused(SMALL.ensure, tmp_path / "file" / "data")[0].code == "data.demo_unwritable"

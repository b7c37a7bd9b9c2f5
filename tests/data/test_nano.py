"""The nano data set is drawn to the same bytes each time; several sequences share a scene's frames; nano is a name."""

from pathlib import Path

import numpy as np

from data.makers import tree
from seqtrack.config.environment import read_environment
from seqtrack.config.loader import load_config
from seqtrack.data.check import check_layout
from seqtrack.data.lasot import find_layout
from seqtrack.data.nano import Plan, nano_set
from seqtrack.data.sources import DRAWN

SMALL = nano_set(Plan(train_scenes=2, train_frames=20, test_scenes=1, test_frames=20))

# Another version of OpenCV or NumPy that draws other bytes must be noticed: the published run could not be audited.
# Then the version is increased and this digest replaced.
DIGEST = "e9847df4a9fa6e3615e0b09776be4e47af53d261e208c3a62c231431fa4cdac8"


def test_it_is_the_published_drawing_and_scenes_are_shared(tmp_path: Path) -> None:
    folder = SMALL.ensure(tmp_path)
    assert SMALL.check(folder) == [] and f'"digest": "{DIGEST}"' in (folder / SMALL.marker).read_text()
    report = check_layout(find_layout(folder), decode=True)
    assert report.problems == []
    train, test = (SMALL.open(tmp_path, classes=(), split=split) for split in ("train", "test"))
    assert test and not {one.name for one in train} & {one.name for one in test}
    videos = {one.frame_path(0).stat().st_ino: one for one in train}
    assert len(videos) == 2 < len(train)
    twins = [(one, last) for one in train if (last := videos[one.frame_path(0).stat().st_ino]) is not one]
    assert not any(np.array_equal(one.boxes_xywh, last.boxes_xywh) for one, last in twins)
    for one in (*train, *test):
        x, y, w, h = one.boxes_xywh[one.visible].T
        assert one.visible[0] and min(x.min(), y.min()) >= 0 and (x + w).max() <= 321 and (y + h).max() <= 241
    SMALL.draw_into(tmp_path / "again")
    assert tree(folder) == tree(tmp_path / "again")


def test_the_experiment_and_the_data_set_name_each_other() -> None:
    by_config, by_data = (read_environment({name: "nano"}) for name in ("CONFIG", "DATASET"))
    assert (by_config.dataset, by_data.config, read_environment({}).config) == ((), "nano", "demo")
    assert read_environment({"CONFIG": "nano", "DATASET": "lasot"}).dataset == ("lasot",)
    assert load_config("nano").DATA.TRAIN.DATASETS_NAME == ("NANO",) and DRAWN.keys() == {"DEMO", "NANO"}

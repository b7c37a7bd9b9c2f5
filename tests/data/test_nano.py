"""The nano data set is drawn to the same bytes each time; several sequences share a scene's frames; nano is a name."""

from pathlib import Path

import numpy as np

from data.makers import tree
from seqtrack.data.check import check_layout
from seqtrack.data.lasot import find_layout
from seqtrack.data.nano import Plan, nano_set
from seqtrack.data.sources import describe, open_source

SMALL = nano_set(Plan(train_scenes=2, train_frames=20, test_scenes=1, test_frames=20))

# Another version of OpenCV or NumPy that draws other bytes must be noticed: the published run could not be audited.
# Then the version is increased and this digest replaced.
DIGEST = "9ac9ef504c5a0ce812b829ecdc65d05f1addb98a68c42b14c8b81c2441e1b3b7"


def test_it_is_the_published_drawing_and_scenes_are_shared(tmp_path: Path) -> None:
    folder = SMALL.ensure(tmp_path)
    assert SMALL.check(folder) == [] and f'"digest": "{DIGEST}"' in (folder / SMALL.marker).read_text()
    report = check_layout(find_layout(folder), decode=True)
    assert report.problems == []
    train, test = (SMALL.open(tmp_path, classes=(), split=split) for split in ("train", "test"))
    assert len(train) > 2 and test and not {one.name for one in train} & {one.name for one in test}
    first, second = train[:2]
    assert first.frame_path(0).samefile(second.frame_path(0))
    assert not np.array_equal(first.boxes_xywh, second.boxes_xywh)
    for one in (*train, *test):
        x, y, w, h = one.boxes_xywh[one.visible].T
        assert one.visible[0] and min(x.min(), y.min()) >= 0 and (x + w).max() <= 321 and (y + h).max() <= 241
    SMALL.draw_into(tmp_path / "again")
    assert tree(folder) == tree(tmp_path / "again")


def test_it_is_synthetic_wherever_results_are_shown(tmp_path: Path) -> None:
    SMALL.draw_into(tmp_path / "lasot")
    assert describe([open_source("lasot", tmp_path, classes=(), split="train")]).sources[0].synthetic is False

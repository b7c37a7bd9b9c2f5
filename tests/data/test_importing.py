"""`seqtrack data import`: every annotation format against boxes computed by hand, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path, PurePath

import cv2
import numpy as np
import pytest

from data.makers import jpeg, picture, refused
from seqtrack.cli import main
from seqtrack.data.foreign_boxes import READERS, Frames
from seqtrack.data.lasot import open_lasot
from seqtrack.errors import UserError
from seqtrack.tracking.video import video_writer

WIDTH, HEIGHT, COUNT = 100, 80, 8
# The object from the third frame (index 2) on, out of view in the fifth, last seen in the seventh: by hand.
BOXES = {
    2: (10.0, 20.0, 30.0, 16.0),
    3: (15.0, 20.0, 30.0, 16.0),
    5: (25.0, 24.0, 40.0, 24.0),
    6: (0.0, 0.0, 50.0, 40.0),
}
ROWS = [[10, 20, 30, 16], [15, 20, 30, 16], [0, 0, 0, 0], [25, 24, 40, 24], [0, 0, 50, 40]]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A folder of frames whose names tell another number than their place."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for index in range(COUNT):
        (folder / f"shot_{index + 40}.jpg").write_bytes(jpeg(picture(index, WIDTH, HEIGHT)))
    return folder


def _coco(folder: Path, frame: Callable[[int], str]) -> Path:
    document = {
        "images": [{"id": 900 + index, "file_name": frame(index)} for index in range(COUNT)],
        "categories": [{"id": 3, "name": "my cup"}],
        "annotations": [
            {"image_id": 900 + index, "category_id": 3, "bbox": box, "attributes": {"track_id": 7}}
            for index, box in BOXES.items()
        ],
    }
    (folder / "coco.json").write_text(json.dumps(document))
    return folder / "coco.json"


def _cvat(folder: Path, frame: Callable[[int], str]) -> Path:
    rows = [
        f'<box frame="{index}" outside="0" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}"/>'
        for index, (x, y, w, h) in BOXES.items()
    ]
    outside = '<box frame="4" outside="1" xtl="15" ytl="20" xbr="45" ybr="36"/>'
    text = f'<annotations><version>1.1</version><track id="7" label="my cup">{"".join(rows)}{outside}</track>'
    (folder / "cvat.xml").write_text(f"{text}</annotations>")
    return folder / "cvat.xml"


def _cvat_images(folder: Path, frame: Callable[[int], str]) -> Path:
    rows = [
        f'<image name="{frame(index)}"><box label="my cup" xtl="{x}" ytl="{y}" xbr="{x + w}" ybr="{y + h}">'
        '<attribute name="track_id">7</attribute></box></image>'
        for index, (x, y, w, h) in BOXES.items()
    ]
    (folder / "cvat.xml").write_text(f"<annotations>{''.join(rows)}</annotations>")
    return folder / "cvat.xml"


def _yolo(folder: Path, frame: Callable[[int], str]) -> Path:
    labels = folder / "labels"
    labels.mkdir()
    (folder / "classes.txt").write_text("person\nmy cup\n")
    for index, (x, y, w, h) in BOXES.items():
        row = (x + w / 2) / WIDTH, (y + h / 2) / HEIGHT, w / WIDTH, h / HEIGHT
        (labels / f"{Path(frame(index)).stem}.txt").write_text(f"1 {' '.join(map(str, row))} 7\n")
    return labels


def _csv(folder: Path, frame: Callable[[int], str]) -> Path:
    rows = [f"{frame(index)},my cup,7,{x},{y},{x + w},{y + h}" for index, (x, y, w, h) in BOXES.items()]
    (folder / "boxes.csv").write_text("\n".join(["Frame,label,id,xmin,ymin,xmax,ymax", *rows]) + "\n")
    return folder / "boxes.csv"


def _csv_sizes(folder: Path, frame: Callable[[int], str]) -> Path:
    rows = [f"{w},{h},{x},{y},{index + 1}" for index, (x, y, w, h) in BOXES.items()]
    (folder / "boxes.csv").write_text("\n".join(["w,h,x,y,frame", *rows]) + "\n")
    return folder / "boxes.csv"


MAKERS = {
    "coco": _coco,
    "cvat": _cvat,
    "cvat_images": _cvat_images,
    "yolo": _yolo,
    "csv": _csv,
    "csv_sizes": _csv_sizes,
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_folder_of_frames_has_the_boxes_computed_by_hand(name: str, clip: Path, tmp_path: Path) -> None:
    boxes = MAKERS[name](tmp_path, lambda index: f"shot_{index + 40}.jpg")
    words = [name.split("_")[0], str(boxes), str(clip), "--class", "cup", "--data-dir", str(tmp_path / "data")]
    assert main(["data", "import", *words]) == 0
    (made,) = open_lasot(tmp_path / "data", classes=("cup",), split="train")
    assert (made.name, made.num_frames, made.absent.tolist()) == ("cup-1", 5, [False, False, True, False, False])
    np.testing.assert_allclose(made.boxes_xywh, ROWS, atol=1e-9)
    assert made.frame_path(0).read_bytes() == (clip / "shot_42.jpg").read_bytes()
    assert made.frame_path(4).read_bytes() == (clip / "shot_46.jpg").read_bytes()
    assert cv2.imread(str(made.folder.parent.parent / "cup-1.png")) is not None


@pytest.mark.parametrize("name", ["coco", "cvat", "yolo", "csv"])
def test_a_video_has_the_same_boxes_and_its_own_frames(name: str, tmp_path: Path) -> None:
    with video_writer(tmp_path / "clip.avi", fps=25, size=(WIDTH, HEIGHT)) as write:
        for index in range(COUNT):
            write(np.full((HEIGHT, WIDTH, 3), 20 * index, dtype=np.uint8))
    boxes = MAKERS[name](tmp_path, lambda index: f"clip_{index + 1:06d}.jpg")
    words = [name, str(boxes), str(tmp_path / "clip.avi"), "--data-dir", str(tmp_path / "data"), "--split", "test"]
    assert main(["data", "import", *words]) == 0
    assert main(["data", "import", *words, "--object", "7", "--fill-gaps", "1", "--split", "train"]) == 0
    (made,) = open_lasot(tmp_path / "data", classes=(), split="test")
    (filled,) = open_lasot(tmp_path / "data", classes=(), split="train")
    assert (made.name, filled.name) == ("my-cup-1", "my-cup-2")
    np.testing.assert_allclose(made.boxes_xywh, ROWS, atol=1e-9)
    between = [0, 0, 0, 0] if name == "cvat" else [20, 22, 35, 20]  # where CVAT marks "outside", nothing is filled in
    np.testing.assert_allclose(filled.boxes_xywh, [*ROWS[:2], between, *ROWS[3:]], atol=1e-9)
    for index in range(5):
        assert abs(cv2.imread(str(made.frame_path(index))).mean() - 20 * (index + 2)) < 3


def test_objects_of_one_video_become_sequences_of_their_own(clip: Path, tmp_path: Path) -> None:
    rows = ["frame,class,object,x,y,w,h", "1,cup,a,1,2,3,4", "1,cup,b,5,6,7,8", "3,cup,b,6,6,7,8", "2,dog,c,9,9,9,9"]
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    assert main(["data", "import", "csv", str(tmp_path / "boxes.csv"), str(clip), "--data-dir", str(tmp_path)]) == 0
    made = {one.name: one.boxes_xywh.tolist() for one in open_lasot(tmp_path, classes=(), split="train")}
    assert made == {"cup-1": [[1, 2, 3, 4]], "cup-2": [[5, 6, 7, 8], [0] * 4, [6, 6, 7, 8]], "dog-1": [[9] * 4]}
    assert main(["data", "check", "--data-dir", str(tmp_path)]) == 0


COCO = '{"images": [{"id": 1, "file_name": "shot_40.jpg"}], "categories": [{"id": 1, "name": "cup"}], "annotations": '
BOX = '{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}'


CVAT = '<annotations><track id="5" label="a"><box frame="1" xtl="1" ytl="1" xbr="5" ybr="5" {}/></track></annotations>'


AMBIGUOUS = "import.ambiguous"
SIZE = "<original_size><width>80</width><height>100</height></original_size>"
IMAGES = (
    '<annotations><image name="shot_40.jpg"/><image name="shot_41.jpg" {}>'
    '<box label="a" xtl="1" ytl="1" xbr="5" ybr="5"/></image></annotations>'
)


@pytest.mark.parametrize(
    ("form", "text", "code", "place"),
    [
        ("coco", "{", "import.coco", "boxes"),
        ("coco", COCO + "[7]}", "import.coco", "annotations.0"),
        ("coco", COCO + "[" + BOX.replace("[1, 2", '["1", null') + "]}", "import.coco", "annotations.0.bbox.1"),
        ("coco", COCO + "[" + BOX.replace('_id": 1', '_id": 9', 1) + "]}", "import.coco", "annotations[0]"),
        ("coco", COCO + f"[{BOX}, {BOX}]}}", "import.ambiguous", "annotations[1]"),
        ("coco", COCO + "[]}", "import.no_boxes", "boxes"),
        ("coco", COCO + f"[{BOX}]}}".replace("3, 4", "0, 4"), "import.box", "annotations[0]"),
        ("coco", COCO.replace("_40", "_7") + "[]}", "import.frame", "images[0]"),
        ("cvat", "<annotations>", "import.cvat", "boxes"),
        ("cvat", "<kml/>", "import.cvat", "kml"),
        ("cvat", '<annotations><track id="5"><box frame="0" xtl="1"/></track></annotations>', "import.cvat", "track 5"),
        ("csv", "", "import.csv", "line 1"),
        ("csv", "frame,x,y,w\n1,2,3,4", "import.csv", "line 1"),
        ("csv", "frame,x,y,w,h\n1,2,3,4,5\n2,2,3,4", "import.csv", "line 3"),
        ("csv", "frame,x,y,w,h\n1,2,3,4,nan", "import.csv", "line 2"),
        ("csv", "frame,x,y,w,h\n0,2,3,4,5", "import.frame", "line 2"),
        ("csv", "frame,x,y,w,h\n9,2,3,4,5", "import.frame", "line 2"),
        ("csv", "frame,x,y,w,h\n1,200,3,4,5", "import.box", "line 2"),
        ("csv", "frame,x,y,w,h,class\n1,20,3,4,5,?", "import.class", "?"),
        ("yolo", "0 0.5 0.5 0.1", "import.yolo", "line 1"),
        ("yolo", "0 0.5 0.5 0.1 0.1\n0 50 50 10 10", "import.yolo", "line 2"),
        ("yolo", "0 0.5 0.5 0.1 0.1 0.93", "import.yolo", "line 1"),
        ("csv", "\xff\xfe", "file.unreadable", "boxes"),
        ("csv", 'frame,x,y,w,h\n"' + "1,2,3,4,5\n" * 20_000, "import.csv", "boxes"),
        ("csv", "frame,x,y,w,h\n-1,2,3,4,5", "import.frame", "line 2"),
        ("csv", "frame,x,y,w,h\n1.5,2,3,4,5", "import.frame", "line 2"),
        ("csv", "frame,x,y,w,h,width,height\n1,2,3,4,5,96,72", "import.ambiguous", "line 1"),
        (
            "coco",
            COCO.replace("}]", '}, {"id": 1, "file_name": "shot_41.jpg"}]', 1) + f"[{BOX}]}}",
            "import.coco",
            "id",
        ),
        ("cvat", CVAT.format('rotation="30"'), "import.cvat", "track 5"),
        ("cvat", CVAT.format("").replace("<track", '<track task_id="1" id="4"/><track task_id="2"'), AMBIGUOUS, "1, 2"),
        ("coco", COCO.replace('g"}', 'g", "width": 200, "height": 160}') + f"[{BOX}]}}", "import.size", "200x160"),
        ("cvat", CVAT.format("").replace("<track", f"<meta><task>{SIZE}</task></meta><track"), "import.size", "80x100"),
        ("cvat", IMAGES.format('width="80" height="100"'), "import.size", "80x100"),
        ("csv", "filename,width,height,xmin,ymin,xmax,ymax\nshot_40.jpg,80,100,1,2,9,9", "import.size", "80x100"),
        ("cvat", IMAGES.format("").replace("_40", "_39", 1), "import.frame", "shot_39"),
        (
            "csv",
            "frame,x,y,w,h\na/shot_40.jpg,1,2,3,4\nb/clip/shot_41.jpg,1,2,3,4\nc/clip/shot_42.jpg,1,2,3,4",
            AMBIGUOUS,
            "b/clip",
        ),
        ("csv", "frame,x,y,w,h\nshot_40.jpg,1,2,3,4\nclip/shot_41.jpg,1,2,3,4", AMBIGUOUS, "clip"),
        ("csv", "frame,filename,x,y,w,h\n1,shot_41.jpg,1,2,3,4", AMBIGUOUS, "frame"),
        ("csv", "frame,id,track_id,x,y,w,h\n1,1,2,1,2,3,4", AMBIGUOUS, "track_id"),
        ("csv", "frame,x,y,w,h\n1,0.1,0.2,0.3,0.4\n2,0.1,0.2,0.3,0.4", "import.box", "line 2"),
        ("csv", "frame,id,x,y,w,h\n1,a,1,2,3,4\n1,b,1,2,300000,4", "import.box", "line 3"),
        ("yolo", "", "import.no_boxes", "boxes"),
    ],
)
def test_damage_is_one_error_with_its_place_and_leaves_nothing(
    form: str, text: str, code: str, place: str, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    boxes = tmp_path / "boxes"
    if form == "yolo":
        boxes.mkdir()
    (boxes / "shot_40.txt" if form == "yolo" else boxes).write_bytes(text.encode("latin-1"))
    assert main(["data", "import", form, str(boxes), str(clip), "--data-dir", str(tmp_path / "data")]) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error [")]
    assert (len(errors), errors[0].startswith(f"error [{code}]"), place in errors[0]) == (1, True, True)
    assert [path for path in (tmp_path / "data").rglob("*") if path.is_file()] == []


def test_other_videos_of_one_file_are_left_out_and_published_classes_are_not_mixed(clip: Path, tmp_path: Path) -> None:
    boxes = _coco(tmp_path, lambda index: f"{'clip' if index > 2 else 'other'}/shot_{index + 40}.jpg")
    frames = Frames(PurePath("clip"), tuple(f"shot_{index + 40}.jpg" for index in range(COUNT)), COUNT, 1)
    (track,) = READERS["coco"](boxes, frames)
    assert sorted(track.boxes) == [3, 5, 6]
    (tmp_path / "lasot" / "coin").mkdir(parents=True)
    words = ["data", "import", "coco", str(boxes), str(clip), "--data-dir", str(tmp_path)]
    assert main(words) == 2
    assert refused(READERS["yolo"], tmp_path / "none", frames)[0].code == "import.yolo"


def test_only_the_files_of_the_folder_with_this_path_are_of_this_video(tmp_path: Path) -> None:
    def track(video: str, folder: str) -> list[int]:
        frames = Frames(PurePath(folder), ("000001.jpg", "000002.jpg"), 2, 1)
        (tmp_path / "boxes.csv").write_text(
            f"frame,x,y,w,h\nA/{video}000001.jpg,1,2,3,4\nB/{video}000002.jpg,1,2,3,4\n"
        )
        return [*READERS["csv"](tmp_path / "boxes.csv", frames)[0].boxes]

    assert [track("img1/", f"/x/{name}/img1") for name in "AB"] == [[0], [1]]
    assert [track("", "/x/A/img"), track("img/", "/x/B"), track("", "/x/B")] == [[0], [1], [1]]


@pytest.mark.parametrize("form", ["yolo", "coco", "csv"])
def test_frames_of_a_video_are_called_alike_and_counted_from_its_first(form: str, tmp_path: Path) -> None:
    def read(frame: Callable[[int], str]) -> list[str]:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        boxes = MAKERS[form](folder, frame)
        if form == "yolo" and frame(0).startswith("f_"):
            (boxes / f"{Path(frame(0)).stem}.txt").touch()
        return [one.code for one in refused(READERS[form], boxes, Frames(PurePath("a"), (), None, 1))]

    assert read(lambda index: f"{'a' if index < 4 else 'b'}_{index + 1}.jpg") == ["import.ambiguous"]
    if form != "csv":  # which lists no frame without a box
        assert read(lambda index: f"f_{index:06d}.PNG") == ["import.frame"]
    named = Frames(PurePath("my.video"), (), None, 1)
    assert [named.find(one, "") for one in ("my.video_1", "my.video_2.jpg")] == [0, 1]


def test_a_number_that_is_a_place_and_the_name_of_another_file_is_refused() -> None:
    def find(names: str, given: str, first: int = 1, *, stated: bool = False) -> int | str:
        files = tuple(f"{name}.jpg" for name in names.split())
        try:
            return Frames(PurePath("a"), files, len(files), first, is_first_given=stated).find(given, "line 2")
        except UserError as error:
            return error.code

    assert [find("0000 0001 0002", "2"), find("0000 0001 0002", "2", 0)] == ["import.ambiguous", 2]
    assert [find("0001 0003 0004", "3"), find("0001 0003 0004", "3", stated=True)] == ["import.ambiguous", 2]
    assert [find("0005 0006 0007", "7"), find("0005 0006 0007", "2"), find("0005 0006 0007", "7", 5)] == [2, 1, 2]
    assert [find("0 1 2", "2"), find("shot_7 shot_8", "2"), find("0001 0002", "2")] == [2, 1, 1]


def test_cvat_counts_the_files_of_a_task_by_their_characters(tmp_path: Path) -> None:
    (tmp_path / "boxes.xml").write_text(CVAT.format(""))
    names = tuple(f"{number}.jpg" for number in range(1, 13))
    (error,) = refused(READERS["cvat"], tmp_path / "boxes.xml", Frames(PurePath("clip"), names, 12, 0))
    assert error.code == "import.ambiguous"


def test_nothing_of_another_data_set_is_hidden_by_an_import(clip: Path, tmp_path: Path) -> None:
    words = ["data", "import", "csv", str(tmp_path / "boxes.csv"), str(clip), "--data-dir"]
    (tmp_path / "boxes.csv").write_text("frame,x,y,w,h\n1,1,2,3,4\n")
    for place in ("a/LaSOT/cup/cup-1", "b/cup/cup-1", "c/cup-1"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "groundtruth.txt").write_text("1,2,3,4\n")
        assert main([*words, str(tmp_path / place[0])]) == 2
        assert not (tmp_path / place[0] / "lasot").exists() or place[0] == "a"


def test_frames_of_a_track_are_counted_whatever_their_files_are_called(tmp_path: Path) -> None:
    (tmp_path / "boxes.xml").write_text(CVAT.format(""))
    for names in ((), ("1.jpg", "2.jpg", "3.jpg"), ("0.jpg", "1.jpg", "2.jpg")):
        (track,) = READERS["cvat"](tmp_path / "boxes.xml", Frames(PurePath("clip"), names, len(names) or None, 0))
        assert [*track.boxes] == [1]
    for given in ("-1", "+1", "2.0", ".5", "x"):
        assert refused(Frames(PurePath(), (), None, 0).find, given, "line 2")[0].code == "import.frame"


@pytest.mark.parametrize(
    "names", ["{cat: 0}", "{null: cat}", "{1.5: cat}", "2024-13-01", "[" * 5000, "{2024-01-01: a}", "{0: a, 0: b}"]
)
def test_names_of_classes_that_cannot_be_read_are_refused(names: str, tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("0 .5 .5 .1 .1")
    (tmp_path / "._1.txt").write_bytes(b"\0\5\x16\7")
    frames = Frames(PurePath(), (), 9, 1)
    assert len(READERS["yolo"](tmp_path, frames)) == 1
    (tmp_path / "data.yaml").write_text(f"names: {names}\n")
    assert [one.code for one in refused(READERS["yolo"], tmp_path, frames)] == ["import.yolo"]

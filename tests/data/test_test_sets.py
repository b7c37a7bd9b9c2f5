"""Each test set in its own layout, on small made-up data: names, boxes, first frames, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from data.makers import refused
from seqtrack.data.decode import check_frames
from seqtrack.data.sources import open_source
from seqtrack.data.test_sets import TEST_SETS, read_test_set
from seqtrack.errors import UserError

ROW = "10,20,30,40"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def images(folder: Path, first: int, last: int, pattern: str) -> None:
    """Files with the names of frames, which differ in size."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, last + 1):
        (folder / pattern.format(number)).write_bytes(bytes(number + 1))


def rows(count: int, row: str = ROW) -> str:
    return f"{row}\n" * count


def make(root: Path) -> None:
    """Every set, each with its oddities."""
    write(root / "otb/Car1/groundtruth_rect.txt", rows(3, "1\t2\t3\t4"))
    images(root / "otb/Car1/img", 1, 5, "{:04d}.jpg")  # only a part is annotated
    write(root / "otb/Board/groundtruth_rect.txt", rows(3) + "0,0,0,0\n")
    images(root / "otb/Board/img", 1, 4, "{:05d}.jpg")
    write(root / "otb/Tiger1/groundtruth_rect.txt", rows(5) + rows(349, "1,1,9,9"))
    images(root / "otb/Tiger1/img", 1, 354, "{:04d}.jpg")
    for part in "12":
        write(root / f"otb/Jogging/groundtruth_rect.{part}.txt", rows(2, f"{part},1,9,9"))
    images(root / "otb/Jogging/img", 1, 2, "{:04d}.jpg")
    write(root / "otb/Human4/groundtruth_rect.2.txt", rows(2))
    write(root / "otb/Human4/groundtruth_rect1.txt", "")
    images(root / "otb/Human4/img", 1, 2, "{:04d}.jpg")
    write(root / "uav/anno/UAV123/bird1_2.txt", rows(700) + "NaN,NaN,NaN,NaN\n" * 3)
    images(root / "uav/data_seq/UAV123/bird1", 770, 1480, "{:06d}.jpg")
    write(root / "uav/anno/UAV123/car1_s.txt", rows(2))
    images(root / "uav/data_seq/UAV123/car1_s", 1, 2, "{:06d}.jpg")
    write(root / "nfs/bee/30/bee.txt", "".join(f'0 {n} 2 {n + 8} 12 {n} 0 0 0 "bee"\n' for n in range(25)))
    images(root / "nfs/bee/30/bee", 1, 3, "{:05d}.jpg")
    write(root / "nfs/dog_2/30/dog_2_pytracking.txt", rows(2))
    write(root / "nfs/dog_2/30/dog_2.txt", "not read")
    images(root / "nfs/dog_2/30/dog_2", 1, 2, "{:05d}.jpg")
    write(root / "nfs/anno/nfs_Skiing_red.txt", rows(2, "1\t2\t3\t4"))
    images(root / "nfs/sequences/Skiing_red", 1, 2, "{:05d}.jpg")
    for name, frames in (("atv/atv-1", 3), ("paddle/paddle-4", 2)):
        folder = root / "lasot_extension_subset" / name
        write(folder / "groundtruth.txt", rows(3))
        write(folder / "full_occlusion.txt", "0,1,0")
        write(folder / "out_of_view.txt", "0,0,0")
        images(folder / "img", 1, frames, "{:08d}.jpg")
    for split, name, count in (("val", "Val_000001", 3), ("test", "Test_000001", 1), ("train", "Train_000002", 3)):
        write(root / f"got10k/{split}/GOT-10k_{name}/groundtruth.txt", rows(count, "1.5000,2.2500,3.0,4.0"))
        images(root / f"got10k/{split}/GOT-10k_{name}", 1, 3, "{:08d}.jpg")
    write(root / "got10k/train/list.txt", "GOT-10k_Train_000001\nGOT-10k_Train_000002\n")
    write(root / "got10k/got10k_val_split.txt", "1\n")
    write(root / "trackingnet/TEST/anno/-FCJqWfi9Wo_0.txt", ROW)
    images(root / "trackingnet/TEST/frames/-FCJqWfi9Wo_0", 0, 11, "{}.jpg")
    folder = root / "tnl2k/advSamp_video_01-Done"
    write(folder / "groundtruth.txt", rows(2) + "0,0,0,0\n")
    write(folder / "absent.txt", "0 \n0 \n1 \n0 \n")  # a line more than boxes
    for name in ("a.png", "b.jpg", "c.PNG"):
        write(folder / "imgs" / name, name)
    for name, first in (("David", 300), ("Ball_ce1", 1)):
        write(root / f"tc128/{name}/{name}_gt.txt", rows(3, "1.5,2,3,4"))
        write(root / f"tc128/{name}/{name}_frames.txt", f"{first},{first + 2}")
        images(root / f"tc128/{name}/img", first, first + 2, "{:04d}.jpg")
    write(root / "tc128/att/David.txt", "0")


# Set -> sequence: frames, the first and the last file.
EXPECTED = {
    "OTB": "Board 4 00001.jpg 00004.jpg, Car1 3 0001.jpg 0003.jpg, Human4_2 2 0001.jpg 0002.jpg, "
    "Jogging_1 2 0001.jpg 0002.jpg, Jogging_2 2 0001.jpg 0002.jpg, Tiger1 349 0006.jpg 0354.jpg",
    "UAV": "bird1_2 703 000775.jpg 001477.jpg, car1_s 2 000001.jpg 000002.jpg",
    "NFS": "Skiing_red 2 00001.jpg 00002.jpg, bee 3 00001.jpg 00003.jpg, dog_2 2 00001.jpg 00002.jpg",
    "LASOT_EXTENSION_SUBSET": "atv-1 3 00000001.jpg 00000003.jpg, paddle-4 2 00000001.jpg 00000002.jpg",
    "GOT10K_VAL": "GOT-10k_Val_000001 3 00000001.jpg 00000003.jpg",
    "GOT10K_LTRVAL": "GOT-10k_Train_000002 3 00000001.jpg 00000003.jpg",
    "GOT10K_TEST": "GOT-10k_Test_000001 3 00000001.jpg 00000003.jpg",
    "TRACKINGNET": "-FCJqWfi9Wo_0 12 0.jpg 11.jpg",
    "TNL2K": "advSamp_video_01-Done 3 a.png c.PNG",
    "TC128": "Ball_ce1 3 0001.jpg 0003.jpg, David 3 0300.jpg 0302.jpg",
    "TC128CE": "Ball_ce1 3 0001.jpg 0003.jpg",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be left as it is found."""
    folder = tmp_path_factory.mktemp("sets")
    make(folder)
    return folder


def test_each_set_is_read_in_its_layout(root: Path) -> None:
    assert set(EXPECTED) == set(TEST_SETS)
    for key, expected in EXPECTED.items():
        found = open_source(key.lower(), root, classes=(), split="test").sequences
        ends = [(one.frame_path(0), one.frame_path(one.num_frames - 1)) for one in found]
        lines = [f"{one.name} {one.num_frames} {a.name} {b.name}" for one, (a, b) in zip(found, ends, strict=True)]
        assert ", ".join(lines) == expected
        assert all(one.boxes_xywh.shape == (one.num_frames, 4) and not one.missing.any() for one in found)
        assert all(path.is_file() for pair in ends for path in pair)
        if key not in ("GOT10K_TEST", "TRACKINGNET"):  # without frames the annotation is the same but for cut ones
            alone = read_test_set(key, root, frames=False)
            assert [one.name for one in alone] == [one.name for one in found]
            assert all(one.missing.all() for one in alone)


def test_boxes_and_flags_are_those_of_the_files(root: Path) -> None:
    def named(key: str, name: str) -> np.ndarray:
        return next(one for one in read_test_set(key, root) if one.name == name).boxes_xywh

    assert named("OTB", "Tiger1").tolist() == [[1, 1, 9, 9]] * 349, "the first five rows have no frame in it"
    assert named("NFS", "bee").tolist() == [[0, 2, 8, 10], [8, 2, 8, 10], [16, 2, 8, 10]], "every eighth, from corners"
    assert np.isnan(named("UAV", "bird1_2")[-3:]).all()
    assert named("TRACKINGNET", "-FCJqWfi9Wo_0")[0].tolist() == [10, 20, 30, 40]
    assert np.isnan(named("TRACKINGNET", "-FCJqWfi9Wo_0")[1:]).all()
    flags = {
        one.name: one.absent.tolist() for key in ("TNL2K", "LASOT_EXTENSION_SUBSET") for one in read_test_set(key, root)
    }
    assert flags["advSamp_video_01-Done"] == [False, False, True]
    assert (flags["atv-1"], flags["paddle-4"]) == ([False, True, False], [False, True])
    with pytest.raises(UserError) as caught:
        open_source("otb100", root, classes=(), split="train")
    assert caught.value.code == "data.no_split"


DAMAGED = [
    ("OTB", "Tiger1/groundtruth_rect.txt", rows(350), "data.frame_count"),
    ("OTB", "Car1/groundtruth_rect.txt", "1,2,3\n", "file.row"),
    ("OTB", "Car1/groundtruth_rect.txt", "1,2,3,1e9\n", "data.box"),
    ("OTB", "Car1/groundtruth_rect.txt", "NaN,NaN,NaN,NaN\n", "file.row"),
    ("UAV", "anno/UAV123/bird1_2.txt", rows(9), "data.frame_count"),
    ("NFS", "bee/30/bee.txt", "0 1 2 3\n", "file.row"),
    ("LASOT_EXTENSION_SUBSET", "atv/atv-1/out_of_view.txt", "0,0", "file.count"),
    ("TC128", "David/David_frames.txt", "300", "file.row"),
    ("GOT10K_LTRVAL", "train/list.txt", "GOT-10k_Train_000001\nGOT-10k_Train_000009\n", "data.no_sequence"),
]


def test_damaged_texts_are_refused_with_their_place(root: Path) -> None:
    for key, name, text, code in DAMAGED:
        path = root / TEST_SETS[key].roots[0] / name
        original = path.read_text()
        path.write_text(text)
        problems = refused(read_test_set, key, root)
        path.write_text(original)
        assert [one.code for one in problems] == [code], name
        assert path.name in problems[0] or path.parent.name in problems[0]


def test_only_jpegs_have_headers_that_are_checked(tmp_path: Path) -> None:
    for name, data in (("a.png", b"x"), ("b.png", b""), ("c.jpg", b"x")):
        (tmp_path / name).write_bytes(data)
    found = check_frames(tmp_path / name for name in ("a.png", "b.png", "c.jpg", "d.png"))
    assert [next(name for name in ("b.png", "c.jpg", "d.png") if name in one) for one in found] == [
        "b.png",
        "c.jpg",
        "d.png",
    ]


def test_missing_folders_and_first_frames_are_refused(root: Path, tmp_path: Path) -> None:
    for key in TEST_SETS:
        assert refused(read_test_set, key, tmp_path)[0].code == "data.no_folder"
    write(tmp_path / "Car1/groundtruth_rect.txt", rows(3))
    assert refused(read_test_set, "OTB", tmp_path)[0].code == "data.no_frames"
    images(tmp_path / "Car1/img", 2, 3, "{:04d}.jpg")
    assert refused(read_test_set, "OTB", tmp_path)[0].code == "data.frame_count"
    for second in ("2.png", "1700000000.jpg"):
        write(tmp_path / "Car1/img" / second, "")
        assert refused(read_test_set, "OTB", tmp_path)[0].code == "data.frame"
        (tmp_path / "Car1/img" / second).unlink()

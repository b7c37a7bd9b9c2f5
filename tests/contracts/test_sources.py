"""The contract of every data set in the registry that can be trained on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from data.makers import as_lmdb, make_coco, make_got10k, make_trackingnet, make_vid, write_sequence

from seqtrack.config.loader import experiment_names, load_config
from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.sources import SOURCES, Source, data_set_key, describe, open_source
from seqtrack.data.test_sets import TEST_SETS
from seqtrack.errors import UserError
from seqtrack.seeding import sample_generator


def _make_lasot(data_dir: Path) -> None:
    for name in ("book-1", "book-2", "book-3", "coin-1", "coin-3"):
        folder = write_sequence(data_dir / "lasot" / name.rsplit("-", 1)[0] / name, 24)
        (folder / "full_occlusion.txt").write_text(",".join("0" * 23 + "1"))


# How a small one is made, a text of it to damage, and the folders that become LMDB environments.
MAKERS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "LASOT": (_make_lasot, "lasot/book/book-1/groundtruth.txt", ("lasot",)),
    "GOT10K_TRAIN_FULL": (make_got10k, "got10k/train/GOT-10k_Train_000001/groundtruth.txt", ("got10k",)),
    "GOT10K_VOTTRAIN": (make_got10k, "got10k/train/GOT-10k_Train_000001/groundtruth.txt", ()),
    "GOT10K_VOTVAL": (make_got10k, "got10k/got10k_vot_val_split.txt", ()),
    "GOT10K_TRAIN": (make_got10k, "got10k/train/GOT-10k_Train_000003/absence.label", ()),
    "TRACKINGNET": (
        make_trackingnet,
        "trackingnet/TRAIN_0/anno/a_1.txt",
        ("trackingnet/TRAIN_0", "trackingnet/TRAIN_3"),
    ),
    "COCO17": (make_coco, "coco/annotations/instances_train2017.json", ("coco",)),
    "VID": (make_vid, "vid/Annotations/VID/train/ILSVRC2015_VID_train_0000/ILSVRC2015_train_00000003/000004.xml", ()),
}
WITHOUT_ABSENCE, WITHOUT_TEST = ("TRACKINGNET", "COCO17"), ("COCO17", "VID")


def train(name: str, folder: Path, classes: tuple[str, ...] = ()) -> Source:
    return open_source(name, folder, classes=classes, split="train")


@pytest.mark.parametrize("name", ["DEMO", *MAKERS])
def test_sequences_have_the_documented_types_are_the_same_again_and_of_the_chosen_split_and_class(
    name: str, demo_data: Path, tmp_path: Path
) -> None:
    assert {"DEMO", "NANO", *MAKERS, *TEST_SETS} == set(SOURCES)
    if name == "DEMO":
        tmp_path = demo_data
    else:
        MAKERS[name][0](tmp_path)
    source = train(name, tmp_path)
    assert source.split == "train" and len({sequence.name for sequence in source.sequences}) == len(source.sequences)
    for sequence in source.sequences:
        n = sequence.num_frames
        assert sequence.boxes_xywh.shape == (n, 4) and sequence.boxes_xywh.dtype == np.float64
        for flags in (sequence.visible, sequence.absent, sequence.missing):
            assert flags.shape == (n,) and flags.dtype == np.bool_
        assert not (sequence.visible & (sequence.absent | sequence.missing)).any()
        assert (sequence.boxes_xywh[sequence.visible][:, 2:] > 0).all()
        assert all(sequence.frame_path(int(index)).is_file() for index in np.flatnonzero(~sequence.missing))
    hidden = any(sequence.absent.any() and not sequence.visible.all() for sequence in source.sequences)
    assert hidden == (name not in WITHOUT_ABSENCE)
    again = train(name.lower(), tmp_path)
    assert [s.name for s in again.sequences] == [s.name for s in source.sequences]
    assert describe([again]) == describe([source])
    if name in WITHOUT_TEST:
        with pytest.raises(UserError) as caught:
            open_source(name, tmp_path, classes=(), split="test")
        assert caught.value.code == "data.no_split"
    else:
        test = open_source(name, tmp_path, classes=(), split="test")
        assert test.sequences and not {s.name for s in test.sequences} & {s.name for s in source.sequences}
        assert describe([test]).digest != describe([source]).digest
    wanted = source.sequences[len(source.sequences) - 1].class_name
    chosen = train(name, tmp_path, (wanted,)).sequences
    assert wanted and [s.name for s in chosen] == [s.name for s in source.sequences if s.class_name == wanted]
    with pytest.raises(UserError, match=wanted):
        train(name, tmp_path, ("no such class",))


@pytest.mark.parametrize("name", MAKERS)
def test_missing_data_and_a_malformed_text_are_a_users_error(name: str, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=folder.name):
            train(name, folder)
    make, text, _ = MAKERS[name]
    make(tmp_path)
    path = tmp_path / text
    original = path.read_text()
    rows = original.splitlines()
    for damaged in ("\n".join([*rows[:4], "1,2,3", *rows[5:]]), original[:-40] + "x", "\0", ""):
        path.write_text(damaged)
        with pytest.raises(UserError) as caught:
            train(name, tmp_path)
        assert path.name in str(caught.value) and caught.value.code.split(".")[0] in ("file", "data")


DAMAGES: list[tuple[str, str, str, str]] = [
    ("COCO17", '"bbox": [2, 3, 12, 14]', '"bbox": [2, 3, 12]', "data.box"),
    ("COCO17", '"bbox": [2, 3, 12, 14]', '"bbox": [2, 3, 12, NaN]', "data.box"),
    ("COCO17", '"bbox": [2, 3, 12, 14]', '"bbox": [2, 3, true, 14]', "data.box"),
    ("COCO17", '"image_id": 25', '"image_id": 26', "data.box"),
    ("COCO17", '"category_id": 2', '"category_id": 9', "data.box"),
    ("COCO17", '"categories"', '"kinds"', "file.json"),
    ("COCO17", '"file_name": "0', '"file_name": "../0', "file.name"),
    ("VID", "<xmin>", "<xmid>", "file.xml"),
    ("VID", "<width>96", "<width>wide", "file.xml"),
    ("VID", "</annotation>", "", "file.xml"),
    ("VID", "<trackid>1</trackid>", "", "file.xml"),
    ("VID", "<width>96", "<width>0", "file.xml"),
    ("VID", "<xmax>", "<xmax>9999", "file.xml"),
    ("VID", "<annotation>", '<?xml version="1.0" encoding="unknown"?><annotation>', "file.xml"),
    ("TRACKINGNET", "0.0,0.0,0.0,0.0\n", "", "data.frame_count"),
    ("TRACKINGNET", "0.0,0.0,0.0,0.0", "0.0,0.0,-4,1", "data.box"),
]


@pytest.mark.parametrize(("name", "old", "new", "code"), DAMAGES)
def test_each_kind_of_damage_has_its_code(name: str, old: str, new: str, code: str, tmp_path: Path) -> None:
    make, text, _ = MAKERS[name]
    make(tmp_path)
    path = tmp_path / text
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError) as caught:
        train(name, tmp_path)
    assert {one.code for one in caught.value.problems} == {code}


def _overwritten(data: bytes) -> bytes:
    """All pages but the first two, which are the heads, by others."""
    return data[:8192] + b"\xa5" * (len(data) - 8192)


@pytest.mark.parametrize("name", [name for name in MAKERS if MAKERS[name][2]])
def test_an_lmdb_holds_the_same_data_set(name: str, tmp_path: Path) -> None:
    make, _, folders = MAKERS[name]
    make(tmp_path)
    spec = SampleSpec(template_size=16, search_size=32)
    before = train(name, tmp_path)
    samples = [TrackingDataset([before], [1], spec, seed=3).sample(1, index).checksum for index in range(8)]
    for folder in folders:
        as_lmdb(tmp_path / folder)
    after = train(name, tmp_path)
    assert describe([after]) == describe([before])
    assert [TrackingDataset([after], [1], spec, seed=3).sample(1, index).checksum for index in range(8)] == samples
    for number, damage in enumerate((lambda data: data[:99], lambda data: data[: len(data) // 2], _overwritten)):
        copy = Path(shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{number}")))
        path = next(copy.rglob("data.mdb"))
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(UserError) as caught:
            train(name, copy)
        assert {one.code for one in caught.value.problems} == {"data.lmdb"}


def test_files_of_an_operating_system_are_no_annotations_and_a_gap_in_them_is_refused(tmp_path: Path) -> None:
    make_trackingnet(tmp_path)
    make_vid(tmp_path)
    video = (tmp_path / MAKERS["VID"][1]).parent
    texts = tmp_path / "trackingnet"
    before = {name: describe([train(name, tmp_path)]).digest for name in ("TRACKINGNET", "VID")}
    for path in (texts / "TRAIN_0/anno/._a_1.txt", texts / "TEST/anno/._t_0.txt", video / "._000004.xml",
                 video.parent / ".DS_Store"):  # fmt: skip
        path.write_bytes(b"\0\5\x16\7")
    assert {name: describe([train(name, tmp_path)]).digest for name in before} == before
    assert len(open_source("TRACKINGNET", tmp_path, classes=(), split="test").sequences) == 1
    (video / "000004.xml").unlink()
    with pytest.raises(UserError) as caught:
        train("VID", tmp_path)
    assert caught.value.code == "data.frame_count" and "000005.xml" in str(caught.value)
    video.rename(video.with_name("ILSVRC2015_train_123456789"))
    with pytest.raises(UserError) as caught:
        train("VID", tmp_path)
    assert caught.value.code == "file.name"


def test_vids_cache_and_its_lmdb_give_what_its_texts_give(tmp_path: Path) -> None:
    make_vid(tmp_path)
    from_texts = train("VID", tmp_path)
    ends = [(one.name, one.class_name, one.num_frames, one.frame_path(0).name) for one in from_texts.sequences]
    first = "ILSVRC2015_train_00000003"
    assert ends[:2] == [(f"{first}-0", "n00", 21, "000000.JPEG"), (f"{first}-1", "n01", 22, "000004.JPEG")]
    assert from_texts.sequences[1].absent.nonzero()[0].tolist() == [5]
    cache = [
        {
            "set_id": 0, "vid_id": int(one.name[-10:-2]), "class_name": one.class_name, "image_size": [96, 72],
            "start_frame": int(one.frame_path(0).stem), "anno": one.boxes_xywh.tolist(),
            "target_visible": (~one.absent).tolist(),
        }
        for one in from_texts.sequences
    ]  # fmt: skip
    path = tmp_path / "vid" / "cache.json"
    for wrong, code in (
        (lambda one: one | {"anno": [[1, 2, 3]]}, "file.json"), (lambda one: one | {"anno": []}, "file.json"),
        (lambda one: one | {"anno": one["anno"][1:]}, "file.count"), (lambda one: {"set_id": 0}, "file.json"),
    ):  # fmt: skip
        path.write_text(json.dumps([wrong(cache[0]), *cache[1:]]))
        with pytest.raises(UserError) as caught:
            train("VID", tmp_path)
        assert caught.value.code == code and "cache.json" in str(caught.value)
    whole = {**cache[0], "anno": [[0, 0, 96, 72]], "target_visible": [True]}
    path.write_text(json.dumps([*cache, whole]))  # an object that fills the first image is left out
    shutil.rmtree(tmp_path / "vid" / "Annotations")
    assert describe([train("VID", tmp_path)]) == describe([from_texts])
    as_lmdb(tmp_path / "vid")
    assert describe([train("VID", tmp_path)]) == describe([from_texts])


def test_a_mixture_is_drawn_as_a_plain_implementation_draws_it(tmp_path: Path) -> None:
    """Set by ratio, sequence by uniform draw, frames by the mode; every crop of an image is of that image."""
    names = ["LASOT", "COCO17", "TRACKINGNET", "VID"]
    for name in names:
        MAKERS[name][0](tmp_path)
    sources, ratios = [train(name, tmp_path) for name in names], [1.0, 2.0, 1.0, 0.5]
    dataset = TrackingDataset(sources, ratios, SampleSpec(template_size=16, search_size=32), seed=5)
    counts = dict.fromkeys(names, 0)
    for index in range(400):
        found, expected = dataset.choose(sample_generator(5, 2, index)), _plain_choice(sources, ratios, index)
        assert (found[0].name, found[1].name, found[2].tolist()) == expected
        counts[expected[0]] += 1
    assert all(abs(counts[name] - 400 * ratio / 4.5) < 40 for name, ratio in zip(names, ratios, strict=True))
    for index in range(60):
        sample = dataset.sample(2, index)
        assert (sample.source, sample.sequence, list(sample.frames)) == _plain_choice(sources, ratios, index)
        if sample.source == "COCO17":
            one, other = sample.templates  # without jitter
            assert np.array_equal(one, other) or np.array_equal(one, other[..., ::-1])


def _plain_choice(sources: list[Source], ratios: list[float], index: int) -> tuple[str, str, list[int]]:
    g = sample_generator(5, 2, index)
    drawn, source = g.random() * sum(ratios), sources[-1]
    for one, ratio in zip(sources, ratios, strict=True):
        if drawn < ratio:
            source = one
            break
        drawn -= ratio
    usable = [
        one for one in source.sequences
        if source.name == "COCO17" or (one.num_frames >= 20 and sum(one.visible) > 2 * 3)
    ]  # fmt: skip
    sequence = usable[int(g.integers(len(usable)))]
    if source.name == "COCO17":
        return source.name, sequence.name, [0, 0, 0]
    visible = [number for number in range(sequence.num_frames) if sequence.visible[number]]
    base = visible[int(g.integers(len(visible)))]
    near = [number for number in visible if base - 400 <= number < base + 400]
    places = sorted(near[int(place)] for place in g.integers(0, len(near), size=3))
    return source.name, sequence.name, places if g.random() < 0.5 else places[::-1]


def test_every_data_set_that_the_published_recipes_name_is_known(tmp_path: Path) -> None:
    for name in experiment_names():
        config = load_config(name)
        assert {data_set_key(one) for one in config.DATA.TRAIN.DATASETS_NAME} <= set(SOURCES)

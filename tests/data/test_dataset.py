"""A sample is a pure function of seed, epoch and index, and equals what whole-frame processing gives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data.conftest import Make
from data.makers import cmyk, huge, refused
from seqtrack.data import crop
from seqtrack.data.dataset import Mode, Sample, SampleSpec, TrackingDataset, draw_frames
from seqtrack.data.decode import FrameFile
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import Source, open_source
from seqtrack.seeding import sample_generator

SPEC = SampleSpec(template_size=32, search_size=64, num_templates=2)


def same(one: Sample, other: Sample) -> bool:
    """Bit for bit, in every part."""
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


@pytest.fixture
def root(make_lasot: Make) -> Path:
    return make_lasot("book-1", "book-2", "coin-1")


@pytest.fixture
def source(root: Path) -> Source:
    return open_source("lasot", root, classes=(), split="train")


def _dataset(source: Source, *, seed: int = 7, **changes: object) -> TrackingDataset:
    return TrackingDataset([source], [1.0], replace(SPEC, **changes), seed=seed)  # type: ignore[arg-type]


def test_the_same_numbers_give_the_same_sample_and_any_other_number_another(source: Source) -> None:
    first = _dataset(source).sample(3, 11)
    dataset = _dataset(source)
    for index in (5, 2, 8):
        dataset.sample(1, index)  # what was drawn before must not matter
    assert same(first, dataset.sample(3, 11))
    assert not same(first, dataset.sample(3, 12))
    assert not same(first, dataset.sample(4, 11))
    assert not same(first, _dataset(source, seed=8).sample(3, 11))
    assert len({dataset.sample(0, index).search.tobytes() for index in range(30)}) == 30


def _reference(dataset: TrackingDataset, epoch: int, index: int) -> tuple[Sample, set[str]]:
    """The authors' order of work: grey and mirror the whole frame, then jitter, crop, resize."""
    spec = dataset.spec
    g = sample_generator(dataset.seed, epoch, index)
    source, sequence, frames = dataset.choose(g)
    grey, mirrored = g.random(2) < (0.05, 0.5)
    done = {name for name, flag in (("grey", grey), ("mirrored", mirrored)) if flag}
    images, brightness, box_out = [], [], np.zeros(4)
    of_template = spec.template_size, spec.template_factor, spec.template_jitter
    of_search = spec.search_size, spec.search_factor, spec.search_jitter
    for place, number in enumerate(frames):
        size, factor, jitter = of_search if place == len(frames) - 1 else of_template
        normal, uniform = g.standard_normal(2), g.random(2)
        brightness.append(np.float32(g.uniform(0.8, 1.2)))
        flip = g.random() < 0.5
        frame = FrameFile(sequence.frame_path(int(number))).whole()
        box = sequence.boxes_xywh[number]
        if grey:
            frame = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        if mirrored:
            frame = np.ascontiguousarray(frame[:, ::-1])
            box = np.array([frame.shape[1] - box[0] - box[2], *box[1:]])
        around = crop.jitter_box(box, jitter, normal=normal, uniform=uniform)
        image, resize_factor = crop.crop_frame(frame, around, factor=factor, size=size)
        box_out = crop.box_in_crop(box, around, resize_factor=resize_factor, size=size)
        if flip:
            image = image[:, ::-1]
            box_out[0] = 1 - box_out[0]
        images.append(image[:, :, ::-1].transpose(2, 0, 1))
    arrays = np.stack(images[:-1]), images[-1], np.array(brightness[:-1]), brightness[-1], box_out.astype(np.float32)
    return Sample(*arrays, source.name, sequence.name, tuple(frames.tolist())), done


def test_cropping_first_gives_the_pixels_of_whole_frame_processing(source: Source) -> None:
    dataset, count = _dataset(source), 300
    met: list[str] = []
    for index in range(count):
        expected, done = _reference(dataset, 0, index)
        assert same(dataset.sample(0, index), expected), (index, done)
        met += done
    for what, probability in (("grey", 0.05), ("mirrored", 0.5)):  # as frequent as the authors'
        difference = abs(met.count(what) - count * probability)
        assert difference < 5 * np.sqrt(count * probability * (1 - probability)) and what in met


def test_a_frame_that_was_damaged_or_deleted_after_opening_is_named(root: Path, source: Source) -> None:
    dataset = _dataset(source)
    for change in (lambda path: path.write_bytes(path.read_bytes()[:-200]), lambda path: path.unlink()):
        for path in root.rglob("*.jpg"):
            change(path)
        (problem,) = refused(dataset.sample, 0, 0)
        assert problem.code == "data.frame" and ".jpg: " in problem


def test_a_box_wholly_outside_the_frame_gives_a_black_crop_mirrored_or_not(root: Path) -> None:
    for name in ("book/book-1", "book/book-2", "coin/coin-1"):
        (root / name / "groundtruth.txt").write_text("900,900,9,9\n" * 24)
    dataset = _dataset(open_source("lasot", root, classes=(), split="train"))
    assert not any(dataset.sample(0, index).search.any() for index in range(20))


def test_damaged_frames_that_may_be_drawn_are_found_before_training_all_at_once(root: Path) -> None:
    folder = root / "book" / "book-1"
    changes: dict[int, Callable[[bytes], bytes]] = {
        1: lambda whole: b"", 2: lambda whole: whole[:-40], 3: lambda whole: b"", 4: lambda whole: b"GIF89a" + whole,
        5: cmyk, 9: huge,
    }  # fmt: skip
    paths = {number: folder / "img" / f"{number:08d}.jpg" for number in changes}
    for number, change in changes.items():
        paths[number].write_bytes(change(paths[number].read_bytes()))
    (folder / "groundtruth.txt").write_text("0,0,0,0\n" + "5,5,20,20\n" * 23)  # frame 1 is never drawn
    source = open_source("lasot", root, classes=(), split="train")
    problems = refused(_dataset, source)
    assert {problem.code for problem in problems} == {"data.frame"}
    assert [problem.split(":")[0] for problem in problems] == list(map(str, paths.values()))[1:]
    TrackingDataset([source], [1.0], SPEC, seed=0, verify_up_to=70)  # too many frames to check: accepted


# --- which frames


def sequence(name: str, visible: np.ndarray) -> Sequence:
    """A sequence whose frames have a box where they are visible."""
    boxes, n = np.where(visible[:, None], [1.0, 1, 9, 9], 0.0), len(visible)
    return Sequence(name, name[0], boxes, np.zeros(n, dtype=np.bool_), Path(), np.ones(n, dtype=np.int64))


def _drawing(clips: list[Sequence]) -> TrackingDataset:
    return TrackingDataset([Source("X", clips, "train", True)], [1], SPEC, seed=0, verify_up_to=0)


@pytest.mark.parametrize("mode", get_args(Mode))
@given(
    st.lists(st.booleans(), min_size=20, max_size=300), st.integers(1, 4), st.integers(1, 500), st.integers(0, 2**31)
)
@settings(max_examples=60, deadline=None)
def test_every_mode_draws_only_visible_frames(
    mode: Mode, flags: list[bool], templates: int, gap: int, index: int
) -> None:
    clip = sequence("a-1", np.array(flags))
    visible = np.flatnonzero(clip.visible)
    assume(len(visible) > 2 * (templates + 1))
    ids = draw_frames(sample_generator(0, 0, index), visible, mode=mode, num_templates=templates, gap=gap)
    assert len(ids) == templates + 1 and clip.visible[ids].all()
    if mode == "order":
        assert (np.diff(ids) >= 0).all() or (np.diff(ids) <= 0).all()
        assert ids.max() - ids.min() <= 2 * gap - 1
    else:
        assert (ids[1:-1] < ids[0]).all() and ids[-1] > ids[0]


def test_a_sequence_too_short_or_rarely_visible_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    flags = {"a-1": np.full(19, True), "a-2": np.arange(100) < 6, "a-3": np.arange(100) < 7, "a-4": np.full(20, True)}
    dataset = _drawing([sequence(name, visible) for name, visible in flags.items()])
    drawn = {dataset.choose(sample_generator(0, 0, index))[1].name for index in range(100)}
    assert drawn == {"a-3", "a-4"}
    assert [record.args[1] for record in caplog.records] == ["a-1", "a-2"]  # type: ignore[index]
    assert dataset.automatic_epoch() == 40
    assert refused(_drawing, [sequence("a-1", flags["a-1"])])[0].code == "data.no_usable_sequence"


def test_data_sets_are_drawn_by_their_ratios_and_sequences_uniformly() -> None:
    first = Source("A", [sequence(f"a-{i}", np.full(20 + 50 * i, True)) for i in range(10)], "train", True)
    second = Source("B", [sequence("b-1", np.full(1000, True))], "train", True)
    dataset = TrackingDataset([first, second], [3.0, 1.0], SPEC, seed=0, verify_up_to=0)
    clips = np.zeros(11)
    for index in range(6_000):
        source, clip, _ = dataset.choose(sample_generator(4, 1, index))
        clips[10 if source.name == "B" else int(clip.name[2:])] += 1
    # Another ratio, or sequences drawn by their length, would be many standard deviations away.
    assert abs(clips[10] - 1500) < 4.5 * np.sqrt(1500 * 0.75)
    assert (abs(clips[:10] - 450) < 4.5 * np.sqrt(450)).all()

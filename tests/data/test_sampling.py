"""Frames, sequences and data sets are drawn as asked: always valid, always ending, in the right proportions."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seqtrack.data.dataset import SampleSpec, TrackingDataset
from seqtrack.data.sampling import MODES, FrameIndex, draw_frames, usable
from seqtrack.data.sequence import Sequence, visible_frames
from seqtrack.data.sources import Source
from seqtrack.errors import UserError
from seqtrack.seeding import sample_generator


def sequence(name: str = "a-1", *, visible: np.ndarray, absent: np.ndarray | None = None) -> Sequence:
    """A sequence that is visible where it is said to be; `absent` frames have a box, the others have none."""
    n = len(visible)
    hidden = np.zeros(n, dtype=np.bool_) if absent is None else absent
    boxes = np.zeros((n, 4))
    boxes[visible | hidden] = (1, 1, 9, 9)
    missing = np.zeros(n, dtype=np.bool_)
    return Sequence(
        name, name.rsplit("-", 1)[0], Path(), boxes, visible_frames(boxes, hidden, missing), hidden, missing
    )


def _whole(name: str, frames: int) -> Sequence:
    return sequence(name, visible=np.ones(frames, dtype=np.bool_))


@pytest.mark.parametrize("mode", MODES)
@given(
    flags=st.lists(st.sampled_from("vha"), min_size=20, max_size=300),
    templates=st.integers(1, 4),
    gap=st.integers(1, 500),
    index=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_every_mode_draws_frames_that_can_be_cropped_and_ends(
    mode: str, flags: list[str], templates: int, gap: int, index: int
) -> None:
    letters = np.array(flags)
    clip = sequence(visible=letters == "v", absent=letters == "h")
    assume(usable(clip, templates + 1) is None)
    generator = sample_generator(0, 0, index)
    ids = draw_frames(generator, FrameIndex(clip), mode=mode, num_templates=templates, num_search=1, gap=gap)  # type: ignore[arg-type]
    assert len(ids) == templates + 1
    first, search = ids[0], ids[-1]
    assert clip.visible[first] and clip.visible[search], "the first template and the search frame show the target"
    if mode == "stark":
        assert clip.has_box[ids].all()
    else:
        assert clip.visible[ids].all()
    if mode == "order":
        assert (np.diff(ids) >= 0).all() or (np.diff(ids) <= 0).all()
        assert ids.max() - ids.min() <= 2 * gap - 1
    if mode == "causal":
        assert (ids[1:-1] < first).all() and search > first
    if mode in ("trident", "stark") and templates > 1 and first >= search:
        assert (ids[1:-1] >= search).all() and (ids[1:-1] < search + gap).all()
    if mode in ("trident", "stark") and first < search:
        assert (ids[1:-1] < search).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_same_generator_draws_the_same_frames_and_another_draws_others(mode: str) -> None:
    frames = FrameIndex(_whole("a-1", 500))

    def draw(seed: int, epoch: int, index: int) -> tuple[int, ...]:
        generator = sample_generator(seed, epoch, index)
        return tuple(draw_frames(generator, frames, mode=mode, num_templates=2, num_search=1, gap=400).tolist())  # type: ignore[arg-type]

    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(9, 2, 3), draw(1, 9, 3), draw(1, 2, 9)}) == 4


def test_causal_reaches_over_a_gap_that_is_wider_than_the_interval() -> None:
    visible = np.zeros(300, dtype=np.bool_)
    visible[:4] = visible[296:] = True
    frames = FrameIndex(sequence(visible=visible))
    drawn = {
        tuple(
            draw_frames(sample_generator(0, 0, i), frames, mode="causal", num_templates=2, num_search=1, gap=5).tolist()
        )
        for i in range(300)
    }
    assert any(template < 10 and search > 290 for template, _, search in drawn)


@pytest.mark.parametrize("mode", ["trident", "stark"])
def test_further_templates_are_found_over_a_gap_that_is_wider_than_the_interval(mode: str) -> None:
    visible = np.zeros(300, dtype=np.bool_)
    visible[:4] = visible[296:] = True
    frames = FrameIndex(sequence(visible=visible))
    for index in range(300):
        generator = sample_generator(0, 0, index)
        ids = draw_frames(generator, frames, mode=mode, num_templates=2, num_search=1, gap=5)  # type: ignore[arg-type]
        assert visible[ids].all()


def test_a_sequence_too_short_or_rarely_visible_is_left_out_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    rare = np.zeros(100, dtype=np.bool_)
    rare[:6] = True
    enough = rare.copy()
    enough[6] = True
    clips = [_whole("a-1", 19), sequence("a-2", visible=rare), sequence("a-3", visible=enough), _whole("a-4", 20)]
    spec = SampleSpec(template_size=32, search_size=32)
    dataset = TrackingDataset([Source("X", clips, "train", True)], [1], spec, seed=0, verify_up_to=0)
    drawn = {dataset.choose(sample_generator(0, 0, index))[1].name for index in range(100)}
    assert drawn == {"a-3", "a-4"}
    assert "sequence a-1 is left out: 19 frames" in caplog.text
    assert "sequence a-2 is left out: the target is visible in 6 frames, more than 6" in caplog.text
    assert dataset.num_frames == 120 and dataset.automatic_epoch() == 40


def test_sources_of_which_nothing_can_be_drawn_are_refused() -> None:
    spec = SampleSpec(template_size=32, search_size=32)
    with pytest.raises(UserError, match="none of its 1 sequences"):
        TrackingDataset([Source("X", [_whole("a-1", 19)], "train", True)], [1], spec, seed=0, verify_up_to=0)
    good = Source("X", [_whole("a-1", 30)], "train", True)
    for ratios in ([], [0.0], [-1.0], [1.0, 1.0]):
        with pytest.raises(UserError, match="DATASETS_RATIO"):
            TrackingDataset([good], ratios, spec, seed=0, verify_up_to=0)


def _chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def _counts(ratios: list[float], draws: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each data set, and each sequence of the first, is drawn."""
    first = Source("A", [_whole(f"a-{i}", 20 + 50 * i) for i in range(10)], "train", True)
    second = Source("B", [_whole(f"b-{i}", 40) for i in range(3)], "train", True)
    dataset = TrackingDataset(
        [first, second], ratios, SampleSpec(template_size=32, search_size=32), seed=4, verify_up_to=0
    )
    sets, clips = np.zeros(2), np.zeros(10)
    for index in range(draws):
        source, clip, _ = dataset.choose(sample_generator(4, 1, index))
        sets["AB".index(source.name)] += 1
        if source.name == "A":
            clips[int(clip.name[2:])] += 1
    return sets, clips


# Exceeded once in 100,000 by chance, for 1 and for 9 degrees of freedom.
_CHI_1, _CHI_9 = 19.5, 39.3


def test_data_sets_are_drawn_by_their_ratios_and_sequences_alike() -> None:
    sets, clips = _counts([3.0, 1.0], 20_000)
    assert _chi_square(sets, np.array([15_000.0, 5_000.0])) < _CHI_1
    assert _chi_square(clips, np.full(10, clips.sum() / 10)) < _CHI_9, (
        "long sequences are drawn no more than short ones"
    )


def test_the_measure_fails_a_weight_that_is_a_tenth_wrong() -> None:
    sets, _ = _counts([3.3, 1.0], 20_000)
    assert _chi_square(sets, np.array([15_000.0, 5_000.0])) > _CHI_1


def test_the_measure_fails_sequences_drawn_by_their_length() -> None:
    lengths = np.array([20.0 + 50 * i for i in range(10)])
    counts = np.random.default_rng(0).multinomial(15_000, lengths / lengths.sum())
    assert _chi_square(counts, np.full(10, 1500.0)) > _CHI_9


def test_classes_are_drawn_in_proportion_to_their_sequences() -> None:
    clips = [_whole(f"book-{i}", 50) for i in range(6)] + [_whole(f"coin-{i}", 50) for i in range(2)]
    spec = SampleSpec(template_size=32, search_size=32)
    dataset = TrackingDataset([Source("X", clips, "train", True)], [1], spec, seed=0, verify_up_to=0)
    names = [dataset.choose(sample_generator(0, 0, i))[1].class_name for i in range(8000)]
    counts = np.array([names.count("book"), names.count("coin")], dtype=float)
    assert _chi_square(counts, np.array([6000.0, 2000.0])) < _CHI_1

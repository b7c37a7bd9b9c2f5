"""Frames, sequences and data sets are drawn as specified: valid, always terminating, in the right proportions."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seqtrack.data.dataset import Mode, SampleSpec, TrackingDataset, draw_frames
from seqtrack.data.sequence import Sequence
from seqtrack.data.sources import Source
from seqtrack.errors import UserError
from seqtrack.seeding import sample_generator

MODES: tuple[Mode, ...] = get_args(Mode)
SPEC = SampleSpec(template_size=32, search_size=32)


def sequence(name: str, visible: np.ndarray) -> Sequence:
    """A sequence whose frames have a box where they are visible."""
    boxes, n = np.where(visible[:, None], [1.0, 1, 9, 9], 0.0), len(visible)
    return Sequence(name, name[0], boxes, np.zeros(n, dtype=np.bool_), Path(), np.ones(n, dtype=np.int64))


def _whole(name: str, frames: int) -> Sequence:
    return sequence(name, np.ones(frames, dtype=np.bool_))


def _dataset(clips: list[Sequence]) -> TrackingDataset:
    return TrackingDataset([Source("X", clips, "train", True)], [1], SPEC, seed=0, verify_up_to=0)


@pytest.mark.parametrize("mode", MODES)
@given(
    flags=st.lists(st.booleans(), min_size=20, max_size=300),
    templates=st.integers(1, 4),
    gap=st.integers(1, 500),
    index=st.integers(0, 2**31),
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


def test_causal_reaches_over_a_gap_that_is_wider_than_the_interval() -> None:
    visible = np.array([0, 1, 2, 3, 296, 297, 298, 299])
    drawn = [draw_frames(sample_generator(0, 0, i), visible, mode="causal", num_templates=2, gap=5) for i in range(300)]
    assert any(template < 10 and search > 290 for template, _, search in drawn)


def test_a_sequence_too_short_or_rarely_visible_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    rare = np.zeros(100, dtype=np.bool_)
    rare[:6] = True
    enough = rare.copy()
    enough[6] = True
    dataset = _dataset([_whole("a-1", 19), sequence("a-2", rare), sequence("a-3", enough), _whole("a-4", 20)])
    drawn = {dataset.choose(sample_generator(0, 0, index))[1].name for index in range(100)}
    assert drawn == {"a-3", "a-4"}
    assert [record.args[1] for record in caplog.records] == ["a-1", "a-2"]  # type: ignore[index]
    assert dataset.automatic_epoch() == 40
    with pytest.raises(UserError) as caught:
        _dataset([_whole("a-1", 19)])
    assert caught.value.code == "data.no_usable_sequence"


def test_data_sets_are_drawn_by_their_ratios_and_sequences_uniformly() -> None:
    first = Source("A", [_whole(f"a-{i}", 20 + 50 * i) for i in range(10)], "train", True)
    second = Source("B", [_whole("b-1", 1000)], "train", True)
    dataset = TrackingDataset([first, second], [3.0, 1.0], SPEC, seed=0, verify_up_to=0)
    clips = np.zeros(11)
    for index in range(6_000):
        source, clip, _ = dataset.choose(sample_generator(4, 1, index))
        clips[10 if source.name == "B" else int(clip.name[2:])] += 1
    # Another ratio, or sequences drawn by their length, would be many standard deviations away.
    assert abs(clips[10] - 1500) < 4.5 * np.sqrt(1500 * 0.75)
    assert (abs(clips[:10] - 450) < 4.5 * np.sqrt(450)).all()

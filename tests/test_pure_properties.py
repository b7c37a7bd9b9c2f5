"""Properties of boxes, tokens and seeds for arbitrary inputs."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqtrack import boxes as b
from seqtrack import tokens as t
from seqtrack.seeding import process_seed, sample_generator, step_seed

QUICK = settings(max_examples=60, deadline=None)
FORMATS = st.sampled_from(("xywh", "whxy", "corner"))
BINS = st.integers(2, 5000)
# Multiples of 1/8 up to 2**20 are added and halved without rounding in float64, so equality is exact.
COORDINATE = st.integers(-(2**20), 2**20).map(lambda eighths: eighths / 8)
SIZE = st.integers(0, 2**20).map(lambda eighths: eighths / 8)
FRACTION = st.floats(0, 1, allow_nan=False, width=32)
BOX_XYWH = st.tuples(COORDINATE, COORDINATE, SIZE, SIZE)
SEED = st.integers(0, 2**32 - 1)


def row(values: tuple[float, ...]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def cut_boxes(number: int = 4) -> st.SearchStrategy[Tensor]:
    """(N, 4) cxcywh, anywhere around the search region."""
    value = st.floats(-1, 2, allow_nan=False, width=32)
    size = st.floats(0, 2, allow_nan=False, width=32)
    one = st.tuples(value, value, size, size)
    return st.lists(one, min_size=1, max_size=number).map(lambda rows: torch.tensor(rows, dtype=torch.float64))


CONVERSIONS = [
    (b.xyxy_to_cxcywh, b.cxcywh_to_xyxy),
    (b.cxcywh_to_xyxy, b.xyxy_to_cxcywh),
]


@QUICK
@given(box=BOX_XYWH, which=st.sampled_from(range(len(CONVERSIONS))))
def test_box_conversions_are_inverse(box: tuple[float, ...], which: int) -> None:
    there, back = CONVERSIONS[which]
    assert torch.equal(back(there(row(box))), row(box))


@QUICK
@given(one=BOX_XYWH, other=BOX_XYWH)
def test_overlap_is_symmetric_bounded_and_one_only_for_the_same_box(
    one: tuple[float, ...], other: tuple[float, ...]
) -> None:
    a, c = b.xywh_to_xyxy(row(one)), b.xywh_to_xyxy(row(other))
    overlap = float(b.iou(a, c))
    assert overlap == float(b.iou(c, a))
    assert 0 <= overlap <= 1
    if one[2] * one[3] > 0:
        assert float(b.iou(a, a)) == 1
        assert (overlap == 1) == (one == other)
    else:
        assert float(b.iou(a, a)) == 0  # never NaN


@QUICK
@given(box=BOX_XYWH, width=st.integers(21, 4000), height=st.integers(21, 4000))
def test_a_clipped_box_keeps_its_margin_inside_the_image(box: tuple[float, ...], width: int, height: int) -> None:
    clipped = b.clip_to_image(row(box), height_px=height, width_px=width, margin_px=10)
    x, y, w, h = clipped[0].tolist()
    assert w >= 10 and h >= 10
    assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    assert torch.equal(b.clip_to_image(clipped, height_px=height, width_px=width, margin_px=10), clipped)


@QUICK
@given(values=st.tuples(FRACTION, FRACTION, FRACTION, FRACTION), bins=BINS)
def test_a_token_is_the_integer_part_and_less_than_a_bin_below(values: tuple[float, ...], bins: int) -> None:
    words = t.boxes_to_tokens(row(values), bins)
    assert words.dtype == torch.int64
    assert int(words.min()) >= 0 and int(words.max()) <= bins - 1
    error = row(values) * (bins - 1) - words
    assert float(error.min()) >= 0 and float(error.max()) < 1


@QUICK
@given(boxes=cut_boxes(), bins=st.integers(100, 5000), seq_format=FORMATS)
def test_a_sequence_decodes_to_the_clipped_box_within_a_bin(boxes: Tensor, bins: int, seq_format: str) -> None:
    inputs, targets = t.target_sequences(boxes, bins, seq_format)
    assert (inputs[:, 0] == t.start_token(bins)).all() and (targets[:, -1] == t.end_token(bins)).all()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert int(targets[:, :-1].min()) >= 0 and int(targets[:, :-1].max()) <= bins - 1
    cut = b.cxcywh_to_xyxy(boxes).clamp(0, 1)
    read = b.cxcywh_to_xyxy(t.tokens_to_boxes(targets[:, :-1], bins, seq_format))
    # Centre and half a size are each less than a bin below.
    assert float((read - cut).abs().max()) < 1.5 / (bins - 1) + 1e-9


@QUICK
@given(
    one=st.tuples(SEED, st.integers(0, 1000), st.integers(0, 10**6)),
    other=st.tuples(SEED, st.integers(0, 1000), st.integers(0, 10**6)),
)
def test_a_generator_is_a_function_of_seed_epoch_and_index(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    first, again, different = (sample_generator(*place).integers(0, 2**63, size=4) for place in (one, one, other))
    assert np.array_equal(first, again)
    assert np.array_equal(first, different) == (one == other)


@QUICK
@given(seed=SEED, step=st.integers(0, 10**7), rank=st.integers(0, 1024))
def test_seeds_fit_every_generator_and_streams_do_not_meet(seed: int, step: int, rank: int) -> None:
    word = step_seed(seed, step, rank)
    assert 0 <= word < 2**63
    assert word == step_seed(seed, step, rank)
    assert word not in (
        step_seed(seed, step + 1, rank),
        step_seed(seed, step, rank + 1),
        step_seed(seed + 1, step, rank),
    )
    assert word != process_seed(seed, rank)

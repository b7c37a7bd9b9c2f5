"""Tokens and seeds: properties for arbitrary inputs. Boxes, tables and known values are golden tests."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seqtrack import boxes as b
from seqtrack import tokens as t
from seqtrack.seeding import process_seed, sample_generator, step_seed

QUICK = settings(max_examples=60, deadline=None)
FRACTION = st.floats(0, 1, allow_nan=False, width=32)
AROUND = st.floats(-1, 2, allow_nan=False, width=32)
SEED = st.integers(0, 2**32 - 1)
PLACE = st.tuples(SEED, st.integers(0, 1000), st.integers(0, 10**6))
FORMATS = ("xywh", "whxy", "corner")


def row(values: tuple[float, ...]) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


@QUICK
@given(
    values=st.tuples(FRACTION, FRACTION, FRACTION, FRACTION),
    anywhere=st.tuples(AROUND, AROUND, FRACTION, FRACTION),
    bins=st.integers(100, 5000),
    seq_format=st.sampled_from(FORMATS),
)
def test_a_token_is_the_integer_part_and_a_sequence_decodes_to_the_clipped_box_within_a_bin(
    values: tuple[float, ...], anywhere: tuple[float, ...], bins: int, seq_format: str
) -> None:
    tokens = t.boxes_to_tokens(row(values), bins)
    assert tokens.dtype == torch.int64
    error = row(values) * (bins - 1) - tokens
    assert float(error.min()) >= 0 and float(error.max()) < 1

    inputs, targets = t.target_sequences(row(anywhere), bins, seq_format)
    assert (inputs[:, 0] == t.start_token(bins)).all() and (targets[:, -1] == t.end_token(bins)).all()
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert int(targets[:, :-1].min()) >= 0 and int(targets[:, :-1].max()) <= bins - 1
    cut = b.cxcywh_to_xyxy(row(anywhere)).clamp(0, 1)
    read = b.cxcywh_to_xyxy(t.tokens_to_boxes(targets[:, :-1], bins, seq_format))
    # Centre and half a size are each less than a bin below.
    assert float((read - cut).abs().max()) < 1.5 / (bins - 1) + 1e-9


def test_known_tokens_and_what_cannot_be_a_token() -> None:
    """Formats, tables and boxes of known values are golden tests."""
    assert (t.end_token(4000), t.start_token(4000), t.vocabulary_size(4000)) == (4000, 4001, 4002)
    assert [t.centre_positions(name) for name in FORMATS] == [(0, 1), (2, 3), ()]
    for value in (float("nan"), float("inf"), -1e-6, 1.001):
        with pytest.raises(ValueError):
            t.boxes_to_tokens(torch.tensor([[0.5, 0.5, value, 0.5]]), 1001)
    with pytest.raises(ValueError):
        t.target_sequences(torch.tensor([[float("nan"), 0.5, 0.4, 0.2]]), 1001)


@QUICK
@given(one=PLACE, other=PLACE)
def test_seeds_are_functions_of_their_place_and_streams_do_not_meet(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    first, again, different = (sample_generator(*place).integers(0, 2**63, size=4) for place in (one, one, other))
    assert np.array_equal(first, again)
    assert np.array_equal(first, different) == (one == other)
    seed, step, rank = one[0], one[2], one[1]
    found = step_seed(seed, step, rank)
    assert 0 <= found < 2**63 and found == step_seed(seed, step, rank)
    near = [step_seed(seed, step + 1, rank), step_seed(seed, step, rank + 1), step_seed(seed + 1, step, rank)]
    assert found not in [*near, process_seed(seed, rank)]


def test_random_numbers_never_change() -> None:
    """A run of an earlier version can be resumed only with the same numbers."""
    assert float(sample_generator(42, 1, 0).random()) == 0.31060193492070687
    assert step_seed(42, 0, 0) == 1609198741908217774
    with pytest.raises(ValueError):
        sample_generator(-1, 0, 0)

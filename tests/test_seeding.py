"""Seeds are pure functions of where the run is, and no two places share one."""

import itertools

import numpy as np
import pytest

from seqtrack.seeding import process_seed, sample_generator, step_seed


def test_the_same_place_draws_the_same_numbers() -> None:
    first, again = (sample_generator(3, 2, 991).random(5) for _ in range(2))
    assert (first == again).all()
    assert step_seed(3, 17, 0) == step_seed(3, 17, 0)
    assert process_seed(3, 0) == process_seed(3, 0)


def test_another_seed_epoch_or_index_draws_others() -> None:
    places = list(itertools.product((0, 1, 42), (1, 2, 3), (0, 1, 991)))
    assert len({float(sample_generator(*place).random()) for place in places}) == len(places)


def test_another_seed_step_or_rank_gives_another_seed_in_range() -> None:
    places = list(itertools.product((0, 1, 42), (0, 1, 100_000), (0, 1, 7)))
    seeds = [step_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len({process_seed(seed, rank) for seed in range(3) for rank in range(3)} | {step_seed(0, 0, 0)}) == 10


def test_random_numbers_never_change() -> None:
    """Runs of earlier versions can be resumed only while these stay."""
    assert float(sample_generator(42, 1, 0).random()) == 0.31060193492070687
    assert step_seed(42, 0, 0) == 1609198741908217774


def test_numpys_global_generator_is_not_used() -> None:
    before = np.random.get_state(legacy=False)["state"]["key"].copy()  # noqa: NPY002
    sample_generator(1, 1, 1).random(1000)
    step_seed(1, 1, 1)
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()  # noqa: NPY002


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError):
        sample_generator(-1, 0, 0)

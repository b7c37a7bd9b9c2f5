"""Sampling frames in the mode `order` has the statistics of the authors' sampler over the same visible frames."""

import json
from typing import Any

import model_sets as sets
import numpy as np
import pytest

from seqtrack.data.sampling import draw_frames
from seqtrack.seeding import sample_generator


@pytest.fixture(params=sets.find("pure*.npz", companion=".json"))
def golden(request: pytest.FixtureRequest) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(request.param) as stored:
        arrays = {key: stored[key] for key in ("order_ids", "order_visible")}
    return arrays, json.loads(request.param.with_suffix(".json").read_text())["order_stats"]


def _draw(visible: np.ndarray, count: int, gap: int) -> np.ndarray:
    numbers = np.flatnonzero(visible)
    generators = (sample_generator(1, 0, index) for index in range(count))
    drawn = [draw_frames(g, numbers, mode="order", num_templates=2, gap=gap) for g in generators]
    return np.array(drawn)


def _statistics(ids: np.ndarray) -> dict[str, float]:
    first, second, search = ids.T
    return {
        "P(t0<t1)": float((first < second).mean()),
        "P(two or more ids equal)": float(((first == second) | (second == search) | (first == search)).mean()),
        "P(search==a template)": float(((search == first) | (search == second)).mean()),
        "mean |x - t1|": float(np.abs(search - second).mean()),
        "P(search after both templates)": float(((search > first) & (search > second)).mean()),
    }


def _limits(statistics: dict[str, Any], count: int) -> dict[str, float]:
    """Four standard errors of the difference of two samples of this size."""
    limits = {}
    for name, value in statistics.items():
        spread = 115.0 if name.startswith("mean") else np.sqrt(value * (1 - value))
        limits[name] = 4 * spread * np.sqrt(2 / count)
    return limits


def test_frames_have_the_statistics_of_the_authors(
    golden: tuple[dict[str, np.ndarray], dict[str, Any]],
) -> None:
    arrays, expected = golden
    ids = _draw(arrays["order_visible"], 20_000, gap=400)
    found = _statistics(ids)
    limits = _limits(found, 20_000)
    for name, value in found.items():
        assert abs(value - expected[name]) < limits[name], name
    assert np.abs(ids[:, :, None] - ids[:, None, :]).max() <= 799
    assert arrays["order_visible"][ids].all(), "only visible frames"


def test_another_interval_is_noticed(golden: tuple[dict[str, np.ndarray], dict[str, Any]]) -> None:
    arrays, expected = golden
    found = _statistics(_draw(arrays["order_visible"], 20_000, gap=360))
    assert abs(found["mean |x - t1|"] - expected["mean |x - t1|"]) > _limits(found, 20_000)["mean |x - t1|"]


def test_the_authors_own_draws_are_within_the_same_limits(
    golden: tuple[dict[str, np.ndarray], dict[str, Any]],
) -> None:
    """Control of the limits themselves, with the 300 stored draws."""
    arrays, expected = golden
    found = _statistics(arrays["order_ids"])
    limits = _limits(found, len(arrays["order_ids"]))
    assert abs(found["P(t0<t1)"] - expected["P(t0<t1)"]) < limits["P(t0<t1)"]
    assert abs(found["mean |x - t1|"] - expected["mean |x - t1|"]) < limits["mean |x - t1|"]

"""Curves keep what a plot can show of a run of any length, in bounded memory and with bounded work."""

import json
import math
import random
from pathlib import Path

import pytest

from seqtrack.checkpoints.side_files import EpochRecord, IntervalRecord
from seqtrack.reports.plots import PhasePlots, plot_phase
from seqtrack.runtime.curves import LIMIT, Curve, Curves


def interval(step: int, loss: float) -> IntervalRecord:
    return IntervalRecord(
        phase=1, epoch=1 + step // 1000, step=step, sample=1 + step % 1000, samples=1000, interval_samples=1, loss=loss,
        iou=0.5, interval_loss=loss, interval_iou=0.5, lr=[1e-4], grad_norm=1.0, time_s=1.0, elapsed_s=1.0, eta_s=1.0,
        samples_per_s=1.0, data_wait_s=0.0, data_wait_share=0.0, skipped_steps=0,
    )  # fmt: skip


def epoch(number: int) -> EpochRecord:
    return EpochRecord(
        phase=1, epoch=number, step=number, loss=1.0, iou=0.5, samples=1, steps=1, lr=[1e-4], grad_norm=1.0, time_s=1.0,
        elapsed_s=1.0, samples_per_s=1.0, data_wait_s=0.0, data_wait_share=0.0, skipped_steps=0,
        max_memory_allocated=None, max_memory_reserved=None,
    )  # fmt: skip


@pytest.fixture(scope="module")
def long_run() -> Curves:
    """600,000 records and one outlier."""
    curves = Curves()
    of_an_epoch = [interval(step, 5.0) for step in range(1, 1000)]
    for number in range(1, 601):
        curves.add(epoch(number))
        for record in of_an_epoch:
            curves.add(record)
        if number == 123:
            curves.add(interval(0, 99.0))
    return curves


def test_few_points_are_drawn_as_they_are() -> None:
    curve = Curve()
    points = [(float(i), math.sin(i)) for i in range(LIMIT)]
    for position, value in points:
        curve.add(position, value)
    assert list(zip(*curve.line(), strict=True)) == points


@pytest.mark.parametrize("count", [LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 1, 7 * LIMIT + 3, 100_000])
def test_every_point_is_inside_the_bucket_that_its_position_falls_into(count: int) -> None:
    rng = random.Random(count)
    values = [rng.random() for _ in range(count)]
    curve = Curve()
    for position, value in enumerate(values):
        curve.add(position, value)
    assert LIMIT / 2 <= len(curve.buckets) <= LIMIT
    for at, (start, low, high) in enumerate(curve.buckets):
        inside = values[at * curve.stride : (at + 1) * curve.stride]
        assert (start, low, high) == (at * curve.stride, min(inside), max(inside))


def test_a_long_run_is_drawn_from_as_many_points_as_a_short_one(long_run: Curves, tmp_path: Path) -> None:
    intervals, epochs = long_run.intervals["loss"], long_run.epochs["loss"]
    assert intervals.stride == 512 and len(intervals.buckets) <= LIMIT and len(epochs.buckets) == 600
    assert len(intervals.line()[0]) <= 2 * LIMIT
    assert max(intervals.line()[1]) == 99.0, "one value out of 600,000 is still seen"
    assert len(json.dumps(long_run.to_json())) < 1_000_000, "and this is all that the drawing process parses"
    plot_phase(tmp_path, long_run)
    assert sorted(path.suffix for path in (tmp_path / "plots").iterdir()) == [".png", ".png"]


def test_the_child_draws_the_same_pictures_and_reads_no_file_of_the_run(tmp_path: Path) -> None:
    curves = Curves([interval(step, step / 7) for step in range(50)] + [epoch(1)])
    here, there = tmp_path / "here" / "phase_1", tmp_path / "there" / "phase_1"
    here.mkdir(parents=True)
    there.mkdir(parents=True)
    plot_phase(here, curves)
    plots = PhasePlots(there, curves, interval_s=0.0)
    plots.redraw()
    assert plots._child is not None and plots._child.wait() == 0
    plots.close()
    drawn = {path.name: path.read_bytes() for path in (there / "plots").iterdir()}
    assert drawn == {path.name: path.read_bytes() for path in (here / "plots").iterdir()} and len(drawn) == 2


def test_plots_are_not_drawn_again_after_every_epoch(tmp_path: Path) -> None:
    plots = PhasePlots(tmp_path, Curves([epoch(1)]), interval_s=3600.0)
    for _ in range(100):
        plots.redraw()
    assert plots._child is None


@pytest.mark.parametrize("here", [True, False])
def test_plots_that_cannot_be_written_are_a_warning_with_their_place(
    here: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plots").write_text("a file in the place of the folder")
    plots = PhasePlots(tmp_path, Curves([epoch(1)]), interval_s=0.0)
    if here:
        plots.finish()
    else:
        plots.redraw()
        assert plots._child is not None
        plots._child.wait()
        plots.close()
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "plots") in warning.getMessage()

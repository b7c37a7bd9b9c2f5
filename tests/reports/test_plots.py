"""Plots show what the records of a run of any length hold, and never end a run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqtrack.reports.plots import PhasePlots, plot_phase, read_curves, thin_out

INTERVAL: dict[str, Any] = {
    "type": "interval", "phase": 1, "epoch": 1, "step": 1, "sample": 16, "samples": 64, "interval_samples": 16,
    "loss": 5.0, "iou": 0.5, "interval_loss": 5.0, "interval_iou": 0.5, "lr": [1e-4],
    "grad_norm": 1.0, "checksum": "0" * 16, "time_s": 1.0,
    "elapsed_s": 1.0, "eta_s": 1.0, "samples_per_s": 1.0, "data_wait_s": 0.0, "data_wait_share": 0.0,
    "skipped_steps": 0,
}  # fmt: skip
EPOCH = {
    "type": "epoch", "phase": 1, "epoch": 1, "step": 4, "loss": 2.0, "iou": 0.25, "samples": 64, "steps": 4,
    "lr": [1e-4], "grad_norm": 1.0, "checksum": "0" * 16,
    "time_s": 1.0, "elapsed_s": 1.0, "samples_per_s": 1.0, "data_wait_s": 0.0,
    "data_wait_share": 0.0, "skipped_steps": 0, "max_memory_allocated": None, "max_memory_reserved": None,
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the records of one epoch."""
    records = [{**INTERVAL, "sample": 16 * i, "interval_loss": float(i)} for i in range(1, 5)]
    (tmp_path / "phase_1" / "logs").mkdir(parents=True)
    text = "".join(json.dumps(record) + "\n" for record in [*records, EPOCH])
    (tmp_path / "phase_1" / "logs" / "metrics.jsonl").write_text(text)
    return tmp_path / "phase_1"


def test_curves_are_the_numbers_of_the_records(run: Path) -> None:
    curves = {name: [values.tolist() for values in line] for name, line in read_curves(run).items()}
    assert curves["interval_loss"] == [[0.25, 0.5, 0.75, 1.0], [1.0, 2.0, 3.0, 4.0]]
    assert (curves["loss"], curves["iou"]) == ([[1.0], [2.0]], [[1.0], [0.25]])


@pytest.mark.parametrize("count", [2000, 100_003])
def test_thinned_curves_keep_every_extreme(count: int) -> None:
    values = np.random.default_rng(count).random(count)
    values[count // 2] = 99.0
    positions, shown = thin_out(np.arange(count, dtype=float), values)
    assert len(positions) == len(shown) <= min(4000, max(2000, 2 * count))
    assert (shown.min(), shown.max(), positions[0]) == (values.min(), 99.0, 0.0)


@pytest.mark.usefixtures("real_plots")  # a child process draws real ones
def test_the_child_draws_the_same_plots_but_not_after_every_epoch(run: Path) -> None:
    rare = PhasePlots(run, interval_s=3600.0)
    rare.redraw()
    assert rare._child is None
    plots = PhasePlots(run, interval_s=0.0)
    plots.redraw()
    assert plots._child is not None and plots._child.wait() == 0
    plots.close()
    drawn = {path.name: path.read_bytes() for path in (run / "plots").iterdir()}
    plot_phase(run)
    assert drawn == {path.name: path.read_bytes() for path in (run / "plots").iterdir()} and len(drawn) == 2


@pytest.mark.parametrize("here", [True, False])
def test_plots_that_cannot_be_written_are_a_warning(here: bool, run: Path, caplog: pytest.LogCaptureFixture) -> None:
    (run / "plots").write_text("a file in the place of the folder")
    plots = PhasePlots(run, interval_s=0.0)
    if here:
        plots.finish()
    else:
        plots.redraw()
        assert plots._child is not None and plots._child.wait() == 1
        plots.redraw()  # the next one, which also looks at the last
        plots.close()
    warning = next(record for record in caplog.records if record.levelname == "WARNING")
    assert str(run / "plots") in warning.getMessage()

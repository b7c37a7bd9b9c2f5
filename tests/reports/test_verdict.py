"""The consequences of a verdict: log lines, files, and the exit code of phase 2."""

import shutil
from pathlib import Path

import pytest

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.checkpoints.side_files import RunRecord, changed
from seqtrack.reports.compare import compare_runs
from seqtrack.reports.verdict import conclude, table
from seqtrack.runtime.environment import BITWISE, SAME_SAMPLES, guarantee


def record(output: Path, phase: int, guarantee: str) -> RunRecord:
    """The record of a run that was started once."""
    run = read_run(output / "phase_1")
    assert run is not None
    return changed(run, phase=phase, starts=[{**run.starts[0].model_dump(), "guarantee": guarantee}])


def corrupt(output: Path) -> None:
    path = output / "phase_2" / "checkpoints" / "SEQTRACK_ep0002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_equal_runs_exit_with_0_and_log_the_verdict_last(pair: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert conclude(pair, record(pair, 2, BITWISE)) == 0
    assert caplog.messages[-1] == "identical"
    assert "**identical**" in (pair / "comparison" / "comparison.md").read_text()


@pytest.mark.parametrize(("guarantee", "code"), [(BITWISE, 1), (SAME_SAMPLES, 0)])
def test_a_difference_is_a_failure_where_bitwise_equality_was_guaranteed(
    pair: Path, caplog: pytest.LogCaptureFixture, guarantee: str, code: int
) -> None:
    caplog.set_level("INFO")
    corrupt(pair)
    assert conclude(pair, record(pair, 2, guarantee)) == code
    assert caplog.messages[-1] == "differs"


def test_phase_1_and_a_phase_2_alone_are_not_compared(pair: Path) -> None:
    shutil.rmtree(pair / "comparison")
    assert conclude(pair, record(pair, 1, BITWISE)) == 0
    run = record(pair, 2, BITWISE)
    shutil.rmtree(pair / "phase_1")
    assert conclude(pair, run) == 0
    assert not (pair / "comparison").exists()


def test_the_table_has_one_row_per_epoch(pair: Path) -> None:
    lines = table(compare_runs(pair / "phase_1", pair / "phase_2")).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["2", "3"]
    assert len({len(line) for line in lines}) == 1, "columns are aligned"


def test_equal_fingerprints_guarantee_equal_bits_and_others_are_listed() -> None:
    ours = {"torch": "2.4.1", "world_size": 1, "threads": 2, "compile": False, "deterministic": True}
    assert guarantee(ours, dict(ours)) == (BITWISE, [])
    held, differences = guarantee({**ours, "world_size": 2}, ours)
    assert held == SAME_SAMPLES
    (difference,) = differences
    assert difference.startswith("world_size: ")

"""The consequences of a verdict: log lines, files, and the exit code of phase 2."""

import shutil
from pathlib import Path

import pytest

from reports.conftest import flip_bit
from seqtrack.checkpoints.resume_point import read_run
from seqtrack.checkpoints.side_files import RunRecord
from seqtrack.reports.verdict import conclude
from seqtrack.runtime.environment import BITWISE, SAME_SAMPLES, guarantee


def record(output: Path, guarantee: str) -> RunRecord:
    """The record of a phase 2 that was started once."""
    run = read_run(output / "phase_1")
    assert run is not None
    starts = [run.starts[0].model_copy(update={"guarantee": guarantee})]
    return run.model_copy(update={"phase": 2, "starts": starts})


@pytest.mark.parametrize(
    ("damaged", "guarantee", "verdict", "code"),
    [(False, BITWISE, "identical", 0), (True, BITWISE, "differs", 1), (True, SAME_SAMPLES, "differs", 0)],
)
def test_a_difference_is_a_failure_where_bitwise_equality_was_guaranteed(
    pair: Path, caplog: pytest.LogCaptureFixture, damaged: bool, guarantee: str, verdict: str, code: int
) -> None:
    caplog.set_level("INFO")
    if damaged:
        flip_bit(pair / "phase_2" / "checkpoints" / "SEQTRACK_ep0002.safetensors")
    assert conclude(pair, record(pair, guarantee)) == code
    assert caplog.messages[-1] == verdict
    assert f"**{verdict}**" in (pair / "comparison" / "comparison.md").read_text()
    rows = [line for line in caplog.messages if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["2", "3"] and len(set(map(len, rows))) == 1


def test_phase_1_and_a_phase_2_alone_are_not_compared(pair: Path) -> None:
    shutil.rmtree(pair / "comparison")
    run = record(pair, BITWISE)
    assert conclude(pair, run.model_copy(update={"phase": 1})) == 0
    shutil.rmtree(pair / "phase_1")
    assert conclude(pair, run) == 0
    assert not (pair / "comparison").exists()


def test_equal_fingerprints_guarantee_equal_bits_and_others_are_listed() -> None:
    ours = {"torch": "2.4.1", "world_size": 1, "threads": 2, "compile": False, "deterministic": True}
    assert guarantee(ours, dict(ours)) == (BITWISE, [])
    held, (difference,) = guarantee({**ours, "world_size": 2}, ours)
    assert held == SAME_SAMPLES and difference.startswith("world_size: ")

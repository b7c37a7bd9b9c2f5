"""What follows from a verdict: the words, the files, and the exit code of phase 2."""

import shutil
from pathlib import Path

import pytest
from runs import demo_data, uninterrupted

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.checkpoints.side_files import RunRecord, changed
from seqtrack.reports.compare import compare_runs
from seqtrack.reports.verdict import conclude, table
from seqtrack.runtime.environment import BITWISE, SAME_SAMPLES, guarantee

__all__ = ["demo_data", "uninterrupted"]


@pytest.fixture
def output(uninterrupted: Path, tmp_path: Path) -> Path:
    """Two phases, the second a copy of the first."""
    for phase in ("phase_1", "phase_2"):
        shutil.copytree(uninterrupted / "phase_1", tmp_path / phase)
    return tmp_path


def _run(output: Path, phase: int, guarantee: str) -> RunRecord:
    """The record of a run that was started once."""
    run = read_run(output / "phase_1")
    assert run is not None
    return changed(run, phase=phase, starts=[{**run.starts[0].model_dump(), "guarantee": guarantee}])


def _spoil(output: Path) -> None:
    path = output / "phase_2" / "checkpoints" / "SEQTRACK_ep0002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_equal_runs_end_well_and_the_last_word_is_the_verdict(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert conclude(output, _run(output, 2, BITWISE)) == 0
    assert caplog.messages[-1] == "identical"
    assert "Verdict: **identical**" in (output / "comparison" / "comparison.md").read_text()


def test_runs_that_were_promised_equal_and_differ_end_with_1(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _spoil(output)
    assert conclude(output, _run(output, 2, BITWISE)) == 1
    assert caplog.messages[-1] == "differs"
    assert any(message.startswith("first difference: epoch 2: ") for message in caplog.messages)


def test_without_that_promise_a_difference_is_said_and_is_no_failure(output: Path) -> None:
    _spoil(output)
    assert conclude(output, _run(output, 2, SAME_SAMPLES)) == 0


def test_phase_1_and_a_phase_2_alone_are_compared_with_nothing(output: Path) -> None:
    assert conclude(output, _run(output, 1, BITWISE)) == 0
    run = _run(output, 2, BITWISE)
    shutil.rmtree(output / "phase_1")
    assert conclude(output, run) == 0
    assert not (output / "comparison").exists()


def test_the_table_has_a_line_an_epoch_with_both_sides(output: Path) -> None:
    lines = table(compare_runs(output / "phase_1", output / "phase_2")).splitlines()
    assert len(lines) == 2 + 3
    assert all("same" in line for line in lines[2:])


def test_equal_fingerprints_promise_equal_bits_and_others_say_why_not() -> None:
    ours = {"torch": "2.4.1", "world_size": 1, "threads": 2, "compile": False, "deterministic": True}
    assert guarantee(ours, dict(ours)) == (BITWISE, [])
    held, why = guarantee({**ours, "world_size": 2}, ours)
    assert held == SAME_SAMPLES
    assert why == ["world_size: 1 then, 2 now"]

"""metrics.jsonl with damaged lines, and what cannot be written."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from seqtrack.checkpoints.side_files import read_metrics
from seqtrack.errors import UserError
from seqtrack.runtime.metrics_log import RunLog
from training.test_curves import interval


def edited(**fields: Any) -> bytes:
    return json.dumps({**interval(2, 5.0).model_dump(), **fields}).encode() + b"\n"


DAMAGED = [
    *(edited(step=value) for value in ("x", True, 1.5, -1)),
    *(edited(loss=value) for value in (float("nan"), float("inf"), None)),
    edited(epoch=[]), edited(lr=[1, "x"]), edited(type="other"), edited(type=[]), edited(unknown=1), edited(samples=0),
    *(text + b"\n" for text in (b"{}", b"[]", b"not JSON", b"[" * 50_000, b'{"step": 1, "step": 2}', b"\xff\xfe\x00")),
]  # fmt: skip


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_moved_to_another_file_and_named(
    line: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps(interval(step, 5.0).model_dump()).encode() + b"\n" for step in (1, 3)]
    path.write_bytes(good[0] + line + good[1])
    (problem,) = read_metrics(path).problems
    assert problem.code == "side_file.invalid" and f"{path}, line 2" in problem
    log = RunLog(tmp_path, phase=1, resume_step=3, writes=True)
    log.close()
    assert path.read_bytes() == b"".join(good)
    assert (tmp_path / "metrics-damaged.jsonl").read_bytes() == line
    assert f"{path}, line 2" in caplog.text


def test_a_line_that_a_kill_truncated_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(edited() + edited()[:40])
    metrics = read_metrics(path)
    assert len(metrics.records) == 1 and metrics.problems == []


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError) as refusal:
        RunLog(tmp_path, phase=1, resume_step=0, writes=True)
    assert refusal.value.code == "side_file.invalid"


def test_a_tensorboard_that_cannot_be_written_does_not_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file in the place of the folder")
    log = RunLog(tmp_path, phase=1, resume_step=0, writes=True)
    log.interval(interval(1, 5.0))
    log.interval(interval(2, 5.0))
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl").records) == 2
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] != []


def test_a_record_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path, phase=1, resume_step=0, writes=True)
    (tmp_path / "metrics.jsonl").unlink()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log._file)  # type: ignore[arg-type]
    with pytest.raises(OSError) as failure:
        log.record(interval(1, 5.0))
    assert failure.value.filename == str(tmp_path / "metrics.jsonl")

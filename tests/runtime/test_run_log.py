"""The log file and metrics.jsonl: what is dropped, what is kept, and what cannot be written."""

import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from reports.test_plots import INTERVAL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seqtrack.checkpoints.side_files import IntervalRecord, read_metrics
from seqtrack.errors import UserError
from seqtrack.runtime.metrics_log import RunLog, logger, run_logging


def interval(step: int) -> IntervalRecord:
    return IntervalRecord.model_validate({**INTERVAL, "step": step})


def line(**fields: Any) -> bytes:
    return json.dumps({**INTERVAL, "step": 2, **fields}).encode() + b"\n"


DAMAGED = [
    *(line(**{name: value}) for name, value in (("step", "x"), ("step", True), ("step", -1), ("loss", float("nan")))),
    line(elapsed_s=9.2e18),  # cannot be shown as hours
    *(line(**{name: value}) for name, value in (("loss", None), ("lr", [1, "x"]), ("type", []), ("unknown", 1))),
    *(text + b"\n" for text in (b"[]", b"not JSON", b"[" * 50_000, b'{"step": 1, "step": 2}', b"\xff\xfe\x00")),
]


def test_records_from_before_the_log_file_exists_are_written_to_it_first(tmp_path: Path) -> None:
    with pytest.raises(ValueError), run_logging() as open_log:
        logger.warning("before %d", 1)
        open_log(tmp_path / "run.log", 0)
        logger.warning("after")
        raise ValueError("the reason")
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert lines[:2] == ["before 1", "after"]
    assert "the reason" in lines[2] and lines[3].startswith("Traceback")


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_named_and_kept_in_another_file(
    damaged: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(before := line(step=1) + damaged + line(step=3) + line(step=4)[:40])
    metrics = read_metrics(path)
    assert [problem.code for problem in metrics.problems] == ["side_file.invalid"]
    RunLog(tmp_path, phase=1, epochs=3, resume_step=3, writes=True).close()
    assert read_metrics(path) == ([interval(1), interval(3)], []), "what a kill truncated is no damage"
    assert (tmp_path / "metrics-damaged.jsonl").read_bytes() == before
    assert f"{path}, line 2" in caplog.text


def test_a_log_file_that_cannot_be_written_ends_the_run_at_that_line() -> None:
    with pytest.raises(OSError, match="No space left"), run_logging() as open_log:
        open_log(Path("/dev/full"), 0)
        logger.info("a line")
        pytest.fail("the line was accepted")


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError) as refusal:
        RunLog(tmp_path, phase=1, epochs=3, resume_step=0, writes=True)
    assert refusal.value.code == "side_file.invalid"


def test_a_tensorboard_that_cannot_be_written_does_not_end_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text("a file in the place of the folder")
    log = RunLog(tmp_path, phase=1, epochs=3, resume_step=0, writes=True)
    for step in (1, 2):
        log.interval(interval(step))
    log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl").records) == 2
    assert [record.levelname for record in caplog.records].count("WARNING") == 1


def test_a_record_that_cannot_be_written_names_its_file(tmp_path: Path) -> None:
    log = RunLog(tmp_path, phase=1, epochs=3, resume_step=0, writes=True)
    os.dup2(os.open("/dev/full", os.O_WRONLY), log._file)
    with pytest.raises(OSError) as failure:
        log.record(interval(1))
    assert failure.value.filename == str(tmp_path / "metrics.jsonl")


def test_tensorboard_has_named_rates_settings_and_samples(tmp_path: Path) -> None:
    log = RunLog(tmp_path, phase=1, epochs=1, resume_step=0, writes=True)
    cv2.imwrite(str(tmp_path / "samples.png"), np.full((4, 6, 3), 200, np.uint8))
    log.settings, log.samples = {"TRAIN.LR": 0.001, "DATA.CLASSES": ("a|b",)}, tmp_path / "samples.png"
    log.interval(interval(1).model_copy(update={"lr": [1e-4, 1e-5]}))
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    rates = [board.Scalars(f"interval/lr_{name}")[0].value for name in ("decoder", "encoder")]
    assert rates == pytest.approx([1e-4, 1e-5])
    (image,) = board.Images("samples")
    assert (image.height, image.width) == (4, 6)
    (text,) = board.Tensors("configuration/text_summary")
    assert "TRAIN.LR" in str(text.tensor_proto) and "a\\\\|b" in str(text.tensor_proto)
    assert "_hparams_/session_start_info" in board.summary_metadata

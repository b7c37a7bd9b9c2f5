"""The log file of a run."""

from pathlib import Path

from seqtrack.runtime.metrics_log import EarlyLogRecords, logger, logging_to


def test_records_from_before_the_log_file_exists_are_written_to_it_first(tmp_path: Path) -> None:
    with EarlyLogRecords() as early:
        logger.warning("before %d", 1)
    with logging_to(tmp_path / "run.log", rank=0, earlier=early.take()):
        logger.warning("after")
    assert (tmp_path / "run.log").read_text().splitlines() == ["before 1", "after"]

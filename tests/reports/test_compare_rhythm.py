"""Keys that may differ on resume change how often a log is written, and must not make the same run another one."""

import json
from pathlib import Path

import pytest
from runs import completed, demo_data, environment, start, uninterrupted

__all__ = ["demo_data", "uninterrupted"]


@pytest.fixture(scope="module")
def resumed(uninterrupted: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phase 2 that logs at another interval than its phase 1, and validates, which phase 1 did not."""
    output = tmp_path_factory.mktemp("rhythm")
    (output / "phase_1").symlink_to(uninterrupted / "phase_1")
    keys = {"TRAIN.PRINT_INTERVAL": "32", "TRAIN.VALIDATION_INTERVAL": "2", "TRAIN.VALIDATION_SEQUENCES": "1"}
    completed(environment(output, demo_data, keys, PHASE=2, RESUME_EPOCH=1))
    return output


def test_another_log_interval_is_the_same_run_and_is_said(resumed: Path) -> None:
    certificate = json.loads((resumed / "comparison" / "certificate.json").read_text())
    assert certificate["verdict"] == "identical"
    assert [epoch["differences"] for epoch in certificate["epochs"]] == [[], []]
    told = " ".join(certificate["remarks"])
    assert "interval records are not compared: the runs differ in TRAIN.PRINT_INTERVAL" in told
    assert "validation records are not compared" in told


def test_the_means_of_epochs_are_compared_all_the_same(resumed: Path, demo_data: Path) -> None:
    log = resumed / "phase_2" / "logs" / "metrics.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    for record in records:
        if record["type"] == "epoch" and record["epoch"] == 3:
            record["loss"] += 1e-12
    log.write_text("".join(json.dumps(record) + "\n" for record in records))
    with start(environment(resumed, demo_data), "verify") as running:
        ended = running.end()
    assert ended.code == 1
    assert "first difference: epoch 3: log numbers" in ended.said

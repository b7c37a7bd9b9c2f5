"""Validation during training: its metrics are recorded, and the run ends in the same bits as one without it."""

import json
import shutil
from pathlib import Path

from runs import Ended, environment
from runs import train as run

from seqtrack.evaluation.metrics import METRICS

SMALL = {"DATA.TRAIN.SAMPLE_PER_EPOCH": 16, "DATA.MAX_SAMPLE_INTERVAL": 20, "TRAIN.BATCH_SIZE": 8}


def train(output: Path, data: Path, **keys: object) -> Ended:
    return run(environment(output, data, {**SMALL, **keys}, DATASET="lasot", CONFIG="demo", EPOCHS=1))


def digests(output: Path) -> list[str]:
    manifests = sorted((output / "phase_1" / "checkpoints").glob("SEQTRACK_ep*.json"))
    return [json.loads(path.read_text())["sha256"] for path in manifests]


def test_a_run_with_validation_ends_in_the_bits_of_one_without(tmp_path: Path, data_dir: Path) -> None:
    # Dropout draws from torch's global state: a validation that moved it would show in the weights.
    for name, interval in (("without", 0), ("with", 1)):
        ended = train(tmp_path / name, data_dir, **{"TRAIN.VALIDATION_INTERVAL": interval})
        assert ended.code == 0, ended.said
    assert digests(tmp_path / "with") == digests(tmp_path / "without") and len(digests(tmp_path / "with")) == 1

    lines = (tmp_path / "with" / "phase_1" / "logs" / "metrics.jsonl").read_text().splitlines()
    found = [record for record in map(json.loads, lines) if record["type"] == "validation"]
    assert [record["epoch"] for record in found] == [1]
    for record in found:
        assert all(0 <= record[name] <= 100 for name in METRICS) and record["sequences"] == 4
    assert '"validation"' not in (tmp_path / "without" / "phase_1" / "logs" / "metrics.jsonl").read_text()


def test_a_sequence_that_is_trained_on_and_held_out_stops_the_run_before_it_begins(
    tmp_path: Path, data_dir: Path
) -> None:
    data = Path(shutil.copytree(data_dir, tmp_path / "lasot"))
    shutil.rmtree(data / "disk" / "disk-3" / "img")
    (data / "disk" / "disk-3" / "img").symlink_to(data / "disk" / "disk-1" / "img")
    for name in ("groundtruth.txt", "full_occlusion.txt", "out_of_view.txt"):
        shutil.copy(data / "disk" / "disk-1" / name, data / "disk" / "disk-3" / name)
    ended = train(tmp_path / "output", data, **{"TRAIN.VALIDATION_INTERVAL": 1})
    assert (ended.code, ended.codes) == (2, ["evaluation.leak"]), ended.said
    assert not (tmp_path / "output" / "phase_1" / "checkpoints").exists()

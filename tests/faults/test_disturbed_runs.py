"""What can happen to a run while it continues: disks, damage, workers that die, numbers that are not finite.

A run that broke ends with exit code 1 and its cause, without a traceback, and leaves every older checkpoint as it was.
"""

import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from runs import assert_same_run, children, completed, environment, epochs, log_of, start, train

from seqtrack.checkpoints.store import list_checkpoints, load_weights


def _checkpoints(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("SEQTRACK_*"))}


def _superseded(folder: Path) -> dict[str, bytes]:
    (aside,) = (folder / "checkpoints" / "superseded").iterdir()
    return _checkpoints(aside)


@pytest.mark.parametrize("leave", [0, pytest.param(9_000_000, marks=pytest.mark.long)])
def test_a_disk_that_fills_up_ends_the_run_with_its_cause_and_older_checkpoints_stay(
    leave: int, disk: Path, demo_data: Path
) -> None:
    env = environment(disk, demo_data, EPOCHS=300)
    with start(env) as running:
        assert running.until(lambda: (disk / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.json").exists())
        running.signal(signal.SIGSTOP)  # it writes too, and the last free page must be the filler's
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - leave))
        running.signal(signal.SIGCONT)
        ended = running.end()
    assert ended.code == 1, ended.said
    assert ended.codes in (["run.disk"], ["run.no_space"])
    assert "Traceback" not in ended.said and "Logging error" not in ended.said
    first = epochs(disk / "phase_1")[1].sha256
    assert not list((disk / "phase_1").rglob(".*.tmp"))
    (disk / "filler").unlink()
    with start(env) as running:
        assert running.until(lambda: "resumes after" in running.said())
        running.signal(signal.SIGTERM)
        assert running.end().code == 75
    assert epochs(disk / "phase_1")[1].sha256 == first


def test_in_a_read_only_folder_a_new_run_is_refused_and_a_finished_one_is_no_error(
    disk: Path, uninterrupted: Path, demo_data: Path
) -> None:
    shutil.copytree(uninterrupted / "phase_1", disk / "phase_1")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = train(environment(disk / "out", demo_data))
    assert (ended.code, ended.codes) == (2, ["start.not_writable"])
    completed(environment(disk, demo_data))


@pytest.mark.parametrize("resume", ["", "1"])
def test_a_restart_from_an_earlier_epoch_or_before_a_damaged_one_moves_the_later_aside_and_ends_the_same(
    resume: str, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(uninterrupted / "phase_1", tmp_path / "phase_1"))
    path = folder / "checkpoints" / "SEQTRACK_ep0003.safetensors"
    if not resume:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    before = _checkpoints(folder / "checkpoints")
    completed(environment(tmp_path, demo_data, RESUME_EPOCH=resume))
    assert json.loads((folder / "run.json").read_text())["starts"][1]["step"] == (6 if resume else 12)
    assert resume or path.name in log_of(tmp_path)
    assert_same_run(folder, uninterrupted / "phase_1")
    aside = {name: data for name, data in before.items() if "ep0003" in name or (resume and "ep0002" in name)}
    assert _superseded(folder) == aside


def test_only_as_many_checkpoints_stay_as_configured(demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, {"TRAIN.KEEP_CHECKPOINTS": "1", "TRAIN.SAVE_INTERVAL_S": "0.02"}))
    kept = epochs(tmp_path / "phase_1")
    assert 3 in kept and len(kept) <= 2, "the latest, and the best if that is another"
    assert not list((tmp_path / "phase_1" / "checkpoints").glob("SEQTRACK_step*"))


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_ruins_no_checkpoint(
    demo_data: Path, tmp_path: Path
) -> None:
    keys = {"TRAIN.LR": "10", "TRAIN.WEIGHT_DECAY": "10", "TRAIN.GRAD_CLIP_NORM": "0", "TRAIN.SAVE_INTERVAL_S": "0.01"}
    ended = train(environment(tmp_path, demo_data, keys, EPOCHS=30))
    assert (ended.code, ended.codes) == (1, ["train.not_finite"])
    assert re.search(r"step \d+ \(epoch \d+, samples \d+\.\.\d+", ended.said), ended.said
    assert "Traceback" not in ended.said
    for manifest in list_checkpoints(tmp_path / "phase_1" / "checkpoints"):
        assert all(bool(weight.isfinite().all()) for weight in load_weights(manifest).values()), manifest.file


def test_a_dead_loader_worker_ends_the_run_with_1_and_the_next_start_continues(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, {"TRAIN.NUM_WORKER": "1"})
    with start(env) as running:
        assert running.until(lambda: "Epoch 2 : 16" in running.said())
        for child in children(running.pid):
            os.kill(child, signal.SIGKILL)
        ended = running.end()
    assert (ended.code, ended.codes) == (1, ["loader.worker_died"])
    assert "SIGKILL" in ended.said and "Traceback" not in ended.said
    assert "Traceback" in log_of(tmp_path), "which is in the log file"
    completed(env)
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")

"""What can happen to a run while it continues: disks, damage, restarts, workers that die.

A run that broke ends with exit code 1 and its cause, without a traceback, and leaves every older checkpoint as it was.
"""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from runs import assert_same_run, children, completed, environment, epochs, log_of, start, train, tree

from seqtrack.checkpoints.resume_point import read_run
from seqtrack.reports.consistency import inconsistencies


def test_a_disk_that_fills_up_ends_the_run_with_its_cause_and_older_checkpoints_stay(
    disk: Path, demo_data: Path
) -> None:
    env = environment(disk, demo_data, EPOCHS=300)
    with start(env) as running:
        assert running.until(lambda: (disk / "phase_1" / "checkpoints" / "SEQTRACK_ep0001.json").exists())
        running.signal(signal.SIGSTOP)  # it writes too, and the last free page must be the filler's
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize))
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
    completed(environment(tmp_path, demo_data, RESUME_EPOCH=resume))
    assert json.loads((folder / "run.json").read_text())["starts"][1]["step"] == (6 if resume else 12)
    assert resume or path.name in log_of(tmp_path)
    assert_same_run(folder, uninterrupted / "phase_1")
    aside = sorted(path.name for path in folder.glob("checkpoints/superseded/*/*.safetensors"))
    assert aside == ["SEQTRACK_ep0002.safetensors"] * bool(resume) + ["SEQTRACK_ep0003.safetensors"]


@pytest.mark.parametrize(
    ("began", "interrupted", "resume", "first"),
    [("2", False, "1", 1), ("1", True, "2", 2), ("1", True, "1", 1), ("1", True, "", 1)],
)
def test_phase_2_that_begins_after_another_epoch_or_continues_without_one_named_is_identical(
    began: str, interrupted: bool, resume: str, first: int, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(uninterrupted, tmp_path / "output"))
    folder, env = output / "phase_2", environment(output, demo_data, PHASE=2)
    stop = {"STOP_AFTER_S": "0.000001"} if interrupted else {}
    assert train(env | stop | {"RESUME_EPOCH": began}).code == (75 if interrupted else 0)
    started = read_run(folder)
    assert started is not None
    ended = completed(env | {"RESUME_EPOCH": resume})
    assert ended.said.splitlines()[-1] == "identical"
    assert inconsistencies(folder) == []
    run = read_run(folder)
    assert run is not None and (run.resume_epoch, run.starts[0].epoch) == (first, first)
    assert len(run.starts) == (1 if str(first) != began else 2)
    assert run.started == started.started, "the uploader knows its files by it"
    assert sorted(epochs(folder)) == list(range(first + 1, 4))
    aside = {path.name for path in folder.glob("checkpoints/superseded/*/*")}
    assert ({"metrics.jsonl", "seqtrack-demo.log"} <= aside) is (str(first) != began)
    completed(env)
    again = read_run(folder)
    assert again is not None and again.starts == run.starts, "complete, with nothing to do"


def test_without_an_epoch_named_that_of_the_run_must_leave_some_to_train(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(uninterrupted, tmp_path / "output"))
    env = environment(output, demo_data, PHASE=2)
    ended = train(env)
    assert (ended.code, ended.codes) == (2, ["config.resume_epoch"])
    assert train(env | {"RESUME_EPOCH": "2", "STOP_AFTER_S": "0.000001"}).code == 75
    before = tree(output)
    ended = train(env | {"EPOCHS": "2"})
    assert (ended.code, ended.codes, tree(output)) == (2, ["config.resume_epoch"], before)


def test_only_as_many_checkpoints_stay_as_configured(demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, {"TRAIN.KEEP_CHECKPOINTS": "1", "TRAIN.SAVE_INTERVAL_S": "0.02"}))
    kept = epochs(tmp_path / "phase_1")
    assert 3 in kept and len(kept) <= 2, "the latest, and the best if that is another"
    assert not list((tmp_path / "phase_1" / "checkpoints").glob("SEQTRACK_step*"))


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


def test_a_dead_process_ends_an_evaluation_and_the_next_call_continues(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted / "phase_1", tmp_path / "phase_1")
    env = environment(tmp_path, demo_data, NPROC=2, DEVICE="cpu")
    boxes = tmp_path / "phase_1" / "evaluation" / "boxes"
    with start(env, "evaluate") as running:
        assert running.until(lambda: any(boxes.glob("*/made_from.json")))
        workers = [one for one in children(running.pid) if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]
        os.kill(workers[0], signal.SIGKILL)
        ended = running.end()
    assert len(workers) == 2 and not any(Path(f"/proc/{one}").exists() for one in workers)
    assert (ended.code, ended.codes) == (1, ["run.process_died"])
    assert "SIGKILL" in ended.said and "Traceback" not in ended.said
    kept = {path: path.stat().st_mtime_ns for path in boxes.glob("*/made_from.json")}
    assert 1 <= len(kept) < 4
    with start(env | {"NPROC": "1"}, "evaluate") as running:
        assert running.end().code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(boxes.glob("*/made_from.json"))) == 4

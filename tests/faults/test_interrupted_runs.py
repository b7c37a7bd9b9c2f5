"""A run that is killed or stopped at any moment and started again ends as the run that nothing disturbed.

"As" means every bit: the bytes of each epoch's checkpoint (weights, optimizer, scheduler, random states, history), the
manifests, and the numbers of the log in their order.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import PATIENCE_S, assert_same_run, command, completed, environment, epochs, numbers, start, tree

from seqtrack.checkpoints.store import list_checkpoints
from seqtrack.reports.compare import compare_runs

OFTEN = {"TRAIN.SAVE_INTERVAL_S": "0.02"}


def test_two_uninterrupted_runs_are_the_same_run_whichever_way_they_are_started(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    ended = command("train", env=environment(tmp_path, demo_data))
    assert ended.code == 0, ended.said
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")


def test_another_seed_is_another_run(uninterrupted: Path, demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, SEED=7))
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "half_written": lambda folder: any(folder.glob(".*.safetensors.*.tmp")),
    "without_manifest": lambda folder: any(
        not path.with_suffix(".json").exists() for path in folder.glob("*.safetensors")
    ),
    "inside_an_epoch": lambda folder: any(folder.glob("SEQTRACK_step*.json")),
    "second_epoch": lambda folder: (folder / "SEQTRACK_ep0002.json").exists(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_a_moment_of_a_save_ends_as_an_uninterrupted_one(
    moment: str, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, OFTEN)
    with start(env) as running:
        assert running.until(lambda: MOMENTS[moment](tmp_path / "phase_1" / "checkpoints"), every_s=0.0)
        running.signal(signal.SIGKILL)
        assert running.end().code == -signal.SIGKILL
    completed(env)
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")
    assert not list((tmp_path / "phase_1").rglob(".*.tmp")), "what the kill left half-written is removed"


def _kill_again_and_again(
    env: dict[str, str], moments: random.Random, number: int, *, kills: int, longest_s: float
) -> int:
    """Start, wait a random time, signal; until the run completes or `kills` are used up. Returns the kills used."""
    for used in range(kills):
        with start(env) as running:
            running.process.join(moments.uniform(0, longest_s))
            running.signal(number)
            ended = running.end()
        if ended.code == 0:
            return used + 1
        # A stop that comes before Python has set its handlers ends the process as the system does.
        assert ended.code in ({-signal.SIGKILL} if number == signal.SIGKILL else {75, -number}), ended.said
    return kills


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_killed_at_random_moments_ends_as_an_uninterrupted_one(
    number: signal.Signals, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, OFTEN)
    _kill_again_and_again(env, random.Random(20), number, kills=3, longest_s=1.6)
    completed(env)
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_killed_at_a_hundred_random_moments_ends_as_an_uninterrupted_one(
    number: signal.Signals, demo_data: Path, tmp_path: Path
) -> None:
    keys = {**OFTEN, "DATA.TRAIN.SAMPLE_PER_EPOCH": "408", "TRAIN.NUM_WORKER": "1"}
    began = time.monotonic()
    completed(environment(tmp_path / "uninterrupted", demo_data, keys, EPOCHS=4))
    longest_s = 0.6 * (time.monotonic() - began)
    kills, moments, runs = 0, random.Random(int(number)), 0
    while kills < 100:
        env = environment(tmp_path / f"run{runs}", demo_data, keys, EPOCHS=4)
        kills += _kill_again_and_again(env, moments, number, kills=100 - kills, longest_s=longest_s)
        completed(env)
        assert_same_run(tmp_path / f"run{runs}" / "phase_1", tmp_path / "uninterrupted" / "phase_1")
        runs += 1
    print(f"{kills} times signal {int(number)} over {runs} runs, each ended as the uninterrupted one")


def test_a_stopped_run_saves_ends_with_75_and_continues(uninterrupted: Path, demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, demo_data)
    with start(env) as running:
        assert running.until(lambda: "Epoch 2 : 16" in running.said())
        running.signal(signal.SIGTERM)
        ended = running.end()
    assert ended.code == 75
    assert "SIGTERM" in ended.said
    assert json.loads((tmp_path / "phase_1" / "run.json").read_text())["state"] == "stopped"
    latest = list_checkpoints(tmp_path / "phase_1" / "checkpoints")[-1]
    assert (latest.kind, latest.epoch) == ("step", 2)
    completed(env)
    resumed = json.loads((tmp_path / "phase_1" / "run.json").read_text())["starts"][1]
    assert (resumed["step"], resumed["epoch"]) == (latest.step, 2)
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")


def test_phase_2_ends_as_phase_1_did_and_ends_with_identical(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "phase_1").symlink_to(uninterrupted / "phase_1")
    before = tree(uninterrupted / "phase_1")
    ended = completed(environment(tmp_path, demo_data, PHASE=2, RESUME_EPOCH=1))
    log = next((tmp_path / "phase_2" / "logs").glob("*.log")).read_text()
    assert ended.said.splitlines()[-1] == log.splitlines()[-1] == "identical"
    assert sorted(epochs(tmp_path / "phase_2")) == [2, 3]
    assert compare_runs(tmp_path / "phase_1", tmp_path / "phase_2").verdict == "identical"
    assert tree(uninterrupted / "phase_1") == before, "phase 2 only reads phase 1"
    assert {record["phase"] for record in numbers(tmp_path / "phase_2")} == {2}, "each phase has its own log"
    assert {record["epoch"] for record in numbers(tmp_path / "phase_2")} == {2, 3}, "epochs count on"


def test_a_second_run_in_a_folder_in_use_is_refused(demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, demo_data, EPOCHS=3000)
    with start(env) as first:
        assert first.until(lambda: "Epoch 1 : 16" in first.said())
        with start(env) as second:
            ended = second.end()
        assert (ended.code, ended.codes) == (2, ["start.folder_in_use"])
        first.signal(signal.SIGINT)
        assert first.end().code == 75, "and the first continues undisturbed"


def test_a_finished_run_changes_nothing(uninterrupted: Path, demo_data: Path) -> None:
    before = tree(uninterrupted)
    completed(environment(uninterrupted, demo_data))
    assert tree(uninterrupted) == before


def test_a_stop_while_torch_is_being_imported_ends_with_75_too(demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, demo_data)
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "seqtrack", "train"], env=env, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if b"torch" in line:
                break
        os.kill(process.pid, signal.SIGTERM)
        process.stderr.read()
        assert process.wait(PATIENCE_S) == 75
    finally:
        process.kill()
    assert list(tmp_path.iterdir()) == []

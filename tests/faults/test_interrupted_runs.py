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
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import (
    PATIENCE_S,
    assert_same_run,
    children,
    command,
    completed,
    environment,
    epochs,
    numbers,
    start,
    train,
    tree,
)

from faults.process_pairs import ranks_of, together
from seqtrack.checkpoints.store import list_checkpoints
from seqtrack.process import STOP_SIGNALS
from seqtrack.reports.compare import compare_runs

OFTEN = {"TRAIN.SAVE_INTERVAL_S": "0.02"}


def test_two_uninterrupted_runs_are_the_same_run_and_a_finished_one_changes_nothing(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data)
    ended = command("train", env=env)
    assert ended.code == 0, ended.said
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")
    before = tree(tmp_path)
    completed(env)
    assert tree(tmp_path) == before


def test_two_runs_that_start_at_the_same_time_are_no_copies_of_one_another(demo_data: Path, tmp_path: Path) -> None:
    a, b = (environment(tmp_path / name, demo_data) for name in "ab")
    with start(a) as one, start(b) as other:
        assert (one.end().code, other.end().code) == (0, 0)
    assert compare_runs(tmp_path / "a" / "phase_1", tmp_path / "b" / "phase_1").verdict == "identical"


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "half_written": lambda folder: any(folder.glob(".*.safetensors.*.tmp")),
    "without_manifest": lambda folder: any(not one.with_suffix(".json").exists() for one in folder.glob("*.safet*")),
    "inside_an_epoch": lambda folder: any(folder.glob("SEQTRACK_step*.json")),
    "second_epoch": lambda folder: (folder / "SEQTRACK_ep0002.json").exists(),
}


@pytest.mark.parametrize(
    "moment",
    ["half_written", "inside_an_epoch", *(pytest.param(one, marks=pytest.mark.long) for one in list(MOMENTS)[1::2])],
)
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


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("world_size", "kills"), [(1, 100), (2, 20)])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_or_one_of_its_processes_killed_at_random_moments_ends_as_an_uninterrupted_one(
    number: signal.Signals, kills: int, world_size: int, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    keys = {**OFTEN, "TRAIN.NUM_WORKER": "1"}
    moments, runs = random.Random(int(number)), 0
    if world_size > 1:
        uninterrupted = tmp_path / "uninterrupted"
        together(environment(uninterrupted, demo_data, keys), world_size)
    # A stop that comes before Python has set its handlers ends the process as the system does.
    codes = {0, -signal.SIGKILL} if number == signal.SIGKILL else {0, 75, -number, -signal.SIGKILL}
    while kills > 0:
        env, ended, runs = environment(tmp_path / f"run{runs}", demo_data, keys), [-1], runs + 1
        while any(ended) and kills > 0:
            with ranks_of(env, world_size) as ranks:
                ranks[0].process.join(moments.uniform(0, 2.0))
                chosen = moments.choice(ranks)
                chosen.signal(number)
                chosen.end()
                for rank in ranks:  # one that waits to meet the other is ended by the launcher, which this test has not
                    rank.process.join(20)
                    rank.signal(signal.SIGKILL)
                said = [rank.end() for rank in ranks]
            ended, kills = [one.code for one in said], kills - 1
            assert not any("Traceback" in one.said for one in said)
            assert all(one.code in codes or one.codes in (["run.peer_lost"], ["run.not_met"]) for one in said), said
        together(env, world_size)
        assert_same_run(Path(env["OUTPUT_DIR"]) / "phase_1", uninterrupted / "phase_1")


@pytest.mark.parametrize(
    "number", [STOP_SIGNALS[0], *(pytest.param(n, marks=pytest.mark.long) for n in STOP_SIGNALS[1:])]
)
def test_a_stopped_run_saves_while_its_worker_hangs_ends_with_75_and_continues(
    number: signal.Signals, uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    env, record = environment(tmp_path, demo_data, {"TRAIN.NUM_WORKER": "1"}), tmp_path / "phase_1" / "run.json"
    with start(env) as running:
        assert running.until(lambda: "Epoch 1 : 16" in running.said())
        for process in (running.pid, *children(running.pid)):
            os.kill(process, signal.SIGSTOP)
        second = train(env)
        assert (second.code, second.codes) == (2, ["start.folder_in_use"]), "and the first is undisturbed"
        running.signal(number)
        running.signal(signal.SIGCONT)
        ended = running.end()
    assert (ended.code, number.name in ended.said) == (75, True)
    assert json.loads(record.read_text())["state"] == "stopped"
    latest = list_checkpoints(tmp_path / "phase_1" / "checkpoints")[-1]
    assert (latest.kind, latest.epoch) == ("step", 1)
    completed(env)
    run = json.loads(record.read_text())
    assert run["state"] == "complete"
    assert [(one["step"], one["guarantee"]) for one in run["starts"]] == [(0, "bitwise"), (latest.step, "bitwise")]
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")


def test_phase_2_ends_as_phase_1_did_and_ends_with_identical(
    uninterrupted: Path, demo_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "phase_1").symlink_to(uninterrupted / "phase_1")
    before = tree(uninterrupted / "phase_1")
    ended = completed(environment(tmp_path, demo_data, PHASE=2, RESUME_EPOCH=1))
    log = next((tmp_path / "phase_2" / "logs").glob("*.log")).read_text()
    assert ended.said.splitlines()[-1] == log.splitlines()[-1] == "identical"
    assert tree(uninterrupted / "phase_1") == before, "phase 2 only reads phase 1"
    assert {(record["phase"], record["epoch"]) for record in numbers(tmp_path / "phase_2")} == {(2, 2), (2, 3)}


def test_a_stop_while_torch_is_being_imported_ends_with_75_too(demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, demo_data)
    words = [sys.executable, "-X", "importtime", "-m", "seqtrack", "train"]
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stderr is not None
        while b"torch" not in process.stderr.readline():
            assert process.poll() is None
        os.kill(process.pid, signal.SIGTERM)
        process.stderr.read()
        assert process.wait(PATIENCE_S) == 75
    assert list(tmp_path.iterdir()) == []


def test_a_run_with_a_time_limit_saves_stops_and_ends_as_an_uninterrupted_one(
    demo_data: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    ended = train(environment(tmp_path, demo_data, STOP_AFTER_S="0.05"))
    assert ended.code == 75 and len(epochs(tmp_path / "phase_1")) < 3, ended.said
    completed(environment(tmp_path, demo_data, STOP_AFTER_S="1e6"))
    assert_same_run(tmp_path / "phase_1", uninterrupted / "phase_1")

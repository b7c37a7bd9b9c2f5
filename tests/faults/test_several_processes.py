"""A run on several processes: the same samples and steps as one process, and as hard to lose.

Most of these runs are forked ranks that meet without a launcher; `test_launcher.py` has most of its behaviour.
"""

import json
import os
import shutil
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import PATIENCE_S, assert_same_run, completed, environment, numbers, start

from faults.process_pairs import free_port, ranks_of, together, trainers_of
from seqtrack.checkpoints.store import list_checkpoints
from seqtrack.training.train_step import LaunchedStep, TrainStep

OFTEN = {"TRAIN.SAVE_INTERVAL_S": "0.02"}
# 33 samples in batches of 16, 16 and 1: the last batch leaves a process without a sample.
UNEVEN = {"MODEL.DECODER.DROPOUT": "0.0", "DATA.TRAIN.SAMPLE_PER_EPOCH": "33", "TRAIN.PRINT_INTERVAL": "1"}


@pytest.fixture(scope="module")
def uninterrupted_pair(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on two processes that nothing disturbed."""
    output = tmp_path_factory.mktemp("pair")
    together(environment(output, demo_data), 2)
    return output / "phase_1"


@pytest.fixture(scope="module")
def uneven_alone(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    completed(environment(output, demo_data, UNEVEN, EPOCHS=2))
    return output / "phase_1"


def _assert_close(ours: Path, theirs: Path) -> None:
    """The same samples and steps; losses and IoUs are close."""
    close = {"loss": None, "iou": None, "interval_loss": None, "interval_iou": None, "grad_norm": 1e-3}
    expected = [
        {key: pytest.approx(value, rel=close[key], abs=1e-5) if key in close else value for key, value in one.items()}
        for one in numbers(theirs)
    ]
    assert expected and numbers(ours) == expected


@pytest.mark.long
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_resume_on_several_processes_has_the_same_samples_and_losses_as_one(
    world_size: int, uneven_alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, UNEVEN, EPOCHS=2)
    with start(env) as running:
        assert running.until(lambda: "Epoch 1 : 16" in running.said())
        running.signal(signal.SIGTERM)
        assert running.end().code == 75
    ended = together(env, world_size)
    lines = ended[1].said.splitlines()  # torch 2.9 adds lines of its own
    assert [line for line in lines if not line.startswith("[Gloo]")] == [], "only rank 0 logs"
    began = json.loads((tmp_path / "phase_1" / "run.json").read_text())["starts"]
    assert [one["guarantee"] for one in began] == ["bitwise", "same_samples"]
    assert began[1]["differences"] == [f"world_size: 1 then, {world_size} now"]
    _assert_close(tmp_path / "phase_1", uneven_alone)


def test_accumulation_in_four_parts_keeps_the_losses(uneven_alone: Path, demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, {**UNEVEN, "TRAIN.ACCUMULATION_STEPS": "4"}, EPOCHS=2))
    _assert_close(tmp_path / "phase_1", uneven_alone)


@pytest.mark.parametrize(
    ("world_size", "keys"),
    [
        (3, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "35"}),
        pytest.param(3, {"TRAIN.ACCUMULATION_STEPS": "2", "TRAIN.AMP": "bf16"}, marks=pytest.mark.long),
        pytest.param(3, {"MODEL.ENCODER.USE_CHECKPOINT": "True"}, marks=pytest.mark.long),
    ],
)
def test_phase_2_on_several_processes_is_bitwise_equal_and_its_verdict_is_an_exit_code_and_no_error(
    world_size: int, keys: dict[str, str], demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, keys, EPOCHS=2)
    together(env, world_size)
    second = {**env, "PHASE": "2", "RESUME_EPOCH": "1"}
    assert together(second, world_size)[0].said.splitlines()[-1] == "identical"
    shutil.rmtree(tmp_path / "phase_2")
    path = tmp_path / "phase_1" / "logs" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[-1]["loss"] += 1e-9
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with ranks_of(second, world_size) as distributed:
        ended = [rank.end() for rank in distributed]
    assert [one.code for one in ended] == [1] + [0] * (world_size - 1)
    assert ended[0].said.splitlines()[-1] == "differs" and ended[0].codes == []


def _signal_in_step_8(number: signal.Signals, rank: int) -> None:
    plain = TrainStep.__call__

    def call(self: TrainStep, *args: Any) -> LaunchedStep:
        if self.state.step == 7 and self.distributed.rank == rank:
            os.kill(os.getpid(), number)
        return plain(self, *args)

    TrainStep.__call__ = call


@pytest.mark.parametrize(
    ("number", "killed"),
    [(signal.SIGKILL, 0), (signal.SIGTERM, 1)]
    + [pytest.param(*one, marks=pytest.mark.long) for one in ((signal.SIGKILL, 1), (signal.SIGTERM, 0))],
)
def test_killing_or_stop_asked_of_one_of_two_ends_both_and_the_next_start_ends_as_the_uninterrupted_pair(
    number: signal.Signals, killed: int, demo_data: Path, uninterrupted_pair: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, OFTEN if number == signal.SIGKILL else {})
    with ranks_of(env, 2, partial(_signal_in_step_8, number, killed)) as distributed:
        ended = [rank.end() for rank in distributed]
    if number == signal.SIGTERM:
        assert [one.code for one in ended] == [75, 75]
        latest = list_checkpoints(tmp_path / "phase_1" / "checkpoints")[-1]
        assert (latest.kind, latest.epoch, latest.step) == ("step", 2, 8), "they do not wait for the epoch's end"
    else:
        other = ended[1 - killed]
        assert (other.code, other.codes, "Traceback" in other.said) == (1, ["run.peer_lost"], False)
    together(env, 2)
    assert_same_run(tmp_path / "phase_1", uninterrupted_pair)


def test_a_launched_run_survives_a_dead_rank_and_a_dead_launcher(
    demo_data: Path, uninterrupted_pair: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, {**OFTEN, "TRAIN.NUM_WORKER": "1"}, NPROC=2)
    with start({**env, "EPOCHS": "3"}, "train", "--max-restarts", "2") as launcher:
        checkpoints = tmp_path / "phase_1" / "checkpoints"
        assert launcher.until(lambda: any(checkpoints.glob("SEQTRACK_step*.json")))
        os.kill(trainers_of(launcher.pid)[1], signal.SIGKILL)
        assert launcher.until(lambda: "resumes after step" in launcher.said())
        trainers = trainers_of(launcher.pid)
        launcher.signal(signal.SIGKILL)
        launcher.end()
        end = time.monotonic() + PATIENCE_S
        while any(Path("/proc", str(process)).exists() for process in trainers.values()):
            assert time.monotonic() < end, "a rank outlives its launcher"
            time.sleep(0.01)
    assert sorted(trainers) == [0, 1]
    assert json.loads((tmp_path / "phase_1" / "run.json").read_text())["state"] in ("stopped", "complete")
    together(env, 2)
    assert_same_run(tmp_path / "phase_1", uninterrupted_pair)


@pytest.mark.long
def test_two_launchers_meet_as_two_machines_and_train_the_same_run(
    demo_data: Path, uninterrupted_pair: Path, tmp_path: Path
) -> None:
    env = {"NNODES": 2, "NPROC": 1, "RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    with ExitStack() as stack:
        machines = [
            stack.enter_context(start(environment(tmp_path, demo_data, NODE_RANK=number, **env))) for number in (0, 1)
        ]
        ended = [machine.end() for machine in machines]
    assert [one.code for one in ended] == [0, 0], "\n".join(one.said for one in ended)
    assert_same_run(tmp_path / "phase_1", uninterrupted_pair)


def _one_gpu_for_rank_0() -> None:
    if os.environ["RANK"] == "0":
        torch.cuda.is_available = lambda: True
        torch.cuda.device_count = lambda: 1


def test_a_gpu_that_only_rank_0_has_ends_all_ranks_at_once(demo_data: Path, tmp_path: Path) -> None:
    with ranks_of(environment(tmp_path, demo_data, DEVICE="auto"), 2, _one_gpu_for_rank_0) as distributed:
        ended = [rank.end() for rank in distributed]
    # Rank 0 holds the store here; without it rank 1 may not read the answers any more.
    assert (ended[0].code, ended[0].codes) == (2, ["device.ranks_differ"])
    assert ended[1].code in (1, 2)

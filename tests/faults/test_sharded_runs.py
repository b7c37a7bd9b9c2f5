"""TRAIN.SHARDS: the same bits on any number of processes, whenever that number changes.

Every run here is held against the uninterrupted run on one process: all checkpoints' bytes, manifests and log numbers.
"""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from runs import Ended, assert_same_run, completed, environment, epochs, numbers, start
from torch import distributed as dist
from torch.amp.grad_scaler import GradScaler

from faults.process_pairs import free_port, ranks_of, together, trainers_of
from seqtrack.runtime.distributed import ShardGradients
from seqtrack.training import build, train_step

# 83 samples in batches of 16, the last one of 3, which leaves a shard empty, and a process without a sample.
KEYS = {"TRAIN.SHARDS": "4", "DATA.TRAIN.SAMPLE_PER_EPOCH": "83"}
DEMO = {"TRAIN.SHARDS": "8", "DATA.TRAIN.SAMPLE_PER_EPOCH": "100", "TRAIN.PRINT_INTERVAL": "50"}


@pytest.fixture(scope="module")
def alone(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of an uninterrupted run on one process."""
    output = tmp_path_factory.mktemp("alone")
    completed(environment(output, demo_data, KEYS, EPOCHS=2))
    return output


def _starts(folder: Path) -> list[tuple[int, str]]:
    """Processes and guarantee of each start."""
    starts = json.loads((folder / "run.json").read_text())["starts"]
    return [(one["processes"], one["guarantee"]) for one in starts]


def _seqtrack(env: dict[str, str], *words: str) -> Ended:
    with start(env, *words) as running:
        return running.end()


@pytest.mark.parametrize("world_size", [3, *(pytest.param(size, marks=pytest.mark.long) for size in (2, 4))])
def test_any_number_of_processes_trains_the_same_bits(
    world_size: int, alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    together(environment(tmp_path, demo_data, KEYS, EPOCHS=2), world_size)
    assert_same_run(tmp_path / "phase_1", alone / "phase_1")


def test_a_run_that_changes_its_number_of_processes_keeps_its_bits_its_guarantee_and_its_proof(
    alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone, tmp_path, dirs_exist_ok=True)
    env = environment(tmp_path, demo_data, KEYS, EPOCHS=2, PHASE=2, RESUME_EPOCH=1)
    with ranks_of(env, 3) as ranks:
        assert ranks[0].until(lambda: "Epoch 2 : 16" in ranks[0].said())
        ranks[2].signal(signal.SIGTERM)
        assert [rank.end().code for rank in ranks] == [75, 75, 75]
    assert together(env, 2)[0].said.splitlines()[-1] == "identical"
    assert _starts(tmp_path / "phase_2") == [(3, "bitwise"), (2, "bitwise")]
    certificate = json.loads((tmp_path / "comparison" / "certificate.json").read_text())
    assert certificate["verdict"] == "identical" and certificate["first_difference"] is None
    audit = _seqtrack(env, "audit", "phase_2", "--epochs", "all")
    assert (audit.code, audit.said.splitlines()[-1]) == (0, "confirmed")


def _all_reduce(self: ShardGradients) -> None:
    nodes = list(self._nodes.values())
    for others in nodes[1:]:
        torch._foreach_add_(nodes[0], others)
    for gradient in nodes[0]:
        dist.all_reduce(gradient)
    self._nodes = {(0, 0): nodes[0]}


def _sum_by_all_reduce() -> None:
    ShardGradients._exchange = _all_reduce  # type: ignore[method-assign]


def _seed_by_rank() -> None:
    seed = train_step.step_seed
    train_step.step_seed = lambda number, step, _: seed(number, step, int(os.environ["RANK"]))


@pytest.mark.long
@pytest.mark.parametrize("fault", [_sum_by_all_reduce, _seed_by_rank])
def test_an_all_reduce_instead_of_the_tree_and_dropout_by_rank_train_other_bits(
    fault: Callable[[], None], alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    with ranks_of(environment(tmp_path, demo_data, KEYS, EPOCHS=2), 3, fault) as ranks:
        assert [rank.end().code for rank in ranks] == [0, 0, 0]
    ours, theirs = epochs(tmp_path / "phase_1"), epochs(alone / "phase_1")
    assert ours[1].weights_sha256 != theirs[1].weights_sha256


def _scale_the_loss() -> None:
    """fp16's scaler, which skips steps, without fp16, which no CPU computes."""
    build.GradScaler = lambda device, enabled: GradScaler(device, init_scale=2.0**127, growth_interval=2)  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.parametrize(
    ("keys", "prepare"),
    [
        ({"TRAIN.AMP": "bf16", "MODEL.ENCODER.DROP_PATH": 0.2, "TRAIN.GRAD_CLIP_NORM": 0.01}, None),
        ({"MODEL.ENCODER.USE_CHECKPOINT": True, "TRAIN.BATCH_SIZE": 6}, None),
        ({"DATA.TRAIN.SAMPLE_PER_EPOCH": 33, "TRAIN.FREEZE_ENCODER": True}, None),
        ({"TRAIN.CE_WEIGHT": 100}, _scale_the_loss),
    ],
    ids=["bf16", "checkpointing", "frozen", "scaled"],
)
def test_precision_checkpointing_and_the_scale_depend_on_no_number_of_processes(
    keys: dict[str, object], prepare: Callable[[], None] | None, demo_data: Path, tmp_path: Path
) -> None:
    for world_size in (1, 2, 3, 4):
        env = environment(tmp_path / str(world_size), demo_data, {**KEYS, **keys}, EPOCHS=2)
        with ranks_of(env, world_size, prepare) as ranks:
            assert {rank.end().code for rank in ranks} == {0}
        assert_same_run(tmp_path / str(world_size) / "phase_1", tmp_path / "1" / "phase_1")
    skipped = [record["skipped_steps"] for record in numbers(tmp_path / "1" / "phase_1")]
    assert any(skipped) == (prepare is not None) and not all(skipped)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("shards", "sizes"), [(4, (1, 2, 3, 4)), (8, (1, 2, 4, 8, 5))])
def test_the_demo_model_has_the_same_bits_on_any_number_of_processes(
    shards: int, sizes: tuple[int, ...], demo_data: Path, tmp_path: Path
) -> None:
    for world_size in sizes:
        env = environment(tmp_path / str(world_size), demo_data, EPOCHS=2)
        env["OVERRIDES"] = " ".join(f"{key} {value}" for key, value in {**DEMO, "TRAIN.SHARDS": shards}.items())
        together(env, world_size)
        assert_same_run(tmp_path / str(world_size) / "phase_1", tmp_path / "1" / "phase_1")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(30))
def test_a_random_schedule_of_processes_with_kills_ends_as_the_uninterrupted_run(
    seed: int, alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, {**KEYS, "TRAIN.SAVE_INTERVAL_S": "0.02"}, EPOCHS=2)
    moments, ended = random.Random(seed), -1
    for _ in range(3):
        if ended == 0:
            break
        with ranks_of(env, moments.randint(1, 4)) as ranks:
            assert ranks[0].until(lambda ranks=ranks: "guarantee" in ranks[0].said())  # they have met
            ranks[0].process.join(moments.uniform(0.0, 1.0))
            moments.choice(ranks).signal(signal.SIGKILL)
            found = [rank.end() for rank in ranks]
        assert all(one.code in (0, -signal.SIGKILL) or one.codes == ["run.peer_lost"] for one in found), found
        ended = found[0].code
    together(env, moments.randint(1, 4))
    assert_same_run(tmp_path / "phase_1", alone / "phase_1")
    assert {guarantee for _, guarantee in _starts(tmp_path / "phase_1")} == {"bitwise"}
    print(_starts(tmp_path / "phase_1"))


@pytest.mark.long
def test_two_machines_and_a_restart_train_what_one_process_trains(alone: Path, demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path / "machines", demo_data, KEYS, EPOCHS=2)
    settings = {"NNODES": "2", "NPROC": "2", "RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    with ExitStack() as stack:
        machines = [stack.enter_context(start({**env, **settings, "NODE_RANK": number})) for number in "01"]
        assert [machine.end().code for machine in machines] == [0, 0]
    assert_same_run(tmp_path / "machines" / "phase_1", alone / "phase_1")
    restarted = environment(tmp_path / "restarted", demo_data, {**KEYS, "TRAIN.SAVE_INTERVAL_S": "0.02"}, EPOCHS=2)
    with start({**restarted, "NPROC": "3"}, "train", "--max-restarts", "2") as launcher:
        assert launcher.until(lambda: any((tmp_path / "restarted").rglob("SEQTRACK_step*.json")))
        os.kill(trainers_of(launcher.pid)[2], signal.SIGKILL)
        assert launcher.end().code == 0
    assert_same_run(tmp_path / "restarted" / "phase_1", alone / "phase_1")
    audit = _seqtrack({**env, "NPROC": "2"}, "audit", "phase_1", "--epochs", "2")
    assert (audit.code, audit.said.splitlines()[-1]) == (0, "confirmed")

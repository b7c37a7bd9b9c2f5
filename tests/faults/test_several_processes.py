"""A run on several processes: the same samples and steps as one process, and as hard to lose.

Most of these runs are forked ranks that meet without a launcher; the tests at the end use the real one.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml
from runs import PATIENCE_S, ROOT, Running, assert_same_run, completed, environment, numbers, start

from faults.process_pairs import free_port, ranks_of, together
from seqtrack.runtime import devices

EXACT = {"MODEL.DECODER.DROPOUT": "0.0"}
OFTEN = {"TRAIN.SAVE_INTERVAL_S": "0.02"}


@pytest.fixture(scope="module")
def pair_uncut(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two processes that nothing disturbed."""
    output = tmp_path_factory.mktemp("pair")
    together(environment(output, demo_data), 2)
    return output / "phase_1"


# 35 samples in batches of 16, 16 and 3: on four processes the last batch leaves one of them without a sample.
UNEVEN = {**EXACT, "DATA.TRAIN.SAMPLE_PER_EPOCH": "35", "TRAIN.PRINT_INTERVAL": "1"}


@pytest.fixture(scope="module")
def uneven_alone(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("alone")
    completed(environment(output, demo_data, UNEVEN, EPOCHS=2))
    return output / "phase_1"


def _assert_close(ours: Path, theirs: Path, *, within: float = 1e-5) -> None:
    """The same samples and steps; losses and IoUs within `within`."""
    mine, others = numbers(ours), numbers(theirs)
    assert len(mine) == len(others) > 0
    for one, other in zip(mine, others, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            if key in ("loss", "iou", "interval_loss", "interval_iou"):
                assert value == pytest.approx(other[key], abs=within), (one["step"], key)
            elif key == "grad_norm":
                assert value == pytest.approx(other[key], rel=1e-3)
            else:
                assert value == other[key], (one["step"], key)


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.long)])
def test_several_processes_train_on_the_same_samples_to_the_same_losses_as_one(
    world_size: int, uneven_alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    ended = together(environment(tmp_path, demo_data, UNEVEN, EPOCHS=2), world_size)
    _assert_close(tmp_path / "phase_1", uneven_alone)
    assert f"{world_size} processes" in ended[0].said
    said = ended[1].said.splitlines()  # where torch 2.9 adds lines of its own
    assert [line for line in said if not line.startswith("[Gloo]")] == [], "one process speaks for all"


def test_other_samples_would_not_pass_for_the_same(uneven_alone: Path, demo_data: Path, tmp_path: Path) -> None:
    completed(environment(tmp_path, demo_data, UNEVEN, EPOCHS=2, SEED=43))
    with pytest.raises(AssertionError):
        _assert_close(tmp_path / "phase_1", uneven_alone)


def test_a_batch_computed_in_four_parts_gives_the_losses_of_the_whole(
    uneven_alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    completed(environment(tmp_path, demo_data, {**UNEVEN, "TRAIN.ACCUMULATION_STEPS": "4"}, EPOCHS=2))
    _assert_close(tmp_path / "phase_1", uneven_alone)


def test_a_run_resumed_on_another_number_of_processes_says_which_promise_holds(
    demo_data: Path, uneven_alone: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, UNEVEN, EPOCHS=2)
    with start(env) as running:
        assert running.until(lambda: "Epoch 1 : 32" in running.said())
        running.signal(signal.SIGTERM)
        assert running.end().code == 75
    said = together(env, 2)[0].said
    assert "promise that holds with that checkpoint: same samples and steps, last digits may differ" in said
    assert "because world: 1 then, 2 now" in said
    _assert_close(tmp_path / "phase_1", uneven_alone)


def test_two_processes_promise_equal_bits_to_themselves(demo_data: Path, pair_uncut: Path, tmp_path: Path) -> None:
    said = together(environment(tmp_path, demo_data), 2)[0].said
    assert "bit-equal" in said
    assert_same_run(tmp_path / "phase_1", pair_uncut)


@pytest.mark.parametrize(
    ("world_size", "keys"),
    [
        (2, {}),
        (3, {}),
        pytest.param(4, {}, marks=pytest.mark.long),
        pytest.param(3, {"TRAIN.ACCUMULATION_STEPS": "2", "TRAIN.AMP": "bf16"}, marks=pytest.mark.long),
        pytest.param(
            3, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "35", "MODEL.ENCODER.USE_CHECKPOINT": "True"}, marks=pytest.mark.long
        ),
    ],
    ids=["2", "3", "4", "3 with parts in bf16", "3 with uneven batches"],
)
def test_a_run_cut_after_an_epoch_and_resumed_is_bit_equal_to_the_uninterrupted(
    world_size: int, keys: dict[str, str], demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path / "whole", demo_data, keys, EPOCHS=2)
    together(env, world_size)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = tmp_path / "cut" / "phase_1"
    for path in (cut / "checkpoints").glob("SEQTRACK_ep0002.*"):
        path.unlink()
    record = json.loads((cut / "run.json").read_text())
    (cut / "run.json").write_text(json.dumps({**record, "state": "running"}))
    ended = together({**env, "OUTPUT_DIR": str(tmp_path / "cut")}, world_size)
    assert "resumes after step" in ended[0].said
    assert_same_run(cut, tmp_path / "whole" / "phase_1")


@pytest.mark.parametrize("struck", [0, pytest.param(1, marks=pytest.mark.long)])
def test_killing_one_of_two_ends_both_and_the_next_start_ends_as_the_uninterrupted_pair(
    struck: int, demo_data: Path, pair_uncut: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, OFTEN)
    for seen in ("Epoch 1 : 32", "Epoch 3 : 16"):
        with ranks_of(env, 2) as distributed:
            assert distributed[0].until(lambda seen=seen, main=distributed[0]: seen in main.said())  # type: ignore[misc]
            distributed[struck].signal(signal.SIGKILL)
            other = distributed[1 - struck].end()
            assert other.code == 1
            assert other.said.splitlines()[-1].startswith("error [run.peer_lost]: ")
            assert "Traceback" not in other.said
    together(env, 2)
    assert_same_run(tmp_path / "phase_1", pair_uncut)


@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_stop_asked_of_one_of_two_stops_and_saves_both(
    asked: int, demo_data: Path, pair_uncut: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data)
    with ranks_of(env, 2) as distributed:
        assert distributed[0].until(lambda: "Epoch 2 : 16" in distributed[0].said())
        distributed[asked].signal(signal.SIGTERM)
        assert [rank.end(within_s=10).code for rank in distributed] == [75, 75]
    together(env, 2)
    assert_same_run(tmp_path / "phase_1", pair_uncut)


def _workers(launcher: Running) -> dict[int, int]:
    """Process ids of the launcher's ranks."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                parent = int((place / "stat").read_text().rsplit(")", 1)[1].split()[1])
                variables = (place / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # it ended while we looked
            distributed = [int(word[5:]) for word in variables if word.startswith(b"RANK=")]
            if parent == launcher.process.pid and distributed:
                found[distributed[0]] = int(place.name)
    return found


def _processes_of(output: Path) -> list[int]:
    """Ids of the processes whose run writes into `output`, launcher and loader workers included."""
    wanted, found = f"OUTPUT_DIR={output}".encode(), []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):  # it ended while we looked
                if wanted in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
    return found


def _listening(processes: list[int]) -> set[str]:
    """The addresses (hexadecimal, as the kernel lists them) on which any of these processes listens."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for handle in Path("/proc", str(process), "fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(handle.readlink()))
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in inodes and words[3] in ("0A", "07"):
                found.add(words[1].rsplit(":", 1)[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def test_no_process_of_a_run_on_one_machine_listens_beyond_it(demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, demo_data, {"TRAIN.NUM_WORKER": 1}, EPOCHS=3000, NPROC=2)
    with start(env) as launcher:
        assert launcher.until(lambda: "Epoch 1 : 16" in launcher.said())
        processes = _processes_of(tmp_path)
        found = _listening(processes)
        with socket.socket() as open_to_all:
            open_to_all.bind(("", 0))
            open_to_all.listen()
            assert "00000000" in _listening([*processes, os.getpid()]), "the look itself is good"
        launcher.signal(signal.SIGTERM)
        assert launcher.end().code == 75
    assert len(processes) >= 4, "two trainers and a worker of each"
    assert found and found <= LOOPBACK


def test_no_service_is_published_beyond_the_machine() -> None:
    paths = [*ROOT.glob("compose*.yaml"), *ROOT.glob("docker/compose*.yaml")]
    assert len(paths) == 3
    for path in paths:
        text = path.read_text().replace("!reset null", "null")  # a tag of compose's own
        for name, service in yaml.safe_load(text)["services"].items():
            for published in service.get("ports", []):
                assert str(published).startswith("127.0.0.1:"), (path.name, name)
            assert service.get("network_mode") != "host", (path.name, name)


def test_the_launcher_hands_a_stop_on_and_ends_with_75(demo_data: Path, tmp_path: Path) -> None:
    with start(environment(tmp_path, demo_data, EPOCHS=30, NPROC=2)) as launcher:
        assert launcher.until(lambda: "Epoch 1 : 32" in launcher.said())
        launcher.signal(signal.SIGTERM)
        ended = launcher.end(within_s=15)
    assert ended.code == 75, ended.said
    assert "stopped on request" in ended.said
    assert "Traceback" not in ended.said


def test_when_the_launcher_is_killed_its_workers_save_and_end(demo_data: Path, tmp_path: Path) -> None:
    with start(environment(tmp_path, demo_data, EPOCHS=3000, NPROC=2)) as launcher:
        assert launcher.until(lambda: "Epoch 1 : 16" in launcher.said())
        workers = _workers(launcher)
        assert sorted(workers) == [0, 1]
        launcher.signal(signal.SIGKILL)
        launcher.end()
        end = time.monotonic() + PATIENCE_S
        while any(Path("/proc", str(worker)).exists() for worker in workers.values()):
            assert time.monotonic() < end, "a worker outlives its launcher"
            time.sleep(0.01)
    assert list((tmp_path / "phase_1" / "checkpoints").glob("SEQTRACK_step*.json"))


def test_two_launchers_meet_as_two_machines_and_train_the_same_run(
    demo_data: Path, pair_uncut: Path, tmp_path: Path
) -> None:
    env = {"NNODES": 2, "NPROC": 1, "RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    with ExitStack() as stack:
        machines = [
            stack.enter_context(start(environment(tmp_path, demo_data, NODE_RANK=number, **env))) for number in (0, 1)
        ]
        ended = [machine.end() for machine in machines]
    assert [one.code for one in ended] == [0, 0], "\n".join(one.said for one in ended)
    assert_same_run(tmp_path / "phase_1", pair_uncut)


@pytest.mark.parametrize("wrong", [{}, {"RENDEZVOUS": "127.0.0.1:29500", "NODE_RANK": "2"}], ids=["nowhere", "nobody"])
def test_machines_that_cannot_meet_are_refused(wrong: dict[str, str], demo_data: Path, tmp_path: Path) -> None:
    with start(environment(tmp_path, demo_data, NNODES=2, **wrong)) as launcher:
        ended = launcher.end()
    assert ended.code == 2, ended.said
    assert "error [launch.no_rendezvous]: " in ended.said
    assert list(tmp_path.iterdir()) == []


def test_after_the_death_of_a_worker_the_launcher_continues_from_the_latest_checkpoint(
    demo_data: Path, pair_uncut: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, OFTEN, NPROC=2)
    with start(env, "train", "--max-restarts", "2") as launcher:
        assert launcher.until(lambda: "Epoch 2 : 16" in launcher.said())
        os.kill(_workers(launcher)[1], signal.SIGKILL)
        ended = launcher.end(within_s=PATIENCE_S)
    assert ended.code == 0, ended.said
    assert "resumes after step" in ended.said
    assert_same_run(tmp_path / "phase_1", pair_uncut)


@pytest.mark.long
def test_without_restarts_the_death_of_a_worker_ends_the_run_with_1_and_a_reason(
    demo_data: Path, tmp_path: Path
) -> None:
    with start(environment(tmp_path, demo_data, EPOCHS=30, NPROC=2)) as launcher:
        assert launcher.until(lambda: "Epoch 1 : 16" in launcher.said())
        os.kill(_workers(launcher)[1], signal.SIGKILL)
        ended = launcher.end()
    assert ended.code == 1
    assert ended.said.splitlines()[-1].startswith("error [run.process_died]: process 1 ")
    assert "Traceback" not in ended.said


def test_a_problem_that_only_one_process_meets_is_said_and_ends_with_2(demo_data: Path, tmp_path: Path) -> None:
    """A cut frame is in the share of one process; the other sees a peer that went away."""
    data = tmp_path / "data"
    damaged = _with_one_sequence_damaged(demo_data, data)
    env = environment(tmp_path / "out", data, EPOCHS=30, NPROC=2)
    with start(env) as launcher:
        ended = launcher.end()
    assert ended.code == 2, ended.said
    assert ended.said.count("error [") >= 1
    assert damaged in ended.said
    assert "Traceback" not in ended.said


def _with_one_sequence_damaged(source: Path, target: Path) -> str:
    """The demo data set with every frame of one sequence cut in half; returns the sequence's name."""
    shutil.copytree(source / "demo", target / "demo", copy_function=os.link)
    name = "disk-3"
    for frame in (target / "demo" / "disk" / name / "img").glob("*.jpg"):
        whole = frame.read_bytes()
        frame.unlink()
        frame.write_bytes(whole[: len(whole) // 2])
    return name


def test_more_processes_than_gpus_are_refused_before_any_starts(demo_data: Path, tmp_path: Path) -> None:
    env = environment(tmp_path, demo_data, DEVICE="auto", NPROC=2)
    with start(env, prepare=_one_gpu) as launcher:
        ended = launcher.end()
    assert ended.code == 2, ended.said
    assert "error [device.too_many_processes]: " in ended.said
    assert list(tmp_path.iterdir()) == []


def test_every_rank_takes_the_device_type_of_rank_0(demo_data: Path, tmp_path: Path) -> None:
    ended = together(environment(tmp_path, demo_data, DEVICE="auto", EPOCHS=1), 2, _one_gpu_for_rank_1)
    assert "CPU" in ended[0].said


def test_a_gpu_that_only_rank_0_has_ends_all_ranks_at_once(demo_data: Path, tmp_path: Path) -> None:
    with ranks_of(environment(tmp_path, demo_data, DEVICE="auto"), 2, _one_gpu_for_rank_0) as distributed:
        ended = [rank.end() for rank in distributed]
    # Rank 0 holds the store here; without it rank 1 may not read the answers any more.
    assert ended[0].code == 2 and ended[1].code in (1, 2)
    assert "error [device.ranks_differ]: " in ended[0].said


def _one_gpu() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1


def _one_gpu_for_rank_0() -> None:
    if os.environ["RANK"] == "0":
        _one_gpu()


def _one_gpu_for_rank_1() -> None:
    if os.environ["RANK"] == "1":
        devices.visible_gpus = lambda: 2


def test_a_verdict_is_reported_as_a_verdict_and_nothing_starts_again(
    pair_uncut: Path, demo_data: Path, tmp_path: Path
) -> None:
    shutil.copytree(pair_uncut, tmp_path / "phase_1")
    path = tmp_path / "phase_1" / "logs" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[-1]["loss"] += 1e-9
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with start(environment(tmp_path, demo_data, PHASE=2, RESUME_EPOCH=2, NPROC=2, MAX_RESTARTS=3)) as launcher:
        ended = launcher.end()
    assert ended.code == 1, ended.said
    assert ended.said.splitlines()[-1] == "differs"
    assert "error [" not in ended.said and ended.said.count("resumes after step") == 1

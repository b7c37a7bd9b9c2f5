"""A run on several processes: the same samples and steps as one process, and as hard to lose.

Most of these runs are forked ranks that meet without a launcher; a few start the real one, and `test_launcher.py` has
the rest of its behaviour with small processes.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
import yaml
from runs import PATIENCE_S, ROOT, Running, assert_same_run, completed, environment, numbers, start

from faults.process_pairs import free_port, ranks_of, together
from seqtrack import device

OFTEN = {"TRAIN.SAVE_INTERVAL_S": "0.02"}
# 35 samples in batches of 16, 16 and 3: on four processes the last batch leaves one of them without a sample.
UNEVEN = {"MODEL.DECODER.DROPOUT": "0.0", "DATA.TRAIN.SAMPLE_PER_EPOCH": "35", "TRAIN.PRINT_INTERVAL": "1"}


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
def test_several_processes_have_the_same_samples_and_losses_as_one(
    world_size: int, uneven_alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    ended = together(environment(tmp_path, demo_data, UNEVEN, EPOCHS=2), world_size)
    _assert_close(tmp_path / "phase_1", uneven_alone)
    lines = ended[1].said.splitlines()  # torch 2.9 adds lines of its own
    assert [line for line in lines if not line.startswith("[Gloo]")] == [], "only rank 0 logs"


@pytest.mark.parametrize(("keys", "seed", "same"), [({"TRAIN.ACCUMULATION_STEPS": "4"}, 42, True), ({}, 43, False)])
def test_accumulation_in_four_parts_keeps_the_losses_and_another_seed_does_not(
    keys: dict[str, str], seed: int, same: bool, uneven_alone: Path, demo_data: Path, tmp_path: Path
) -> None:
    completed(environment(tmp_path, demo_data, {**UNEVEN, **keys}, EPOCHS=2, SEED=seed))
    with contextlib.nullcontext() if same else pytest.raises(AssertionError):
        _assert_close(tmp_path / "phase_1", uneven_alone)


def test_a_resume_on_another_number_of_processes_guarantees_the_same_samples_only(
    demo_data: Path, uneven_alone: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, UNEVEN, EPOCHS=2)
    with start(env) as running:
        assert running.until(lambda: "Epoch 1 : 32" in running.said())
        running.signal(signal.SIGTERM)
        assert running.end().code == 75
    together(env, 2)
    began = json.loads((tmp_path / "phase_1" / "run.json").read_text())["starts"]
    assert [one["guarantee"] for one in began] == ["bitwise", "same_samples"]
    assert began[1]["differences"] == ["world_size: 1 then, 2 now"]
    _assert_close(tmp_path / "phase_1", uneven_alone)


@pytest.mark.parametrize(
    ("world_size", "keys"),
    [
        pytest.param(2, {}, marks=pytest.mark.long),
        (3, {"DATA.TRAIN.SAMPLE_PER_EPOCH": "35"}),
        pytest.param(4, {}, marks=pytest.mark.long),
        pytest.param(3, {"TRAIN.ACCUMULATION_STEPS": "2", "TRAIN.AMP": "bf16"}, marks=pytest.mark.long),
        pytest.param(3, {"MODEL.ENCODER.USE_CHECKPOINT": "True"}, marks=pytest.mark.long),
    ],
)
def test_a_run_stopped_after_an_epoch_and_resumed_is_bitwise_equal_to_the_uninterrupted(
    world_size: int, keys: dict[str, str], demo_data: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path / "whole", demo_data, keys, EPOCHS=2)
    together(env, world_size)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    resumed = tmp_path / "resumed" / "phase_1"
    for path in (resumed / "checkpoints").glob("SEQTRACK_ep0002.*"):
        path.unlink()
    record = json.loads((resumed / "run.json").read_text())
    (resumed / "run.json").write_text(json.dumps({**record, "state": "running"}))
    together({**env, "OUTPUT_DIR": str(tmp_path / "resumed")}, world_size)
    assert json.loads((resumed / "run.json").read_text())["starts"][1]["epoch"] == 1
    assert_same_run(resumed, tmp_path / "whole" / "phase_1")


@pytest.mark.parametrize("killed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_killing_one_of_two_ends_both_and_the_next_start_ends_as_the_uninterrupted_pair(
    killed: int, demo_data: Path, uninterrupted_pair: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, OFTEN)
    with ranks_of(env, 2) as distributed:
        assert distributed[0].until(lambda: "Epoch 2 : 32" in distributed[0].said())
        distributed[killed].signal(signal.SIGKILL)
        other = distributed[1 - killed].end()
    assert (other.code, other.codes) == (1, ["run.peer_lost"])
    assert "Traceback" not in other.said
    together(env, 2)
    assert_same_run(tmp_path / "phase_1", uninterrupted_pair)


@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_stop_asked_of_one_of_two_stops_and_saves_both(
    asked: int, demo_data: Path, uninterrupted_pair: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data)
    with ranks_of(env, 2) as distributed:
        assert distributed[0].until(lambda: "Epoch 2 : 16" in distributed[0].said())
        distributed[asked].signal(signal.SIGTERM)
        assert [rank.end().code for rank in distributed] == [75, 75]
    together(env, 2)
    assert_same_run(tmp_path / "phase_1", uninterrupted_pair)


def _processes(wanted: bytes) -> dict[int, dict[bytes, bytes]]:
    """Ids of the processes with this entry in their environment, with all of it."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            with contextlib.suppress(OSError):  # it ended meanwhile
                entries = (place / "environ").read_bytes().split(b"\0")
                if wanted in entries:
                    found[int(place.name)] = dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)
    return found


def _trainers(launcher: Running) -> dict[int, int]:
    """Process ids of the launcher's ranks, without their loader workers."""
    found = {}
    for process, variables in _processes(b"OUTPUT_DIR=" + os.fsencode(launcher.env["OUTPUT_DIR"])).items():
        with contextlib.suppress(OSError):
            parent = int(Path("/proc", str(process), "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == launcher.process.pid and b"RANK" in variables:
                found[int(variables[b"RANK"])] = process
    return found


def _listening(processes: list[int]) -> set[str]:
    """The addresses (hexadecimal, as in /proc/net) on which any of these processes listens."""
    inodes = set()
    for process in processes:
        with contextlib.suppress(OSError):
            for handle in Path("/proc", str(process), "fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes.add(str(handle.readlink()))
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if f"socket:[{fields[9]}]" in inodes and fields[3] in ("0A", "07"):
                found.add(fields[1].rsplit(":", 1)[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000"}


def test_a_launched_run_listens_on_loopback_only_and_survives_a_dead_rank_and_a_dead_launcher(
    demo_data: Path, uninterrupted_pair: Path, tmp_path: Path
) -> None:
    env = environment(tmp_path, demo_data, {**OFTEN, "TRAIN.NUM_WORKER": "1"}, NPROC=2)
    with start({**env, "EPOCHS": "3"}, "train", "--max-restarts", "2") as launcher:
        checkpoints = tmp_path / "phase_1" / "checkpoints"
        assert launcher.until(lambda: any(checkpoints.glob("SEQTRACK_step*.json")))
        trainers = _trainers(launcher)
        for process in trainers.values():
            os.kill(process, signal.SIGSTOP)  # or the run may be complete before it is looked at
        found = _listening(list(_processes(b"OUTPUT_DIR=" + os.fsencode(tmp_path))))
        with socket.socket() as open_to_all:
            open_to_all.bind(("", 0))
            open_to_all.listen()
            assert "00000000" in _listening([os.getpid()]), "the negative control"
        os.kill(trainers[1], signal.SIGKILL)
        os.kill(trainers[0], signal.SIGCONT)
        assert launcher.until(lambda: "resumes after step" in launcher.said())
        trainers = _trainers(launcher)
        launcher.signal(signal.SIGKILL)
        launcher.end()
        end = time.monotonic() + PATIENCE_S
        while any(Path("/proc", str(process)).exists() for process in trainers.values()):
            assert time.monotonic() < end, "a rank outlives its launcher"
            time.sleep(0.01)
    assert sorted(trainers) == [0, 1]
    assert found and found <= LOOPBACK
    assert json.loads((tmp_path / "phase_1" / "run.json").read_text())["state"] in ("stopped", "complete")
    together(env, 2)
    assert_same_run(tmp_path / "phase_1", uninterrupted_pair)


def test_no_service_is_published_beyond_the_machine() -> None:
    paths = [*ROOT.glob("compose*.yaml"), *ROOT.glob("docker/compose*.yaml")]
    assert len(paths) == 3
    for path in paths:
        text = path.read_text().replace("!reset null", "null")  # a tag of compose's own
        for name, service in yaml.safe_load(text)["services"].items():
            for published in service.get("ports", []):
                assert str(published).startswith("127.0.0.1:"), (path.name, name)
            assert service.get("network_mode") != "host", (path.name, name)


@pytest.mark.long
def test_a_stop_of_the_launcher_saves_and_ends_with_75(demo_data: Path, tmp_path: Path) -> None:
    with start(environment(tmp_path, demo_data, EPOCHS=30, NPROC=2)) as launcher:
        assert launcher.until(lambda: "Epoch 1 : 32" in launcher.said())
        launcher.signal(signal.SIGTERM)
        ended = launcher.end()
    assert ended.code == 75, ended.said
    assert "Traceback" not in ended.said
    assert list((tmp_path / "phase_1" / "checkpoints").glob("SEQTRACK_step*.json"))


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


@pytest.mark.parametrize("wrong", [{}, {"RENDEZVOUS": "127.0.0.1:29500", "NODE_RANK": "2"}], ids=["nowhere", "nobody"])
def test_machines_that_cannot_meet_are_refused(wrong: dict[str, str], demo_data: Path, tmp_path: Path) -> None:
    with start(environment(tmp_path, demo_data, NNODES=2, **wrong)) as launcher:
        ended = launcher.end()
    assert (ended.code, ended.codes) == (2, ["launch.no_rendezvous"])
    assert list(tmp_path.iterdir()) == []


def test_a_user_error_of_one_rank_is_reported_by_it(demo_data: Path, tmp_path: Path) -> None:
    """Truncated frames are in the shard of one process; the other sees a peer that ended."""
    data = tmp_path / "data"
    shutil.copytree(demo_data / "demo", data / "demo", copy_function=os.link)
    for frame in (data / "demo" / "disk" / "disk-3" / "img").glob("*.jpg"):
        whole = frame.read_bytes()
        frame.unlink()
        frame.write_bytes(whole[: len(whole) // 2])
    with ranks_of(environment(tmp_path / "out", data, EPOCHS=30), 2) as distributed:
        ended = [rank.end() for rank in distributed]
    assert 2 in [one.code for one in ended] and {one.code for one in ended} <= {1, 2}
    for one in ended:
        assert ("disk-3" in one.said) == (one.code == 2) and "Traceback" not in one.said
        assert one.code == 2 or one.codes == ["run.peer_lost"]


def _one_gpu() -> None:
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1


def _one_gpu_for_rank_0() -> None:
    if os.environ["RANK"] == "0":
        _one_gpu()


def _two_gpus_for_rank_1() -> None:
    if os.environ["RANK"] == "1":
        device.visible_gpus = lambda: 2


def test_more_processes_than_gpus_are_refused_before_any_starts(demo_data: Path, tmp_path: Path) -> None:
    with start(environment(tmp_path, demo_data, DEVICE="auto", NPROC=2), prepare=_one_gpu) as launcher:
        ended = launcher.end()
    assert (ended.code, ended.codes) == (2, ["device.too_many_processes"])
    assert list(tmp_path.iterdir()) == []


def test_every_rank_takes_the_device_type_of_rank_0(demo_data: Path, tmp_path: Path) -> None:
    together(environment(tmp_path, demo_data, DEVICE="auto", EPOCHS=1), 2, _two_gpus_for_rank_1)
    record = json.loads((tmp_path / "phase_1" / "environment.json").read_text())
    assert record["fingerprint"]["device"] == "cpu"


def test_a_gpu_that_only_rank_0_has_ends_all_ranks_at_once(demo_data: Path, tmp_path: Path) -> None:
    with ranks_of(environment(tmp_path, demo_data, DEVICE="auto"), 2, _one_gpu_for_rank_0) as distributed:
        ended = [rank.end() for rank in distributed]
    # Rank 0 holds the store here; without it rank 1 may not read the answers any more.
    assert (ended[0].code, ended[0].codes) == (2, ["device.ranks_differ"])
    assert ended[1].code in (1, 2)


def test_a_verdict_is_an_exit_code_and_no_error(uninterrupted_pair: Path, demo_data: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted_pair, tmp_path / "phase_1")
    path = tmp_path / "phase_1" / "logs" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[-1]["loss"] += 1e-9
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with ranks_of(environment(tmp_path, demo_data, PHASE=2, RESUME_EPOCH=2), 2) as distributed:
        ended = [rank.end() for rank in distributed]
    assert [one.code for one in ended] == [1, 0]
    assert ended[0].said.splitlines()[-1] == "differs" and ended[0].codes == []


def _has_met(main: Running) -> bool:
    """Whether the ranks have agreed where the run starts."""
    return "starts from scratch" in main.said() or "resumes after" in main.said()


def _strike(env: dict[str, str], moments: random.Random, number: int, longest_s: float) -> str:
    """Start two ranks, wait for a random time, send one of them a signal. Returns how that ended.

    The time counts from the rendezvous, for most of the life of such a small run is its start; in every fifth case it
    counts from the start. No launcher ends the other rank here, so this does it where they had not met yet.
    """
    with ranks_of(env, 2) as pair:
        killed, other = moments.sample(pair, 2)
        if moments.random() < 0.8:
            pair[0].until(lambda: _has_met(pair[0]))
        pair[0].process.join(moments.uniform(0, longest_s))
        killed.signal(number)
        if number == signal.SIGKILL or not _has_met(pair[0]):
            killed.process.join(1.0)
        if not killed.process.is_alive() and not _has_met(pair[0]):
            other.signal(signal.SIGKILL)
        ended = [killed.end(), other.end()]
    codes = {one.code for one in ended}
    assert not any("Traceback" in one.said for one in ended)
    if codes == {0}:
        return "complete"
    if number == signal.SIGTERM and codes == {75}:
        return "both saved and stopped"
    assert codes <= {-signal.SIGKILL, -signal.SIGTERM, 0, 1, 75}, (codes, ended)
    assert all(one.codes == ["run.peer_lost"] for one in ended if one.code == 1), ended
    return "the other ended too" if 1 in codes else "before they met, or after the end"


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_pair_of_which_one_is_killed_at_a_hundred_random_moments_ends_as_an_uninterrupted_pair(
    number: signal.Signals, demo_data: Path, tmp_path: Path
) -> None:
    keys = {**OFTEN, "DATA.TRAIN.SAMPLE_PER_EPOCH": "248"}
    with ranks_of(environment(tmp_path / "uninterrupted", demo_data, keys), 2) as pair:
        assert pair[0].until(lambda: _has_met(pair[0]))
        began = time.monotonic()
        assert [rank.end().code for rank in pair] == [0, 0]
    longest_s = 0.5 * (time.monotonic() - began)
    moments, outcomes, runs, strikes = random.Random(int(number)), Counter[str](), 0, 0
    while strikes < 100:
        env = environment(tmp_path / f"run{runs}", demo_data, keys)
        outcome = ""
        while outcome != "complete" and strikes < 100:
            outcome = _strike(env, moments, number, longest_s)
            outcomes[outcome] += 1
            strikes += outcome != "complete"
        together(env, 2)
        assert_same_run(tmp_path / f"run{runs}" / "phase_1", tmp_path / "uninterrupted" / "phase_1")
        runs += 1
    print(f"{strikes} times signal {int(number)} to one of two over {runs} runs, each identical: {outcomes}")

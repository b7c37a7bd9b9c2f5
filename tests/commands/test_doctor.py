"""What the doctor says of valid and of invalid machines and settings. Each judgement is shown with its opposite."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from uploads.hub_server import Hub

from seqtrack.commands import doctor_probe as probe
from seqtrack.commands import doctor_project as project
from seqtrack.commands.doctor import BAD, NOTE, OK, Finding, check_clock, check_driver, check_room
from seqtrack.commands.machine import GIB, free_memory
from seqtrack.commands.plan import find_machine, make_plan
from seqtrack.config.environment import configure
from seqtrack.errors import UserError

ROOT = Path(__file__).parents[2]
TOKEN = "hf_doctorMustNeverPrintThis"


def doctor(tmp_path: Path, **variables: str) -> tuple[int, str]:
    """Run the command as a user does; its exit code and everything it printed."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    places = {"OUTPUT_DIR": str(tmp_path / "output"), "DATA_DIR": str(tmp_path / "data"), "HF_HUB_DISABLE_XET": "1"}
    answer = subprocess.run(
        [sys.executable, "-m", "seqtrack", "doctor"],
        env={**kept, **places, "PYTHONPATH": str(ROOT), **variables},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    return answer.returncode, answer.stdout + answer.stderr


def test_a_sound_machine_gets_exit_code_0_and_is_left_as_it_was(tmp_path: Path) -> None:
    code, said = doctor(tmp_path)
    assert code == 0, said
    assert "everything is in order" in said
    assert list(tmp_path.iterdir()) == []
    looked = ("driver", "memory", "shared memory", "disk", "output folder", "data", "token", "clock")
    for about in (*looked, "precision", "matrix product", "attention", "checkpoint memory"):
        assert f"  {about}: " in said


def test_obstacles_get_exit_code_1_each_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("not a folder")
    code, said = doctor(tmp_path, DATASET="lasot", CLASSES="book", CONFIG="demo")
    assert code == 1
    wrong = [line for line in said.splitlines() if line.startswith("BAD")]
    assert len(wrong) == 2
    assert "is not a folder" in wrong[0]
    assert "data download" in wrong[1]


def test_every_wrong_setting_is_told(tmp_path: Path) -> None:
    code, said = doctor(tmp_path, PHASE="3", SEED="x")
    assert code == 1
    assert "BAD   settings: PHASE: found '3'" in said
    assert "BAD   settings: SEED: found 'x'" in said


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub().start()
    yield server
    server.stop()


def test_the_hub_is_asked_who_the_token_is_and_the_token_is_never_shown(tmp_path: Path, hub: Hub) -> None:
    hub.tokens[TOKEN] = "write"
    known = {"HF_REPO": "me/tracker", "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN}
    code, said = doctor(tmp_path, **known)
    assert code == 0, said
    assert "the Hub knows it as" in said
    assert "me/tracker will be made private" in said
    assert not hub.repos, "asking must not make the repository"
    assert TOKEN not in said
    code, said = doctor(tmp_path, **{**known, "HF_TOKEN": "hf_unknownToTheServer"})
    assert code == 1
    assert "BAD   token:" in said
    assert "hf_unknownToTheServer" not in said


def test_a_token_that_may_only_read_is_not_enough(tmp_path: Path, hub: Hub) -> None:
    hub.tokens[TOKEN] = "read"
    code, said = doctor(tmp_path, HF_REPO="me/tracker", HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
    assert code == 1
    assert "It may not write" in said


def test_a_hub_that_does_not_answer_is_told_in_time(tmp_path: Path) -> None:
    began = time.monotonic()
    code, said = doctor(tmp_path, HF_REPO="me/tracker", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert code == 1
    assert "BAD   token:" in said
    assert TOKEN not in said
    assert time.monotonic() - began < 60


def test_no_token_and_a_token_file_without_one_are_told(tmp_path: Path) -> None:
    environ = {"HF_REPO": "me/tracker"}
    assert "neither HF_TOKEN_PATH nor HF_TOKEN" in str(project.check_token(configure(environ)[0], environ)[0])
    environ["HF_TOKEN_PATH"] = str(tmp_path / "missing")
    assert project.check_token(configure(environ)[0], environ)[0].level == BAD


def tried(**variables: str) -> dict[str, Finding]:
    return {one.about: one for one in probe.try_device(*configure({"DEVICE": "cpu", **variables}))}


def test_several_processes_try_an_exchange() -> None:
    found = tried(NPROC="2", OVERRIDES="TRAIN.AMP bf16")
    assert [one.level for one in found.values()] == [OK] * 5
    assert "bf16" in found["attention"].found
    assert "exchange" in found


def failing(error: BaseException) -> Callable[..., str]:
    def trial(*_: Any) -> str:
        raise error

    return trial


@pytest.mark.parametrize("about", list(probe.TRIALS))
@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        MemoryError("no room"),
    ],
)
def test_a_trial_that_fails_is_an_obstacle_with_the_librarys_words_and_what_to_do(
    about: str, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = {"device": "cpu", "processes": 1, "precision": "fp32", "tokens": 8, "checkpoint_bytes": 8, "compile": True}
    monkeypatch.setenv(probe._WORK, json.dumps(work))
    monkeypatch.setattr(probe, "end_with_parent", lambda _: None, raising=False)
    trials = {name: (failing(error) if name == about else lambda *_: "fine", "remedy") for name in probe.TRIALS}
    monkeypatch.setattr(probe, "TRIALS", trials)
    assert probe.main() == 0
    found = {line["about"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    assert {name: line["level"] for name, line in found.items()} == {
        name: BAD if name == about else OK for name in trials
    }
    assert str(error).splitlines()[0] in found[about]["found"]
    assert found[about]["advice"] == "remedy"


def test_processes_that_die_or_hang_are_reported_with_how_far_they_came() -> None:
    found = {one.about: one for one in probe._in_processes({"device": "cpu"}, 60)}
    assert found["trials on the device"].level == BAD  # it died: the work is incomplete
    found = {one.about: one for one in probe._in_processes({"device": "cpu", "processes": 1}, 0.0)}
    assert "no answer within" in found["trials on the device"].found


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Answers of torch.cuda as of a machine with GPUs; the kernels are still missing."""

    def fake(capability: tuple[int, int], *, free_gib: float, total_gib: float, count: int = 1) -> None:
        properties = SimpleNamespace(
            major=capability[0], minor=capability[1], name="NVIDIA Card", total_memory=int(total_gib * GIB)
        )
        answers = {
            "is_available": lambda: True,
            "device_count": lambda: count,
            "current_device": lambda: 0,
            "get_device_properties": lambda *_: properties,
            "get_device_capability": lambda *_: capability,
            "get_device_name": lambda *_: "NVIDIA Card",
            "mem_get_info": lambda *_: (int(free_gib * GIB), int(total_gib * GIB)),
        }
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, answer)

    return fake


@pytest.mark.parametrize(
    ("capability", "amp", "level", "precision"),
    [
        ((7, 5), "auto", OK, "fp16"),
        ((7, 5), "bf16", BAD, "bf16"),
        ((8, 0), "auto", OK, "bf16"),
        ((8, 6), "auto", OK, "bf16"),
        ((6, 0), "off", OK, "fp32"),
    ],
)
def test_the_precision_is_the_one_that_training_and_plan_take(
    fake_gpu: Callable[..., None], capability: tuple[int, int], amp: str, level: str, precision: str, tmp_path: Path
) -> None:
    fake_gpu(capability, free_gib=10, total_gib=16)
    environment, config = configure({"OVERRIDES": f"TRAIN.AMP {amp}", "OUTPUT_DIR": str(tmp_path)})
    found = next(iter(probe.try_device(environment, config)))
    assert (found.about, found.level) == ("precision", level)
    assert f"{precision} here" in found.found
    plan = make_plan(config, find_machine(environment))
    assert plan["precision"] == precision
    assert (plan["attention"] == "fused") == (level == OK)


@pytest.mark.parametrize(("free_gib", "fits"), [(3.3, False), (16.0, True)])
def test_plan_and_doctor_count_the_gpus_free_memory(
    fake_gpu: Callable[..., None], free_gib: float, fits: bool, tmp_path: Path
) -> None:
    fake_gpu((8, 6), free_gib=free_gib, total_gib=24)
    environ = {"CONFIG": "seqtrack_b256", "EPOCHS": "1", "BATCH_SIZE": "8", "OUTPUT_DIR": str(tmp_path)}
    environment, config = configure(environ)
    plan = make_plan(config, find_machine(environment))
    assert plan["memory_there"] == int(free_gib * GIB)
    assert [problem.code for problem in plan["problems"]] == ([] if fits else ["plan.memory"])
    said = {one.about: one for one in check_room(environment, config)}
    assert said["memory"].level == (OK if fits else BAD)
    assert f"{free_gib:.1f}" in said["memory"].found


def test_more_processes_than_gpus_are_an_obstacle_before_anything_is_tried(fake_gpu: Callable[..., None]) -> None:
    fake_gpu((8, 6), free_gib=20, total_gib=24)
    environment, config = configure({"NPROC": "2"})
    (found,) = probe.try_device(environment, config)
    assert found.level == BAD
    with pytest.raises(UserError) as refused:
        find_machine(environment)
    assert refused.value.code == "device.too_many_processes"


def test_a_gpu_that_answers_and_does_not_compute_is_an_obstacle(fake_gpu: Callable[..., None]) -> None:
    fake_gpu((8, 6), free_gib=20, total_gib=24)
    found = list(probe.try_device(*configure({})))
    assert [one.level for one in found] == [OK, BAD]  # the child, which has no fakes, finds no GPU


def test_the_driver_is_needed_for_cuda_only(tmp_path: Path) -> None:
    missing = str(tmp_path / "nvidia-smi")
    assert check_driver("auto", nvidia_smi=missing).level == NOTE
    assert check_driver("cuda", nvidia_smi=missing).level == BAD
    answers = tmp_path / "answers"
    answers.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3050, 550.54, 4096 MiB'\n")
    answers.chmod(0o755)
    assert check_driver("cuda", nvidia_smi=str(answers)).level == OK
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed because it couldn\'t communicate"; exit 9\n')
    broken.chmod(0o755)
    finding = check_driver("cuda", nvidia_smi=str(broken))
    assert finding.level == BAD
    assert "couldn't communicate" in finding.found


def test_a_containers_memory_limit_counts_without_what_is_only_cached(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    assert free_memory(meminfo=meminfo, cgroup=tmp_path)[0] == 16 * GIB
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(meminfo=meminfo, cgroup=tmp_path)[0] == 16 * GIB
    (tmp_path / "memory.max").write_text(f"{5 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{4 * GIB}\n")
    assert free_memory(meminfo=meminfo, cgroup=tmp_path)[0] == 1 * GIB
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {2 * GIB}\n")
    assert free_memory(meminfo=meminfo, cgroup=tmp_path)[0] == 3 * GIB


def test_the_clock_is_held_against_the_hub_or_against_the_past() -> None:
    now = time.time()
    assert check_clock(now, server_date=formatdate(now + 20, usegmt=True), known_past=0).level == OK
    assert check_clock(now, server_date=formatdate(now + 4000, usegmt=True), known_past=0).level == BAD
    assert check_clock(now, server_date=None, known_past=now - 5).level == OK
    assert check_clock(now, server_date=None, known_past=now + 5).level == BAD


def test_packages_are_held_against_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text((ROOT / "requirements.lock").read_text())
    assert project.check_packages(lock).level == OK
    lock.write_text("torch==1.0.0 \\\n    --hash=sha256:00\n")
    finding = project.check_packages(lock)
    assert finding.level == BAD
    assert "==1.0.0" in finding.found


def test_without_a_lock_the_installed_versions_are_named(tmp_path: Path) -> None:
    finding = project.check_packages(tmp_path / "requirements.lock")
    assert finding.level in (OK, NOTE)

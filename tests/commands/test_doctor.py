"""`seqtrack doctor` on valid and on invalid machines and settings: each finding with its negative control."""

import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import command, start
from uploads.hub_server import Hub

from seqtrack.commands.doctor import BAD, LOCK, NOTE, OK, check_device, check_packages, check_token, no_gpu_advice
from seqtrack.commands.plan import GIB, Plan, find_machine, free_memory
from seqtrack.config.environment import configure
from seqtrack.packages import installed_packages

TOKEN = "hf_doctorMustNeverPrintThis"


def environ(tmp_path: Path, **variables: str) -> dict[str, str]:
    folders = {"OUTPUT_DIR": str(tmp_path / "output"), "DATA_DIR": str(tmp_path / "data")}
    return {"PATH": "/usr/bin:/bin", **folders, "HF_HUB_DISABLE_XET": "1", "DEVICE": "cpu", **variables}


def doctor(tmp_path: Path, **variables: str) -> tuple[int, dict[str, str], str]:
    """Exit code, the worst level of each topic, and the whole output."""
    with start(environ(tmp_path, **variables), "doctor") as running:
        ended = running.end()
    lines = [line for line in ended.said.splitlines() if line[:4].strip() in (OK, NOTE, BAD)]
    found = sorted((line[6:].partition(":")[0], line[:4].strip()) for line in lines)
    return ended.code, dict(reversed(found)), ended.said


def test_a_valid_machine_exits_with_0_and_nothing_is_changed(tmp_path: Path) -> None:
    ended = command("doctor", env=environ(tmp_path, NPROC="2"))
    assert ended.code == 0, ended.said
    assert list(tmp_path.iterdir()) == []
    for about in ("packages", "settings", "versions", "device", "precision", "memory", "disk", "output folder", "data",
                  "token", "trial"):  # fmt: skip
        assert f"  {about}: " in ended.said
    assert "2 processes" in ended.said and "/dev/shm" in ended.said


@pytest.mark.parametrize(
    ("place", "text", "option"),
    [
        ("proc/self/attr/current", "system_u:system_r:container_t:s0:c1,c2\0", "label=disable"),
        ("etc/cdi/nvidia.yaml", "", "nvidia.com/gpu=all"),
        ("proc/self/attr/current", "docker-default (enforce)\n", None),
    ],
)
def test_advice_about_a_missing_gpu_knows_the_engine(tmp_path: Path, place: str, text: str, option: str | None) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text(text)
    advice = no_gpu_advice(tmp_path)
    assert [one for one in ("label=disable", "nvidia.com/gpu=all") if one in advice] == [option] * bool(option)


def test_every_problem_is_reported_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("not a folder")
    code, levels, said = doctor(tmp_path, DATASET="lasot", CLASSES="book", CONFIG="demo")
    assert code == 1
    assert [about for about, found in levels.items() if found == BAD] == ["output folder", "data"], said
    code, levels, said = doctor(tmp_path, PHASE="3", SEED="x")
    assert code == 1 and levels["settings"] == BAD
    assert "PHASE: found '3'" in said and "SEED: found 'x'" in said


def test_the_hub_is_asked_and_the_token_is_never_shown(tmp_path: Path) -> None:
    server = Hub().start()
    variables = {"HF_REPO": "me/tracker", "HF_ENDPOINT": server.endpoint, "HF_TOKEN": TOKEN}
    for role, changed, level in (
        ("write", {}, OK),
        ("read", {}, BAD),
        ("", {}, BAD),
        ("write", {"HF_ENDPOINT": "http://127.0.0.1:9"}, BAD),
        ("write", {"HF_TOKEN": ""}, BAD),
        ("write", {"HF_TOKEN_PATH": "/missing"}, BAD),
    ):
        server.tokens = {TOKEN: role} if role else {}
        given = environ(tmp_path, **{**variables, **changed})
        _, found, text, _ = check_token(configure(given)[0], given)
        assert found == level and TOKEN not in text
    assert not server.repos, "asking must not create the repository"
    server.stop()


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Answers of torch.cuda as on a machine with GPUs; kernels are still missing."""

    def fake(capability: tuple[int, int], *, free_gib: float = 20) -> None:
        properties = SimpleNamespace(name="NVIDIA Card", total_memory=24 * GIB)
        answers = {
            "is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties,
            "get_device_capability": capability, "get_device_name": "NVIDIA Card",
            "mem_get_info": (int(free_gib * GIB), 24 * GIB),
        }  # fmt: skip
        for name, answer in answers.items():
            monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)

    return fake


@pytest.mark.parametrize(
    ("capability", "amp", "level", "precision"),
    [
        ((7, 5), "auto", OK, "fp16"),
        ((7, 5), "bf16", BAD, "bf16"),
        ((8, 6), "auto", OK, "bf16"),
        ((6, 0), "off", OK, "fp32"),
    ],
)
def test_the_precision_is_that_of_training_and_plan(
    fake_gpu: Callable[..., None], capability: tuple[int, int], amp: str, level: str, precision: str
) -> None:
    fake_gpu(capability)
    environment, config = configure({"OVERRIDES": f"TRAIN.AMP {amp}"})
    found = next(one for one in check_device(environment, config) if one[0] == "precision")
    assert found[1] == level and precision in found[2]
    plan = Plan(config, find_machine(environment))
    assert (plan.precision, plan.stores_scores) == (precision, level == BAD)


@pytest.mark.parametrize(
    ("script", "shown"), [("echo 550.54.15", True), ("echo no devices; exit 9", False), ("", False)]
)
def test_the_drivers_version_is_shown_where_it_answers(
    fake_gpu: Callable[..., None], script: str, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gpu((8, 6))
    if script:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    device = next(one for one in check_device(*configure({})) if one[0] == "device")
    assert ("550.54.15" in device[2], device[1]) == (shown, OK)


@pytest.mark.parametrize(("free_gib", "codes"), [(3.3, ["plan.memory"]), (16.0, [])])
def test_plan_and_doctor_use_the_free_memory_of_the_gpu_and_the_trial_finds_that_it_does_not_compute(
    fake_gpu: Callable[..., None], free_gib: float, codes: list[str], tmp_path: Path
) -> None:
    fake_gpu((8, 6), free_gib=free_gib)
    variables = {"CONFIG": "seqtrack_b256", "EPOCHS": "1", "BATCH_SIZE": "8", "OUTPUT_DIR": str(tmp_path)}
    environment, config = configure(variables)
    plan = Plan(config, find_machine(environment))
    assert plan.machine.memory == int(free_gib * GIB)
    assert [problem.code for problem in plan.problems] == codes
    found = {about: (level, text) for about, level, text, _ in check_device(environment, config)}
    assert found["memory"][0] == (BAD if codes else OK) and f"{free_gib:.1f}" in found["memory"][1]
    assert found["trial"][0] == BAD, "the child has no fakes and finds no GPU"


def test_a_trial_that_hangs_and_too_many_processes_are_reported(fake_gpu: Callable[..., None]) -> None:
    *_, last = check_device(*configure({"DEVICE": "cpu"}), limit_s=0.01)
    assert last[:2] == ("trial", BAD) and "0 s" in last[2]
    fake_gpu((8, 6))
    *_, last = check_device(*configure({"NPROC": "2"}))
    assert last[:2] == ("device", BAD)


def test_a_memory_limit_of_a_container_counts_without_cached_files(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    files = {"memory.current": f"{4 * GIB}\n", "memory.stat": "anon 5\ninactive_file 0\n"}
    for name, text, free_gib in (
        ("memory.none", "", 16),
        ("memory.max", "max\n", 16),
        ("memory.max", f"{5 * GIB}\n", 1),
        ("memory.stat", f"anon 5\ninactive_file {2 * GIB}\n", 3),
    ):
        files[name] = text
        for file, content in files.items():
            (tmp_path / file).write_text(content)
        assert free_memory(meminfo=meminfo, cgroup=tmp_path)[0] == free_gib * GIB


def test_packages_are_compared_with_the_lock(tmp_path: Path) -> None:
    assert check_packages(LOCK)[1] == OK
    lock = tmp_path / "requirements.lock"
    lock.write_text("torch==1.0.0 \\\n    --hash=sha256:00\nother==1 ; python_version < '3'\n")
    _, level, found, _ = check_packages(lock)
    assert level == BAD and "==1.0.0" in found and "other" not in found


def test_the_copies_in_setuptools_are_not_the_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = installed_packages()
    (tmp_path / "_vendor" / "numpy-0.1.dist-info").mkdir(parents=True)
    (tmp_path / "_vendor" / "numpy-0.1.dist-info" / "METADATA").write_text("Name: numpy\nVersion: 0.1\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "_vendor")])
    assert "0.1" in {one.version for one in metadata.distributions(name="numpy")} and installed_packages() == before

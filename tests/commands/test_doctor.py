"""`seqtrack doctor` on valid and on invalid machines and settings: each finding with its negative control."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import command, start
from uploads.hub_server import Hub

from seqtrack.commands import doctor_probe as probe
from seqtrack.commands.doctor import BAD, LOCK, NOTE, OK, Finding, check_packages, check_token
from seqtrack.commands.plan import GIB, Plan, find_machine, free_memory
from seqtrack.config.environment import configure
from seqtrack.errors import UserError

TOKEN = "hf_doctorMustNeverPrintThis"


def environ(tmp_path: Path, **variables: str) -> dict[str, str]:
    folders = {"OUTPUT_DIR": str(tmp_path / "output"), "DATA_DIR": str(tmp_path / "data")}
    return {"PATH": "/usr/bin:/bin", **folders, "HF_HUB_DISABLE_XET": "1", "DEVICE": "cpu", **variables}


def doctor(tmp_path: Path, **variables: str) -> tuple[int, dict[str, list[str]], str]:
    """Exit code, the levels of each topic, and the whole output."""
    with start(environ(tmp_path, **variables), "doctor") as running:
        ended = running.end()
    levels: dict[str, list[str]] = {}
    for line in ended.said.splitlines():
        if line[:4].strip() in (OK, NOTE, BAD):
            levels.setdefault(line[6:].partition(":")[0], []).append(line[:4].strip())
    return ended.code, levels, ended.said


def test_a_valid_machine_exits_with_0_and_nothing_is_changed(tmp_path: Path) -> None:
    ended = command("doctor", env=environ(tmp_path, NPROC="2", OVERRIDES="TRAIN.AMP bf16"))
    assert ended.code == 0, ended.said
    assert list(tmp_path.iterdir()) == []
    for about in ("packages", "settings", "device", "precision", "memory", "disk", "output folder", "data", "token",
                  "kernels", "exchange"):  # fmt: skip
        assert f"  {about}: " in ended.said
    assert "2 processes" in ended.said and "bf16" in ended.said


def test_every_problem_is_reported_with_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("not a folder")
    code, levels, said = doctor(tmp_path, DATASET="lasot", CLASSES="book", CONFIG="demo")
    assert code == 1
    assert [about for about, found in levels.items() if BAD in found] == ["output folder", "data"], said
    code, levels, said = doctor(tmp_path, PHASE="3", SEED="x")
    assert code == 1 and levels["settings"] == [BAD, BAD]
    assert "PHASE: found '3'" in said and "SEED: found 'x'" in said


def test_the_hub_is_asked_and_the_token_is_never_shown(tmp_path: Path) -> None:
    server = Hub().start()
    variables = environ(tmp_path, HF_REPO="me/tracker", HF_ENDPOINT=server.endpoint, HF_TOKEN=TOKEN)
    for role, endpoint, level in (
        ("write", server.endpoint, OK),
        ("read", server.endpoint, BAD),
        ("", server.endpoint, BAD),
        ("write", "http://127.0.0.1:9", BAD),
    ):
        server.tokens = {TOKEN: role} if role else {}
        variables["HF_ENDPOINT"] = endpoint
        (finding,) = check_token(configure(variables)[0], variables)
        assert finding.level == level
        assert TOKEN not in str(finding)
    code, levels, said = doctor(tmp_path, **variables)
    assert (code, levels["token"], TOKEN in said) == (1, [BAD], False), said
    assert not server.repos, "asking must not create the repository"
    server.stop()


def test_a_missing_token_is_reported(tmp_path: Path) -> None:
    variables = {"HF_REPO": "me/tracker"}
    assert [one.level for one in check_token(configure(variables)[0], variables)] == [BAD]
    variables["HF_TOKEN_PATH"] = str(tmp_path / "missing")
    (finding,) = check_token(configure(variables)[0], variables)
    assert finding.level == BAD and variables["HF_TOKEN_PATH"] in finding.found


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: no kernel image\nmore"), MemoryError("no room")])
def test_a_trial_that_fails_is_reported_with_the_library_message_and_advice(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any) -> str:
        raise error

    monkeypatch.setenv(probe._VARIABLE, json.dumps(["cpu", 1, "fp32", 4]))
    monkeypatch.setattr(probe, "end_with_parent", lambda _: None)
    monkeypatch.setattr(probe, "TRIALS", {"bad": (failing, "remedy"), "good": (lambda *_: "fine", "remedy")})
    assert probe.main() == 0
    bad, good = [Finding(*json.loads(line)) for line in capsys.readouterr().out.splitlines()]
    assert [(one.about, one.level, one.advice) for one in (bad, good)] == [("bad", BAD, "remedy"), ("good", OK, "")]
    assert str(error).splitlines()[0] in bad.found


def test_processes_that_crash_or_hang_are_reported() -> None:
    (crashed,) = probe.run_trials("{}", 60)
    assert crashed.level == BAD and "ValueError" in crashed.found
    (hung,) = probe.run_trials("{}", 0.0)
    assert hung.level == BAD and " 0 s" in hung.found


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Answers of torch.cuda as on a machine with GPUs; kernels are still missing."""

    def fake(capability: tuple[int, int], *, free_gib: float = 20, total_gib: float = 24) -> None:
        properties = SimpleNamespace(
            major=capability[0], minor=capability[1], name="NVIDIA Card", total_memory=int(total_gib * GIB)
        )
        answers = {
            "is_available": lambda: True,
            "device_count": lambda: 1,
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
        ((8, 6), "auto", OK, "bf16"),
        ((6, 0), "off", OK, "fp32"),
    ],
)
def test_the_precision_is_that_of_training_and_plan(
    fake_gpu: Callable[..., None], capability: tuple[int, int], amp: str, level: str, precision: str
) -> None:
    fake_gpu(capability)
    environment, config = configure({"OVERRIDES": f"TRAIN.AMP {amp}"})
    found = next(iter(probe.check_device(environment, config)))
    assert (found.about, found.level) == ("precision", level) and precision in found.found
    plan = Plan(config, find_machine(environment))
    assert (plan.precision, plan.stores_scores) == (precision, level == BAD)


@pytest.mark.parametrize(("free_gib", "codes"), [(3.3, ["plan.memory"]), (16.0, [])])
def test_plan_and_doctor_use_the_free_memory_of_the_gpu_and_the_trials_find_that_it_does_not_compute(
    fake_gpu: Callable[..., None], free_gib: float, codes: list[str], tmp_path: Path
) -> None:
    fake_gpu((8, 6), free_gib=free_gib)
    variables = {"CONFIG": "seqtrack_b256", "EPOCHS": "1", "BATCH_SIZE": "8", "OUTPUT_DIR": str(tmp_path)}
    environment, config = configure(variables)
    plan = Plan(config, find_machine(environment))
    assert plan.machine.memory == int(free_gib * GIB)
    assert [problem.code for problem in plan.problems] == codes
    found = {one.about: one for one in probe.check_device(environment, config)}
    assert found["memory"].level == (BAD if codes else OK) and f"{free_gib:.1f}" in found["memory"].found
    assert found["device trials"].level == BAD, "the child has no fakes and finds no GPU"


def test_more_processes_than_gpus_are_refused_before_anything_is_tried(fake_gpu: Callable[..., None]) -> None:
    fake_gpu((8, 6))
    environment, config = configure({"NPROC": "2"})
    assert [one.level for one in probe.check_device(environment, config)] == [BAD]
    with pytest.raises(UserError) as refused:
        find_machine(environment)
    assert refused.value.code == "device.too_many_processes"


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


def test_packages_are_compared_with_the_lock_or_the_package_metadata(tmp_path: Path) -> None:
    assert check_packages(LOCK).level == OK
    lock = tmp_path / "requirements.lock"
    lock.write_text("torch==1.0.0 \\\n    --hash=sha256:00\n")
    finding = check_packages(lock)
    assert finding.level == BAD and "==1.0.0" in finding.found

"""`seqtrack doctor` on valid and on invalid machines and settings: each finding with its negative control."""

import json
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from runs import command, start
from uploads.hub_server import Hub

from seqtrack.commands import doctor_probe as probe
from seqtrack.commands.doctor import (
    BAD,
    LOCK,
    NOTE,
    OK,
    Finding,
    check_clock,
    check_driver,
    check_packages,
    check_room,
    check_token,
)  # fmt: skip
from seqtrack.commands.machine import GIB, free_memory
from seqtrack.commands.plan import find_machine, make_plan
from seqtrack.config.environment import configure
from seqtrack.errors import UserError

TOKEN = "hf_doctorMustNeverPrintThis"


def environ(tmp_path: Path, **variables: str) -> dict[str, str]:
    folders = {"OUTPUT_DIR": str(tmp_path / "output"), "DATA_DIR": str(tmp_path / "data")}
    return {"PATH": "/usr/bin:/bin", **folders, "HF_HUB_DISABLE_XET": "1", "DEVICE": "cpu", **variables}


def doctor(tmp_path: Path, **variables: str) -> tuple[int, dict[str, list[str]], str]:
    """Exit code, what each topic's lines begin with, and the whole output."""
    with start(environ(tmp_path, **variables), "doctor") as running:
        ended = running.end()
    levels: dict[str, list[str]] = {}
    for line in ended.said.splitlines():
        if line[:4].strip() in (OK, NOTE, BAD):
            levels.setdefault(line[6:].partition(":")[0], []).append(line[:4].strip())
    return ended.code, levels, ended.said


def test_a_valid_machine_exits_with_0_and_nothing_is_changed(tmp_path: Path) -> None:
    ended = command("doctor", env=environ(tmp_path))
    assert ended.code == 0, ended.said
    assert list(tmp_path.iterdir()) == []
    for about in ("packages", "settings", "driver", "precision", "matrix product", "attention", "memory", "disk",
                  "output folder", "data folder", "data", "token"):  # fmt: skip
        assert f"  {about}: " in ended.said


def test_problems_exit_with_1(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("not a folder")
    code, levels, said = doctor(tmp_path, DATASET="lasot", CLASSES="book", CONFIG="demo")
    assert code == 1
    assert [about for about, found in levels.items() if BAD in found] == ["output folder", "data"], said


def test_every_invalid_setting_is_reported(tmp_path: Path) -> None:
    code, levels, said = doctor(tmp_path, PHASE="3", SEED="x")
    assert code == 1 and levels["settings"] == [BAD, BAD]
    assert "PHASE: found '3'" in said and "SEED: found 'x'" in said


class TestToken:
    @pytest.fixture
    def hub(self) -> Iterator[Hub]:
        server = Hub().start()
        yield server
        server.stop()

    @pytest.mark.parametrize(("role", "level"), [("write", OK), ("read", BAD), (None, BAD)])
    def test_the_hub_is_asked_and_the_token_is_never_shown(
        self, tmp_path: Path, hub: Hub, role: str | None, level: str
    ) -> None:
        if role:
            hub.tokens[TOKEN] = role
        code, levels, said = doctor(tmp_path, HF_REPO="me/tracker", HF_ENDPOINT=hub.endpoint, HF_TOKEN=TOKEN)
        assert (code, levels["token"], levels["clock"]) == (int(level == BAD), [level], [OK]), said
        assert TOKEN not in said
        assert not hub.repos, "asking must not create the repository"

    def test_a_hub_that_does_not_answer_is_reported(self, tmp_path: Path) -> None:
        code, levels, said = doctor(tmp_path, HF_REPO="me/tracker", HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
        assert (code, levels["token"], levels["clock"]) == (1, [BAD], [NOTE])
        assert TOKEN not in said

    def test_a_missing_token_is_reported(self, tmp_path: Path) -> None:
        variables = {"HF_REPO": "me/tracker"}
        assert [one.level for one in check_token(configure(variables)[0], variables)] == [BAD]
        variables["HF_TOKEN_PATH"] = str(tmp_path / "missing")
        (finding,) = check_token(configure(variables)[0], variables)
        assert finding.level == BAD and variables["HF_TOKEN_PATH"] in finding.found


class TestDeviceTrials:
    def test_several_processes_try_an_exchange(self) -> None:
        variables = {"DEVICE": "cpu", "NPROC": "2", "OVERRIDES": "TRAIN.AMP bf16"}
        found = {one.about: one for one in probe.try_device(*configure(variables))}
        assert [one.level for one in found.values()] == [OK] * 4
        assert "bf16" in found["attention"].found and "exchange" in found

    @pytest.mark.parametrize("error", [RuntimeError("CUDA error: no kernel image\nmore"), MemoryError("no room")])
    def test_a_trial_that_fails_is_reported_with_the_library_message_and_advice(
        self, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def failing(*_: Any) -> str:
            raise error

        monkeypatch.setenv(probe._VARIABLE, json.dumps({"device": "cpu", "processes": 1}))
        monkeypatch.setattr("seqtrack.process.end_with_parent", lambda _: None)
        trials = {"bad": (failing, "remedy"), "good": (lambda *_: "fine", "remedy")}
        monkeypatch.setattr(probe, "TRIALS", trials)
        assert probe.main() == 0
        findings = [Finding(**json.loads(line)) for line in capsys.readouterr().out.splitlines()]
        assert [(one.about, one.level, one.advice) for one in findings] == [("bad", BAD, "remedy"), ("good", OK, "")]
        assert str(error).splitlines()[0] in findings[0].found

    def test_processes_that_crash_or_hang_are_reported(self) -> None:
        (crashed,) = probe.run_trials({"device": "cpu"}, 60)
        assert crashed.level == BAD and "KeyError" in crashed.found
        (hung,) = probe.run_trials({"device": "cpu", "processes": 1}, 0.0)
        assert hung.level == BAD and " 0 s" in hung.found


class TestGpu:
    @pytest.fixture
    def fake_gpu(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        """Answers of torch.cuda as on a machine with GPUs; kernels are still missing."""

        def fake(capability: tuple[int, int], *, free_gib: float, total_gib: float) -> None:
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
        self,
        fake_gpu: Callable[..., None],
        capability: tuple[int, int],
        amp: str,
        level: str,
        precision: str,
        tmp_path: Path,
    ) -> None:
        fake_gpu(capability, free_gib=10, total_gib=16)
        environment, config = configure({"OVERRIDES": f"TRAIN.AMP {amp}", "OUTPUT_DIR": str(tmp_path)})
        found = next(iter(probe.try_device(environment, config)))
        assert (found.about, found.level) == ("precision", level) and precision in found.found
        plan = make_plan(config, find_machine(environment))
        assert plan["precision"] == precision
        assert (plan["attention"] == "fused") == (level == OK)

    @pytest.mark.parametrize(("free_gib", "fits"), [(3.3, False), (16.0, True)])
    def test_plan_and_doctor_use_the_free_memory_of_the_gpu(
        self, fake_gpu: Callable[..., None], free_gib: float, fits: bool, tmp_path: Path
    ) -> None:
        fake_gpu((8, 6), free_gib=free_gib, total_gib=24)
        variables = {"CONFIG": "seqtrack_b256", "EPOCHS": "1", "BATCH_SIZE": "8", "OUTPUT_DIR": str(tmp_path)}
        environment, config = configure(variables)
        plan = make_plan(config, find_machine(environment))
        assert plan["memory_there"] == int(free_gib * GIB)
        assert [problem.code for problem in plan["problems"]] == ([] if fits else ["plan.memory"])
        found = {one.about: one for one in check_room(environment, config)}["memory"]
        assert found.level == (OK if fits else BAD) and f"{free_gib:.1f}" in found.found

    def test_more_processes_than_gpus_are_refused_before_anything_is_tried(self, fake_gpu: Callable[..., None]) -> None:
        fake_gpu((8, 6), free_gib=20, total_gib=24)
        environment, config = configure({"NPROC": "2"})
        assert [one.level for one in probe.try_device(environment, config)] == [BAD]
        with pytest.raises(UserError) as refused:
            find_machine(environment)
        assert refused.value.code == "device.too_many_processes"

    def test_a_gpu_that_answers_and_does_not_compute_is_reported(self, fake_gpu: Callable[..., None]) -> None:
        fake_gpu((8, 6), free_gib=20, total_gib=24)
        levels = [one.level for one in probe.try_device(*configure({}))]
        assert levels == [OK, BAD], "the child has no fakes and finds no GPU"

    def test_the_driver_is_needed_for_cuda_only(self, tmp_path: Path) -> None:
        program = tmp_path / "nvidia-smi"
        assert check_driver("auto", nvidia_smi=str(program)).level == NOTE
        assert check_driver("cuda", nvidia_smi=str(program)).level == BAD
        program.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3050, 550.54, 4096 MiB'\n")
        program.chmod(0o755)
        assert check_driver("cuda", nvidia_smi=str(program)).level == OK
        program.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed"; exit 9\n')
        finding = check_driver("cuda", nvidia_smi=str(program))
        assert finding.level == BAD and "NVIDIA-SMI has failed" in finding.found


def test_a_memory_limit_of_a_container_counts_without_cached_files(tmp_path: Path) -> None:
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


def test_the_clock_is_compared_with_the_hub() -> None:
    now = time.time()
    dates = {OK: formatdate(now + 20, usegmt=True), BAD: formatdate(now + 4000, usegmt=True), NOTE: None}
    for level, date in dates.items():
        assert check_clock(now, date).level == level


def test_packages_are_compared_with_the_lock_or_the_package_metadata(tmp_path: Path) -> None:
    assert check_packages(LOCK).level == OK
    lock = tmp_path / "requirements.lock"
    assert check_packages(lock).level in (OK, NOTE)
    lock.write_text("torch==1.0.0 \\\n    --hash=sha256:00\n")
    finding = check_packages(lock)
    assert finding.level == BAD and "==1.0.0" in finding.found

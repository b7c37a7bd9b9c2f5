"""What the doctor says of sound and of unsound machines and settings. Each judgement is shown with its opposite."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
from uploads.hub_server import Hub

from seqtrack.commands import doctor_machine as machine
from seqtrack.commands import doctor_project as project
from seqtrack.commands.doctor_findings import Level
from seqtrack.config.environment import configure

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
        timeout=100,
        check=False,
    )
    return answer.returncode, answer.stdout + answer.stderr


def test_a_sound_machine_gets_exit_code_0_and_is_left_as_it_was(tmp_path: Path) -> None:
    code, said = doctor(tmp_path)
    assert code == 0, said
    assert "everything is in order" in said
    assert list(tmp_path.iterdir()) == []
    for about in ("driver", "GPU", "memory", "shared memory", "disk", "output folder", "data", "token", "clock"):
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
    assert project.check_token(configure(environ)[0], environ)[0].level is Level.BAD


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((8, 6), ["sm_50", "sm_80", "sm_86", "sm_90"], True),
        ((8, 9), ["sm_80", "sm_86", "sm_90"], True),  # RTX 40 runs what was made for 8.6
        ((8, 0), ["sm_86"], False),
        ((12, 0), ["sm_80", "sm_86", "sm_90"], False),  # RTX 50 on CUDA 12.1
        ((12, 0), ["sm_90", "sm_120"], True),
        ((12, 0), ["sm_80", "compute_90"], True),
        ((9, 0), ["sm_90a"], True),
        ((3, 5), ["sm_50", "sm_90"], False),
    ],
)
def test_a_gpu_is_held_against_what_torch_was_built_for(
    capability: tuple[int, int], built_for: list[str], expected: bool
) -> None:
    assert machine.supports(capability, built_for) is expected


def test_a_newer_gpu_gets_the_newer_image_and_an_older_one_does_not() -> None:
    newer = machine.judge_gpu("GPU 0", "RTX 5090", (12, 0), ["sm_80", "sm_90"], "torch")
    older = machine.judge_gpu("GPU 0", "K40", (3, 5), ["sm_50", "sm_90"], "torch")
    assert "CUDA=cu128" in newer.advice
    assert "CUDA=cu128" not in older.advice
    assert machine.judge_gpu("GPU 0", "RTX 3050", (8, 6), ["sm_80"], "torch").level is Level.GOOD


def test_a_small_card_gets_advice_and_a_large_one_none() -> None:
    assert "USE_CHECKPOINT" in machine.judge_gpu_memory("m", 4 * machine.GIB, 4 * machine.GIB).advice
    assert machine.judge_gpu_memory("m", 20 * machine.GIB, 24 * machine.GIB).level is Level.GOOD


def test_the_driver_is_needed_for_cuda_only(tmp_path: Path) -> None:
    missing = str(tmp_path / "nvidia-smi")
    assert machine.check_driver("auto", nvidia_smi=missing).level is Level.NOTE
    assert machine.check_driver("cuda", nvidia_smi=missing).level is Level.BAD
    answers = tmp_path / "answers"
    answers.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 3050, 550.54, 4096 MiB'\n")
    answers.chmod(0o755)
    assert machine.check_driver("cuda", nvidia_smi=str(answers)).level is Level.GOOD
    broken = tmp_path / "broken"
    broken.write_text('#!/bin/sh\necho "NVIDIA-SMI has failed because it couldn\'t communicate"; exit 9\n')
    broken.chmod(0o755)
    finding = machine.check_driver("cuda", nvidia_smi=str(broken))
    assert finding.level is Level.BAD
    assert "couldn't communicate" in finding.found


def test_a_containers_memory_limit_counts(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 33554432 kB\nMemAvailable: 16777216 kB\n")
    assert machine.check_memory(meminfo=meminfo, cgroup=tmp_path).level is Level.GOOD
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.check_memory(meminfo=meminfo, cgroup=tmp_path).level is Level.GOOD
    (tmp_path / "memory.max").write_text(f"{5 * machine.GIB}\n")
    (tmp_path / "memory.current").write_text(f"{2 * machine.GIB}\n")
    finding = machine.check_memory(meminfo=meminfo, cgroup=tmp_path)
    assert finding.level is Level.BAD
    assert "3.0 GiB available" in finding.found


def test_the_disk_is_held_against_what_the_run_writes(tmp_path: Path) -> None:
    assert machine.check_disk("disk", tmp_path / "new", 1).level is Level.GOOD
    assert machine.check_disk("disk", tmp_path / "new", 2**60).level is Level.BAD
    demo, real = (project.bytes_needed(configure({"CONFIG": name})[1]) for name in ("demo", "seqtrack_b256"))
    assert demo < 2 * machine.GIB
    assert real > 10 * machine.GIB  # checkpoints of 1.09 GB


def test_the_clock_is_held_against_the_hub_or_against_the_past() -> None:
    now = time.time()
    assert machine.check_clock(now, server_date=formatdate(now + 20, usegmt=True), known_past=0).level is Level.GOOD
    assert machine.check_clock(now, server_date=formatdate(now + 4000, usegmt=True), known_past=0).level is Level.BAD
    assert machine.check_clock(now, server_date=None, known_past=now - 5).level is Level.GOOD
    assert machine.check_clock(now, server_date=None, known_past=now + 5).level is Level.BAD


def test_packages_are_held_against_the_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text((ROOT / "requirements.lock").read_text())
    assert project.check_packages(lock).level is Level.GOOD
    lock.write_text("torch==1.0.0 \\\n    --hash=sha256:00\n")
    finding = project.check_packages(lock)
    assert finding.level is Level.BAD
    assert "lock: ==1.0.0" in finding.found

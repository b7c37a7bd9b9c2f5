"""Runs in containers, started as users start them: with compose, with a bare `docker run`, over two containers.

Equality is decided by phase 2's own comparison and by `seqtrack verify`, whose tests show that they notice a single
changed bit. Phase 2 is uninterrupted from its start on, so it is the run that phase 1 would have been.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from runs import copy_of_the_repository

from docker.containers import SMALL, Project, command, docker, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
MakeProject = Callable[..., Project]
# Epochs of about three seconds, so that they can be stopped in the middle.
LONGER = {"EPOCHS": "2", "OVERRIDES": "DATA.TRAIN.SAMPLE_PER_EPOCH 1000"}
# Mount points that the engine creates; nothing else may differ from the image.
MOUNT_POINTS = {"C /run", "A /run/secrets", "A /run/secrets/hf_token"}
OWNER = 12345


def begin_and_wait(project: Project, epoch: int) -> subprocess.Popen[str]:
    """`up train-phase1` until it is in the middle of an epoch."""

    def in_the_middle() -> bool:
        last = project.records()[-1:]
        return bool(last) and last[0]["epoch"] == epoch and last[0]["type"] == "interval" and last[0]["sample"] >= 150

    up = project.start("up", "--no-color", "train-phase1")
    wait_until("the middle of an epoch", in_the_middle, seconds=120)
    return up


def complete(project: Project, job: str, **variables: str) -> str:
    """`up JOB` to its good end; returns the screen's content."""
    answer = project.compose("up", "--no-color", job, timeout=580, **variables)
    assert project.exit_code(job) == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def interrupted(
    image: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Project, dict[str, Any]]:
    """Both phases of a fresh clone, in folders of another user, and what was seen on the way. Phase 1 was stopped once
    and killed once."""
    project = Project(copy_of_the_repository(tmp_path_factory.mktemp("interrupted")), image, variables=dict(LONGER))
    request.addfinalizer(project.down)
    seen: dict[str, Any] = {"before": set(project.folder.rglob("*"))}
    for folder in (project.output, project.folder / "data"):
        os.chown(folder, OWNER, OWNER)
        (folder / ".gitkeep").unlink()
    up = begin_and_wait(project, epoch=1)
    asked = time.monotonic()
    assert project.compose("stop").returncode == 0
    seen["stop_s"] = time.monotonic() - asked
    up.communicate(timeout=60)
    seen |= {"stop_code": project.exit_code("train-phase1"), "saved": project.checkpoints(kind="step")}
    up = begin_and_wait(project, epoch=2)
    docker("kill", project.container("train-phase1")["Id"])
    up.communicate(timeout=60)
    seen["kill_code"] = project.exit_code("train-phase1")
    complete(project, "train-phase1")
    seen["container"] = project.container("train-phase1")
    return project, seen


def test_a_run_that_was_stopped_and_killed_ends_as_an_uninterrupted_one(
    interrupted: tuple[Project, dict[str, Any]],
) -> None:
    project, seen = interrupted
    assert (seen["stop_code"], seen["kill_code"]) == (75, 137)
    assert seen["stop_s"] < 30 and seen["saved"], "a checkpoint inside the epoch within the grace period"
    starts = json.loads((project.output / "phase_1/run.json").read_text())["starts"]
    assert len(starts) == 3 and "SEQTRACK_step" in starts[1]["source"]
    assert project.checkpoints() == ["SEQTRACK_ep0001", "SEQTRACK_ep0002"]
    screen = complete(project, "train-phase2", RESUME_EPOCH="1")
    assert [line for line in screen.splitlines() if "train-phase2" in line and "|" in line][-1].endswith("identical")
    assert project.checkpoints(2) == ["SEQTRACK_ep0002"]


def test_files_belong_to_the_folders_owner_and_nothing_is_written_elsewhere(
    interrupted: tuple[Project, dict[str, Any]],
) -> None:
    project, seen = interrupted
    for folder in (project.output, project.folder / "data"):
        files = [folder, *folder.rglob("*")]
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in files} == {(OWNER, OWNER)}
    new = {path.relative_to(project.folder).parts[0] for path in {*project.folder.rglob("*")} - seen["before"]}
    assert new == {"output", "data"}
    assert seen["container"]["HostConfig"]["ReadonlyRootfs"]
    assert set(docker("diff", project.container("train-phase1")["Id"]).splitlines()) <= MOUNT_POINTS


def test_the_other_services_work(interrupted: tuple[Project, dict[str, Any]]) -> None:
    project, _ = interrupted
    assert project.compose("up", "--detach", "tensorboard", TENSORBOARD_PORT="0").returncode == 0
    for words, expected in {
        ("verify",): "identical",
        ("evaluate", "--checkpoint", "last", "--sequences", "disk-21"): "AUC",
    }.items():
        answer = project.compose("run", "--rm", "--no-deps", *words, timeout=200)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert expected in answer.stdout + answer.stderr
    port = project.compose("port", "tensorboard", "6006").stdout.strip()
    assert port.startswith("127.0.0.1:"), "TensorBoard has no password: only this machine may reach it"

    def runs() -> list[str]:
        try:
            with urllib.request.urlopen(f"http://{port}/data/runs", timeout=5) as answer:
                return list(json.load(answer))
        except OSError:
            return []

    assert "phase_1" in wait_until("TensorBoard's answer", runs)


def test_doctor_quotes_the_engines_message_about_a_missing_gpu(make_project: MakeProject) -> None:
    project = make_project(files=("compose.yaml",), variables=dict(SMALL))
    answer = project.compose("up", "train-phase1")
    message = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
    assert answer.returncode != 0
    assert message in answer.stderr
    report = command(["docker", "run", "--rm", project.image, "doctor"])
    assert message in report.stdout + report.stderr


@pytest.mark.long
def test_two_containers_train_the_same_run_as_one_with_as_many_ranks(
    make_project: MakeProject, interrupted: tuple[Project, dict[str, Any]]
) -> None:
    projects = []
    for ranks, jobs, files in (
        ("2", ["train-phase1"], ("compose.yaml", "compose.cpu.yaml")),
        ("1", ["node0", "node1"], ("docker/compose.multi.yaml",)),
    ):
        project = make_project(variables={**SMALL, "DEVICE": "cpu", "NPROC": ranks}, files=files)
        shutil.copytree(interrupted[0].folder / "data", project.folder / "data", dirs_exist_ok=True)
        answer = project.compose("up", "--no-color", *jobs)
        assert [project.exit_code(job) for job in jobs] == [0] * len(jobs), answer.stdout + answer.stderr
        projects.append(project)
    mounts = [f"-v{project.output / 'phase_1'}:/{number}:ro" for number, project in enumerate(projects)]
    answer = command(["docker", "run", "--rm", *mounts, projects[0].image, "verify", "/0", "/1"])
    assert answer.stdout.strip().splitlines()[-1] == "identical", answer.stdout

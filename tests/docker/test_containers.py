"""Runs in containers, started as users start them: with compose, with a bare `docker run`, over two containers.

Equality is decided by `seqtrack verify`, whose own tests show that it notices a single changed bit.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from docker.containers import SMALL, Project, command, copy_of_the_repository, docker, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]
MakeProject = Callable[..., Project]
# An epoch of about four seconds, so that it can be stopped in the middle.
LONGER = {"EPOCHS": "2", "OVERRIDES": "DATA.TRAIN.SAMPLE_PER_EPOCH 1200"}
# Mount points that the engine creates; nothing else may differ from the image.
MOUNT_POINTS = {"C /run", "A /run/secrets", "A /run/secrets/hf_token"}


@pytest.fixture(scope="module")
def uninterrupted(image: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Project:
    """Phase 1, uninterrupted, of the run that other tests interrupt."""
    project = Project(copy_of_the_repository(tmp_path_factory.mktemp("uninterrupted")), image, variables=dict(LONGER))
    request.addfinalizer(project.down)
    screen = project.up("train-phase1")
    assert project.exit_code("train-phase1") == 0, screen
    return project


def verdict(image: str, one: Path, other: Path) -> str:
    """The last word of `seqtrack verify` on two phase folders."""
    mounts = ["-v", f"{one}:/one:ro", "-v", f"{other}:/other:ro"]
    answer = command(["docker", "run", "--rm", *mounts, image, "verify", "/one", "/other"])
    word = answer.stdout.strip().splitlines()[-1]
    assert answer.returncode == {"identical": 0, "differs": 1}[word], answer.stdout
    return word


def in_the_middle_of_epoch(project: Project, epoch: int) -> bool:
    """Whether some of the epoch's steps are done and others are not."""
    last = project.records()[-1:]
    return bool(last) and last[0]["epoch"] == epoch and last[0]["type"] == "interval" and last[0]["sample"] >= 200


def begin_and_wait(project: Project, epoch: int = 2) -> subprocess.Popen[str]:
    """`up train-phase1` until it is in the middle of an epoch."""
    up = project.start("up", "--no-color", "train-phase1")
    wait_until("the middle of an epoch", lambda: in_the_middle_of_epoch(project, epoch), seconds=120)
    return up


def owners(folder: Path) -> set[tuple[int, int]]:
    return {(path.lstat().st_uid, path.lstat().st_gid) for path in [folder, *folder.rglob("*")]}


@pytest.mark.run
@pytest.mark.parametrize(
    ("variables", "epochs", "least_iou"),
    [
        pytest.param({**SMALL, "EPOCHS": "4"}, 4, 0.0, id="short"),
        pytest.param({}, 10, 0.4, id="whole", marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_both_phases_on_a_fresh_clone_end_identical(
    make_project: MakeProject, variables: dict[str, str], epochs: int, least_iou: float
) -> None:
    project = make_project(variables=dict(variables))
    screen = project.up("train-phase1", timeout=580)
    assert project.exit_code("train-phase1") == 0, screen
    assert project.exit_code("uploader") == 0, screen
    assert project.checkpoints() == [f"SEQTRACK_ep{epoch:04d}" for epoch in range(1, epochs + 1)]
    last = [record for record in project.records() if record["type"] == "epoch"][-1]
    assert last["epoch"] == epochs
    assert last["iou"] >= least_iou
    screen = project.up("train-phase2", timeout=580, RESUME_EPOCH="3")
    assert project.exit_code("train-phase2") == 0, screen
    assert project.checkpoints(2) == [f"SEQTRACK_ep{epoch:04d}" for epoch in range(4, epochs + 1)]
    assert (project.output / "comparison/certificate.json").is_file()
    assert [line for line in screen.splitlines() if "train-phase2" in line and "|" in line][-1].endswith("identical")
    answer = project.compose("run", "--rm", "--no-deps", "verify")
    assert answer.stdout.strip().splitlines()[-1] == "identical", answer.stdout + answer.stderr


@pytest.mark.parametrize(
    "owner", [pytest.param(0, marks=pytest.mark.long), pytest.param(1000, marks=pytest.mark.long), 12345]
)
def test_files_belong_to_the_folders_owner_and_nothing_is_written_elsewhere(
    make_project: MakeProject, owner: int
) -> None:
    project = make_project(variables=dict(SMALL))
    before = set(project.folder.rglob("*"))
    for folder in (project.output, project.folder / "data"):
        os.chown(folder, owner, owner)
        (folder / ".gitkeep").unlink()
    screen = project.up("train-phase1")
    assert project.exit_code("train-phase1") == 0, screen
    assert owners(project.output) == {(owner, owner)}
    assert owners(project.folder / "data") == {(owner, owner)}
    new = {path.relative_to(project.folder).parts[0] for path in {*project.folder.rglob("*")} - before}
    assert new == {"output", "data"}
    container = project.container("train-phase1")
    assert container["HostConfig"]["ReadonlyRootfs"]
    assert set(docker("diff", container["Id"]).splitlines()) <= MOUNT_POINTS


def test_stop_saves_within_the_grace_period_and_up_continues_to_the_same_result(
    make_project: MakeProject, uninterrupted: Project
) -> None:
    project = make_project(variables=dict(LONGER))
    up = begin_and_wait(project)
    asked = time.monotonic()
    assert project.compose("stop").returncode == 0
    took_s = time.monotonic() - asked
    screen, _ = up.communicate(timeout=60)
    assert project.exit_code("train-phase1") == 75, screen
    assert took_s < 30
    assert project.checkpoints(kind="step"), "no checkpoint inside the epoch"
    screen = project.up("train-phase1")
    assert project.exit_code("train-phase1") == 0, screen
    starts = json.loads((project.output / "phase_1/run.json").read_text())["starts"]
    assert "SEQTRACK_step" in starts[-1]["source"]
    assert verdict(project.image, uninterrupted.output / "phase_1", project.output / "phase_1") == "identical"


def test_a_killed_container_continues_to_the_same_result(make_project: MakeProject, uninterrupted: Project) -> None:
    project = make_project(variables=dict(LONGER))
    up = begin_and_wait(project)
    docker("kill", project.container("train-phase1")["Id"])
    up.communicate(timeout=60)
    assert project.exit_code("train-phase1") == 137
    screen = project.up("train-phase1")
    assert project.exit_code("train-phase1") == 0, screen
    assert verdict(project.image, uninterrupted.output / "phase_1", project.output / "phase_1") == "identical"


@pytest.mark.long
def test_a_restarting_engine_loses_nothing(make_project: MakeProject, uninterrupted: Project) -> None:
    tool = os.environ.get("DOCKER_ENGINE_TOOL")
    if not tool:
        pytest.skip("DOCKER_ENGINE_TOOL does not name a command that stops and starts the engine")
    project = make_project(variables=dict(LONGER))
    up = begin_and_wait(project)
    try:
        assert command([tool, "down"]).returncode == 0
        up.communicate(timeout=60)
        # It stops answering some time before it ends, and a second engine would refuse to start meanwhile.
        wait_until("the engine's end", lambda: not Path("/var/run/docker.pid").exists())
    finally:  # other tests need an engine
        started = command([tool, "up"], timeout=120, capture_output=False, stdin=subprocess.DEVNULL)
    assert started.returncode == 0
    assert len(project.checkpoints()) < 2, "the run was over before the engine was stopped"
    screen = project.up("train-phase1")
    assert project.exit_code("train-phase1") == 0, screen
    assert verdict(project.image, uninterrupted.output / "phase_1", project.output / "phase_1") == "identical"


@pytest.mark.long
def test_two_different_runs_differ(make_project: MakeProject, reference: Project) -> None:
    project = make_project(variables={**SMALL, "SEED": "4"})
    screen = project.up("train-phase1")
    assert project.exit_code("train-phase1") == 0, screen
    assert verdict(project.image, reference.output / "phase_1", project.output / "phase_1") == "differs"


@pytest.mark.long
@pytest.mark.parametrize("each", [1, 2])
def test_two_containers_train_the_same_run_as_one_with_as_many_ranks(
    make_project: MakeProject, reference: Project, each: int
) -> None:
    variables = {**SMALL, "DEVICE": "cpu", "NPROC": str(each)}
    one = make_project(variables={**variables, "NPROC": str(2 * each)})
    shutil.copytree(reference.folder / "data", one.folder / "data", dirs_exist_ok=True)
    screen = one.up("train-phase1")
    assert one.exit_code("train-phase1") == 0, screen
    two = make_project(variables=variables, files=("docker/compose.multi.yaml",))
    shutil.copytree(reference.folder / "data", two.folder / "data", dirs_exist_ok=True)
    answer = two.compose("up", "--no-color")
    assert (two.exit_code("node0"), two.exit_code("node1")) == (0, 0), answer.stdout + answer.stderr
    assert verdict(one.image, one.output / "phase_1", two.output / "phase_1") == "identical"


def test_the_other_services_work(reference: Project) -> None:
    for words, expected in {
        ("prepare-data",): "synthetic",
        ("evaluate", "evaluate", "--checkpoint", "last"): "AUC",
        ("verify", "report"): "report.md",
        ("verify", "doctor"): "settings",
        ("verify", "plan"): "parameters",
    }.items():
        answer = reference.compose("run", "--rm", "--no-deps", *words, timeout=200)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert expected in answer.stdout + answer.stderr
    assert reference.compose("up", "--detach", "tensorboard", TENSORBOARD_PORT="0").returncode == 0
    port = reference.compose("port", "tensorboard", "6006").stdout.strip()
    assert port.startswith("127.0.0.1:"), "TensorBoard has no password: only this machine may reach it"

    def runs() -> list[str]:
        try:
            with urllib.request.urlopen(f"http://{port}/data/runs", timeout=5) as answer:
                return list(json.load(answer))
        except OSError:
            return []

    assert "phase_1/logs/tensorboard" in wait_until("TensorBoard's answer", runs)
    assert reference.compose("rm", "--stop", "--force", "tensorboard").returncode == 0


def test_doctor_quotes_the_engines_message_about_a_missing_gpu(make_project: MakeProject) -> None:
    project = make_project(files=("compose.yaml",), variables=dict(SMALL))
    answer = project.compose("up", "train-phase1")
    message = 'could not select device driver "nvidia" with capabilities: [[gpu]]'
    assert answer.returncode != 0
    assert message in answer.stderr
    report = command(["docker", "run", "--rm", project.image, "doctor"])
    assert message in report.stdout + report.stderr

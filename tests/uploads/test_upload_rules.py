"""The uploader's decisions: what is found, what goes first, how long to wait, who is healthy."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from uploads.harness import FakeTime, files_of, once, put, watch
from uploads.hub_server import Hub

from seqtrack.commands.upload import health_problems
from seqtrack.config.environment import Environment
from seqtrack.errors import UserError
from seqtrack.uploads.client import TargetClient, child_environment
from seqtrack.uploads.scan import UploadUnit
from seqtrack.uploads.state import UploadState
from seqtrack.uploads.target import (
    Fault,
    Order,
    Reply,
    TargetSettings,
    UploadSettings,
    choose_target,
    read_settings,
    stage,
)
from seqtrack.uploads.uploader import Uploader, choose_batch

MB = 1024 * 1024


def unit(path: str, *, size: int = 10, mtime: int = 0, checkpoint: bool = False) -> UploadUnit:
    return UploadUnit({path: (size, mtime, 0)}, (size, "0" * 64) if checkpoint else None)


def chosen(units: list[UploadUnit], logs: tuple[UploadUnit, ...] = (), max_bytes: float = 2e9, limit: int = 99) -> str:
    return " ".join(item.path for item in choose_batch(units, logs, max_bytes=max_bytes, unit_limit=limit))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "")
    return FakeTime()


def backoff(fake: FakeTime, *kinds: str, wait_s: float = 0.0) -> TargetClient:
    """A client whose orders fail by these kinds of fault, and are then carried out."""
    faults = iter(Fault.model_validate({"kind": kind, "line": "why", "wait_s": wait_s}) for kind in kinds)

    def run(*_: object) -> Reply:
        return Reply(fault=next(faults, None))

    return TargetClient(TargetSettings(kind="folder", place="/x"), UploadSettings(), run, fake.clock, random.Random(0))


def test_a_file_settles_by_our_clock_and_never_by_its_own(tmp_path: Path, fake: FakeTime) -> None:
    path = put(tmp_path / "output" / "a.txt", b"1")
    with Uploader(tmp_path / "output", backoff(fake), fake.stop) as uploader:
        ages = []
        for pause, data in ((0.0, None), (4.0, b"2"), (4.0, None), (1.5, None)):
            fake.now += pause
            if data:
                put(path, data)
            uploader.rescan()
            unit = uploader.units["a.txt"]
            ages.append((unit.state, fake.now - unit.waiting_since))
    assert ages == [("settling", 0.0), ("settling", 4.0), ("settling", 8.0), ("ready", 9.5)]


def test_the_latest_checkpoint_goes_first_and_a_large_one_goes_alone() -> None:
    for size, expected in ((300 * MB, "new train.log"), (MB, "new old train.log")):
        checkpoints = [unit(name, size=size, mtime=time, checkpoint=True) for name, time in (("old", 1), ("new", 2))]
        assert chosen([unit("train.log", mtime=3), *checkpoints]) == expected


def test_a_batch_keeps_its_limits() -> None:
    units = [unit(f"{n}", size=4, mtime=n) for n in range(6)]
    assert chosen(units, max_bytes=9) == "5 4"
    assert chosen(units, (unit("log"),), limit=3) == "5 4 3"
    assert chosen([unit("large", size=100)], max_bytes=9) == "large"
    assert chosen([unit(f"{n}", size=9 * MB) for n in range(6)]) == "0 1 2", "small files travel inside the commit"
    assert chosen([unit(f"{n}", size=11 * MB) for n in range(6)]) == "0 1 2 3 4 5"


def test_back_off_grows_to_its_cap_and_draws_from_the_whole_range(fake: FakeTime) -> None:
    trouble, waits = backoff(fake, *["network"] * 1000), []
    for _ in range(1000):
        trouble.send(Order())
        waits.append(trouble.wait_s())
    assert waits[0] <= 2 and 590 < max(waits) <= 600 and min(waits[20:]) < 10
    asked = backoff(fake, "rate", wait_s=900.0)
    asked.send(Order())
    assert asked.wait_s() == 900


@pytest.mark.parametrize(("stored", "failures"), [(0, [1, 2, 3, 4]), (2, [1, 1, 1, 2]), (9, [1, 2, 3, 4])])
def test_a_failure_after_which_fewer_files_are_left_counts_as_the_first(
    fake: FakeTime, tmp_path: Path, stored: int, failures: list[int]
) -> None:
    """Of six files; more than that were stored twice."""
    files = tuple(stage(f"{n}", put(tmp_path / f"{n}", b"")) for n in range(6))
    reply, trouble = Reply(fault=Fault(kind="network", line="why"), num_stored=stored), backoff(fake)
    trouble.runner, counted = lambda *_: reply, []
    for _ in failures:
        trouble.send(Order(files=files))
        counted.append(trouble.failures)
    assert counted == failures
    trouble.runner = lambda *_: Reply()
    trouble.send(Order(files=files))
    assert (trouble.failures, trouble.stored) == (0, 0)


def test_timeouts_grow_and_success_forgets_them(fake: FakeTime) -> None:
    trouble = backoff(fake, *["timeout"] * 3)
    for factor in (2.0, 4.0, 8.0, 1.0):
        trouble.send(Order())
        assert trouble.timeout_factor == factor
    assert (trouble.wait_s(), trouble.fault) == (0.0, None)


@pytest.mark.parametrize(("kind", "left"), [("xet", False), ("timeout", False), ("network", True)])
def test_xet_that_fails_is_left_for_lfs_and_tried_again_after_an_hour(fake: FakeTime, kind: str, left: bool) -> None:
    trouble = backoff(fake, kind)
    trouble.send(Order())
    assert trouble.use_xet() == left
    trouble.send(Order())
    assert trouble.use_xet() == left
    fake.now += 3601.0
    assert trouble.use_xet()


def test_the_child_gets_no_empty_settings() -> None:
    assert child_environment({}, use_xet=False)["HF_HUB_DISABLE_XET"] == "1"
    given = child_environment({"HF_ENDPOINT": ""}, use_xet=True).keys()
    assert not {"HF_HUB_DISABLE_XET", "HF_ENDPOINT"} & given


def test_the_target_is_chosen_and_an_overlapping_folder_refused(tmp_path: Path) -> None:
    chosen = choose_target(Environment(hf_repo="me/run", hf_endpoint="http://hub:80"))
    assert chosen == TargetSettings(kind="huggingface", place="me/run", endpoint="http://hub:80")
    assert chosen != choose_target(Environment(hf_repo="me/run"))
    output = tmp_path / "output"
    backup = Environment(upload_target=f"folder:{tmp_path / 'backup'}", output_dir=output, hf_endpoint="http://hub:80")
    assert choose_target(backup).label == f"folder {tmp_path / 'backup'}", "a folder has no address"
    (tmp_path / "link").symlink_to(output)
    for place in (output, output / "backup", tmp_path, tmp_path / "link", "tape:1"):
        target = f"folder:{place}" if isinstance(place, Path) else place
        with pytest.raises(UserError) as refused:
            choose_target(Environment(upload_target=target, output_dir=output))
        assert refused.value.code == ("upload.overlap" if isinstance(place, Path) else "upload.unknown_target")


@pytest.mark.parametrize("source", ["phase_1", "phase_2", "phase_1/checkpoints", "phase_2/checkpoints"])
def test_a_folder_that_overlaps_through_a_link_is_refused(tmp_path: Path, source: str) -> None:
    output, disk = tmp_path / "output", tmp_path / "disk"
    (disk / "run").mkdir(parents=True)
    (output / source).parent.mkdir(parents=True)
    (output / source).symlink_to(disk / "run")
    backup = tmp_path / "backup"
    backup.mkdir()
    (backup / "back").symlink_to(output)
    for place, prefix in ((disk, None), (disk / "run", None), (disk, "run/x"), (backup, "back"), (backup, "back/x")):
        with pytest.raises(UserError) as refused:
            choose_target(Environment(upload_target=f"folder:{place}", hf_prefix=prefix, output_dir=output))
        assert refused.value.code == "upload.overlap"
    for place, prefix in ((disk / "backup", None), (disk, "backup"), (backup, None), (tmp_path, "x")):
        target = Environment(upload_target=f"folder:{place}", hf_prefix=prefix, output_dir=output)
        assert choose_target(target).output_dir == output


@pytest.mark.parametrize("rule", [once, watch])
@pytest.mark.parametrize("linked", ["phase_1", "phase_1/checkpoints", "phase_1/config.yaml"])
def test_a_folder_that_holds_the_files_themselves_is_refused(
    hub: Hub, output: Path, tmp_path: Path, fake: FakeTime, rule: Callable[..., int], linked: str
) -> None:
    backup, before = tmp_path / "backup", files_of(output)
    (backup / linked).parent.mkdir(parents=True)
    (backup / linked).symlink_to(output / linked)
    fake.after(1000, fake.stop.set)
    with pytest.raises(UserError) as refused:
        rule(hub, output, time=fake, variables={"UPLOAD_TARGET": f"folder:{backup}"})
    assert (refused.value.code, files_of(output)) == ("upload.overlap", before)


@pytest.mark.parametrize(
    "name", ["me/run/", "me", " me/run", "https://user:pass@hub/me/run", "datasets/run", "spaces/a/b"]
)
def test_the_repo_of_a_target_is_read_as_hf_repo_is(name: str) -> None:
    with pytest.raises(UserError) as refused:
        choose_target(Environment(upload_target=f"huggingface:{name}"))
    assert (refused.value.code, "pass" in str(refused.value)) == ("variable.invalid_value", False)
    chosen = choose_target(Environment(upload_target="huggingface:datasets/me/run"))
    assert chosen == choose_target(Environment(hf_repo="datasets/me/run"))


def test_users_variables_win_over_the_tuning_of_tests() -> None:
    environ = {"UPLOAD_TUNING": '{"grace_s": 1, "settle_s": 2}', "UPLOAD_GRACE_S": "3"}
    settings = read_settings(environ)
    assert (settings.grace_s, settings.settle_s, settings.poll_s) == (3, 2, UploadSettings().poll_s)
    with pytest.raises(UserError) as refused:
        read_settings({"UPLOAD_TUNING": '{"gracious_s": 1}'})
    assert refused.value.code == "upload.tuning"


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, 0),
        ({"time": 900.0}, 1),
        ({"oldest_age_s": 4000.0}, 1),
        ({"fault": Fault(kind="account", line="why")}, 1),
        ({"fault": Fault(kind="network", line="why")}, 0),
        ({"problems": {"a.bin": "a.bin cannot be read"}}, 1),
        ({"state": "done", "time": 1.0}, 0),
        ({"state": "stopped", "time": 1.0}, 1),
    ],
)
def test_who_is_healthy(change: dict[str, object], reasons: int) -> None:
    state = UploadState(time=1000.0, oldest_age_s=5.0).model_copy(update=change)
    assert len(health_problems(state, UploadSettings(), now=1000.0)) == reasons
    assert len(health_problems(None, UploadSettings(), now=0.0)) == 1

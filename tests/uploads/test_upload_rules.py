"""The uploader's decisions: what is found, what goes first, how long to wait, who is healthy."""

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from uploads.harness import checkpoint, put

from seqtrack.config.environment import Environment
from seqtrack.errors import UserError
from seqtrack.uploads.backoff import Backoff, Clock, jittered
from seqtrack.uploads.client import child_environment
from seqtrack.uploads.errors import Fault
from seqtrack.uploads.scan import FileInfo, Scan, UploadUnit, scan
from seqtrack.uploads.settings import TargetSettings, UploadSettings, choose_target, read_settings
from seqtrack.uploads.state import (
    UploadState,
    VerifiedFile,
    health_problems,
    is_verified,
    load_state,
    state_folder,
    write_state,
)
from seqtrack.uploads.uploader import Uploader, choose_batch

MB = 1024 * 1024


class FakeTime:
    now = 0.0

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now, wall=lambda: self.now, sleep=lambda _: None)


def unit(path: str, *, size: int = 10, mtime: int = 0, checkpoint: bool = False) -> UploadUnit:
    return UploadUnit((FileInfo(path, (size, mtime, 0, 0)),), (size, "0" * 64) if checkpoint else None)


def chosen(units: list[UploadUnit], **options: object) -> list[str]:
    defaults = {"max_bytes": 2e9, "unit_limit": None, "suspects": set()}
    return [item.path for item in choose_batch(units, [], **{**defaults, **options})]  # type: ignore[arg-type]


def backoff(time: FakeTime | None = None, **settings: float) -> Backoff:
    return Backoff(UploadSettings(**settings), (time or FakeTime()).clock(), random.Random(0))


def test_the_scan_pairs_a_checkpoint_with_its_manifest_and_leaves_out_a_half(output: Path) -> None:
    checkpoint(output, 3)[1].unlink()
    checkpoint(output, 4)[0].unlink()
    found = scan(output)
    pairs = [tuple(f.path.rsplit("/", 1)[1] for f in u.files) for u in found.units if u.is_checkpoint]
    assert pairs == [(f"SEQTRACK_ep000{n}.safetensors", f"SEQTRACK_ep000{n}.json") for n in (1, 2)]
    assert not any("ep0003" in f.path or "ep0004" in f.path for u in found.units for f in u.files)


def test_the_scan_of_a_missing_folder_is_empty(tmp_path: Path) -> None:
    assert scan(tmp_path / "nothing") == Scan((), {})


def test_a_file_settles_by_our_clock_and_never_by_its_own(tmp_path: Path) -> None:
    time, path = FakeTime(), put(tmp_path / "output" / "a.txt", b"1")
    target = TargetSettings("folder", str(tmp_path / "backup"))
    with Uploader(tmp_path / "output", target, UploadSettings(settle_s=5), clock=time.clock()) as uploader:
        ages = []
        for now, data in ((0.0, None), (4.0, b"2"), (8.0, None), (9.5, None)):
            time.now = now
            if data:
                put(path, data)
            uploader.look_around()
            ages.append((len(uploader.ready), uploader.oldest_age_s()))
    assert ages == [(0, 0.0), (0, 4.0), (0, 8.0), (1, 9.5)]


def test_the_latest_checkpoint_goes_first_and_a_large_one_goes_alone() -> None:
    old = unit("old.safetensors", size=300 * MB, mtime=1, checkpoint=True)
    new = unit("new.safetensors", size=300 * MB, mtime=2, checkpoint=True)
    assert chosen([old, unit("train.log", mtime=3), new]) == ["new.safetensors", "train.log"]
    small = [
        replace(item, files=(replace(item.files[0], stamp=(MB, *item.files[0].stamp[1:])),)) for item in (old, new)
    ]
    assert chosen(small) == ["new.safetensors", "old.safetensors"]


def test_a_batch_keeps_its_limits_and_leaves_out_suspects() -> None:
    units = [unit(f"{n}.bin", size=4, mtime=n) for n in range(6)]
    assert chosen(units, max_bytes=9, suspects={"5.bin"}) == ["4.bin", "3.bin"]
    assert len(chosen(units, unit_limit=3)) == 3
    assert chosen(units[:1], suspects={"0.bin"}) == ["0.bin"], "when there is nothing else"
    assert chosen([unit("large.bin", size=100)], max_bytes=9) == ["large.bin"]


def test_back_off_grows_to_its_cap_and_draws_from_the_whole_range() -> None:
    rng = random.Random(0)
    draws = [jittered(20, base_s=2, cap_s=600, rng=rng) for _ in range(2000)]
    assert 0 <= min(draws) < 10 and 590 < max(draws) <= 600
    assert max(jittered(1, base_s=2, cap_s=600, rng=rng) for _ in range(200)) <= 2


def test_the_hourly_limit_of_commits_waits_a_quarter_of_an_hour_and_then_longer() -> None:
    trouble, waits = backoff(), []
    for _ in range(4):
        trouble.record_failure(Fault("commits", "128 per hour"), num_units=1)
        waits.append(trouble.wait_s())
    assert waits == [900, 1800, 3600, 3600]


def test_timeouts_grow_and_success_forgets_them() -> None:
    trouble = backoff()
    for _ in range(3):
        trouble.record_failure(Fault("timeout", "no answer"), num_units=2)
    assert trouble.timeout_factor == 8.0
    trouble.record_success()
    assert (trouble.timeout_factor, trouble.wait_s(), trouble.fault) == (1.0, 0.0, None)


def test_a_refused_batch_is_halved_unless_a_file_is_named() -> None:
    trouble = backoff()
    trouble.record_failure(Fault("refused", "no", path="a.txt"), num_units=9)
    assert trouble.unit_limit is None
    trouble.record_failure(Fault("refused", "no"), num_units=9)
    assert trouble.unit_limit == 5
    trouble.record_success()
    assert trouble.unit_limit == 10


@pytest.mark.parametrize(("kind", "failures"), [("xet", 1), ("timeout", 3)])
def test_xet_that_fails_is_left_for_lfs_and_tried_again_after_an_hour(kind: str, failures: int) -> None:
    time = FakeTime()
    trouble = backoff(time)
    trouble.record_failure(Fault("network", "503"), num_units=1)
    for _ in range(failures):
        assert trouble.use_xet
        trouble.record_failure(Fault(kind, "CAS"), num_units=1)
    assert not trouble.use_xet
    time.now = 3601.0
    assert trouble.use_xet


def test_the_child_gets_no_empty_settings() -> None:
    state = Path("/state")
    assert child_environment({}, use_xet=False, state=state)["HF_HUB_DISABLE_XET"] == "1"
    assert (
        not {"HF_HUB_DISABLE_XET", "HF_ENDPOINT"}
        & child_environment({"HF_ENDPOINT": ""}, use_xet=True, state=state).keys()
    )


def test_only_a_replaced_token_ends_a_long_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = put(tmp_path / "token", b"one")
    monkeypatch.setenv("HF_TOKEN_PATH", str(token))
    trouble = backoff(slow_retry_s=300.0)
    trouble.record_failure(Fault("token", "refused"), num_units=1)
    assert trouble.wait_s() == 300.0
    put(token, b"two")
    assert trouble.wait_s() == 0.0
    trouble.record_failure(Fault("quota", "full"), num_units=1)
    put(token, b"three")
    assert trouble.wait_s() == 300.0


def test_the_status_file_is_of_one_target_and_survives_a_restart(tmp_path: Path) -> None:
    target, folder = TargetSettings("huggingface", "me/run"), tmp_path / ".uploads"
    verified = VerifiedFile(stamp=(10, 1, 2, 3), sha256="0" * 64, git_sha1="1" * 40, commit="c")
    folder.mkdir()
    write_state(folder, UploadState(target_key=target.key, files={"a.txt": verified}), durable=True)
    assert is_verified(tmp_path, "a.txt", "0" * 64) and not is_verified(tmp_path, "a.txt", "1" * 64)
    with Uploader(tmp_path, target, UploadSettings()) as uploader:
        assert uploader.state.files == {"a.txt": verified}
    with Uploader(tmp_path, TargetSettings("huggingface", "me/another"), UploadSettings()) as uploader:
        assert uploader.state.files == {}
    (folder / "status.json").write_text('{"format": "seqtrack-uploads/0"}')
    assert load_state(folder) is None


def test_the_target_is_chosen_and_an_overlapping_folder_refused(tmp_path: Path) -> None:
    def key(endpoint: str | None) -> str | None:
        target = choose_target(Environment(hf_repo="me/run", hf_endpoint=endpoint))
        return target and target.key

    assert key("http://hub:80/") == key("http://hub:80") != key(None)
    assert choose_target(Environment()) is None
    output = tmp_path / "output"
    for place in (output, output / "backup", tmp_path):
        with pytest.raises(UserError) as refused:
            choose_target(Environment(upload_target=f"folder:{place}", output_dir=output))
        assert refused.value.code == "upload.overlap"
    assert choose_target(Environment(upload_target=f"folder:{tmp_path / 'backup'}", output_dir=output))
    with pytest.raises(UserError) as refused:
        choose_target(Environment(upload_target="tape:1"))
    assert refused.value.code == "upload.unknown_target"


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
        ({"fault": Fault("token", "refused")}, 1),
        ({"fault": Fault("network", "503")}, 0),
        ({"local_fault": "no space"}, 1),
        ({"problems": {"a.bin": "a.bin cannot be read"}}, 1),
        ({"state": "done", "time": 1.0}, 0),
        ({"state": "stopped", "time": 1.0}, 1),
    ],
)
def test_who_is_healthy(change: dict[str, object], reasons: int) -> None:
    state = UploadState(time=1000.0, oldest_age_s=5.0).model_copy(update=change)
    assert len(health_problems(state, UploadSettings(), now=1000.0)) == reasons


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder to another user")
def test_a_strangers_state_in_the_temporary_folder_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could claim that checkpoints are uploaded, and the trainer would delete them."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    output = tmp_path / "file" / "output"
    (tmp_path / "file").write_bytes(b"")  # so that nothing can be written to the output folder
    folder = state_folder(output)
    assert folder.parent == tmp_path
    write_state(folder, UploadState(files={"a": VerifiedFile(stamp=(1, 2, 3, 4), sha256="0")}), durable=True)
    assert is_verified(output, "a", "0")
    os.chown(folder, 12345, 12345)
    assert not is_verified(output, "a", "0")
    with pytest.raises(UserError) as refused:
        state_folder(output)
    assert refused.value.code == "upload.state_folder" and str(folder) in str(refused.value)


def test_no_status_is_unhealthy() -> None:
    assert len(health_problems(None, UploadSettings(), now=0.0)) == 1

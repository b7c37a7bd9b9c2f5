"""What Xet storage can do to an upload or a download: whatever it does, files go over LFS and plain HTTP soon.

The real `hf_xet` client talks to a server that has Xet storage as well.
"""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from uploads.harness import (
    FakeTime,
    assert_arrived,
    checkpoint,
    content,
    environ,
    finish,
    once,
    put,
    until,
    uploader_process,
    watch,
)
from uploads.hub_server import Hub
from uploads.xet_server import XetHub

from faults.test_uploads_process import peak_memory
from seqtrack.config.environment import read_environment
from seqtrack.uploads.fetch import fetch_checkpoint
from seqtrack.uploads.target import UploadSettings

pytestmark = pytest.mark.parametrize("hub", ["xet"], indirect=True)
KINDS: dict[str, dict[str, Any]] = {"500": {"status": 500}, "401": {"status": 401}, "reset": {"reset": "before"}}
KINDS |= {"wrong data": {"corrupt": "bytes"}, "hang": {"hang_s": 600.0}}
KINDS |= {"429": {"status": 429, "headers": {"Retry-After": "600"}}, "cut": {"reset": "middle"}}
KINDS |= {"lost answer": {"reset": "after"}}
UP, DOWN = ("xet-token", "xorb", "shard"), ("xet-token", "reconstruction", "xorb-get")


def test_large_files_go_over_xet_and_come_back_over_xet(
    hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: None
) -> None:
    assert once(hub, output) == 0
    assert "put" not in hub.stages() and {*UP} < {*hub.stages()}
    assert_arrived(hub, output)
    place = fetched(hub, output, tmp_path, monkeypatch)
    assert "storage-get" not in hub.stages() and {*DOWN} < {*hub.stages()}
    assert place.read_bytes() == (output / "phase_1" / "checkpoints" / place.name).read_bytes()


def fetched(hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in environ(hub, output, backoff_s=0.05, xet_stall_s=0.5).items():
        monkeypatch.setenv(name, value)
    return fetch_checkpoint(read_environment(os.environ), 2, tmp_path / "new")


FAULTS = [(stage, kind) for stage in UP for kind in ("500", "401", "reset", "wrong data")]
FAULTS += [("xorb", "429"), ("xorb", "cut"), ("xorb", "lost answer"), ("shard", "lost answer")]
IS_STORED = [("xet-token", "wrong data"), ("shard", "wrong data"), ("shard", "lost answer")]


@pytest.mark.parametrize(("stage", "kind"), FAULTS)
def test_an_upload_that_xet_fails_goes_over_lfs(hub: Hub, output: Path, stage: str, kind: str) -> None:
    hub.fail(stage, times=None, **KINDS[kind])
    assert once(hub, output) == 0
    assert ("put" in hub.stages()) == ((stage, kind) not in IS_STORED), "what is stored is not sent again"
    assert_arrived(hub, output)


@pytest.mark.parametrize("stage", DOWN)
@pytest.mark.parametrize("kind", ["500", "401", "reset", "wrong data"])
def test_a_download_that_xet_fails_goes_over_plain_http(
    hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inline: None, stage: str, kind: str
) -> None:
    assert once(hub, output) == 0
    hub.fail(stage, times=None, **KINDS[kind])
    place = fetched(hub, output, tmp_path, monkeypatch)
    assert place.read_bytes() == (output / "phase_1" / "checkpoints" / place.name).read_bytes()
    assert ("storage-get" in hub.stages()) == (kind != "wrong data" or stage == "xorb-get")


@pytest.mark.parametrize("stage", UP)
def test_an_upload_that_hangs_in_xet_goes_over_lfs(hub: Hub, output: Path, stage: str) -> None:
    assert UploadSettings().xet_stall_s <= 20, "a hang costs less than 30 s"
    hub.fail(stage, times=None, **KINDS["hang"])
    with uploader_process(hub, output, "--once", xet_stall_s=0.5, read_timeout_s=1) as running:
        assert running.end() == 0, running.said()
    assert_arrived(hub, output)


@pytest.mark.parametrize("stage", ["reconstruction", "xorb-get"])
def test_a_download_that_hangs_in_xet_goes_over_plain_http(
    hub: Hub, output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    assert once(hub, output) == 0
    hub.fail(stage, times=None, **KINDS["hang"])
    place = fetched(hub, output, tmp_path, monkeypatch)
    assert place.read_bytes() == (output / "phase_1" / "checkpoints" / place.name).read_bytes()


def test_asked_to_stop_while_xet_hangs_uploads_over_lfs_within_the_grace(hub: Hub, output: Path) -> None:
    hub.fail("xorb", times=None, **KINDS["hang"])
    with uploader_process(hub, output, xet_stall_s=600, deadline_s=600, grace_s=16) as running:
        until(lambda: "xorb" in hub.stages())
        running.send_signal(signal.SIGTERM)
        assert running.end() == 0, running.said()
    assert_arrived(hub, output)


def test_xet_is_used_again_an_hour_after_it_failed(hub: Hub, output: Path) -> None:
    fault, fake, seen = hub.fail("xorb", status=500, times=None), FakeTime(), []

    def next_checkpoint(epoch: int) -> None:
        seen.append((hub.stages().count("put"), hub.stages().count("shard")))
        checkpoint(output, epoch)

    fake.after(60, lambda: (hub.faults.remove(fault), next_checkpoint(3)))
    fake.after(3900, lambda: next_checkpoint(4))
    fake.after(4000, lambda: (seen.append((hub.stages().count("put"), hub.stages().count("shard"))), finish(output)))
    assert watch(hub, output, time=fake, poll_s=20) == 0
    assert seen[0][1] == seen[1][1] == 0 and seen[1][0] > seen[0][0], "first over LFS"
    assert seen[2][1] > 0 and seen[2][0] == seen[1][0], "and then over Xet"
    assert_arrived(hub, output)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_stays_small_while_a_slow_store_takes_a_large_file(hub: Hub, tmp_path: Path) -> None:
    assert isinstance(hub, XetHub)
    hub.keep_bytes = False
    output = tmp_path / "output"
    big = put(output / "phase_1" / "big.bin", b"")
    with big.open("wb") as file:
        for block in range(2_100):
            file.write(content(1_000_000, block))
    hub.fail("xorb", hang_s=12, times=None)
    slow = {"read_timeout_s": 60.0, "deadline_s": 800.0, "patience_s": 800.0, "xet_stall_s": 60.0}
    with uploader_process(hub, output, "--once", **slow) as running:
        peak = peak_memory(running)
        assert running.end() == 0
    assert hub.tree()["phase_1/big.bin"].size == 2_100_000_000
    assert "put" not in hub.stages()
    assert 30 < peak < 500, f"{peak:.0f} MB"

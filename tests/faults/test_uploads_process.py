"""What can happen to the sidecar itself: killed at any moment, asked to stop, its journal lost, its child dead."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from uploads.harness import (
    REPO,
    ROOT,
    TOKEN,
    assert_arrived,
    checkpoint,
    content,
    environ,
    files_of,
    finish,
    on_hub,
    once,
    sidecar,
    status,
    until,
)
from uploads.hub_server import Hub

from seqtrack.uploads.journal import STATES, is_verified


def states(output: Path) -> set[str]:
    """The states that are in the journal now."""
    place = output / ".uploads" / "journal.sqlite"
    if not place.exists():
        return set()
    try:
        base = sqlite3.connect(f"{place.as_uri()}?mode=ro", uri=True)
        try:
            return {row[0] for row in base.execute("SELECT state FROM files")}
        finally:
            base.close()
    except sqlite3.Error:
        return set()


def children(pid: int) -> list[int]:
    """Processes whose parent this is."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(place.parent.name))
    return found


@pytest.mark.parametrize("state", STATES)
def test_killed_at_a_state_and_started_again(hub: Hub, output: Path, state: str) -> None:
    """Nothing is lost, no commit is made twice, no stored object is sent again."""
    more: dict[str, str] = {"UPLOAD_READ_TIMEOUT_S": "60", "UPLOAD_DEADLINE_S": "60"}
    if state == "seen":
        more["UPLOAD_SETTLE_S"] = "600"
        for path in (output / "phase_1" / "checkpoints").iterdir():
            path.unlink()
    elif state == "stable":
        hub.fail("whoami", hang_s=60)
    elif state == "uploading":
        hub.fail("commit", hang_s=60)
    elif state == "committed":
        hub.fail("paths-info", status=None)  # the question before the commit is answered
        hub.fail("paths-info", hang_s=60)
    elif state == "apart":
        hub.refuse_path = "phase_1/config.yaml"
    elif state == "damaged":
        os.truncate(checkpoint(output, 3)[0], 100)
    with sidecar(environ(hub, output, **more)) as running:
        until(lambda: state in states(output), what=state)
        name = "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"
        if state in ("uploading", "committed", "verified"):
            assert is_verified(output, name, files_of(output)[name]) == (state == "verified")
        running.kill()
    hub.clear()
    hub.refuse_path = None
    if state == "damaged":
        checkpoint(output, 3)
    finish(output)
    with sidecar(environ(hub, output)) as running:
        assert running.wait() == 0
    assert_arrived(hub, output)
    assert set(hub.puts.values()) <= {1}


def test_the_child_goes_when_its_parent_is_killed(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=60)
    with sidecar(environ(hub, output, UPLOAD_READ_TIMEOUT_S="60")) as running:
        until(lambda: "preupload" in hub.stages())
        (child,) = children(running.process.pid)
        running.kill()
        until(lambda: not Path(f"/proc/{child}").exists(), 5)
    hub.clear()
    assert once(environ(hub, output)) == 0
    assert_arrived(hub, output)


def test_a_child_that_dies_is_replaced(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=60)
    with sidecar(environ(hub, output, UPLOAD_READ_TIMEOUT_S="60")) as running:
        until(lambda: "preupload" in hub.stages())
        os.kill(children(running.process.pid)[0], signal.SIGKILL)  # as the kernel does when memory is out
        finish(output)
        assert running.wait() == 0
        assert "died" in running.said()
    assert_arrived(hub, output)


def test_asked_to_stop_while_idle(hub: Hub, output: Path) -> None:
    with sidecar(environ(hub, output)) as running:
        until(lambda: status(output).get("queue") == 0 and on_hub(hub))
        running.signal(signal.SIGTERM)
        assert running.wait(10) == 0
    assert_arrived(hub, output)


def test_asked_to_stop_with_files_left_sends_them_first(hub: Hub, output: Path) -> None:
    with sidecar(environ(hub, output, UPLOAD_MIN_COMMIT_INTERVAL_S="600")) as running:
        until(lambda: on_hub(hub))
        checkpoint(output, 3)
        time.sleep(0.3)
        running.signal(signal.SIGTERM)
        assert running.wait(20) == 0
    assert_arrived(hub, output)


def test_asked_to_stop_in_the_middle_of_a_put_finishes_it(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    checkpoint(output, 1, size=100_000)
    hub.fail("put", rate=60_000)
    with sidecar(environ(hub, output)) as running:
        until(lambda: "put" in hub.stages())
        running.signal(signal.SIGTERM)
        assert running.wait(20) == 0
    assert_arrived(hub, output)


def test_asked_to_stop_in_a_back_off_tries_once_more_and_says_what_is_left(hub: Hub, output: Path) -> None:
    hub.fail("preupload", status=503, times=None)
    with sidecar(environ(hub, output, UPLOAD_BACKOFF_S="600", UPLOAD_BACKOFF_CAP_S="600")) as running:
        until(lambda: status(output).get("failures", 0) == 1)
        tried = hub.stages().count("preupload")
        running.signal(signal.SIGTERM)
        assert running.wait(30) == 3
    assert hub.stages().count("preupload") > tried
    assert "not on the target" in running.said()


def test_asked_to_stop_while_a_call_hangs_ends_within_the_grace(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=60, times=None)
    with sidecar(environ(hub, output, UPLOAD_READ_TIMEOUT_S="60", UPLOAD_GRACE_S="1")) as running:
        until(lambda: "preupload" in hub.stages())
        running.signal(signal.SIGTERM)
        began = time.monotonic()
        assert running.wait(20) == 3
        assert time.monotonic() - began < 8


@pytest.mark.parametrize("harm", ["deleted", "damaged", "emptied"])
def test_a_lost_journal_is_rebuilt_from_what_the_target_lists(hub: Hub, output: Path, harm: str) -> None:
    env = environ(hub, output)
    assert once(env) == 0
    commits, puts = len(hub.repos[REPO].commits), dict(hub.puts)
    journal = output / ".uploads" / "journal.sqlite"
    for extra in output.glob(".uploads/journal.sqlite-*"):
        extra.unlink()
    if harm == "deleted":
        journal.unlink()
    elif harm == "emptied":
        journal.write_bytes(b"")
    else:
        journal.write_bytes(b"SQLite format 3\0" + content(8000, "damage"))
    assert once(env) == 0
    assert (len(hub.repos[REPO].commits), hub.puts) == (commits, puts)
    assert states(output) == {"verified"}
    assert_arrived(hub, output)


def test_the_journal_tells_retention_what_may_be_deleted(hub: Hub, output: Path) -> None:
    name = "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"
    digest = files_of(output)[name]
    assert not is_verified(output, name, digest)
    assert once(environ(hub, output)) == 0
    assert is_verified(output, name, digest)
    assert not is_verified(output, name, "0" * 64)
    assert not is_verified(output, "phase_1/checkpoints/SEQTRACK_ep0009.safetensors", digest)
    checkpoint(output, 3)
    fault = hub.fail("commit", status=503, times=None)
    assert once(environ(hub, output, UPLOAD_PATIENCE_S="0.5")) == 3
    third = "phase_1/checkpoints/SEQTRACK_ep0003.safetensors"
    assert not is_verified(output, third, files_of(output)[third])
    hub.faults.remove(fault)
    (output / name).unlink()
    (output / name).with_suffix(".json").unlink()
    assert once(environ(hub, output)) == 0
    assert name in on_hub(hub), "what is deleted here stays there"


def test_a_day_without_the_hub_with_a_clock_that_jumps(tmp_path: Path) -> None:
    env = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    script = ROOT / "tests" / "uploads" / "day_long_outage.py"
    done = subprocess.run([sys.executable, script, tmp_path], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["tries"] < 24 * 60 * 60 / 100, "it does not hammer a server that is away"
    assert told["longest_gap_s"] <= 630
    assert told["first_try_after_s"] <= 630
    epochs = [int(path[-16:-12]) for path in told["order"]]
    assert epochs == sorted(range(1, 25), reverse=True), "newest first"
    assert (told["violations"], set(told["puts"])) == ([], {1})


def test_the_token_is_nowhere(hub: Hub, output: Path) -> None:
    """Not in a log, a status, the journal, the process list, or a request to the storage host."""
    env = environ(hub, output)
    hub.fail("put", status=500)
    hub.fail("commit", status=403, message=f"denied for {TOKEN}")
    hub.fail("preupload", status=401, message=f"bad {TOKEN}")
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.add(place.read_bytes())
                except OSError:
                    continue
            over.wait(0.02)

    watcher = threading.Thread(target=look)
    watcher.start()
    finish(output)
    with sidecar(env) as running:
        assert running.wait() == 0
    over.set()
    watcher.join()
    assert any(b"seqtrack.uploads.child" in line for line in seen), "the watcher saw the child"
    written = b"".join(p.read_bytes() for p in [running.log, *output.rglob("*")] if p.is_file())
    assert TOKEN.encode() not in written + b"".join(seen)
    assert "put" in hub.stages()
    assert hub.violations == []


def soak(tmp_path: Path, *, files: int, largest: int, kills: int, seconds: float) -> None:
    """Files from another process, a third of all calls failing, the sidecar killed again and again."""
    hub = Hub(seed=3).start()
    output = tmp_path / "output"
    output.mkdir()
    hub.fail("any", status=503, times=None, chance=0.15)
    hub.fail("any", reset="before", times=None, chance=0.12)
    hub.fail("any", reset="after", times=None, chance=0.10)
    writer = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "uploads" / "writer.py", output, str(files), str(largest), str(seconds / 4)],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    env = environ(hub, output, UPLOAD_REQUEST_TRIES="3", UPLOAD_TRIES_BEFORE_APART="1000")
    chance = random.Random(5)
    pause = seconds / 2 / kills
    for _ in range(kills):
        with sidecar(env) as running:
            time.sleep(chance.uniform(0.3 * pause, 1.7 * pause))
            running.kill()
    assert writer.wait(120) == 0
    finish(output)
    with sidecar(env) as running:
        assert running.wait(seconds * 2) == 0
    hub.stop()
    assert len(files_of(output)) > files
    assert_arrived(hub, output)
    assert set(hub.puts.values()) == {1}
    hub.discard()


def test_soak_in_short(tmp_path: Path) -> None:
    soak(tmp_path, files=40, largest=2_000_000, kills=4, seconds=20)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_soak(tmp_path: Path) -> None:
    began = time.monotonic()
    soak(tmp_path, files=200, largest=50_000_000, kills=30, seconds=180)
    assert time.monotonic() - began < 300

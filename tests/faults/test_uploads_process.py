"""What can happen to the sidecar itself: killed at any moment, asked to stop, its journal lost, its child dead."""

import json
import os
import random
import signal
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
    environ,
    files_of,
    finish,
    on_hub,
    once,
    status,
    until,
    uploader,
    uploader_process,
)
from uploads.hub_server import Hub, make_entry

from seqtrack.uploads.state import is_verified


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


STAGES = {
    "settling": lambda hub: None,
    "staged": lambda hub: hub.fail("whoami", hang_s=60),
    "uploading": lambda hub: hub.fail("commit", hang_s=60),
    "committed": lambda hub: (hub.fail("paths-info", status=None), hub.fail("paths-info", hang_s=60)),
    "verified": lambda hub: None,
    "quarantined": lambda hub: setattr(hub, "refuse_path", "phase_1/config.yaml"),
    "damaged": lambda hub: None,
}


def has_reached(hub: Hub, output: Path, stage: str) -> bool:
    """Whether the uploader is at this stage of its work."""
    state = status(output)
    return {
        "settling": state.get("queue", 0) > 0,
        "staged": "whoami" in hub.stages(),
        "uploading": "commit" in hub.stages(),
        "committed": state.get("last_commit") is not None,
        "verified": state.get("verified", 0) >= 7,
        "quarantined": "phase_1/config.yaml" in state.get("problems", {}),
        "damaged": "phase_1/checkpoints/SEQTRACK_ep0003.safetensors" in state.get("problems", {}),
    }[stage]


@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_a_stage_and_started_again(hub: Hub, output: Path, stage: str) -> None:
    """Nothing is lost, no commit is made twice, no stored object is sent again."""
    if stage == "settling":
        for path in (output / "phase_1" / "checkpoints").iterdir():
            path.unlink()
    elif stage == "damaged":
        os.truncate(checkpoint(output, 3)[0], 100)
    STAGES[stage](hub)
    settle_s = 600 if stage == "settling" else 0.2
    with uploader_process(environ(hub, output, read_timeout_s=60, deadline_s=60, settle_s=settle_s)) as running:
        until(lambda: has_reached(hub, output, stage), what=stage)
        name = "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"
        if stage in ("uploading", "committed", "verified"):
            assert is_verified(output, name, files_of(output)[name]) == (stage == "verified")
        running.kill()
    hub.clear()
    hub.refuse_path = None
    if stage == "damaged":
        checkpoint(output, 3)
    finish(output)
    with uploader(environ(hub, output)) as running:
        assert running.wait() == 0
    assert_arrived(hub, output)
    assert set(hub.puts.values()) <= {1}


def test_the_child_goes_when_its_parent_is_killed(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=600)
    with uploader_process(environ(hub, output, read_timeout_s=60)) as running:
        until(lambda: "preupload" in hub.stages())
        (child,) = children(running.process.pid)
        running.kill()
        until(lambda: not Path(f"/proc/{child}").exists(), what="the child's end")
    hub.clear()
    assert once(environ(hub, output)) == 0
    assert_arrived(hub, output)


def test_a_child_that_dies_is_replaced(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=600)
    with uploader_process(environ(hub, output, read_timeout_s=60)) as running:
        until(lambda: "preupload" in hub.stages())
        os.kill(children(running.process.pid)[0], signal.SIGKILL)  # as the kernel does when memory is out
        finish(output)
        assert running.wait() == 0
        assert "died" in running.said()
    assert_arrived(hub, output)


def test_asked_to_stop_while_idle(hub: Hub, output: Path) -> None:
    with uploader_process(environ(hub, output)) as running:
        until(lambda: status(output).get("queue") == 0 and on_hub(hub))
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_asked_to_stop_with_files_left_sends_them_first(hub: Hub, output: Path) -> None:
    with uploader(environ(hub, output, min_commit_interval_s=600)) as running:
        until(lambda: on_hub(hub))
        checkpoint(output, 3)
        until(lambda: status(output)["queue"] >= 2, what="the new checkpoint in the queue")
        running.stop.asked.set()
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_after_a_stop_request_commits_are_not_paced(hub: Hub, output: Path) -> None:
    with uploader(environ(hub, output, min_commit_interval_s=600, batch_mb=1e-6)) as running:
        until(lambda: hub.stages().count("commit") == 1)
        running.stop.asked.set()
        assert running.wait() == 0
    assert hub.stages().count("commit") > 2
    assert_arrived(hub, output)


def test_asked_to_stop_in_the_middle_of_a_put_finishes_it(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    checkpoint(output, 1, size=100_000)
    hub.fail("put", rate=60_000)
    with uploader_process(environ(hub, output)) as running:
        until(lambda: "put" in hub.stages())
        running.signal(signal.SIGTERM)
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_asked_to_stop_in_a_back_off_tries_once_more_and_reports_what_is_left(hub: Hub, output: Path) -> None:
    hub.fail("preupload", status=503, times=None)
    with uploader(environ(hub, output, backoff_s=600, backoff_cap_s=600)) as running:
        until(lambda: status(output).get("failures", 0) == 1)
        tried = hub.stages().count("preupload")
        running.stop.asked.set()
        assert running.wait() == 3
    assert hub.stages().count("preupload") > tried
    assert (status(output)["state"], status(output)["queue"]) == ("stopped", 7)


def test_asked_to_stop_while_a_call_hangs_ends_within_the_grace(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=600, times=None)
    with uploader_process(environ(hub, output, read_timeout_s=600, deadline_s=600, grace_s=1)) as running:
        until(lambda: "preupload" in hub.stages())
        running.signal(signal.SIGTERM)
        assert running.wait() == 3


@pytest.mark.parametrize("harm", ["deleted", "damaged", "emptied"])
def test_a_lost_status_file_is_rebuilt_from_what_the_target_lists(hub: Hub, output: Path, harm: str) -> None:
    env = environ(hub, output)
    assert once(env) == 0
    commits, puts = len(hub.repos[REPO].commits), dict(hub.puts)
    place = output / ".uploads" / "status.json"
    before = status(output)["files"]
    if harm == "deleted":
        place.unlink()
    else:
        place.write_bytes(place.read_bytes()[:200] if harm == "damaged" else b"")
    assert once(env) == 0
    assert (len(hub.repos[REPO].commits), hub.puts) == (commits, puts)
    assert status(output)["files"].keys() == before.keys()
    assert_arrived(hub, output)


@pytest.mark.parametrize("once_more", ["once", "watch"])
@pytest.mark.parametrize("loss", ["repo", "file", "bytes"])
def test_what_the_target_lost_is_found_and_uploaded_again(hub: Hub, output: Path, loss: str, once_more: str) -> None:
    env = environ(hub, output)
    assert once(env) == 0
    if loss == "repo":
        hub.repos.clear()
        hub.objects.clear()
    else:
        tree = dict(hub.tree(REPO))
        gone = tree.pop("phase_1/config.yaml")
        replaced = {"phase_1/config.yaml": make_entry(b"by hand")}
        hub.repos[REPO].commits.append(("1" * 40, (), tree if loss == "file" else tree | replaced))
        assert gone.data != b"by hand"
    finish(output)
    with uploader(env, once=once_more == "once") as running:
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


def test_a_withdrawn_token_is_no_success_even_if_nothing_is_new(hub: Hub, output: Path) -> None:
    assert once(environ(hub, output)) == 0
    hub.tokens.clear()
    assert once(environ(hub, output)) == 3


def test_the_status_file_tells_retention_what_may_be_deleted(hub: Hub, output: Path) -> None:
    name = "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"
    digest = files_of(output)[name]
    assert not is_verified(output, name, digest)
    assert once(environ(hub, output)) == 0
    assert is_verified(output, name, digest)
    assert not is_verified(output, name, "0" * 64)
    assert not is_verified(output, "phase_1/checkpoints/SEQTRACK_ep0009.safetensors", digest)
    checkpoint(output, 3)
    fault = hub.fail("commit", status=503, times=None)
    assert once(environ(hub, output, patience_s=1)) == 3
    third = "phase_1/checkpoints/SEQTRACK_ep0003.safetensors"
    assert not is_verified(output, third, files_of(output)[third])
    hub.faults.remove(fault)
    (output / name).unlink()
    (output / name).with_suffix(".json").unlink()
    assert once(environ(hub, output)) == 0
    assert name in on_hub(hub), "what is deleted here stays there"


@pytest.mark.parametrize("hours", [6, pytest.param(24, marks=pytest.mark.long)])
def test_hours_without_the_hub_with_a_clock_that_jumps(tmp_path: Path, hours: int) -> None:
    env = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    script = ROOT / "tests" / "uploads" / "long_outage.py"
    command = [sys.executable, script, tmp_path, str(hours)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["tries"] < hours * 60 * 60 / 100, "it does not hammer a server that is away"
    assert result["longest_gap_s"] <= 630
    assert result["first_try_after_s"] <= 630
    epochs = [int(path[-16:-12]) for path in result["order"]]
    assert epochs == sorted(range(1, hours + 1), reverse=True), "newest first"
    assert (result["violations"], set(result["puts"])) == ([], {1})


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
    with uploader_process(env) as running:
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
    env = environ(hub, output, request_tries=3, tries_per_file=1000)
    chance = random.Random(5)
    pause = seconds / 2 / kills
    for _ in range(kills):
        with uploader_process(env) as running:
            time.sleep(chance.uniform(0.3 * pause, 1.7 * pause))
            running.kill()
    assert writer.wait(120) == 0
    finish(output)
    with uploader_process(env) as running:
        assert running.wait(max(120, seconds * 2)) == 0
    hub.stop()
    assert len(files_of(output)) > files
    assert_arrived(hub, output)
    assert set(hub.puts.values()) == {1}
    hub.discard()


def test_soak_in_short(tmp_path: Path) -> None:
    soak(tmp_path, files=40, largest=2_000_000, kills=3, seconds=12)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_soak(tmp_path: Path) -> None:
    soak(tmp_path, files=200, largest=50_000_000, kills=30, seconds=180)

"""What can happen to the sidecar itself: killed at any moment, asked to stop, its state lost, its child dead."""

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
    FakeTime,
    assert_arrived,
    checkpoint,
    files_of,
    finish,
    on_hub,
    once,
    status,
    until,
    uploader,
    uploader_process,
    watch,
)
from uploads.hub_server import Hub, make_entry

from seqtrack.uploads.state import is_verified

FIRST = "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"


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


@pytest.mark.parametrize("stage", ["uploading", "committed", "verified"])
def test_killed_at_a_stage_and_started_again(hub: Hub, output: Path, stage: str) -> None:
    """Nothing is lost, no commit is made twice, no stored object is sent again; the child goes with its parent."""
    if stage == "committed":
        hub.fail("paths-info")
        hub.fail("paths-info", hang_s=60)
    elif stage == "uploading":
        hub.fail("commit", hang_s=60)
    with uploader_process(
        hub, output, read_timeout_s=60, deadline_s=60, settle_s=0.2, min_commit_interval_s=0
    ) as killed:
        until(lambda: "commit" in hub.stages() if stage != "verified" else status(output).get("verified", 0) >= 7)
        own = children(killed.pid)
        assert is_verified(output, FIRST, files_of(output)[FIRST]) == (stage == "verified")
        killed.kill()
        killed.wait(10)
        until(lambda: not any(Path(f"/proc/{child}").exists() for child in own), what="the child's end")
    assert own or stage == "verified"
    hub.clear()
    finish(output)
    assert watch(hub, output) == 0
    assert_arrived(hub, output)


def test_a_child_that_dies_is_replaced(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=600)
    with uploader_process(hub, output, "--once", read_timeout_s=60) as running:
        until(lambda: "preupload" in hub.stages())
        os.kill(children(running.pid)[0], signal.SIGKILL)  # as the kernel does when memory is out
        assert running.end() == 0
    assert_arrived(hub, output)


def test_asked_to_stop_in_the_middle_of_a_put_finishes_it(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    checkpoint(output, 1, size=100_000)
    hub.fail("put", rate=60_000)
    with uploader_process(hub, output) as running:
        until(lambda: "put" in hub.stages())
        running.send_signal(signal.SIGTERM)
        assert running.end() == 0
    assert_arrived(hub, output)


def test_asked_to_stop_while_a_call_hangs_ends_within_the_grace(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=600, times=None)
    with uploader_process(hub, output, read_timeout_s=600, deadline_s=600, grace_s=1) as running:
        until(lambda: "preupload" in hub.stages())
        running.send_signal(signal.SIGTERM)
        assert running.end() == 3


@pytest.mark.parametrize("batch_mb", [1024, 1e-6])
def test_asked_to_stop_with_files_left_sends_them_all_without_pauses(hub: Hub, output: Path, batch_mb: float) -> None:
    fake = FakeTime()
    fake.after(50, lambda: (checkpoint(output, 3), fake.stop.set()))
    assert watch(hub, output, time=fake, min_commit_interval_s=600, batch_mb=batch_mb) == 0
    assert hub.stages().count("commit") >= (2 if batch_mb > 1 else 6)
    assert_arrived(hub, output)


def test_asked_to_stop_in_a_back_off_tries_once_more_and_reports_what_is_left(hub: Hub, output: Path) -> None:
    fault, fake, tried = hub.fail("preupload", status=503, times=None), FakeTime(), []

    def stop() -> None:
        assert status(output)["failures"] >= 1
        tried.append(hub.stages().count("preupload"))
        fake.stop.set()

    fake.after(20, stop)
    began = fake.now
    assert watch(hub, output, time=fake, backoff_s=600) == 3
    assert hub.stages().count("preupload") > tried[0] and fault.times is None
    assert fake.now - began < 90
    assert (status(output)["state"], status(output)["queue"]) == ("stopped", 7)


@pytest.mark.parametrize("harm", ["deleted", "damaged", "another format"])
def test_a_lost_status_file_is_rebuilt_from_what_the_target_lists(hub: Hub, output: Path, harm: str) -> None:
    assert once(hub, output) == 0
    place, before = output / ".uploads" / "status.json", status(output)["files"]
    text = place.read_text()
    place.unlink()
    if harm != "deleted":
        place.write_text(text[:200] if harm == "damaged" else text.replace("seqtrack-uploads/", "other/"))
    assert once(hub, output) == 0
    assert status(output)["files"].keys() == before.keys()
    assert_arrived(hub, output)


def test_the_state_of_another_target_is_not_believed(hub: Hub, output: Path) -> None:
    assert once(hub, output) == 0
    assert once(hub, output, variables={"HF_REPO": "me/another"}) == 0
    assert hub.tree("me/another").keys() == hub.tree(REPO).keys()


@pytest.mark.parametrize("rule", [once, watch])
@pytest.mark.parametrize("loss", ["repo", "file", "bytes"])
def test_what_the_target_lost_is_found_and_uploaded_again(hub: Hub, output: Path, loss: str, rule: object) -> None:
    assert once(hub, output) == 0
    if loss == "repo":
        hub.repos.clear()
        hub.objects.clear()
    else:
        tree = dict(hub.tree(REPO))
        del tree["phase_1/config.yaml"]
        replaced = {"phase_1/config.yaml": make_entry(b"by hand")}
        hub.repos[REPO].commits.append(("1" * 40, (), tree if loss == "file" else tree | replaced))
    finish(output)
    assert rule(hub, output) == 0  # type: ignore[operator]
    assert_arrived(hub, output, commits_each=None)


def test_what_is_lost_while_it_watches_is_found_before_it_ends(hub: Hub, output: Path) -> None:
    fake = FakeTime()
    fake.after(50, lambda: hub.repos[REPO].commits.append(("1" * 40, (), {})))
    fake.after(60, lambda: fake.stop.set())
    assert watch(hub, output, time=fake) == 0
    assert_arrived(hub, output, commits_each=None)


def test_a_withdrawn_token_is_no_success_even_if_nothing_is_new(hub: Hub, output: Path) -> None:
    assert once(hub, output) == 0
    hub.tokens.clear()
    assert once(hub, output) == 3


def test_the_status_file_tells_retention_what_may_be_deleted(hub: Hub, output: Path) -> None:
    digest = files_of(output)[FIRST]
    assert not is_verified(output, FIRST, digest)
    assert once(hub, output) == 0
    assert is_verified(output, FIRST, digest)
    assert not is_verified(output, FIRST, "0" * 64)
    assert not is_verified(output, FIRST.replace("1", "9"), digest)
    checkpoint(output, 3)
    fault, third = hub.fail("commit", status=503, times=None), FIRST.replace("0001", "0003")
    assert once(hub, output) == 3
    assert not is_verified(output, third, files_of(output)[third])
    hub.faults.remove(fault)
    (output / FIRST).unlink()
    (output / FIRST).with_suffix(".json").unlink()
    assert once(hub, output) == 0
    assert FIRST in on_hub(hub), "what is deleted here stays there"


@pytest.mark.parametrize("hours", [4, pytest.param(24, marks=pytest.mark.long)])
def test_hours_without_the_hub_with_a_wall_clock_that_jumps(hub: Hub, tmp_path: Path, hours: int) -> None:
    """One checkpoint per hour while the server is down; then it comes back."""
    output, fake, port = tmp_path / "output", FakeTime(), hub.port
    hub.stop()
    for epoch in range(1, hours + 1):
        fake.after(3600 * (epoch - 1), lambda epoch=epoch: checkpoint(output, epoch))
    for hour, skew in ((0.25 * hours, -900_000.0), (0.5 * hours, 5_000_000.0), (hours - 0.1, 0.0)):
        fake.after(3600 * hour, lambda skew=skew: setattr(fake, "skew", skew))
    fake.after(3600 * hours, lambda: (hub.start(port), finish(output)))
    back = fake.now + 3600 * hours
    # Small batches, so that the order of catching up can be seen.
    with uploader(hub, output, time=fake, batch_mb=0.06, poll_s=120, settle_s=240) as (at_work, runner):
        assert at_work.run() == 0
    tries = [moment for moment in runner.called_at if moment < back]
    assert len(tries) < hours * 60 * 60 / 100, "it does not hammer a server that is away"
    assert max(b - a for a, b in zip(runner.called_at, runner.called_at[1:], strict=False) if a < back) <= 800
    order = [path for _, changed, _ in hub.repos[REPO].commits for path in changed if path.endswith(".safetensors")]
    assert [int(path[-16:-12]) for path in order] == list(range(hours, 0, -1)), "newest first"
    assert_arrived(hub, output)


def test_the_token_is_nowhere(hub: Hub, output: Path) -> None:
    """Not in a log, the status, the process list, or a request to the storage host."""
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
    with uploader_process(hub, output) as running:
        assert running.end() == 0
    over.set()
    watcher.join()
    assert any(b"seqtrack.uploads.child" in line for line in seen), "the watcher saw the child"
    written = b"".join(p.read_bytes() for p in [running.log, *output.rglob("*")] if p.is_file())
    assert TOKEN.encode() not in written + b"".join(seen)
    assert "put" in hub.stages()
    assert_arrived(hub, output)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_soak(hub: Hub, tmp_path: Path) -> None:
    """Files from another process, a third of all calls failing, the sidecar killed again and again."""
    output = tmp_path / "output"
    output.mkdir()
    for kind, chance in (({"status": 503}, 0.15), ({"reset": "before"}, 0.12), ({"reset": "after"}, 0.1)):
        hub.fail("any", times=None, chance=chance, **kind)
    code = (
        "import sys, time, random; from pathlib import Path; from uploads.harness import checkpoint, content, put\n"
        "for i in range(200):\n"
        "    size = int(1000 * 50_000 ** random.Random(i).random())\n"
        "    if i % 5 == 0: checkpoint(Path(sys.argv[1]), i, size=size)\n"
        "    else: put(Path(sys.argv[1], 'phase_1', 'files', f'{i:04d}.bin'), content(size, i))\n"
        "    time.sleep(0.25)\n"
    )
    paths = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    writer = subprocess.Popen([sys.executable, "-c", code, str(output)], env=paths)
    chance_of = random.Random(5)
    for _ in range(30):
        with uploader_process(hub, output, request_tries=3, tries_per_file=1000):
            time.sleep(chance_of.uniform(1, 5))
    assert writer.wait(120) == 0
    finish(output)
    with uploader_process(hub, output, request_tries=3, tries_per_file=1000) as running:
        assert running.wait(300) == 0
    assert len(files_of(output)) > 200
    assert_arrived(hub, output)

"""What can happen to the sidecar itself: killed at any moment, asked to stop, its state lost, its child dead."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import children
from uploads import harness as up
from uploads.hub_server import Hub, make_entry

from faults.test_uploads_server import FOR_EVER, fail_often
from seqtrack.uploads.state import is_verified

FIRST = "phase_1/checkpoints/SEQTRACK_ep0001.safetensors"


@up.BOTH_WAYS
@pytest.mark.parametrize("stage", ["uploading", "committed", "verified"])
def test_killed_at_a_stage_and_started_again(hub: Hub, output: Path, stage: str) -> None:
    """Nothing is lost, no commit is made twice, no stored object is sent again; the child goes with its parent."""
    if stage == "committed":
        hub.fail("paths-info", times=2)  # the questions before it, for files and for another run's marker
        hub.fail("paths-info", hang_s=60)
    elif stage == "uploading":
        hub.fail("commit", hang_s=60)
    with up.uploader_process(hub, output, read_timeout_s=60, deadline_s=60, min_commit_interval_s=0) as killed:
        up.until(lambda: "commit" in hub.stages() if stage != "verified" else up.status(output).get("verified", 0) >= 7)
        own = children(killed.pid)
        assert is_verified(output, FIRST, up.files_of(output)[FIRST]) == (stage == "verified")
        killed.kill()
        killed.wait(10)
        up.until(lambda: not any(Path(f"/proc/{child}").exists() for child in own), what="the child's end")
    assert own or stage == "verified"
    hub.clear()
    up.finish(output)
    assert up.watch(hub, output) == 0
    up.assert_arrived(hub, output)


def test_a_child_that_dies_or_outlives_its_deadline_is_replaced(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=FOR_EVER)
    hub.fail("batch", hang_s=FOR_EVER)
    with up.uploader_process(hub, output, "--once", read_timeout_s=60, deadline_s=2) as running:
        up.until(lambda: "preupload" in hub.stages())
        os.kill(children(running.pid)[0], signal.SIGKILL)  # as the kernel does when memory is out
        assert running.end() == 0
    up.assert_arrived(hub, output)


@up.LFS
def test_asked_to_stop_in_the_middle_of_a_put_finishes_it(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    up.checkpoint(output, 1, size=100_000)
    hub.fail("put", rate=60_000)
    with up.uploader_process(hub, output) as running:
        up.until(lambda: "put" in hub.stages())
        running.send_signal(signal.SIGTERM)
        assert running.end() == 0
    up.assert_arrived(hub, output)


def test_asked_to_stop_while_a_call_hangs_ends_within_the_grace(hub: Hub, output: Path) -> None:
    hub.fail("preupload", hang_s=FOR_EVER, times=None)
    with up.uploader_process(hub, output, read_timeout_s=600, deadline_s=600, grace_s=1) as running:
        up.until(lambda: "preupload" in hub.stages())
        running.send_signal(signal.SIGTERM)
        assert running.end() == 3


@pytest.mark.parametrize("batch_mb", [1024, 1e-6])
def test_asked_to_stop_with_files_left_sends_them_all_without_pauses(hub: Hub, output: Path, batch_mb: float) -> None:
    fake = up.FakeTime()
    fake.after(50, lambda: (up.checkpoint(output, 3), fake.stop.set()))
    assert up.watch(hub, output, time=fake, min_commit_interval_s=600, batch_mb=batch_mb) == 0
    assert hub.stages().count("commit") >= (2 if batch_mb > 1 else 6)
    up.assert_arrived(hub, output)


def test_asked_to_stop_in_a_back_off_tries_once_more_and_reports_what_is_left(hub: Hub, output: Path) -> None:
    hub.fail("preupload", status=503, times=None)
    fake, tried = up.FakeTime(), []

    def stop() -> None:
        assert up.status(output)["failures"] >= 1
        tried.append(hub.stages().count("preupload"))
        fake.stop.set()

    fake.after(20, stop)
    began = fake.now
    assert up.watch(hub, output, time=fake, backoff_s=600) == 3
    assert hub.stages().count("preupload") > tried[0]
    assert fake.now - began < 90
    assert (up.status(output)["state"], up.status(output)["queue"]) == ("stopped", 7)


@pytest.mark.parametrize("harm", ["deleted", "damaged", "another format", "another target"])
def test_a_status_file_that_is_lost_or_of_something_else_is_rebuilt_from_what_the_target_lists(
    hub: Hub, output: Path, harm: str
) -> None:
    variables = {"HF_REPO": "me/another"} if harm == "another target" else {}
    assert up.once(hub, output) == 0
    place, before = output / ".uploads" / "status.json", up.status(output)["files"]
    text = place.read_text()
    if harm == "deleted":
        place.unlink()
    elif not variables:
        place.write_text(text[:200] if harm == "damaged" else text.replace("seqtrack-uploads/", "other/"))
    assert up.once(hub, output, variables=variables) == 0
    assert up.status(output)["files"].keys() == before.keys()
    assert hub.tree(variables.get("HF_REPO", up.REPO)).keys() == hub.tree(up.REPO).keys()
    up.assert_arrived(hub, output, commits_each=None if variables else 1)


def lose(hub: Hub, what: str) -> None:
    if what == "repo":
        hub.repos.clear()
        hub.objects.clear()
    else:
        tree = dict(hub.tree(up.REPO))
        tree["phase_1/config.yaml"] = make_entry(b"by hand")
        if what == "file":
            del tree["phase_1/config.yaml"]
        hub.repos[up.REPO].commits.append(("1" * 40, (), {} if what == "all files" else tree))


@pytest.mark.parametrize(("hub", "rule"), [("lfs", up.once), ("xet", up.watch)], indirect=["hub"])
@pytest.mark.parametrize("loss", ["repo", "file", "bytes"])
def test_what_the_target_lost_is_found_and_uploaded_again(
    hub: Hub, output: Path, loss: str, rule: Callable[..., int]
) -> None:
    assert up.once(hub, output) == 0
    lose(hub, loss)
    up.finish(output)
    assert rule(hub, output) == 0
    up.assert_arrived(hub, output, commits_each=None)


@pytest.mark.parametrize("loss", ["repo", "all files"])
def test_what_is_lost_while_it_watches_is_found_before_it_ends(hub: Hub, output: Path, loss: str) -> None:
    fake = up.FakeTime()
    fake.after(50, lambda: lose(hub, loss))
    fake.after(60, lambda: up.finish(output))
    assert up.watch(hub, output, time=fake) == 0
    up.assert_arrived(hub, output, commits_each=None)


def test_what_is_lost_while_it_watches_is_found_with_the_next_checkpoint(hub: Hub, output: Path) -> None:
    fake = up.FakeTime()
    fake.after(50, lambda: (lose(hub, "file"), up.checkpoint(output, 3)))
    fake.after(100, lambda: (fake.stop.set(), seen.append(up.on_hub(hub).keys() == up.files_of(output).keys())))
    seen: list[bool] = []
    assert up.watch(hub, output, time=fake) == 0
    assert seen == [True], "before it was asked to stop"


def test_the_status_file_tells_retention_what_may_be_deleted(hub: Hub, output: Path) -> None:
    digest = up.files_of(output)[FIRST]
    assert not is_verified(output, FIRST, digest)
    assert up.once(hub, output) == 0
    assert is_verified(output, FIRST, digest)
    assert not is_verified(output, FIRST, "0" * 64)
    up.checkpoint(output, 3)
    fault, third, fake = hub.fail("commit", status=503, times=None), FIRST.replace("0001", "0003"), up.FakeTime()
    began = fake.now
    assert up.once(hub, output, time=fake) == 3
    assert 30 < fake.now - began < 200, "it is patient for two minutes at most"
    assert not is_verified(output, third, up.files_of(output)[third])
    hub.faults.remove(fault)
    (output / FIRST).unlink()
    (output / FIRST).with_suffix(".json").unlink()
    assert up.once(hub, output) == 0
    assert FIRST in up.on_hub(hub), "what is deleted here stays there"


@pytest.mark.parametrize(
    ("hub", "hours"), [("lfs", 4), pytest.param("xet", 24, marks=pytest.mark.long)], indirect=["hub"]
)
def test_hours_without_the_hub_with_a_wall_clock_that_jumps(hub: Hub, tmp_path: Path, hours: int) -> None:
    """One checkpoint per hour while the server is down; then it comes back."""
    output, fake, port = tmp_path / "output", up.FakeTime(), hub.port
    hub.stop()
    for epoch in range(1, hours + 1):
        fake.after(3600 * (epoch - 1), lambda epoch=epoch: up.checkpoint(output, epoch))
    for hour, skew in ((0.25 * hours, -900_000.0), (0.5 * hours, 5_000_000.0), (hours - 0.1, 0.0)):
        fake.after(3600 * hour, lambda skew=skew: setattr(fake, "skew", skew))
    fake.after(3600 * hours, lambda: (hub.start(port), up.finish(output)))
    back = fake.now + 3600 * hours
    # Small batches, so that the order of catching up can be seen.
    with up.uploader(hub, output, time=fake, batch_mb=0.06, poll_s=120, settle_s=240) as (at_work, runner):
        assert at_work.run() == 0
    tries = [moment for moment in runner.called_at if moment < back]
    assert len(tries) < hours * 60 * 60 / 100, "it does not hammer a server that is away"
    assert max(b - a for a, b in zip(runner.called_at, runner.called_at[1:], strict=False) if a < back) <= 800
    order = [path for _, changed, _ in hub.repos[up.REPO].commits for path in changed if path.endswith(".safetensors")]
    assert [int(path[-16:-12]) for path in order] == list(range(hours, 0, -1)), "newest first"
    up.assert_arrived(hub, output)


def test_the_token_is_nowhere_and_the_uploader_needs_no_torch(hub: Hub, output: Path, tmp_path: Path) -> None:
    """The token is not in a log, the status, the process list, or a request to the storage host. A hook refuses torch
    and numpy in the uploader and in its child."""
    hook = up.put(
        tmp_path / "hook" / "sitecustomize.py",
        b"import sys\nsys.modules.update(dict.fromkeys(('torch', 'numpy', 'torchvision')))\n",
    )
    variables = {"PYTHONPATH": f"{hook.parent}{os.pathsep}{up.ROOT}"}
    env = up.environ(hub, output, variables=variables)
    assert subprocess.run([sys.executable, "-c", "import numpy"], env=env, capture_output=True).returncode == 1
    hub.fail("put", status=500)
    hub.fail("commit", status=403, message=f"denied for {up.TOKEN}")
    hub.fail("preupload", status=401, message=f"bad {up.TOKEN}")
    up.finish(output)
    seen: set[bytes] = set()
    with up.uploader_process(hub, output, variables=variables) as running:
        while running.poll() is None:
            for place in Path("/proc").glob("[0-9]*/cmdline"):
                with contextlib.suppress(OSError):
                    seen.add(place.read_bytes())
            time.sleep(0.02)
        assert running.end() == 0
    assert any(b"seqtrack.uploads.child" in line for line in seen), "the child was seen"
    written = b"".join(p.read_bytes() for p in [running.log, *output.rglob("*")] if p.is_file())
    assert up.TOKEN.encode() not in written + b"".join(seen)
    assert {"put", "xorb"} & {*hub.stages()}
    up.assert_arrived(hub, output)


@up.LFS
def test_a_server_that_does_not_speak_xet_gets_its_files_over_lfs(hub: Hub, output: Path) -> None:
    with up.uploader_process(hub, output, "--once", variables={"HF_HUB_DISABLE_XET": ""}) as running:
        assert running.end() == 0
    up.assert_arrived(hub, output)


def test_without_a_target_it_ends_with_one_line(hub: Hub, output: Path) -> None:
    with up.uploader_process(hub, output, variables={"HF_REPO": ""}) as running:
        assert running.end() == 0
    assert running.said().count("\n") == 1
    assert "HF_REPO" in running.said()


def test_an_unreadable_file_is_named_and_holds_no_other_up(hub: Hub, output: Path) -> None:
    expected = up.files_of(output)
    up.put(output / "bad.txt", b"bad").chmod(0)
    env = up.environ(hub, output, settle_s=0.2, poll_s=0.1)
    # Root may read everything without these two; for others it changes nothing.
    words = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    words += [sys.executable, "-m", "seqtrack", "upload", "--once"]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert list(up.status(output)["problems"]) == ["bad.txt"]
    assert up.on_hub(hub) == expected


@up.LFS
@pytest.mark.parametrize(
    "size", [300_000_000, pytest.param(5_500_000_000, marks=pytest.mark.long)], ids=["some", "over 5 GB"]
)
def test_memory_stays_small_while_a_large_file_is_sent(hub: Hub, tmp_path: Path, size: int) -> None:
    hub.keep_bytes = False
    output = tmp_path / "output"
    big = up.put(output / "phase_1" / "big.bin", b"begin")
    os.truncate(big, size)  # sparse: it costs time, not disk
    slow = {"read_timeout_s": 60.0, "deadline_s": 300.0, "patience_s": 300.0}
    with up.uploader_process(hub, output, "--once", **slow) as running:
        peak = peak_memory(running)
        assert running.end() == 0
    assert hub.tree(up.REPO)["phase_1/big.bin"].size == size
    assert 30 < peak < 250, f"{peak:.0f} MB"


def peak_memory(running: up.UploaderProcess) -> float:
    """The most that it and its child have in memory until it ends, in MB."""
    peak = 0.0
    while running.poll() is None:
        peak = max(peak, sum(megabytes(one) for one in (running.pid, *children(running.pid))))
        time.sleep(0.02)
    return peak


def megabytes(pid: int) -> float:
    """Resident memory of a process; 0 if it ended."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    return 0.0


@up.BOTH_WAYS
@pytest.mark.long
@pytest.mark.timeout(600)
def test_soak(hub: Hub, tmp_path: Path) -> None:
    """Files come, a third of all calls fail, the sidecar is killed again and again, in the middle of any call."""
    output, chance_of = tmp_path / "output", random.Random(5)
    output.mkdir()
    fail_often(hub)
    for number in range(34):
        up.checkpoint(output, number, size=int(1000 * 50_000 ** chance_of.random()))
        for file in range(4):
            up.put(output / "phase_1" / "files" / f"{number}-{file}.bin", up.content(20_000, (number, file)))
        last, everything = len(hub.calls) + chance_of.randint(1, 30), len(up.files_of(output))

        def may_die(last: int = last, everything: int = everything) -> bool:
            return len(hub.calls) >= last or up.status(output).get("verified") == everything

        with up.uploader_process(hub, output, request_tries=3, tries_per_file=1000):
            up.until(may_die)
    up.finish(output)
    with up.uploader_process(hub, output, request_tries=3, tries_per_file=1000) as running:
        assert running.wait(300) == 0
    assert len(up.files_of(output)) > 200
    up.assert_arrived(hub, output)

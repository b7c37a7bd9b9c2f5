"""What files can do to an upload: grow, change, vanish, have unusual names; and what the disk can do."""

import ctypes
import hashlib
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from uploads.harness import (
    REPO,
    ROOT,
    assert_arrived,
    checkpoint,
    content,
    environ,
    files_of,
    finish,
    on_hub,
    once,
    put,
    status,
    until,
    uploader,
    uploader_process,
)
from uploads.hub_server import Hub

from seqtrack.uploads.backoff import Clock


def rounds(output: Path, count: int = 3) -> Callable[[], bool]:
    """A condition: the uploader has written its status file so often since now that it must have looked around."""
    seen: set[float] = set()

    def passed() -> bool:
        seen.add(status(output).get("time", 0.0))
        return len(seen) > count

    return passed


def test_a_file_written_slowly_in_pieces_is_sent_when_it_is_complete(hub: Hub, output: Path) -> None:
    path = output / "phase_1" / "report.md"
    with uploader(environ(hub, output, settle_s=0.7)) as running:
        until(lambda: len(on_hub(hub)) >= 7, what="the files that are complete")
        with path.open("wb") as file:
            for piece in range(20):
                file.write(content(500, piece))
                file.flush()
                until(lambda: status(output)["queue"] == 1, what="a look at the file")
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_a_checkpoint_is_nothing_before_its_manifest_and_goes_with_it(hub: Hub, output: Path) -> None:
    _, manifest = checkpoint(output, 3)
    kept = manifest.read_bytes()
    manifest.unlink()
    with uploader(environ(hub, output, heartbeat_s=0.1)) as running:
        until(lambda: len(on_hub(hub)) >= 7)
        until(rounds(output))
        assert "phase_1/checkpoints/SEQTRACK_ep0003.safetensors" not in on_hub(hub)
        put(manifest, kept)
        finish(output)
        assert running.wait() == 0
    commit = hub.commits_of("phase_1/checkpoints/SEQTRACK_ep0003.json")
    assert commit == hub.commits_of("phase_1/checkpoints/SEQTRACK_ep0003.safetensors")
    assert_arrived(hub, output)


def test_a_growing_log_goes_with_a_checkpoint_and_arrives_complete_at_the_end(hub: Hub, output: Path) -> None:
    name = "phase_1/logs/seqtrack-demo.log"
    log = put(output / name, b"line 0\n")

    def arrived() -> bool:
        with log.open("a") as file:
            file.write("line\n")
        return name in on_hub(hub)

    with uploader(environ(hub, output, settle_s=1)) as running:
        until(arrived, what="the log")
        assert "phase_1/checkpoints/SEQTRACK_ep0002.safetensors" in on_hub(hub)
        entry = hub.tree(REPO)[name]
        assert entry.data == log.read_bytes()[: entry.size]
        finish(output)
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


CHANGES: dict[str, Callable[[Path], object]] = {
    "append": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "truncate": lambda path: os.truncate(path, 1000),
    "overwrite": lambda path: path.write_bytes(content(200_000, "after")),
    "rename over": lambda path: put(path, content(100_000, "after")),
    "delete": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_sent(hub: Hub, output: Path, change: str) -> None:
    """The old bytes or the new ones arrive, never a mixture; in the end the current ones."""
    path = put(output / "phase_1" / "result.bin", content(200_000, "before"))
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    fault = hub.fail("batch", hang_s=600, match="")
    with uploader(environ(hub, output, read_timeout_s=60)) as running:
        until(lambda: fault.times == 0)
        CHANGES[change](path)
        hub.clear()
        finish(output)
        assert running.wait() == 0
    seen = {tree["phase_1/result.bin"].sha256 for _, _, tree in hub.repos[REPO].commits if "phase_1/result.bin" in tree}
    last = {hashlib.sha256(path.read_bytes()).hexdigest()} if path.exists() else set()
    assert last <= seen <= last | {before}
    assert hub.violations == []
    here, there = files_of(output), on_hub(hub)
    assert {**there, "phase_1/result.bin": ""} == {**here, "phase_1/result.bin": ""}


@pytest.mark.parametrize("moment", ["before", "during"])
def test_a_checkpoint_overwritten_in_place_is_never_sent(hub: Hub, output: Path, moment: str) -> None:
    path, _ = checkpoint(output, 3)
    name = "phase_1/checkpoints/SEQTRACK_ep0003.safetensors"

    def spoil() -> None:
        with path.open("r+b") as file:
            file.seek(-10, os.SEEK_END)
            file.write(b"0123456789")

    fault = hub.fail("batch", hang_s=600) if moment == "during" else None
    if fault is None:
        spoil()
    with uploader(environ(hub, output, read_timeout_s=60), once=True) as running:
        if fault is not None:
            until(lambda: fault.times == 0)
            spoil()
            hub.clear()
        assert running.wait() == 3
    assert list(status(output)["problems"]) == [name]
    assert {k: v for k, v in files_of(output).items() if "0003" not in k} == on_hub(hub)


def test_other_bytes_under_the_same_size_and_mtime_are_sent(hub: Hub, output: Path) -> None:
    env = environ(hub, output)
    path = put(output / "phase_1" / "notes.txt", b"first words")
    assert once(env) == 0
    before = path.stat()
    path.write_bytes(b"other words")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert once(env) == 0
    assert on_hub(hub) == files_of(output)


def test_what_is_not_for_the_target_stays_here(hub: Hub, output: Path) -> None:
    outside = put(output.parent / "private.txt", b"not for the world")
    (output / "phase_1" / "link.txt").symlink_to(outside)
    (output / "phase_1" / "linked").symlink_to(output.parent)
    expected = files_of(output)
    for name in ("a.tmp", "b.partial", ".hidden", ".cache/x", "superseded/old.txt", "checkpoints/left.safetensors"):
        put(output / "phase_1" / name, b"no")
    put(output / "phase_1" / "checkpoints" / "SEQTRACK_step00000012.safetensors", b"no")
    put(output / "phase_1" / "checkpoints" / "SEQTRACK_step00000012.json", b"{}")
    assert once(environ(hub, output)) == 0
    assert on_hub(hub) == expected


def test_zero_bytes_and_unusual_names_arrive(hub: Hub, output: Path) -> None:
    put(output / "phase_1" / "leer.txt", b"")
    put(output / "phase_1" / "mit Leerzeichen" / "größe 100% #1?.txt", b"umlauts")
    put(output / "phase_1" / "emoji \U0001f600 & + =.bin", content(3000, "emoji"))
    (output / "phase_1" / "inside.txt").symlink_to(output / "phase_1" / "config.yaml")
    assert once(environ(hub, output)) == 0
    assert hub.tree(REPO).pop("phase_1/inside.txt").sha256 == files_of(output)["phase_1/config.yaml"]
    assert_arrived(hub, output)


def limited(env: dict[str, str], limit: Callable[[], None]) -> "subprocess.CompletedProcess[str]":
    """One pass in a process that is limited before it starts."""
    command = [sys.executable, "-m", "seqtrack", "upload", "--once"]
    return subprocess.run(command, env=env, preexec_fn=limit, capture_output=True, text=True, timeout=120)


def test_an_unreadable_file_is_named_and_holds_no_other_up(hub: Hub, output: Path) -> None:
    expected = files_of(output)
    put(output / "bad.txt", b"bad").chmod(0)

    def drop_the_right_to_read_everything() -> None:
        """CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, out of what root gets at exec; for others it changes nothing."""
        for capability in (1, 2):
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP

    done = limited(environ(hub, output), drop_the_right_to_read_everything)
    assert done.returncode == 3, done.stderr
    assert list(status(output)["problems"]) == ["bad.txt"]
    assert on_hub(hub) == expected


def test_a_thousand_small_files_go_in_one_commit(hub: Hub, output: Path) -> None:
    for number in range(1000):
        put(output / "phase_1" / "boxes" / f"{number:04d}.txt", b"%d" % number)
    assert once(environ(hub, output)) == 0
    assert len(hub.repos[REPO].commits) == 2, "the repo's own first commit, and ours"
    assert_arrived(hub, output)


def test_one_pass_sends_one_commit_after_a_slow_first_walk(hub: Hub, output: Path) -> None:
    put(output / "phase_1" / "boxes" / "a.txt", b"1")
    walked = itertools.chain((0.0,), itertools.repeat(1000.0))
    assert once(environ(hub, output), clock=Clock(monotonic=lambda: time.monotonic() + next(walked))) == 0
    assert len(hub.repos[REPO].commits) == 2
    assert_arrived(hub, output)


def test_commits_keep_their_distance(hub: Hub, output: Path) -> None:
    with uploader(environ(hub, output, min_commit_interval_s=1)) as running:
        for epoch in range(3, 6):
            checkpoint(output, epoch)
            commits = hub.stages().count("commit")
            until(lambda commits=commits: hub.stages().count("commit") > commits, what="the next commit")
        finish(output)
        assert running.wait() == 0
    times = [call["time"] for call in hub.calls if call["stage"] == "commit"]
    assert len(times) >= 3
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 0.9
    assert_arrived(hub, output)


def test_no_space_for_copies_and_state_stops_no_checkpoint(hub: Hub, output: Path) -> None:
    """A limit on file size in place of the full disk: checkpoints need no copy, and the state can be done without."""
    put(output / "phase_1" / "large.txt", b"0123456789" * 30_000)
    checkpoint(output, 3, size=500_000)
    env = environ(hub, output, patience_s=3)
    done = limited(env, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000)))
    assert done.returncode == 3, done.stderr
    assert "phase_1/checkpoints/SEQTRACK_ep0003.safetensors" in on_hub(hub)
    assert "phase_1/large.txt" not in on_hub(hub)
    assert once(env) == 0
    assert_arrived(hub, output)


def test_a_folder_that_cannot_be_written_to_is_uploaded_all_the_same(hub: Hub, output: Path) -> None:
    put(output / ".uploads", b"in the way")
    with uploader_process(environ(hub, output, variables={"TMPDIR": str(output.parent)}), "--once") as running:
        assert running.wait() == 0
    assert_arrived(hub, output)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_volume_that_can_only_be_read_is_uploaded_all_the_same(hub: Hub, disk: Path, tmp_path: Path) -> None:
    output = disk / "output"
    checkpoint(output, 1)
    put(output / "phase_1" / "config.yaml", b"TRAIN: {}\n")
    env = environ(hub, output, variables={"TMPDIR": str(tmp_path), "HF_HOME": str(tmp_path / "hf")})
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with uploader_process(env, "--once", log=tmp_path / "log") as running:
        assert running.wait() == 0, running.said()
    assert_arrived(hub, output)


def test_a_disk_that_is_full_to_the_last_byte_stops_no_checkpoint(hub: Hub, disk: Path, tmp_path: Path) -> None:
    output = disk / "output"
    checkpoint(output, 1, size=500_000)
    put(output / "phase_1" / "config.yaml", b"TRAIN: {}\n")
    env = environ(hub, output, variables={"TMPDIR": str(disk), "HF_HOME": str(tmp_path / "hf")}, patience_s=3)
    state = os.statvfs(disk)
    (disk / "filler").write_bytes(bytes(state.f_bavail * state.f_bsize))
    with uploader_process(env, "--once", log=tmp_path / "log") as running:
        assert running.wait() in (0, 3), running.said()
    assert "phase_1/checkpoints/SEQTRACK_ep0001.safetensors" in on_hub(hub), running.said()
    (disk / "filler").unlink()
    assert once(env) == 0
    assert_arrived(hub, output)


def test_a_corrupt_manifest_is_named_and_not_sent(hub: Hub, output: Path) -> None:
    _, manifest = checkpoint(output, 3)
    put(manifest, b"{ not json")
    assert once(environ(hub, output)) == 3
    assert list(status(output)["problems"]) == ["phase_1/checkpoints/SEQTRACK_ep0003.json"]
    assert {k: v for k, v in files_of(output).items() if "0003" not in k} == on_hub(hub)


def test_a_lock_keeps_a_second_uploader_out(hub: Hub, output: Path) -> None:
    with uploader(environ(hub, output)) as first:
        until(lambda: status(output))
        second = limited(environ(hub, output, patience_s=0.5), lambda: None)
        assert (second.returncode, "upload.locked" in second.stderr) == (2, True)
        assert not first.has_ended


@pytest.mark.parametrize(
    "size", [300_000_000, pytest.param(5_500_000_000, marks=pytest.mark.long)], ids=["some", "over 5 GB"]
)
def test_memory_stays_small_while_a_large_file_is_sent(hub: Hub, tmp_path: Path, size: int) -> None:
    hub.keep_bytes = False
    output = tmp_path / "output"
    big = put(output / "phase_1" / "big.bin", b"begin")
    os.truncate(big, size)  # sparse: it costs time, not disk
    peak = 0.0
    with uploader_process(environ(hub, output, read_timeout_s=60, deadline_s=300, patience_s=300), "--once") as running:

        def ended() -> bool:
            nonlocal peak
            peak = max(peak, _megabytes(running.process.pid))
            return running.process.poll() is not None

        until(ended, 280)
        assert running.wait() == 0
    assert hub.tree(REPO)["phase_1/big.bin"].size == size
    assert 30 < peak < 250, f"{peak:.0f} MB"


def _megabytes(pid: int) -> float:
    """Resident memory of a process and its children, in MB."""
    total = 0
    for place in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in place.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if pid in (int(lines["Pid"]), int(lines["PPid"])):
            total += int(lines.get("VmRSS", "0 kB").split()[0])
    return total / 1000


def test_the_uploader_needs_no_torch_and_no_numpy(hub: Hub, output: Path, tmp_path: Path) -> None:
    """A hook refuses them in the uploader and in its child; the upload works all the same."""
    hook = put(
        tmp_path / "hook" / "sitecustomize.py",
        b"import sys\n"
        b"class Refuse:\n"
        b"    def find_spec(self, name, path=None, target=None):\n"
        b"        if name.split('.')[0] in ('torch', 'numpy', 'torchvision'):\n"
        b"            raise ImportError(name + ' is blocked')\n"
        b"sys.meta_path.insert(0, Refuse())\n",
    )
    env = environ(hub, output, variables={"PYTHONPATH": f"{hook.parent}{os.pathsep}{ROOT}"})
    blocked = subprocess.run([sys.executable, "-c", "import numpy"], env=env, capture_output=True, text=True)
    assert "is blocked" in blocked.stderr
    with uploader_process(env, "--once") as running:
        assert running.wait() == 0
    assert_arrived(hub, output)


def test_without_a_target_it_ends_with_one_line(hub: Hub, output: Path) -> None:
    with uploader_process(environ(hub, output, variables={"HF_REPO": ""})) as running:
        assert running.wait() == 0
    assert running.said().count("\n") == 1
    assert "HF_REPO" in running.said()


def test_it_waits_for_training_and_ends_when_the_last_run_is_complete(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    with uploader(environ(hub, output, heartbeat_s=0.1)) as running:
        until(rounds(output, 20))
        assert not running.has_ended, "training has not begun"
        checkpoint(output, 1)
        finish(output, state="running")
        until(lambda: len(on_hub(hub)) == 3)
        until(rounds(output, 20))
        assert not running.has_ended, "phase 1 is not complete"
        finish(output)
        assert running.wait() == 0
    assert status(output)["state"] == "done"
    assert_arrived(hub, output, commits_each=None)


def test_a_finished_phase_1_does_not_end_it_while_phase_2_is_starting(hub: Hub, output: Path) -> None:
    finish(output)
    with uploader(environ(hub, output, heartbeat_s=0.1, start_grace_s=4)) as running:
        until(lambda: status(output).get("queue") == 0 and len(on_hub(hub)) == len(files_of(output)))
        assert not running.has_ended, "phase 2 may be about to begin"
        finish(output, phase=2, state="running")
        checkpoint(output, 4, phase=2)
        until(rounds(output, 80))
        assert not running.has_ended, "phase 2 is not complete"
        finish(output, phase=2)
        put(output / "comparison" / "certificate.json", b"{}")
        assert running.wait() == 0
    assert_arrived(hub, output, commits_each=None)


def test_a_log_that_never_settles_is_sent_from_time_to_time_without_a_checkpoint(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    log = put(output / "phase_1" / "logs" / "train.log", b"line 0\n")

    def sent_twice() -> bool:
        with log.open("a") as file:
            file.write("line\n")
        return REPO in hub.repos and len(hub.commits_of("phase_1/logs/train.log")) >= 2

    with uploader(environ(hub, output, settle_s=60, log_interval_s=0.3)):
        until(sent_twice)


def test_small_files_that_would_fill_the_memory_come_in_several_commits(hub: Hub, tmp_path: Path) -> None:
    output = tmp_path / "output"
    hub.lfs_above = 1 << 40
    for number in range(4):
        put(output / f"{number}.txt", f"{number:01023d}\n".encode() * 12_000)
    assert once(environ(hub, output)) == 0
    assert len(hub.repos[REPO].commits) == 3, "two of 12 MB in each, after the repo's own"
    assert_arrived(hub, output)
